//! What ops do with views: elementwise ops, reductions, indexing.

use plugin_api::{Dim, Op, Value};

use super::view::{Atom, Slot, View, is_symbolic};
use super::{Result_, Writer};

/// How operands are brought together.
struct Aligned {
    /// The values, with the same axes in the same order.
    values: Vec<Value>,
    /// The old axes that these are.
    order: Vec<usize>,
    /// The old axes that remain stretched, and how far.
    stretched: Vec<(usize, Dim)>,
}

impl Aligned {
    /// The view of a value that was computed from the operands.
    fn view(&self, value: Value, rank: usize) -> View {
        let mut axes = vec![vec![]; rank];
        self.order.iter().enumerate().for_each(|(p, &i)| axes[i] = vec![Atom::Axis(p)]);
        self.stretched.iter().for_each(|(i, d)| axes[*i] = vec![Atom::Stretch(d.clone())]);
        View { value, axes }
    }
}

impl Writer<'_> {
    /// An op whose operands broadcast.
    pub(super) fn elementwise(&mut self, op: &Op, inputs: &[View]) -> Result_<View> {
        let rank = inputs.iter().map(|v| v.axes.len()).max().unwrap_or(0);
        let mut views: Vec<View> = inputs.iter().map(|v| v.padded(rank)).collect();
        let groups = match self.unlisted(&mut views, rank) {
            Some(groups) => groups,
            None => {
                views = views.iter().map(|v| self.flat(v)).collect::<Result_<_>>()?;
                vec![1; rank]
            }
        };
        let aligned = self.aligned(&views, None, true)?;
        let value = self.push(op.clone(), aligned.values.clone())?;
        let mut single = aligned.view(value, groups.iter().sum()).axes.into_iter();
        let axes = groups.iter().map(|&n| single.by_ref().take(n).flatten().collect()).collect();
        self.settle(View { value, axes })
    }

    /// Makes one axis of every atom, where the operands are cut alike. Gives how many became of each.
    fn unlisted(&self, views: &mut [View], rank: usize) -> Option<Vec<usize>> {
        let mut groups = vec![];
        let mut out: Vec<Vec<Vec<Atom>>> = vec![vec![]; views.len()];
        for i in 0..rank {
            let longest = views.iter().max_by_key(|v| v.axes[i].len())?;
            let dims: Vec<Dim> = longest.axes[i].iter().map(|a| self.atom_dim(longest, a)).collect();
            for (view, out) in views.iter().zip(&mut out) {
                match view.axes[i].as_slice() {
                    [] => out.extend(vec![vec![]; dims.len().max(1)]),
                    [Atom::Stretch(_)] if dims.len() > 1 => {
                        out.extend(dims.iter().map(|d| vec![Atom::Stretch(d.clone())]));
                    }
                    atoms if atoms.iter().map(|a| self.atom_dim(view, a)).eq(dims.iter().cloned()) => {
                        out.extend(atoms.iter().map(|a| vec![a.clone()]));
                    }
                    _ => return None,
                }
            }
            groups.push(dims.len().max(1));
        }
        views.iter_mut().zip(out).for_each(|(view, axes)| view.axes = axes);
        Some(groups)
    }

    /// An op whose operands must have the same dimensions, but along `axis`.
    pub(super) fn exact(&mut self, op: &Op, axis: Option<usize>, inputs: &[View]) -> Result_<View> {
        let views = inputs.iter().map(|v| self.flat(v)).collect::<Result_<Vec<View>>>()?;
        let aligned = self.aligned(&views, axis, false)?;
        let value = self.push(op.clone(), aligned.values.clone())?;
        let view = aligned.view(value, views[0].axes.len());
        self.settle(view)
    }

    pub(super) fn along(&mut self, op: &Op, axis: usize, inputs: &[View]) -> Result_<View> {
        let views = inputs.iter().map(|v| self.flat(v)).collect::<Result_<Vec<View>>>()?;
        let aligned = self.aligned(&views, Some(axis), false)?;
        let at = aligned.order.iter().position(|&i| i == axis).unwrap_or(0);
        let op = match op {
            Op::Gather { .. } => Op::Gather { axis: at },
            Op::Scatter { .. } => Op::Scatter { axis: at },
            Op::ScatterAdd { .. } => Op::ScatterAdd { axis: at },
            _ => Op::Concat { axis: at },
        };
        let value = self.push(op, aligned.values.clone())?;
        let view = aligned.view(value, views[0].axes.len());
        self.settle(view)
    }

    pub(super) fn concat(&mut self, axis: usize, inputs: &[View]) -> Result_<View> {
        if let [one] = inputs {
            return Ok(one.clone());
        }
        self.along(&Op::Concat { axis }, axis, inputs)
    }

    /// Operands of one rank, at most one atom an axis. `whole`: this axis is always written. With `broadcast`, what
    /// only some operands have is left to the op; else it is written for all.
    fn aligned(&mut self, views: &[View], whole: Option<usize>, broadcast: bool) -> Result_<Aligned> {
        let rank = views[0].axes.len();
        let has = |i: usize| views.iter().any(|v| v.alone(i).is_some());
        let written: Vec<usize> = (0..rank).filter(|&i| has(i) || whole == Some(i)).collect();
        let stretched: Vec<(usize, Dim)> = (0..rank)
            .filter(|i| !written.contains(i))
            .filter_map(|i| {
                let stretch = |v: &View| match v.axes[i].as_slice() {
                    [Atom::Stretch(d)] => Some(d.clone()),
                    _ => None,
                };
                Some((i, views.iter().find_map(stretch)?))
            })
            .collect();
        let order = self.order(views, &written);
        let slot = |v: &View, i: usize| match v.axes[i].as_slice() {
            [Atom::Axis(p)] => Slot::Axis(*p),
            [Atom::Stretch(d)] if !broadcast || whole == Some(i) => Slot::Stretch(d.clone()),
            _ => Slot::One,
        };
        let mut values = vec![];
        for view in views {
            let slots: Vec<Slot> = order.iter().map(|&i| slot(view, i)).collect();
            let from = if broadcast { slots.iter().take_while(|s| **s == Slot::One).count() } else { 0 };
            values.push(self.arranged(view.value, &slots[from..])?);
        }
        Ok(Aligned { values, order, stretched })
    }

    /// In which order the written axes come: that of the operand with the most of them; a symbolic one that it lacks
    /// before, others by their old place.
    fn order(&self, views: &[View], written: &[usize]) -> Vec<usize> {
        let count = |v: &View| (v.read().count(), self.symbolic(v.value));
        let mut base = &views[0];
        for v in &views[1..] {
            if count(v) > count(base) {
                base = v;
            }
        }
        let mut order: Vec<usize> = written.iter().copied().filter(|&i| base.alone(i).is_some()).collect();
        order.sort_by_key(|&i| base.alone(i));
        for &i in written.iter().filter(|&&i| base.alone(i).is_none()) {
            let symbolic = views.iter().any(|v| v.alone(i).is_some_and(|p| is_symbolic(&self.shape(v.value)[p])));
            let symbolic_before = |j: &usize| base.alone(*j).is_some_and(|p| is_symbolic(&self.shape(base.value)[p]));
            let place = match symbolic {
                true if !order.iter().any(symbolic_before) => 0,
                // Before the first later axis that comes after the tokens.
                _ => order.iter().position(|j| *j > i && (!symbolic_before(j) || symbolic)).unwrap_or(order.len()),
            };
            order.insert(place, i);
        }
        order
    }

    pub(super) fn slice(&mut self, view: &View, axis: usize, range: (&Dim, &Dim, usize)) -> Result_<View> {
        let (start, end, step) = range;
        let op = |axis| Op::Slice { axis, start: start.clone(), end: end.clone(), step };
        match view.axes[axis].as_slice() {
            [] if start.as_const() == Some(0) && end.is_one() => Ok(view.clone()),
            [Atom::Stretch(_)] if step == 1 => {
                let mut view = view.clone();
                let Ok(len) = end.sub(start) else { return self.as_written(&op(axis), &[view]) };
                view.axes[axis] = if len.is_one() { vec![] } else { vec![Atom::Stretch(len)] };
                Ok(view)
            }
            [Atom::Axis(p)] => {
                let value = self.push(op(*p), vec![view.value])?;
                self.settle(View { value, axes: view.axes.clone() })
            }
            _ => self.as_written(&op(axis), std::slice::from_ref(view)),
        }
    }

    pub(super) fn reduce(&mut self, view: &View, axis: usize, keep: bool, op: impl Fn(usize) -> Op) -> Result_<View> {
        let view = if view.axes[axis].len() > 1 { self.flat(view)? } else { view.clone() };
        let place = match view.axes[axis].as_slice() {
            [Atom::Axis(p)] => Some(*p),
            // One element is its own sum.
            [] if !matches!(op(0), Op::Argmax { .. }) => None,
            _ => {
                let value = self.full(&view)?;
                let value = self.push(op(axis), vec![value])?;
                let reduced = self.settled(value)?;
                return Ok(if keep { with_one(reduced, axis) } else { reduced });
            }
        };
        let mut out = view.clone();
        if let Some(p) = place {
            out.value = self.push(op(p), vec![view.value])?;
            out.axes[axis].clear();
            for atom in out.axes.iter_mut().flatten() {
                if let Atom::Axis(q) = atom
                    && *q > p
                {
                    *q -= 1;
                }
            }
        }
        if !keep {
            out.axes.remove(axis);
        }
        self.settle(out)
    }

    pub(super) fn cumsum(&mut self, view: &View, axis: usize) -> Result_<View> {
        match view.alone(axis) {
            Some(p) => {
                let value = self.push(Op::Cumsum { axis: p }, vec![view.value])?;
                Ok(View { value, axes: view.axes.clone() })
            }
            None => self.as_written(&Op::Cumsum { axis }, std::slice::from_ref(view)),
        }
    }

    /// The view with its last axis written, and last.
    pub(super) fn last_written(&mut self, view: &View) -> Result_<View> {
        let view = if view.axes.last().is_some_and(|a| a.len() > 1) { self.flat(view)? } else { view.clone() };
        let (Some(last), lead) = (view.axes.last(), &view.axes[..view.axes.len().saturating_sub(1)]) else {
            return Ok(view);
        };
        let mut places: Vec<usize> =
            lead.iter().flatten().filter_map(|a| if let Atom::Axis(p) = a { Some(*p) } else { None }).collect();
        places.sort_unstable();
        let slots: Vec<Slot> = places
            .iter()
            .map(|&p| Slot::Axis(p))
            .chain([match last.as_slice() {
                [Atom::Axis(p)] => Slot::Axis(*p),
                [Atom::Stretch(d)] => Slot::Stretch(d.clone()),
                _ => Slot::One,
            }])
            .collect();
        let value = self.arranged(view.value, &slots)?;
        let moved = |a: &Atom| match a {
            Atom::Axis(p) => Atom::Axis(places.binary_search(p).unwrap_or(0)),
            stretch => stretch.clone(),
        };
        let mut axes: Vec<Vec<Atom>> = lead.iter().map(|atoms| atoms.iter().map(moved).collect()).collect();
        axes.push(vec![Atom::Axis(places.len())]);
        Ok(View { value, axes })
    }

    /// Norms and the like: the op on the last axis, all other operands as they were.
    pub(super) fn by_last_axis(&mut self, op: &Op, inputs: &[View]) -> Result_<View> {
        let x = self.last_written(&inputs[0])?;
        let mut values = vec![x.value];
        for other in &inputs[1..] {
            values.push(self.full(other)?);
        }
        let value = self.push(op.clone(), values)?;
        self.settle(View { value, axes: x.axes })
    }

    pub(super) fn embedding(&mut self, inputs: &[View]) -> Result_<View> {
        let table = self.full(&inputs[1])?;
        self.looked_up(Op::Embedding, &inputs[0], |ids| vec![ids, table])
    }

    pub(super) fn take(&mut self, axis: usize, inputs: &[View]) -> Result_<View> {
        if axis == 0 && !self.symbolic(inputs[0].value) && self.symbolic(inputs[1].value) {
            let table = self.full(&inputs[0])?;
            return self.looked_up(Op::Take { axis: 0 }, &inputs[1], |ids| vec![table, ids]);
        }
        let (Some(p), false) = (inputs[0].alone(axis), self.symbolic(inputs[1].value)) else {
            return self.as_written(&Op::Take { axis }, inputs);
        };
        // Features are chosen by a fixed index: its axes take the place of the old one.
        let (x, index) = (&inputs[0], self.full(&inputs[1])?);
        let rank = self.shape(index).len();
        let value = self.push(Op::Take { axis: p }, vec![x.value, index])?;
        let moved = |a: &Atom| match a {
            Atom::Axis(q) if *q > p => Atom::Axis(q + rank - 1),
            other => other.clone(),
        };
        let mut axes: Vec<Vec<Atom>> = x.axes.iter().map(|atoms| atoms.iter().map(moved).collect()).collect();
        axes.splice(axis..=axis, (0..rank).map(|i| vec![Atom::Axis(p + i)]));
        self.settle(View { value, axes })
    }

    /// Rows of a table, for every id: the ids' axes come first, then the row's.
    fn looked_up(&mut self, op: Op, ids: &View, operands: impl FnOnce(Value) -> Vec<Value>) -> Result_<View> {
        let (own, ids_rank) = (ids.axes.clone(), self.shape(ids.value).len());
        let value = self.push(op, operands(ids.value))?;
        let mut axes = own;
        axes.extend((ids_rank..self.shape(value).len()).map(|p| vec![Atom::Axis(p)]));
        self.settle(View { value, axes })
    }

    pub(super) fn select_outputs(&mut self, view: &View) -> Result_<View> {
        let tokens_first = self.shape(view.value).first() == Some(&Dim::T()) && view.alone(0) == Some(0);
        if !tokens_first {
            return self.as_written(&Op::SelectOutputs, std::slice::from_ref(view));
        }
        let value = self.push(Op::SelectOutputs, vec![view.value])?;
        Ok(View { value, axes: view.axes.clone() })
    }
}

fn with_one(mut view: View, axis: usize) -> View {
    view.axes.insert(axis, vec![]);
    view
}
