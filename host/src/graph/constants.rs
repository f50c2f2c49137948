//! Literals as tensors, and the primitives on them that folding needs. Element functions are those of `elementwise`, sums
//! are accumulated in f64 as the reference executor does: a folded expression has the bits of a computed one.

use plugin_api::{ConstData, DType, Dim, Op};

use super::elementwise as f;

/// Most elements of a folded value: tables for rotary embeddings and slopes, not whole masks.
const MAX_ELEMENTS: usize = 1 << 16;

/// A value known while the graph is optimised, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Constant {
    pub(super) shape: Vec<usize>,
    pub(super) data: ConstData,
}

impl Constant {
    /// The literal that a node is.
    pub(super) fn of(op: &Op) -> Option<Constant> {
        match op {
            Op::Const { shape, data, .. } => Some(Constant { shape: shape.clone(), data: data.clone() }),
            Op::Iota { len } => {
                let n = usize::try_from(len.as_const()?).ok().filter(|n| *n <= MAX_ELEMENTS)?;
                Some(Constant { shape: vec![n], data: ConstData::I64((0..n as i64).collect()) })
            }
            _ => None,
        }
    }

    /// The one number of which all elements are, if they are floats or integers.
    pub(super) fn number(&self) -> Option<f32> {
        fn same<E: Copy + PartialEq>(v: &[E]) -> Option<E> {
            let first = *v.first()?;
            v.iter().all(|&x| x == first).then_some(first)
        }
        match &self.data {
            ConstData::F32(v) => same(v),
            ConstData::I64(v) => same(v).map(|n| n as f32),
            ConstData::Bool(_) => None,
        }
    }
}

/// The value of a primitive of these inputs, of type `dtype` and this shape; `None` where it is not folded.
pub(super) fn apply(op: &Op, inputs: &[&Constant], dtype: DType, shape: &[usize]) -> Option<Constant> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    // Tables, but no masks and other things that are much larger than what they are made of.
    let grows = elements > 1024 && elements > 2 * inputs.iter().map(|x| x.data.len()).sum::<usize>();
    if elements > MAX_ELEMENTS || elements == 0 || grows || inputs.iter().any(|x| x.data.is_empty()) {
        return None;
    }
    let data = match (op, inputs) {
        (Op::Reshape { .. }, [x]) => x.data.clone(),
        (Op::Cast { .. }, [x]) => cast(&x.data, dtype),
        (Op::Select, [c, a, b]) => select(c, a, b, shape)?,
        (Op::Permute { axes }, [x]) => {
            let strides = strides(&x.shape);
            gather(&x.data, shape, |at| at.iter().zip(axes).map(|(i, &a)| i * strides[a]).sum())
        }
        (Op::Broadcast { .. }, [x]) => broadcast(x, shape),
        (Op::Slice { axis, start, step, .. }, [x]) => {
            let (strides, start) = (strides(&x.shape), usize::try_from(start.as_const()?).ok()?);
            gather(&x.data, shape, |at| {
                let place = |(i, &n): (usize, &usize)| strides[i] * if i == *axis { start + n * step } else { n };
                at.iter().enumerate().map(place).sum()
            })
        }
        (Op::Concat { axis }, parts) => concat(parts, *axis, shape)?,
        (Op::Sum { axis, .. } | Op::ReduceMax { axis, .. } | Op::ReduceMin { axis, .. }, [x]) => reduce(op, x, *axis)?,
        (_, [x]) => unary(op, x)?,
        (_, [a, b]) => binary(op, a, b, shape)?,
        _ => return None,
    };
    Some(Constant { shape: shape.to_vec(), data })
}

impl From<&Constant> for Op {
    fn from(c: &Constant) -> Op {
        let dtype = match c.data {
            ConstData::F32(_) => DType::F32,
            ConstData::I64(_) => DType::I64,
            ConstData::Bool(_) => DType::Bool,
        };
        Op::Const { dtype, shape: c.shape.clone(), data: c.data.clone() }
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// The elements that `place` names for every index of the shape, in order.
fn gather(data: &ConstData, shape: &[usize], place: impl Fn(&[usize]) -> usize) -> ConstData {
    let mut places = Vec::with_capacity(shape.iter().product());
    let mut at = vec![0; shape.len()];
    'all: loop {
        places.push(place(&at));
        for i in (0..shape.len()).rev() {
            at[i] += 1;
            if at[i] < shape[i] {
                continue 'all;
            }
            at[i] = 0;
        }
        break;
    }
    match data {
        ConstData::F32(v) => ConstData::F32(places.iter().map(|&p| v[p]).collect()),
        ConstData::I64(v) => ConstData::I64(places.iter().map(|&p| v[p]).collect()),
        ConstData::Bool(v) => ConstData::Bool(places.iter().map(|&p| v[p]).collect()),
    }
}

fn broadcast(x: &Constant, shape: &[usize]) -> ConstData {
    if x.shape == shape {
        return x.data.clone();
    }
    let (strides, lead) = (strides(&x.shape), shape.len() - x.shape.len());
    gather(&x.data, shape, |at| {
        x.shape.iter().enumerate().map(|(i, &d)| if d == 1 { 0 } else { at[lead + i] * strides[i] }).sum()
    })
}

fn cast(data: &ConstData, to: DType) -> ConstData {
    use ConstData::*;
    match (data, to) {
        (F32(v), DType::I64) => I64(v.iter().map(|&x| x as i64).collect()),
        (F32(v), DType::Bool) => Bool(v.iter().map(|&x| x != 0.0).collect()),
        (I64(v), DType::Float | DType::F32) => F32(v.iter().map(|&x| x as f32).collect()),
        (I64(v), DType::Bool) => Bool(v.iter().map(|&x| x != 0).collect()),
        (Bool(v), DType::Float | DType::F32) => F32(v.iter().map(|&x| f32::from(u8::from(x))).collect()),
        (Bool(v), DType::I64) => I64(v.iter().map(|&x| i64::from(x)).collect()),
        (same, _) => same.clone(),
    }
}

fn select(c: &Constant, a: &Constant, b: &Constant, shape: &[usize]) -> Option<ConstData> {
    let ConstData::Bool(c) = broadcast(c, shape) else { return None };
    fn pick<E: Copy>(c: &[bool], a: &[E], b: &[E]) -> Vec<E> {
        c.iter().zip(a.iter().zip(b)).map(|(&c, (&a, &b))| if c { a } else { b }).collect()
    }
    Some(match (broadcast(a, shape), broadcast(b, shape)) {
        (ConstData::F32(a), ConstData::F32(b)) => ConstData::F32(pick(&c, &a, &b)),
        (ConstData::I64(a), ConstData::I64(b)) => ConstData::I64(pick(&c, &a, &b)),
        (ConstData::Bool(a), ConstData::Bool(b)) => ConstData::Bool(pick(&c, &a, &b)),
        _ => return None,
    })
}

fn unary(op: &Op, x: &Constant) -> Option<ConstData> {
    Some(match &x.data {
        ConstData::F32(v) => ConstData::F32(v.iter().copied().map(f::float_unary(op)?).collect()),
        ConstData::I64(v) => ConstData::I64(v.iter().copied().map(f::int_unary(op)?).collect()),
        ConstData::Bool(v) if *op == Op::Not => ConstData::Bool(v.iter().map(|b| !b).collect()),
        ConstData::Bool(_) => return None,
    })
}

fn binary(op: &Op, a: &Constant, b: &Constant, shape: &[usize]) -> Option<ConstData> {
    fn both<A: Copy, O>(a: &[A], b: &[A], f: impl Fn(A, A) -> O) -> Vec<O> {
        a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
    }
    Some(match (broadcast(a, shape), broadcast(b, shape)) {
        (ConstData::F32(a), ConstData::F32(b)) => match (f::float_binary(op), f::comparison(op)) {
            (Some(f), _) => ConstData::F32(both(&a, &b, f)),
            (_, f) => ConstData::Bool(both(&a, &b, f?)),
        },
        (ConstData::I64(a), ConstData::I64(b)) => match (f::int_binary(op), f::comparison(op)) {
            // A division by zero is an error of the step that computes it, if one does.
            (Some(f), _) => ConstData::I64(both(&a, &b, f).into_iter().collect::<Result<_, _>>().ok()?),
            (_, f) => ConstData::Bool(both(&a, &b, f?)),
        },
        (ConstData::Bool(a), ConstData::Bool(b)) => ConstData::Bool(match op {
            Op::And => both(&a, &b, |a, b| a && b),
            Op::Or => both(&a, &b, |a, b| a || b),
            _ => both(&a, &b, f::comparison(op)?),
        }),
        _ => return None,
    })
}

fn concat(parts: &[&Constant], axis: usize, shape: &[usize]) -> Option<ConstData> {
    fn join<'a, E: Copy + 'a>(parts: &[(&'a [E], usize)], outer: usize) -> Vec<E> {
        let mut out = vec![];
        for i in 0..outer {
            parts.iter().for_each(|(v, inner)| out.extend_from_slice(&v[i * inner..(i + 1) * inner]));
        }
        out
    }
    let outer: usize = shape[..axis].iter().product();
    let inner = |c: &Constant| c.shape[axis..].iter().product::<usize>();
    macro_rules! joined {
        ($kind:ident) => {{
            let all = parts.iter().map(|c| match &c.data {
                ConstData::$kind(v) => Some((v.as_slice(), inner(c))),
                _ => None,
            });
            ConstData::$kind(join(&all.collect::<Option<Vec<_>>>()?, outer))
        }};
    }
    Some(match &parts.first()?.data {
        ConstData::F32(_) => joined!(F32),
        ConstData::I64(_) => joined!(I64),
        ConstData::Bool(_) => joined!(Bool),
    })
}

fn reduce(op: &Op, x: &Constant, axis: usize) -> Option<ConstData> {
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let outer: usize = x.shape[..axis].iter().product();
    let lane = |i: usize| (0..n).map(move |k| (i / inner * n + k) * inner + i % inner);
    Some(match &x.data {
        ConstData::F32(v) => ConstData::F32(
            (0..outer * inner)
                .map(|i| {
                    let lane = lane(i).map(|p| v[p]);
                    match op {
                        Op::Sum { .. } => Some(lane.map(f64::from).sum::<f64>() as f32),
                        Op::ReduceMax { .. } => lane.reduce(f::max),
                        _ => lane.reduce(f::min),
                    }
                })
                .collect::<Option<_>>()?,
        ),
        ConstData::I64(v) => ConstData::I64(
            (0..outer * inner)
                .map(|i| {
                    let lane = lane(i).map(|p| v[p]);
                    match op {
                        Op::Sum { .. } => Some(lane.fold(0, i64::wrapping_add)),
                        Op::ReduceMax { .. } => lane.max(),
                        _ => lane.min(),
                    }
                })
                .collect::<Option<_>>()?,
        ),
        ConstData::Bool(_) => return None,
    })
}

/// The constant sizes of dimensions.
pub(super) fn sizes(dims: &[Dim]) -> Option<Vec<usize>> {
    dims.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
}
