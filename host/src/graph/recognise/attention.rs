//! Softmax attention that is written out: scores of queries and keys, masks and biases on them, softmax, and the mean of
//! values. Also keys and values that were repeated for groups of query heads.

use plugin_api::{ConstData, DType, Dim, Graph, InputKind, Node, Op, Value};

use super::masks::{self, Band};
use super::pattern::uncast;
use super::{Replaced, cast};
use crate::graph::fold;

/// What scores are made of.
#[derive(Clone, Debug)]
struct Scores {
    /// [T, H, D]
    q: Value,
    k: Value,
    scale: f32,
    softcap: Option<f32>,
    slopes: Option<Vec<f32>>,
    band: Option<Band>,
}

impl Scores {
    /// Whether a factor still applies to the products alone.
    fn is_plain(&self) -> bool {
        self.softcap.is_none() && self.slopes.is_none()
    }

    fn masked(mut self, band: Band) -> Option<Scores> {
        self.band = Some(match self.band {
            Some(known) => known.and(band)?,
            None => band,
        });
        Some(self)
    }
}

/// softmax(scores) v, per head. `state` is the identity for the keys and values, taken if the rule applies.
pub(super) fn attention(out: &mut Graph, node: &Node, state: &mut u32) -> Replaced {
    let Some((scores, v)) = found(out, node) else { return Ok(None) };
    let Some(Band { from: Some(0), to, chunk }) = scores.band else { return Ok(None) };
    let Ok(window) = to.map(u32::try_from).transpose() else { return Ok(None) };
    if window == Some(0) || !scores.scale.is_finite() {
        return Ok(None);
    }
    let name = &node.name;
    let (k, v) = ungrouped(out, scores.k, v);
    let dtype = out.ty(v).dtype;
    let mut inputs = vec![cast(out, scores.q, dtype, name)?, cast(out, k, dtype, name)?, v];
    if let Some(slopes) = &scores.slopes {
        let slopes = Op::Const { dtype: DType::F32, shape: vec![slopes.len()], data: ConstData::F32(slopes.clone()) };
        inputs.push(out.push(slopes, vec![], name)?);
    }
    let op = Op::Attention {
        state: *state,
        scale: scores.scale,
        window,
        chunk,
        softcap: scores.softcap,
        sinks: false,
        alibi: scores.slopes.is_some(),
        masked: false,
    };
    let y = out.push(op, inputs, name)?;
    *state += 1;
    let y = cast(out, y, node.ty.dtype, name)?;
    out.push(Op::Permute { axes: vec![1, 0, 2] }, vec![y], name).map(Some)
}

fn found(out: &Graph, node: &Node) -> Option<(Scores, Value)> {
    let (Op::Matmul, [p, v]) = (&node.op, node.inputs.as_slice()) else { return None };
    let softmax = out.node(uncast(out, *p));
    let dims = softmax.ty.shape.0.as_slice();
    if softmax.op != Op::Softmax || dims.len() != 3 || dims[1] != Dim::T() || dims[2] != Dim::T() {
        return None;
    }
    let v = heads(out, *v, [1, 0, 2])?;
    let scores = scores(out, softmax.inputs[0])?;
    let heads_of = |v: Value| out.ty(v).shape.0.get(1).cloned();
    let fits = heads_of(scores.q) == heads_of(scores.k)
        && heads_of(v) == heads_of(scores.q)
        && [scores.q, scores.k, v].iter().all(|x| out.ty(*x).shape.0.first() == Some(&Dim::T()))
        && scores.slopes.as_ref().is_none_or(|s| heads_of(scores.q) == Some(Dim::from(s.len())));
    fits.then_some((scores, v))
}

/// x[T, H, D] of a value with these axes of it.
fn heads(out: &Graph, v: Value, axes: [usize; 3]) -> Option<Value> {
    let node = out.node(uncast(out, v));
    matches!(&node.op, Op::Permute { axes: a } if *a == axes).then(|| uncast(out, node.inputs[0]))
}

fn scores(out: &Graph, v: Value) -> Option<Scores> {
    let node = out.node(uncast(out, v));
    let number = |v: Value| fold::number(out, v);
    match (&node.op, node.inputs.as_slice()) {
        (Op::Matmul, [q, k]) => {
            let (q, k) = (heads(out, *q, [1, 0, 2])?, heads(out, *k, [1, 2, 0])?);
            Some(Scores { q, k, scale: 1.0, softcap: None, slopes: None, band: None })
        }
        (Op::Mul, [a, b]) => match number(*b) {
            Some(factor) => scaled(out, *a, factor),
            // Hidden scores become 0 here, and very low by what is added to them.
            None => scores(out, *a)?.masked(masks::counted(out, *b)?),
        },
        (Op::Div, [a, b]) => scaled(out, *a, 1.0 / number(*b)?),
        (Op::Add, [a, b]) => [(*a, *b), (*b, *a)].into_iter().find_map(|(a, b)| match masks::added(out, b) {
            Some(band) => scores(out, a)?.masked(band),
            None => {
                let slopes = slopes(out, b)?;
                let inner = scores(out, a).filter(|s| s.slopes.is_none())?;
                Some(Scores { slopes: Some(slopes), ..inner })
            }
        }),
        (Op::Select, [m, a, low]) if masks::is_low(out, *low) => scores(out, *a)?.masked(masks::band(out, *m)?),
        (Op::Select, [m, low, a]) if masks::is_low(out, *low) => scores(out, *a)?.masked(masks::hidden(out, *m)?),
        // No score is lower.
        (Op::Max, [a, low]) if masks::is_low(out, *low) => scores(out, *a),
        _ => None,
    }
}

/// a * factor: of products, or of tanh(scores / factor), which caps them.
fn scaled(out: &Graph, a: Value, factor: f32) -> Option<Scores> {
    let inner = out.node(uncast(out, a));
    if inner.op == Op::Tanh {
        let inner = scores(out, inner.inputs[0]).filter(|s| s.is_plain() && s.band.is_none() && factor > 0.0)?;
        return Some(Scores { scale: inner.scale * factor, softcap: Some(factor), ..inner });
    }
    let inner = scores(out, a).filter(Scores::is_plain)?;
    Some(Scores { scale: inner.scale * factor, ..inner })
}

/// The slopes of a bias [H, 1, T] that grows by a slope of its own for each head from key to key. (What is the same for
/// all keys of a query changes no softmax.)
fn slopes(out: &Graph, v: Value) -> Option<Vec<f32>> {
    let v = uncast(out, v);
    let node = out.node(v);
    let [heads, one, t] = node.ty.shape.0.as_slice() else { return None };
    if !one.is_one() || *t != Dim::T() {
        return None;
    }
    let heads = usize::try_from(heads.as_const()?).ok()?;
    // The end of a table of numbers, or its beginning.
    let cut = match &node.op {
        Op::Reshape { .. } => out.node(uncast(out, node.inputs[0])),
        _ => node,
    };
    if let Op::Slice { axis, start, end, step: 1 } = &cut.op {
        let Op::Const { shape, data: ConstData::F32(data), .. } = &out.node(cut.inputs[0]).op else { return None };
        let n = *shape.last()?;
        let last = end.as_const() == Some(n as i64) && end.sub(start).ok()? == Dim::T();
        let first = start.as_const() == Some(0) && *end == Dim::T();
        if axis + 1 != shape.len() || !(last || first) || n < 2 {
            return None;
        }
        return data.chunks_exact(n).map(linear).collect::<Option<Vec<f32>>>().filter(|s| s.len() == heads);
    }
    match (&node.op, node.inputs.as_slice()) {
        (Op::Reshape { .. }, [x]) => {
            let permuted = out.node(uncast(out, *x));
            let (Op::Permute { axes }, [x]) = (&permuted.op, permuted.inputs.as_slice()) else { return None };
            let product = out.node(uncast(out, *x));
            let (Op::Mul, [index, slopes]) = (&product.op, product.inputs.as_slice()) else { return None };
            let Op::Const { shape, data: ConstData::F32(data), .. } = &out.node(uncast(out, *slopes)).op else {
                return None;
            };
            let fits = *axes == [1, 0] && *shape == [heads] && is_position(out, *index);
            fits.then(|| data.clone())
        }
        _ => None,
    }
}

/// The slope of a row of numbers that grow evenly.
fn linear(row: &[f32]) -> Option<f32> {
    let slope = (row[row.len() - 1] - row[0]) / (row.len() - 1) as f32;
    let tolerance = 1e-5 * row.iter().fold(0f32, |m, x| m.max(x.abs()));
    row.iter().enumerate().all(|(i, x)| (row[0] + slope * i as f32 - x).abs() <= tolerance).then_some(slope)
}

/// Whether a value [T, 1] is the positions.
fn is_position(out: &Graph, v: Value) -> bool {
    let node = out.node(v);
    match &node.op {
        Op::Input { kind } => *kind == InputKind::Positions,
        Op::Reshape { .. } | Op::Cast { .. } => is_position(out, node.inputs[0]),
        _ => false,
    }
}

/// Repeated keys and values of an attention are repeated by the attention itself.
pub(super) fn grouped(out: &mut Graph, node: &Node) -> Replaced {
    if !matches!(node.op, Op::Attention { .. }) {
        return Ok(None);
    }
    let (k, v) = ungrouped(out, node.inputs[1], node.inputs[2]);
    if (k, v) == (node.inputs[1], node.inputs[2]) {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    let dtype = out.ty(inputs[0]).dtype;
    inputs[1] = cast(out, k, dtype, &node.name)?;
    inputs[2] = cast(out, v, dtype, &node.name)?;
    out.push(node.op.clone(), inputs, &node.name).map(Some)
}

/// The keys and values that both are repeated equally often of, for groups of heads.
fn ungrouped(out: &Graph, k: Value, v: Value) -> (Value, Value) {
    match (repeated(out, k), repeated(out, v)) {
        (Some((k, n)), Some((v, m))) if n == m => (k, v),
        _ => (k, v),
    }
}

/// x[T, H, D] and n of x with every head n times.
fn repeated(out: &Graph, v: Value) -> Option<(Value, Dim)> {
    let node = out.node(uncast(out, v));
    let (Op::Reshape { .. }, [wide]) = (&node.op, node.inputs.as_slice()) else { return None };
    let wide = out.node(uncast(out, *wide));
    let (Op::Broadcast { shape }, [column]) = (&wide.op, wide.inputs.as_slice()) else { return None };
    let narrow = out.node(*column);
    let (Op::Reshape { shape: before }, [x]) = (&narrow.op, narrow.inputs.as_slice()) else { return None };
    let ([t, h, n, d], [.., one, _]) = (shape.as_slice(), before.as_slice()) else { return None };
    let x = uncast(out, *x);
    // One head has lost its axis: it would have to be given back.
    let same = out.ty(x).shape.0 == [t.clone(), h.clone(), d.clone()];
    (same && before.len() == 4 && one.is_one()).then(|| (x, n.clone()))
}
