//! One primitive op on arrays. Called by `prepare`, node by node.
//!
//! Arrays are candle tensors on the CPU: f32 for `float` and `f32`, i64, and u8 (0 or 1) for `bool`. Candle
//! stores, copies, broadcasts and multiplies matrices; element functions are ours, where every rule about
//! NaN, ties, signs and overflow is visible.

use std::cmp::Ordering;

use candle_core::{DType as Stored, Device, Tensor as Array, WithDType};
use plugin_api::{ConstData, DType, Dim, InputKind, Op};

use super::lanes::{self, map_lanes};
use super::{EvalError, Inputs, Tensor};
use crate::graph::elementwise;

/// Why an op could not be computed; the caller adds which node it was.
#[derive(Debug)]
pub(super) struct OpError(pub(super) String);

impl From<candle_core::Error> for OpError {
    fn from(e: candle_core::Error) -> OpError {
        OpError(e.to_string())
    }
}

impl From<String> for OpError {
    fn from(e: String) -> OpError {
        OpError(e)
    }
}

type OpResult = Result<Array, OpError>;

/// The inputs of a run, checked.
pub(super) struct Step<'a> {
    inputs: &'a Inputs,
    rows: Vec<i64>,
}

impl<'a> Step<'a> {
    pub(super) fn new(inputs: &'a Inputs) -> Result<Step<'a>, EvalError> {
        let tokens = inputs.token_ids.len();
        for (what, len) in [("positions", inputs.positions.len()), ("context lengths", inputs.context_length.len())] {
            if len != tokens {
                return Err(EvalError::Inputs(format!("{len} {what} for {tokens} token ids")));
            }
        }
        let row = |&r: &usize| match i64::try_from(r) {
            Ok(row) if r < tokens => Ok(row),
            _ => Err(EvalError::Inputs(format!("row {r} is wanted of {tokens} tokens"))),
        };
        Ok(Step { inputs, rows: inputs.rows.iter().map(row).collect::<Result<_, _>>()? })
    }

    /// The value of `T`.
    pub(super) fn tokens(&self) -> usize {
        self.inputs.token_ids.len()
    }

    /// The value of `R`.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    fn size(&self, dim: &Dim) -> Result<usize, OpError> {
        dim.eval(self.tokens(), self.rows()).map_err(|e| OpError(e.to_string()))
    }
}

/// The type in which elements of `dtype` are stored.
pub(super) fn storage_type(dtype: DType) -> Stored {
    match dtype {
        DType::Float | DType::F32 => Stored::F32,
        DType::I64 => Stored::I64,
        DType::Bool => Stored::U8,
    }
}

pub(super) fn from_data(data: ConstData, shape: &[usize]) -> OpResult {
    match data {
        ConstData::F32(v) => array(v, shape),
        ConstData::I64(v) => array(v, shape),
        ConstData::Bool(v) => array(bytes(v), shape),
    }
}

pub(super) fn to_tensor(x: &Array) -> Result<Tensor, OpError> {
    let data = match x.dtype() {
        Stored::F32 => ConstData::F32(elements(x)?),
        Stored::I64 => ConstData::I64(elements(x)?),
        _ => ConstData::Bool(elements::<u8>(x)?.into_iter().map(|b| b != 0).collect()),
    };
    Ok(Tensor { shape: x.dims().to_vec(), data })
}

/// Computes a primitive. `shape` is that of the result; types were checked by `plugin_api::spec`.
pub(super) fn apply(op: &Op, x: &[&Array], shape: &[usize], step: &Step<'_>) -> OpResult {
    match op {
        Op::Input { .. } | Op::ContextLength { .. } | Op::Weight { .. } | Op::Const { .. } | Op::Iota { .. } => {
            leaf(op, shape, step)
        }
        Op::Neg | Op::Abs | Op::Sign | Op::Exp | Op::Log | Op::Sqrt | Op::Rsqrt | Op::Sin | Op::Cos => unary(op, x[0]),
        Op::Tanh | Op::Sigmoid | Op::Erf | Op::Floor | Op::Ceil | Op::Round => unary(op, x[0]),
        Op::Not => map(x[0], |b: u8| u8::from(b == 0)),
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Pow | Op::Max | Op::Min | Op::Rem => binary(op, x, shape),
        Op::And => zip(x, shape, |a: u8, b: u8| Ok(u8::from(a != 0 && b != 0))),
        Op::Or => zip(x, shape, |a: u8, b: u8| Ok(u8::from(a != 0 || b != 0))),
        Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge => compare(op, x, shape),
        Op::Select => {
            let [c, a, b] = [0, 1, 2].map(|i| x[i].broadcast_as(shape));
            Ok(c?.where_cond(&a?, &b?)?)
        }
        Op::Cast { dtype } => cast(x[0], *dtype),
        Op::Sum { .. } | Op::ReduceMax { .. } | Op::ReduceMin { .. } | Op::Argmax { .. } | Op::Cumsum { .. } => {
            reduce(op, x[0], shape)
        }
        Op::Matmul => matmul(x[0], x[1], shape),
        Op::SolveTriangular => solve_triangular(x[0], x[1], shape),
        Op::Reshape { .. } => Ok(x[0].reshape(shape)?),
        Op::Permute { axes } if axes.is_empty() => Ok(x[0].clone()),
        Op::Permute { axes } => Ok(x[0].permute(axes.as_slice())?),
        Op::Broadcast { .. } => Ok(x[0].broadcast_as(shape)?),
        Op::Slice { axis, start, end, step: stride } => slice(x[0], *axis, step.size(start)?, step.size(end)?, *stride),
        Op::Concat { axis } => concat(x, *axis, shape),
        Op::Take { axis } => take(x[0], *axis, &elements(x[1])?, shape),
        Op::SelectOutputs => take(x[0], 0, &step.rows, shape),
        Op::Gather { axis } => match x[0].dtype() {
            Stored::F32 => gather::<f32>(x, *axis),
            Stored::I64 => gather::<i64>(x, *axis),
            _ => gather::<u8>(x, *axis),
        },
        Op::Scatter { .. } | Op::ScatterAdd { .. } => scatter_op(op, x),
        Op::TopK { .. } | Op::Argsort { .. } => match x[0].dtype() {
            Stored::F32 => sort(op, x[0], shape, lanes::order),
            _ => sort(op, x[0], shape, i64::cmp),
        },
        other => Err(OpError(format!("`{}` has no definition in primitives", other.name()))),
    }
}

fn leaf(op: &Op, shape: &[usize], step: &Step<'_>) -> OpResult {
    match op {
        Op::Input { kind } => {
            let data = match kind {
                InputKind::TokenIds => &step.inputs.token_ids,
                InputKind::Positions => &step.inputs.positions,
            };
            array(data.clone(), shape)
        }
        Op::ContextLength { .. } => array(step.inputs.context_length.clone(), shape),
        Op::Const { data, .. } => from_data(data.clone(), shape),
        Op::Iota { .. } => array((0..shape[0] as i64).collect(), shape),
        other => Err(OpError(format!("`{}` is read while preparing", other.name()))),
    }
}

// ---- elements -----------------------------------------------------------------------------------------

fn array<E: WithDType>(data: Vec<E>, shape: &[usize]) -> OpResult {
    Ok(Array::from_vec(data, shape, &Device::Cpu)?)
}

fn elements<E: WithDType>(x: &Array) -> Result<Vec<E>, OpError> {
    Ok(x.flatten_all()?.to_vec1()?)
}

fn bytes(v: Vec<bool>) -> Vec<u8> {
    v.into_iter().map(u8::from).collect()
}

fn map<E: WithDType, O: WithDType>(x: &Array, f: impl Fn(E) -> O) -> OpResult {
    array(elements(x)?.into_iter().map(f).collect(), x.dims())
}

fn zip<E: WithDType, O: WithDType>(x: &[&Array], shape: &[usize], f: impl Fn(E, E) -> Result<O, String>) -> OpResult {
    let (a, b) = (elements(&x[0].broadcast_as(shape)?)?, elements(&x[1].broadcast_as(shape)?)?);
    let out: Result<Vec<O>, String> = a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect();
    array(out?, shape)
}

fn wrong_type(op: &Op, x: &Array) -> OpError {
    OpError(format!("`{}` is not defined on {:?}", op.name(), x.dtype()))
}

fn unary(op: &Op, x: &Array) -> OpResult {
    match x.dtype() {
        Stored::F32 => map(x, elementwise::float_unary(op).ok_or_else(|| wrong_type(op, x))?),
        _ => map(x, elementwise::int_unary(op).ok_or_else(|| wrong_type(op, x))?),
    }
}

fn binary(op: &Op, x: &[&Array], shape: &[usize]) -> OpResult {
    match x[0].dtype() {
        Stored::F32 => {
            let f = elementwise::float_binary(op).ok_or_else(|| wrong_type(op, x[0]))?;
            zip(x, shape, |a, b| Ok(f(a, b)))
        }
        _ => zip(x, shape, elementwise::int_binary(op).ok_or_else(|| wrong_type(op, x[0]))?),
    }
}

fn compare(op: &Op, x: &[&Array], shape: &[usize]) -> OpResult {
    fn with<E: WithDType>(op: &Op, x: &[&Array], shape: &[usize]) -> OpResult {
        let f = elementwise::comparison::<E>(op).ok_or_else(|| wrong_type(op, x[0]))?;
        zip(x, shape, |a, b| Ok(u8::from(f(a, b))))
    }
    match x[0].dtype() {
        Stored::F32 => with::<f32>(op, x, shape),
        Stored::I64 => with::<i64>(op, x, shape),
        _ => with::<u8>(op, x, shape),
    }
}

fn cast(x: &Array, to: DType) -> OpResult {
    match (x.dtype(), storage_type(to)) {
        (from, to) if from == to => Ok(x.clone()),
        (Stored::F32, Stored::U8) => map(x, |v: f32| u8::from(v != 0.0)),
        (Stored::I64, Stored::U8) => map(x, |v: i64| u8::from(v != 0)),
        (Stored::F32, _) => map(x, |v: f32| v as i64), // truncates, saturates; NaN gives 0
        (Stored::I64, _) => map(x, |v: i64| v as f32),
        (_, Stored::F32) => map(x, f32::from as fn(u8) -> f32),
        _ => map(x, i64::from as fn(u8) -> i64),
    }
}

// ---- along an axis --------------------------------------------------------------------------------------

fn reduce(op: &Op, x: &Array, shape: &[usize]) -> OpResult {
    let axis = match op {
        Op::Sum { axis, .. } | Op::ReduceMax { axis, .. } | Op::ReduceMin { axis, .. } => *axis,
        Op::Argmax { axis, .. } | Op::Cumsum { axis } => *axis,
        other => return Err(wrong_type(other, x)),
    };
    match x.dtype() {
        Stored::F32 => reduce_floats(op, axis, x, shape),
        _ => reduce_ints(op, axis, x, shape),
    }
}

/// Sums are accumulated in f64, in order.
fn reduce_floats(op: &Op, axis: usize, x: &Array, shape: &[usize]) -> OpResult {
    let (data, dims): (Vec<f32>, _) = (elements(x)?, x.dims());
    let fold = |f: fn(f32, f32) -> f32| {
        map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lane.iter().copied().reduce(f).ok_or_else(empty)?]))
    };
    let out = match op {
        Op::Sum { .. } => {
            map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lane.iter().map(|&v| f64::from(v)).sum::<f64>() as f32]))?
        }
        Op::ReduceMax { .. } => fold(elementwise::max)?,
        Op::ReduceMin { .. } => fold(elementwise::min)?,
        Op::Argmax { .. } => {
            let out = map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lanes::argmax(lane, lanes::order)?]))?;
            return array(out, shape);
        }
        _ => map_lanes(&data, dims, axis, dims[axis], |lane| {
            Ok(running(lane, 0.0f64, |sum, v| sum + f64::from(v)).map(|sum| sum as f32).collect())
        })?,
    };
    array(out, shape)
}

fn reduce_ints(op: &Op, axis: usize, x: &Array, shape: &[usize]) -> OpResult {
    let (data, dims): (Vec<i64>, _) = (elements(x)?, x.dims());
    let fold = |f: fn(i64, i64) -> i64| {
        map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lane.iter().copied().reduce(f).ok_or_else(empty)?]))
    };
    let out = match op {
        Op::Sum { .. } => {
            map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lane.iter().fold(0, |s: i64, &v| s.wrapping_add(v))]))?
        }
        Op::ReduceMax { .. } => fold(i64::max)?,
        Op::ReduceMin { .. } => fold(i64::min)?,
        Op::Argmax { .. } => map_lanes(&data, dims, axis, 1, |lane| Ok(vec![lanes::argmax(lane, i64::cmp)?]))?,
        _ => map_lanes(&data, dims, axis, dims[axis], |lane| Ok(running(lane, 0, i64::wrapping_add).collect()))?,
    };
    array(out, shape)
}

fn empty() -> String {
    "an empty axis has no largest or smallest element".to_owned()
}

fn running<E: Copy, S: Copy>(lane: &[E], zero: S, add: impl Fn(S, E) -> S) -> impl Iterator<Item = S> {
    lane.iter().scan(zero, move |sum, &v| {
        *sum = add(*sum, v);
        Some(*sum)
    })
}

fn sort<E: WithDType>(op: &Op, x: &Array, shape: &[usize], order: impl Fn(&E, &E) -> Ordering + Copy) -> OpResult {
    let (data, dims): (Vec<E>, _) = (elements(x)?, x.dims());
    let axis = dims.len() - 1;
    let out = map_lanes(&data, dims, axis, shape[axis], |lane| {
        Ok(match op {
            Op::Argsort { descending } => lanes::argsort(lane, *descending, order),
            _ => lanes::argsort(lane, true, order).into_iter().take(shape[axis]).collect(),
        })
    })?;
    array(out, shape)
}

fn gather<E: WithDType + Default>(x: &[&Array], axis: usize) -> OpResult {
    let out = lanes::gather((&elements::<E>(x[0])?, x[0].dims()), (&elements::<i64>(x[1])?, x[1].dims()), axis)?;
    array(out, x[1].dims())
}

fn scatter<E: WithDType>(x: &[&Array], axis: usize, write: impl Fn(E, E) -> E) -> OpResult {
    let (mut out, index, values) = (elements::<E>(x[0])?, elements::<i64>(x[1])?, elements::<E>(x[2])?);
    lanes::scatter((&mut out, x[0].dims()), (&index, x[1].dims()), &values, axis, write)?;
    array(out, x[0].dims())
}

fn scatter_op(op: &Op, x: &[&Array]) -> OpResult {
    match (op, x[0].dtype()) {
        (Op::Scatter { axis }, Stored::F32) => scatter(x, *axis, |_, new: f32| new),
        (Op::Scatter { axis }, Stored::I64) => scatter(x, *axis, |_, new: i64| new),
        (Op::Scatter { axis }, _) => scatter(x, *axis, |_, new: u8| new),
        (Op::ScatterAdd { axis }, Stored::F32) => scatter(x, *axis, |old: f32, new| old + new),
        (Op::ScatterAdd { axis }, Stored::I64) => scatter(x, *axis, i64::wrapping_add),
        (other, _) => Err(wrong_type(other, x[0])),
    }
}

/// Replaces `axis` by the dimensions of the index, which come in row-major order.
fn take(x: &Array, axis: usize, index: &[i64], shape: &[usize]) -> OpResult {
    let n = x.dims()[axis];
    if let Some(bad) = index.iter().find(|&&i| usize::try_from(i).map_or(true, |i| i >= n)) {
        return Err(OpError(format!("index {bad} is out of range, axis {axis} has {n} elements")));
    }
    if shape.contains(&0) {
        return Ok(Array::zeros(shape, x.dtype(), &Device::Cpu)?);
    }
    let index = array(index.to_vec(), &[index.len()])?;
    Ok(x.contiguous()?.index_select(&index, axis)?.reshape(shape)?)
}

// ---- shapes and matrices ----------------------------------------------------------------------------------

fn slice(x: &Array, axis: usize, start: usize, end: usize, stride: usize) -> OpResult {
    let n = x.dims()[axis];
    if start > end || end > n {
        return Err(OpError(format!("slice {start}..{end} is not within 0..{n} of axis {axis}")));
    }
    let mut shape = x.dims().to_vec();
    shape[axis] = (end - start).div_ceil(stride);
    if shape.contains(&0) {
        // A view would start beyond the end of the data that it has none of, and candle panics on that.
        return Ok(Array::zeros(shape, x.dtype(), &Device::Cpu)?);
    }
    if stride == 1 {
        return Ok(x.narrow(axis, start, end - start)?);
    }
    let index: Vec<i64> = (start..end).step_by(stride).map(|i| i as i64).collect();
    take(x, axis, &index, &shape)
}

fn concat(x: &[&Array], axis: usize, shape: &[usize]) -> OpResult {
    let parts: Vec<Array> =
        x.iter().filter(|p| p.elem_count() > 0).map(|p| p.contiguous()).collect::<Result<_, _>>()?;
    if parts.is_empty() {
        return Ok(Array::zeros(shape, x[0].dtype(), &Device::Cpu)?);
    }
    Ok(Array::cat(&parts, axis)?)
}

/// Products are accumulated in f64 and rounded once: whatever order candle's kernel sums in, and however
/// many other rows there are, the result is the same but for one rounding in many millions.
fn matmul(a: &Array, b: &Array, shape: &[usize]) -> OpResult {
    let rank = shape.len();
    let (m, n, k) = (shape[rank - 2], shape[rank - 1], a.dims()[a.rank() - 1]);
    if k == 0 || shape.contains(&0) {
        return Ok(Array::zeros(shape, Stored::F32, &Device::Cpu)?);
    }
    let out = if b.elem_count() == k * n {
        // One right-hand matrix for all: the left-hand ones are stacked into one.
        let rows = a.elem_count() / k;
        let b = if b.rank() == 2 { b.clone() } else { b.reshape((k, n))? };
        let product = to_f64(&a.reshape((rows, k))?)?.matmul(&to_f64(&b)?)?;
        let mut own = a.dims().to_vec();
        own[a.rank() - 1] = n;
        product.reshape(own)?.broadcast_as(shape)?
    } else {
        let lead = |x: &Array, rows: usize, columns: usize| -> OpResult {
            let full: Vec<usize> = shape[..rank - 2].iter().copied().chain([rows, columns]).collect();
            let batches = shape[..rank - 2].iter().product::<usize>();
            to_f64(&x.broadcast_as(full)?.reshape((batches, rows, columns))?)
        };
        lead(a, m, k)?.matmul(&lead(b, k, n)?)?.reshape(shape)?
    };
    Ok(out.to_dtype(Stored::F32)?)
}

/// Forward substitution, in f64 and rounded once: row i of x is b's less the rows before it, scaled by row i of a.
fn solve_triangular(a: &Array, b: &Array, shape: &[usize]) -> OpResult {
    let rank = shape.len();
    let (n, m) = (shape[rank - 2], shape[rank - 1]);
    let square: Vec<usize> = shape[..rank - 2].iter().copied().chain([n, n]).collect();
    let a: Vec<f32> = elements(&a.broadcast_as(square)?)?;
    let mut x: Vec<f64> = elements::<f32>(&b.broadcast_as(shape)?)?.into_iter().map(f64::from).collect();
    if !x.is_empty() {
        for (a, x) in a.chunks_exact(n * n).zip(x.chunks_exact_mut(n * m)) {
            for i in 0..n {
                let (before, row) = x.split_at_mut(i * m);
                for (factor, known) in a[i * n..].iter().zip(before.chunks_exact(m)) {
                    row[..m].iter_mut().zip(known).for_each(|(x, y)| *x -= f64::from(*factor) * y);
                }
            }
        }
    }
    array(x.into_iter().map(|v| v as f32).collect(), shape)
}

/// Converts a matrix or a batch of them; a transposed view is converted in the order it is stored in.
fn to_f64(x: &Array) -> OpResult {
    if !x.is_contiguous() && x.t()?.is_contiguous() {
        return Ok(x.t()?.to_dtype(Stored::F64)?.t()?);
    }
    Ok(x.contiguous()?.to_dtype(Stored::F64)?)
}
