//! Primitives that compute a row from a row: reductions and choices along an axis, and the moving of elements. Without
//! allocation in a step, and with the reference executor's own rules, so that results agree bit for bit.

use plugin_api::Op;

use super::arena::{Arena, Data};
use super::plan::{Operand, View};
use super::statics::StaticData;
use crate::exec::ExecError;
use crate::exec::reference::lanes::order;
use crate::graph::elementwise::{max, min};

/// Most elements that are sorted by choosing the largest again and again.
const MAX_CHOSEN: usize = 64;

/// A call made ready.
#[derive(Debug)]
pub(in crate::exec) enum Kernel {
    /// Along one axis: `outer` times `inner` lanes of `n` elements.
    Lanes { op: Lane, outer: usize, n: usize, inner: usize, out_n: usize },
    /// Copies, in the order of the output's columns.
    Move(Vec<Piece>),
}

/// What is computed along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) enum Lane {
    Sum,
    Max,
    Min,
    Cumsum,
    Argmax,
    TopK,
    Gather,
    Scatter,
    ScatterAdd,
}

/// Columns of an operand that are columns of the output: `len` from `at` on, or that one again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) struct Piece {
    pub(in crate::exec) operand: u32,
    pub(in crate::exec) at: u32,
    pub(in crate::exec) len: u32,
    pub(in crate::exec) moves: bool,
}

/// Whether [`Kernel`] computes the op for operands of these dimensions beside the rows; others go to the reference
/// executor.
pub(in crate::exec) fn is_native(op: &Op, inputs: &[Operand], out: &View) -> bool {
    let views = inputs.iter().all(|o| matches!(o, Operand::View(..)));
    let floats = |i: usize| elem(&inputs[i]).is_some_and(|e| e == super::Elem::F32);
    match op {
        Op::Sum { .. } | Op::ReduceMax { .. } | Op::ReduceMin { .. } | Op::Cumsum { .. } | Op::Argmax { .. } => {
            views && axis_of(op).is_some_and(|axis| dims(&inputs[0])[axis] > 0)
        }
        Op::TopK { k } => views && floats(0) && *k <= MAX_CHOSEN,
        Op::Gather { .. } | Op::Scatter { .. } => views,
        Op::ScatterAdd { .. } => views && floats(0),
        Op::Reshape { .. } | Op::Permute { .. } | Op::Slice { .. } => views,
        Op::Broadcast { .. } | Op::Concat { .. } => inputs.iter().all(|o| elem(o) == Some(out.elem)),
        _ => false,
    }
}

/// The axis among the dimensions beside the rows.
fn axis_of(op: &Op) -> Option<usize> {
    match op {
        Op::Sum { axis, .. }
        | Op::ReduceMax { axis, .. }
        | Op::ReduceMin { axis, .. }
        | Op::Argmax { axis, .. }
        | Op::Cumsum { axis }
        | Op::Gather { axis }
        | Op::Scatter { axis }
        | Op::ScatterAdd { axis } => axis.checked_sub(1),
        _ => None,
    }
}

/// The element type, if the operand says it by itself.
fn elem(o: &Operand) -> Option<super::Elem> {
    match o {
        Operand::View(v, _) => Some(v.elem),
        Operand::Static(..) => Some(super::Elem::F32),
    }
}

fn dims(o: &Operand) -> &[usize] {
    match o {
        Operand::View(_, d) | Operand::Static(_, d) => d,
    }
}

impl Kernel {
    /// For output rows of these dimensions.
    pub(in crate::exec) fn new(op: &Op, inputs: &[Operand], out_dims: &[usize]) -> Result<Kernel, ExecError> {
        let lanes = |lane: Lane, axis: usize| {
            let (d, o) = (dims(&inputs[0]), out_dims.get(axis).copied().unwrap_or(1));
            let (outer, inner) = (d[..axis].iter().product(), d[axis + 1..].iter().product());
            let out_n = match lane {
                Lane::Sum | Lane::Max | Lane::Min | Lane::Argmax => 1,
                _ => o,
            };
            Kernel::Lanes { op: lane, outer, n: d[axis], inner, out_n }
        };
        let unknown = || ExecError::Failed(format!("the plan has no kernel for {op}"));
        let axis = axis_of(op).or(matches!(op, Op::TopK { .. }).then(|| dims(&inputs[0]).len() - 1));
        let lane = match op {
            Op::Sum { .. } => Lane::Sum,
            Op::ReduceMax { .. } => Lane::Max,
            Op::ReduceMin { .. } => Lane::Min,
            Op::Cumsum { .. } => Lane::Cumsum,
            Op::Argmax { .. } => Lane::Argmax,
            Op::TopK { .. } => Lane::TopK,
            Op::Gather { .. } => {
                // The lanes are the index's; x has as many of another length.
                let axis = axis.ok_or_else(unknown)?;
                return Ok(lanes(Lane::Gather, axis));
            }
            Op::Scatter { .. } => Lane::Scatter,
            Op::ScatterAdd { .. } => Lane::ScatterAdd,
            _ => return Ok(Kernel::Move(pieces(op, inputs, out_dims).ok_or_else(unknown)?)),
        };
        let kernel = lanes(lane, axis.ok_or_else(unknown)?);
        Ok(match (kernel, lane) {
            // What is written is as large as the index.
            (Kernel::Lanes { op, outer, n, inner, .. }, Lane::Scatter | Lane::ScatterAdd) => {
                Kernel::Lanes { op, outer, n, inner, out_n: dims(&inputs[1])[axis.unwrap_or(0)] }
            }
            (kernel, _) => kernel,
        })
    }

    /// Computes all rows of `out`.
    pub(super) fn run(
        &self,
        inputs: &[Operand],
        out: &View,
        arena: &mut Arena,
        statics: &[StaticData],
    ) -> Result<(), ExecError> {
        arena.with_out(out, |arena, data| {
            for r in 0..arena.rows(out) {
                let at = out.offset + r * out.stride;
                let read = Read { inputs, arena, statics, r };
                match data {
                    Data::F32(out_data) => self.row_f32(&read, &mut out_data[at..][..out.cols])?,
                    Data::I64(out_data) => self.row_i64(&read, &mut out_data[at..][..out.cols])?,
                    Data::Bool(out_data) => self.row_bool(&read, &mut out_data[at..][..out.cols])?,
                }
            }
            Ok(())
        })
    }

    fn row_f32(&self, read: &Read<'_>, out: &mut [f32]) -> Result<(), ExecError> {
        let Kernel::Lanes { op, .. } = self else { return self.copy(out, |i| read.f32(i)) };
        let x = read.f32(0)?;
        match op {
            Lane::Sum => self.fold(x, out, 0.0f64, |sum, v| sum + f64::from(v), |sum| sum as f32),
            Lane::Max => self.fold(x, out, None, |m, v| Some(m.map_or(v, |m| max(m, v))), |m| m.unwrap_or(0.0)),
            Lane::Min => self.fold(x, out, None, |m, v| Some(m.map_or(v, |m| min(m, v))), |m| m.unwrap_or(0.0)),
            Lane::Cumsum => self.scan(x, out, 0.0f64, |sum, v| sum + f64::from(v), |sum| sum as f32),
            Lane::Gather => return self.gather(x, read.i64(1)?, out),
            Lane::Scatter => return self.scatter(x, read.i64(1)?, read.f32(2)?, out, |_, new| new),
            Lane::ScatterAdd => return self.scatter(x, read.i64(1)?, read.f32(2)?, out, |old, new| old + new),
            Lane::Argmax | Lane::TopK => return Err(mismatch()),
        }
        Ok(())
    }

    fn row_i64(&self, read: &Read<'_>, out: &mut [i64]) -> Result<(), ExecError> {
        let Kernel::Lanes { op, outer, n, inner, out_n } = *self else { return self.copy(out, |i| read.i64(i)) };
        if op == Lane::TopK || (op == Lane::Argmax && read.f32(0).is_ok()) {
            let x = read.f32(0)?;
            for o in 0..outer {
                for i in 0..inner {
                    let lane = |j: usize| x[(o * n + j) * inner + i];
                    let mut last = None;
                    for k in 0..out_n {
                        let next = largest_after(n, lane, last);
                        out[(o * out_n + k) * inner + i] = next as i64;
                        last = Some(next);
                    }
                }
            }
            return Ok(());
        }
        let x = read.i64(0)?;
        match op {
            Lane::Sum => self.fold(x, out, 0i64, i64::wrapping_add, |sum| sum),
            Lane::Max => self.fold(x, out, i64::MIN, i64::max, |m| m),
            Lane::Min => self.fold(x, out, i64::MAX, i64::min, |m| m),
            Lane::Cumsum => self.scan(x, out, 0i64, i64::wrapping_add, |sum| sum),
            Lane::Argmax => {
                for (place, y) in out.iter_mut().enumerate() {
                    let (o, i) = (place / inner, place % inner);
                    let lane = |j: usize| x[(o * n + j) * inner + i];
                    *y = (1..n).fold(0, |best, j| if lane(j) > lane(best) { j } else { best }) as i64;
                }
            }
            Lane::Gather => return self.gather(x, read.i64(1)?, out),
            Lane::Scatter => return self.scatter(x, read.i64(1)?, read.i64(2)?, out, |_, new| new),
            Lane::ScatterAdd | Lane::TopK => return Err(mismatch()),
        }
        Ok(())
    }

    fn row_bool(&self, read: &Read<'_>, out: &mut [bool]) -> Result<(), ExecError> {
        match self {
            Kernel::Move(_) => self.copy(out, |i| read.bool(i)),
            Kernel::Lanes { op: Lane::Gather, .. } => self.gather(read.bool(0)?, read.i64(1)?, out),
            Kernel::Lanes { op: Lane::Scatter, .. } => {
                self.scatter(read.bool(0)?, read.i64(1)?, read.bool(2)?, out, |_, new| new)
            }
            Kernel::Lanes { .. } => Err(mismatch()),
        }
    }

    /// One number for each lane.
    fn fold<E: Copy, S: Copy>(&self, x: &[E], out: &mut [E], zero: S, f: impl Fn(S, E) -> S, end: impl Fn(S) -> E) {
        let Kernel::Lanes { n, inner, .. } = *self else { return };
        for (place, y) in out.iter_mut().enumerate() {
            let (o, i) = (place / inner, place % inner);
            *y = end((0..n).fold(zero, |sum, j| f(sum, x[(o * n + j) * inner + i])));
        }
    }

    /// A running number along each lane.
    fn scan<E: Copy, S: Copy>(&self, x: &[E], out: &mut [E], zero: S, f: impl Fn(S, E) -> S, end: impl Fn(S) -> E) {
        let Kernel::Lanes { outer, n, inner, .. } = *self else { return };
        for o in 0..outer {
            for i in 0..inner {
                let mut sum = zero;
                for j in 0..n {
                    let at = (o * n + j) * inner + i;
                    sum = f(sum, x[at]);
                    out[at] = end(sum);
                }
            }
        }
    }

    fn gather<E: Copy>(&self, x: &[E], index: &[i64], out: &mut [E]) -> Result<(), ExecError> {
        let Kernel::Lanes { n, inner, out_n, .. } = *self else { return Err(mismatch()) };
        for (place, (y, &index)) in out.iter_mut().zip(index).enumerate() {
            let (o, i) = (place / (out_n * inner), place % inner);
            *y = x[(o * n + within(index, n)?) * inner + i];
        }
        Ok(())
    }

    /// `out_n` values of each lane are written.
    fn scatter<E: Copy>(
        &self,
        x: &[E],
        index: &[i64],
        values: &[E],
        out: &mut [E],
        write: impl Fn(E, E) -> E,
    ) -> Result<(), ExecError> {
        let Kernel::Lanes { n, inner, out_n, .. } = *self else { return Err(mismatch()) };
        out.copy_from_slice(x);
        for (place, (&value, &index)) in values.iter().zip(index).enumerate() {
            let (o, i) = (place / (out_n * inner), place % inner);
            let target = &mut out[(o * n + within(index, n)?) * inner + i];
            *target = write(*target, value);
        }
        Ok(())
    }

    fn copy<'a, E: Copy + 'a>(
        &self,
        mut out: &mut [E],
        operand: impl Fn(usize) -> Result<&'a [E], ExecError>,
    ) -> Result<(), ExecError> {
        let Kernel::Move(pieces) = self else { return Err(mismatch()) };
        for piece in pieces {
            let (now, rest) = out.split_at_mut(piece.len as usize);
            out = rest;
            let from = &operand(piece.operand as usize)?[piece.at as usize..];
            if piece.moves { now.copy_from_slice(&from[..now.len()]) } else { now.fill(from[0]) }
        }
        Ok(())
    }
}

/// The index of the largest of `n` elements after `last` in descending order, ties by index.
fn largest_after(n: usize, x: impl Fn(usize) -> f32, last: Option<usize>) -> usize {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let comes = |j: usize| match last {
        None => true,
        Some(last) => match order(&x(j), &x(last)) {
            Less => true,
            Equal => j > last,
            Greater => false,
        },
    };
    let better = |best: Option<usize>, j: usize| match best {
        Some(b) if order(&x(j), &x(b)) != Greater => Some(b),
        _ => Some(j),
    };
    (0..n).filter(|&j| comes(j)).fold(None, better).unwrap_or(0)
}

fn within(index: i64, n: usize) -> Result<usize, ExecError> {
    match usize::try_from(index) {
        Ok(i) if i < n => Ok(i),
        _ => Err(ExecError::Failed(format!("index {index} is out of range, the axis has {n} elements"))),
    }
}

fn mismatch() -> ExecError {
    ExecError::Failed("a call on rows has operands of the wrong type".into())
}

/// Where every column of the output comes from, as few pieces.
fn pieces(op: &Op, inputs: &[Operand], out: &[usize]) -> Option<Vec<Piece>> {
    let mut pieces: Vec<Piece> = vec![];
    let columns: usize = out.iter().product();
    u32::try_from(columns).ok()?;
    // Strides of the first operand, by its dimensions.
    let own = row_dims(&inputs[0], out.len());
    let strides = |d: &[usize]| -> Vec<usize> { (0..d.len()).map(|i| d[i + 1..].iter().product()).collect() };
    let by_axis = strides(&own);
    // For each dimension of the output: its first place in the operand, and the step of one.
    let (mut base, mut steps) = (0, vec![0usize; out.len()]);
    match op {
        Op::Reshape { .. } => return Some(vec![Piece { operand: 0, at: 0, len: columns as u32, moves: true }]),
        Op::Permute { axes } => {
            axes.iter().skip(1).enumerate().for_each(|(i, &axis)| steps[i] = by_axis[axis - 1]);
        }
        Op::Slice { axis, start, step, .. } => {
            let axis = axis.checked_sub(1)?;
            base = usize::try_from(start.as_const()?).ok()? * by_axis[axis];
            steps.clone_from(&by_axis);
            steps[axis] *= step;
        }
        Op::Broadcast { .. } => {
            let missing = out.len().checked_sub(own.len())?;
            for (i, &size) in own.iter().enumerate() {
                steps[missing + i] = if size == 1 { 0 } else { by_axis[i] };
            }
        }
        Op::Concat { axis } => {
            let axis = axis.checked_sub(1)?;
            let inner = |o: &Operand| -> usize { row_dims(o, out.len())[axis..].iter().product() };
            for o in 0..out[..axis].iter().product::<usize>() {
                for (k, operand) in inputs.iter().enumerate() {
                    let len = inner(operand);
                    if len > 0 {
                        pieces.push(Piece { operand: k as u32, at: (o * len) as u32, len: len as u32, moves: true });
                    }
                }
            }
            return Some(pieces);
        }
        _ => return None,
    }
    let out_strides = strides(out);
    for column in 0..columns {
        let at: usize = (0..out.len()).map(|i| column / out_strides[i] % out[i] * steps[i]).sum::<usize>() + base;
        let at = u32::try_from(at).ok()?;
        let grown = pieces.last_mut().is_some_and(|p| {
            let moves = at != p.at;
            let fits = (p.len == 1 || moves == p.moves) && at == p.at + if moves { p.len } else { 0 };
            if fits {
                p.moves = moves;
                p.len += 1;
            }
            fits
        });
        if !grown {
            pieces.push(Piece { operand: 0, at, len: 1, moves: true });
        }
    }
    Some(pieces)
}

/// Dimensions beside the rows; a static of full rank has a leading 1 in the place of the rows.
fn row_dims(o: &Operand, rank: usize) -> Vec<usize> {
    match o {
        Operand::Static(_, d) if d.len() > rank => d[1..].to_vec(),
        other => dims(other).to_vec(),
    }
}

/// The rows `r` of the operands.
struct Read<'a> {
    inputs: &'a [Operand],
    arena: &'a Arena,
    statics: &'a [StaticData],
    r: usize,
}

impl<'a> Read<'a> {
    fn row<E>(&self, v: &View, data: &'a [E]) -> &'a [E] {
        &data[v.offset + self.r * v.stride..][..v.cols]
    }

    fn f32(&self, i: usize) -> Result<&'a [f32], ExecError> {
        match &self.inputs[i] {
            Operand::View(v, _) => match self.arena.data(v) {
                Data::F32(d) => Ok(self.row(v, d)),
                _ => Err(mismatch()),
            },
            Operand::Static(id, _) => self.statics[*id].values(),
        }
    }

    fn i64(&self, i: usize) -> Result<&'a [i64], ExecError> {
        match &self.inputs[i] {
            Operand::View(v, _) => match self.arena.data(v) {
                Data::I64(d) => Ok(self.row(v, d)),
                _ => Err(mismatch()),
            },
            Operand::Static(id, _) => match &self.statics[*id] {
                StaticData::I64(d) => Ok(d),
                _ => Err(mismatch()),
            },
        }
    }

    fn bool(&self, i: usize) -> Result<&'a [bool], ExecError> {
        match &self.inputs[i] {
            Operand::View(v, _) => match self.arena.data(v) {
                Data::Bool(d) => Ok(self.row(v, d)),
                _ => Err(mismatch()),
            },
            Operand::Static(id, _) => match &self.statics[*id] {
                StaticData::Bool(d) => Ok(d),
                _ => Err(mismatch()),
            },
        }
    }
}
