//! Views: values of the old graph in terms of the new one, and the shape ops that make one from them.

use plugin_api::{Dim, Op, Value};

use super::{Result_, Writer};

/// A value of the old graph: `value` with its axes in another order, some split over several or stretched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub(super) value: Value,
    /// For every axis of the old value the atoms that it consists of, outermost first; none for size 1.
    pub(super) axes: Vec<Vec<Atom>>,
}

/// A part of an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Atom {
    /// An axis of the new value.
    Axis(usize),
    /// Every element repeated so often; the new value has no such axis.
    Stretch(Dim),
}

/// An axis of a value that is to be arranged.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Slot {
    Axis(usize),
    One,
    Stretch(Dim),
}

impl View {
    pub(super) fn permuted(&self, axes: &[usize]) -> View {
        View { value: self.value, axes: axes.iter().map(|&a| self.axes[a].clone()).collect() }
    }

    /// With axes of size 1 before the others, to this number.
    pub(super) fn padded(&self, rank: usize) -> View {
        let mut axes = vec![vec![]; rank.saturating_sub(self.axes.len())];
        axes.extend(self.axes.iter().cloned());
        View { value: self.value, axes }
    }

    /// The axis of the value that makes up axis i alone.
    pub(super) fn alone(&self, i: usize) -> Option<usize> {
        match self.axes[i].as_slice() {
            [Atom::Axis(p)] => Some(*p),
            _ => None,
        }
    }

    /// Axes of the value that are read, in the order of the old axes.
    pub(super) fn read(&self) -> impl Iterator<Item = usize> {
        self.axes.iter().flatten().filter_map(|a| if let Atom::Axis(p) = a { Some(*p) } else { None })
    }
}

fn slot(atom: &Atom) -> Slot {
    match atom {
        Atom::Axis(p) => Slot::Axis(*p),
        Atom::Stretch(d) => Slot::Stretch(d.clone()),
    }
}

pub(super) fn is_symbolic(d: &Dim) -> bool {
    d.as_const().is_none()
}

impl Writer<'_> {
    pub(super) fn atom_dim(&self, view: &View, atom: &Atom) -> Dim {
        match atom {
            Atom::Axis(p) => self.shape(view.value)[*p].clone(),
            Atom::Stretch(d) => d.clone(),
        }
    }

    /// The dimensions of the old value.
    pub(super) fn dims(&self, view: &View) -> Vec<Dim> {
        let size = |atoms: &Vec<Atom>| {
            let one = Dim::from(1usize);
            atoms.iter().fold(one, |n, a| n.mul(&self.atom_dim(view, a)).unwrap_or(n))
        };
        view.axes.iter().map(size).collect()
    }

    /// Whether the value depends on T or R by its shape.
    pub(super) fn symbolic(&self, v: Value) -> bool {
        self.shape(v).iter().any(is_symbolic)
    }

    /// A reshape that joins with one before it, or is none.
    pub(super) fn reshaped(&mut self, v: Value, shape: Vec<Dim>) -> Result_<Value> {
        let node = self.out.node(v);
        let v = if matches!(node.op, Op::Reshape { .. }) { node.inputs[0] } else { v };
        if self.shape(v) == shape { Ok(v) } else { self.push(Op::Reshape { shape }, vec![v]) }
    }

    pub(super) fn permuted(&mut self, v: Value, axes: Vec<usize>) -> Result_<Value> {
        if axes.iter().enumerate().all(|(i, &a)| i == a) {
            return Ok(v);
        }
        let node = self.out.node(v);
        if let Op::Permute { axes: first } = &node.op {
            let (x, axes) = (node.inputs[0], axes.iter().map(|&a| first[a]).collect());
            return self.permuted(x, axes);
        }
        self.push(Op::Permute { axes }, vec![v])
    }

    /// The value with axes as the slots say. Axes that no slot names have size 1.
    pub(super) fn arranged(&mut self, v: Value, slots: &[Slot]) -> Result_<Value> {
        let dims = self.shape(v).to_vec();
        let order: Vec<usize> =
            slots.iter().filter_map(|s| if let Slot::Axis(p) = s { Some(*p) } else { None }).collect();
        let mut ascending = order.clone();
        ascending.sort_unstable();
        let mut x = v;
        if order != ascending {
            x = self.reshaped(x, ascending.iter().map(|&p| dims[p].clone()).collect())?;
            let place = |p: &usize| ascending.binary_search(p).unwrap_or(0);
            x = self.permuted(x, order.iter().map(place).collect())?;
        }
        let one = Dim::from(1usize);
        let with = |stretch: bool| -> Vec<Dim> {
            let dim = |s: &Slot| match s {
                Slot::Axis(p) => dims[*p].clone(),
                Slot::Stretch(d) if stretch => d.clone(),
                _ => one.clone(),
            };
            slots.iter().map(dim).collect()
        };
        let (narrow, wide) = (with(false), with(true));
        x = self.reshaped(x, narrow.clone())?;
        if narrow == wide { Ok(x) } else { self.push(Op::Broadcast { shape: wide }, vec![x]) }
    }

    /// The value exactly as the old graph has it.
    pub(super) fn full(&mut self, view: &View) -> Result_<Value> {
        let slots: Vec<Slot> = view
            .axes
            .iter()
            .flat_map(|atoms| if atoms.is_empty() { vec![Slot::One] } else { atoms.iter().map(slot).collect() })
            .collect();
        let dims = self.dims(view);
        let x = self.arranged(view.value, &slots)?;
        self.reshaped(x, dims)
    }

    /// The same with at most one atom for each axis.
    pub(super) fn flat(&mut self, view: &View) -> Result_<View> {
        if view.axes.iter().all(|a| a.len() <= 1) {
            return Ok(view.clone());
        }
        let mut view = view.clone();
        for i in 0..view.axes.len() {
            // Of stretched atoms only, one is made.
            if view.axes[i].len() > 1 && view.axes[i].iter().all(|a| matches!(a, Atom::Stretch(_))) {
                view.axes[i] = vec![Atom::Stretch(self.dims(&view)[i].clone())];
            }
        }
        let lists: Vec<Vec<Atom>> = view.axes.iter().filter(|a| a.len() > 1).cloned().collect();
        self.joined(&view, &lists)
    }

    /// Writes the value with each of these lists of atoms as one axis.
    fn joined(&mut self, view: &View, lists: &[Vec<Atom>]) -> Result_<View> {
        let dims = self.shape(view.value).to_vec();
        let mut blocks: Vec<(usize, Vec<Atom>)> = vec![];
        for list in lists {
            let first = list.iter().filter_map(|a| if let Atom::Axis(p) = a { Some(*p) } else { None }).min();
            // What holds a symbolic dimension comes first, as everywhere.
            let symbolic = list.iter().any(|a| is_symbolic(&self.atom_dim(view, a)));
            blocks.push((if symbolic { 0 } else { first.map_or(usize::MAX, |p| p + 1) }, list.clone()));
        }
        let read: Vec<usize> = view.read().collect();
        let inside = |p: usize| lists.iter().any(|l| l.contains(&Atom::Axis(p)));
        for p in (0..dims.len()).filter(|p| read.contains(p) && !inside(*p)) {
            blocks.push((p + 1, vec![Atom::Axis(p)]));
        }
        blocks.sort_by_key(|(place, _)| *place);
        let blocks: Vec<Vec<Atom>> = blocks.into_iter().map(|(_, list)| list).collect();
        let slots: Vec<Slot> = blocks.iter().flatten().map(slot).collect();
        let size =
            |list: &Vec<Atom>| list.iter().fold(Dim::from(1usize), |n, a| n.mul(&self.atom_dim(view, a)).unwrap_or(n));
        let shape: Vec<Dim> = blocks.iter().map(size).collect();
        let x = self.arranged(view.value, &slots)?;
        let value = self.reshaped(x, shape)?;
        let place = |list: &[Atom]| Atom::Axis(blocks.iter().position(|b| b == list).unwrap_or(0));
        let axes = view.axes.iter().map(|atoms| {
            if lists.contains(atoms) {
                return vec![place(atoms)];
            }
            let moved = |a: &Atom| if matches!(a, Atom::Axis(_)) { place(std::slice::from_ref(a)) } else { a.clone() };
            atoms.iter().map(moved).collect()
        });
        Ok(View { value, axes: axes.collect() })
    }

    /// A value that was just computed, seen as it is: axes of size 1 go, and a single symbolic dimension comes first.
    pub(super) fn settled(&mut self, value: Value) -> Result_<View> {
        let axes = (0..self.shape(value).len()).map(|p| vec![Atom::Axis(p)]).collect();
        self.settle(View { value, axes })
    }

    pub(super) fn settle(&mut self, mut view: View) -> Result_<View> {
        let dims = self.shape(view.value).to_vec();
        for atoms in &mut view.axes {
            atoms.retain(|a| !matches!(a, Atom::Axis(p) if dims[*p].is_one()));
        }
        if !self.symbolic(view.value) {
            return Ok(view);
        }
        let mut order: Vec<usize> = (0..dims.len()).filter(|&p| !dims[p].is_one()).collect();
        if order.iter().filter(|&&p| is_symbolic(&dims[p])).count() == 1 {
            order.sort_by_key(|&p| (!is_symbolic(&dims[p]), p));
        }
        let slots: Vec<Slot> = order.iter().map(|&p| Slot::Axis(p)).collect();
        let value = self.arranged(view.value, &slots)?;
        for atom in view.axes.iter_mut().flatten() {
            if let Atom::Axis(p) = atom {
                *p = order.iter().position(|o| o == p).unwrap_or(0);
            }
        }
        Ok(View { value, axes: view.axes })
    }

    pub(super) fn broadcast(&self, view: &View, shape: &[Dim]) -> View {
        let mut view = view.padded(shape.len());
        for (atoms, d) in view.axes.iter_mut().zip(shape) {
            if atoms.is_empty() && !d.is_one() {
                atoms.push(Atom::Stretch(d.clone()));
            }
        }
        view
    }

    pub(super) fn reshape(&mut self, view: &View, shape: &[Dim]) -> Result_<View> {
        match regrouped(self, view, shape) {
            Some(parts) => self.regroup(view, parts),
            None => self.as_written(&Op::Reshape { shape: shape.to_vec() }, std::slice::from_ref(view)),
        }
    }

    /// Splits axes of the value, and joins what belongs to one new axis where that is no symbolic dimension.
    fn regroup(&mut self, view: &View, new: Vec<Vec<Part>>) -> Result_<View> {
        let dims = self.shape(view.value).to_vec();
        // Sizes into which each axis of the value is split, in the order of the old axes, which is that of the elements.
        let mut sizes: Vec<Vec<Dim>> = vec![vec![]; dims.len()];
        let mut parts: Vec<Vec<(usize, usize, Dim)>> = vec![];
        const STRETCH: usize = usize::MAX;
        for part in new {
            let mut list = vec![];
            for Part { atom, dim } in part {
                match atom {
                    Atom::Axis(p) => {
                        sizes[p].push(dim.clone());
                        list.push((p, sizes[p].len() - 1, dim));
                    }
                    Atom::Stretch(_) => list.push((STRETCH, 0, dim)),
                }
            }
            parts.push(list);
        }
        let starts: Vec<usize> = sizes
            .iter()
            .scan(0, |next, s| {
                let start = *next;
                *next += s.len().max(1);
                Some(start)
            })
            .collect();
        let split: Vec<Dim> =
            sizes.iter().zip(&dims).flat_map(|(s, d)| if s.is_empty() { vec![d.clone()] } else { s.clone() }).collect();
        let value = self.reshaped(view.value, split)?;
        let atom = |(p, k, d): &(usize, usize, Dim)| match *p {
            STRETCH => Atom::Stretch(d.clone()),
            p => Atom::Axis(starts[p] + k),
        };
        let axes: Vec<Vec<Atom>> = parts.iter().map(|list| list.iter().map(atom).collect()).collect();
        let view = View { value, axes };
        let joins = |atoms: &Vec<Atom>| {
            let whole = |a: &Atom| matches!(a, Atom::Axis(_)) && !is_symbolic(&self.atom_dim(&view, a));
            atoms.len() > 1 && atoms.iter().all(whole)
        };
        let lists: Vec<Vec<Atom>> = view.axes.iter().filter(|a| joins(a)).cloned().collect();
        if lists.is_empty() {
            return self.settle(view);
        }
        let view = self.joined(&view, &lists)?;
        self.settle(view)
    }
}

/// A piece of a new axis: (part of) an atom.
struct Part {
    atom: Atom,
    dim: Dim,
}

/// The new axes in pieces of the old ones, if they are cut at compatible places.
fn regrouped(w: &Writer<'_>, view: &View, shape: &[Dim]) -> Option<Vec<Vec<Part>>> {
    let mut atoms: std::collections::VecDeque<Part> =
        view.axes.iter().flatten().map(|a| Part { atom: a.clone(), dim: w.atom_dim(view, a) }).collect();
    if shape.iter().chain(atoms.iter().map(|p| &p.dim)).any(|d| d.as_const() == Some(0)) {
        return None;
    }
    let mut out = vec![];
    for wanted in shape {
        let mut have = Dim::from(1usize);
        let mut parts = vec![];
        while have != *wanted {
            let next = atoms.pop_front()?;
            let grown = have.mul(&next.dim).ok()?;
            if wanted.quotient(&grown).is_some() {
                have = grown;
                parts.push(next);
                continue;
            }
            // Only a piece of this atom: what is missing to the wanted size.
            let missing = wanted.quotient(&have)?;
            let rest = next.dim.quotient(&missing)?;
            atoms.push_front(Part { atom: next.atom.clone(), dim: rest });
            parts.push(Part { atom: next.atom, dim: missing });
            have = wanted.clone();
        }
        out.push(parts);
    }
    atoms.is_empty().then_some(out)
}
