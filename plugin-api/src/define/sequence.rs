//! Definitions of the composites that mix the tokens of a sequence: `T` is its length.

use crate::builder::Builder;
use crate::dim::Dim;
use crate::model::Value;
use crate::op::Op;
use crate::types::{DType, Shape};

/// distance[i, j] = i - j
fn distance(b: &mut Builder) -> Value {
    let positions = b.iota(Dim::T());
    let rows = b.reshape(positions, [Dim::T(), Dim::from(1usize)]);
    b.sub(rows, positions)
}

pub(super) fn causal_mask(b: &mut Builder, window: Option<u32>, chunk: Option<u32>) -> Value {
    let distance = distance(b);
    let zero = b.int(0);
    let mut visible = b.op(Op::Ge, &[distance, zero]);
    if let Some(window) = window {
        let window = b.int(window.into());
        let near = b.op(Op::Lt, &[distance, window]);
        visible = b.op(Op::And, &[visible, near]);
    }
    if let Some(chunk) = chunk {
        let positions = b.iota(Dim::T());
        let chunk = b.int(chunk.into());
        let chunk = b.div(positions, chunk);
        let rows = b.reshape(chunk, [Dim::T(), Dim::from(1usize)]);
        let same = b.op(Op::Eq, &[rows, chunk]);
        visible = b.op(Op::And, &[visible, same]);
    }
    visible
}

/// The sum of W copies of x, each shifted by one row more and scaled by its column of the weight.
pub(super) fn causal_conv1d(b: &mut Builder, inputs: &[Value]) -> Value {
    let dtype = b.ty(inputs[0]).dtype;
    let dims = b.ty(inputs[1]).shape.0;
    let size = |d: &Dim| d.as_const().unwrap_or(0) as usize;
    let (channels, width) = (size(&dims[0]), size(&dims[1]));
    let x = b.cast(inputs[0], DType::F32);
    let weight = b.cast(inputs[1], DType::F32);
    let zero = b.scalar(DType::F32, 0.0);
    let before = b.op(Op::Broadcast { shape: vec![(width - 1).into(), channels.into()] }, &[zero]);
    let padded = b.concat(0, &[before, x]);
    let mut y: Option<Value> = None;
    for w in 0..width {
        let end = Dim::T().add(&w.into()).unwrap_or(Dim::T());
        let shifted = b.slice(padded, 0, w, end);
        let column = b.slice(weight, 1, w, w + 1);
        let column = b.reshape(column, [channels]);
        let term = b.mul(shifted, column);
        y = Some(match y {
            Some(sum) => b.add(sum, term),
            None => term,
        });
    }
    let mut y = y.unwrap_or(x); // a width of 0 is refused by the specification
    if let Some(&bias) = inputs.get(2) {
        let bias = b.cast(bias, DType::F32);
        y = b.add(y, bias);
    }
    b.cast(y, dtype)
}

/// The recurrence written out: token t sees what token s <= t wrote, decayed by every token in between and its own,
/// y_t = sum over s of (q_t . exp(sum over s < r <= t of decay_r) k_s) u_s. Under the delta rule the u solve a
/// triangular system, u_t + beta_t * sum over s < t of (k_t . exp(..) k_s) u_s = beta_t * v_t.
pub(super) fn linear_attention(b: &mut Builder, inputs: &[Value]) -> Value {
    let v_ty = b.ty(inputs[2]);
    let (t, heads) = (Dim::T(), v_ty.shape.0[1].clone());
    let q = heads_first(b, inputs[0], &heads);
    let k = heads_first(b, inputs[1], &heads);
    let decay = heads_first(b, inputs[3], &heads);
    let factor = decay_between(b, decay);
    let mut u = heads_first(b, inputs[2], &heads);
    if let Some(&beta) = inputs.get(4) {
        let beta = b.permute(beta, [1, 0]);
        let beta = b.reshape(beta, [heads, t, Dim::from(1usize)]);
        let seen = pairs(b, k, k, factor);
        let seen = b.mul(beta, seen);
        u = b.mul(beta, u);
        u = b.op(Op::SolveTriangular, &[seen, u]);
    }
    let weights = pairs(b, q, k, factor);
    let y = b.matmul(weights, u);
    let y = b.permute(y, [1, 0, 2]);
    b.cast(y, v_ty.dtype)
}

/// decay[H, T, D] -> [H, T, T, D]: exp(sum over s < r <= t of decay_r) for s <= t, else 0. Summed for every pair
/// anew: the difference of two running sums would lose its digits when they are large, and be no number when one
/// token forgets everything.
fn decay_between(b: &mut Builder, decay: Value) -> Value {
    let dims = b.ty(decay).shape.0;
    let (h, t, one, d) = (dims[0].clone(), Dim::T(), Dim::from(1usize), dims[2].clone());
    let decay = b.reshape(decay, [h.clone(), t.clone(), one.clone(), d.clone()]);
    let (zero, hidden) = (b.scalar(DType::F32, 0.0), b.scalar(DType::F32, f32::NEG_INFINITY));
    let (distance, none) = (distance(b), b.int(0));
    let mask = |b: &mut Builder, op: Op| {
        let mask = b.op(op, &[distance, none]);
        b.reshape(mask, [t.clone(), t.clone(), one.clone()])
    };
    let (later, visible) = (mask(b, Op::Gt), mask(b, Op::Ge));
    let steps = b.select(later, decay, zero);
    let sums = b.op(Op::Cumsum { axis: 1 }, &[steps]);
    let sums = b.select(visible, sums, hidden);
    b.op(Op::Exp, &[sums])
}

/// x[T, Hx, D] -> f32[H, T, D], each head of x repeated H / Hx times; x[T, H] -> f32[H, T, 1]
fn heads_first(b: &mut Builder, x: Value, heads: &Dim) -> Value {
    let dims = b.ty(x).shape.0;
    let (t, own) = (dims[0].clone(), dims[1].clone());
    let size = dims.get(2).cloned().unwrap_or(Dim::from(1usize));
    let count = |d: &Dim| d.as_const().unwrap_or(1);
    let group = Dim::from(count(heads) / count(&own).max(1));
    let x = b.cast(x, DType::F32);
    let x = b.reshape(x, [t.clone(), own.clone(), size.clone()]);
    let x = b.permute(x, [1, 0, 2]);
    let x = b.reshape(x, [own.clone(), Dim::from(1usize), t.clone(), size.clone()]);
    let x = b.op(Op::Broadcast { shape: vec![own, group, t.clone(), size.clone()] }, &[x]);
    b.reshape(x, [heads.clone(), t, size])
}

/// x[H, T, D], y[H, T, D], factor[H, T, T, D or 1] -> [H, T, T]: x_t . factor_ts y_s
fn pairs(b: &mut Builder, x: Value, y: Value, factor: Value) -> Value {
    let (t, one) = (Dim::T(), Dim::from(1usize));
    let dims = b.ty(x).shape.0;
    let (h, d) = (dims[0].clone(), dims[2].clone());
    let x = b.reshape(x, [h.clone(), t.clone(), one.clone(), d.clone()]);
    let y = b.reshape(y, [h, one, t, d]);
    let products = b.mul(x, y);
    let products = b.mul(products, factor);
    b.op(Op::Sum { axis: 3, keep: false }, &[products])
}

/// Softmax attention over one whole sequence; `T` is its length.
pub(super) fn attention(b: &mut Builder, op: &Op, inputs: &[Value]) -> Value {
    let Op::Attention { scale, window, chunk, softcap, sinks, alibi, masked, .. } = *op else { return inputs[0] };
    let (q_ty, v_ty) = (b.ty(inputs[0]), b.ty(inputs[2]));
    let size = |s: &Shape, i: usize| s.0[i].as_const().unwrap_or(0) as usize;
    let (heads, dim, dim_v) = (size(&q_ty.shape, 1), size(&q_ty.shape, 2), size(&v_ty.shape, 2));
    let kv_heads = size(&v_ty.shape, 1);
    let group = heads / kv_heads.max(1);
    let t = q_ty.shape.0[0].clone();
    let f32 = |b: &mut Builder, i: usize| b.cast(inputs[i], DType::F32);

    // Scores [kv_heads, group, T, T]: one key head serves a group of query heads.
    let q = f32(b, 0);
    let q = b.reshape(q, [t.clone(), kv_heads.into(), group.into(), dim.into()]);
    let q = b.permute(q, [1, 2, 0, 3]);
    let k = f32(b, 1);
    let k = b.reshape(k, [t.clone(), kv_heads.into(), 1usize.into(), dim.into()]);
    let k = b.permute(k, [1, 2, 3, 0]);
    let mut scores = b.matmul(q, k);
    scores = b.scale(scores, scale);
    if let Some(cap) = softcap {
        scores = b.scale(scores, 1.0 / cap);
        scores = b.op(Op::Tanh, &[scores]);
        scores = b.scale(scores, cap);
    }

    if alibi {
        let slopes = f32(b, 3 + usize::from(sinks));
        let slopes = b.reshape(slopes, [kv_heads, group, 1, 1]);
        let distance = distance(b);
        let distance = b.cast(distance, DType::F32);
        let distance = b.scale(distance, -1.0);
        let bias = b.mul(slopes, distance);
        scores = b.add(scores, bias);
    }
    let mut visible = causal_mask(b, window, chunk);
    if masked {
        let mut mask = inputs[inputs.len() - 1];
        if b.ty(mask).shape.rank() == 3 {
            mask = b.reshape(mask, [kv_heads.into(), group.into(), t.clone(), t.clone()]);
        }
        visible = b.op(Op::And, &[visible, mask]);
    }
    let hidden = b.scalar(DType::F32, f32::NEG_INFINITY);
    scores = b.select(visible, scores, hidden);

    let weights = if sinks {
        let sink = f32(b, 3);
        let sink = b.reshape(sink, [kv_heads, group, 1, 1]);
        let column = Op::Broadcast { shape: vec![kv_heads.into(), group.into(), t.clone(), 1usize.into()] };
        let sink = b.op(column, &[sink]);
        let with_sink = b.concat(3, &[scores, sink]);
        let p = super::softmax(b, with_sink);
        b.slice(p, 3, 0usize, t.clone())
    } else {
        super::softmax(b, scores)
    };
    let v = f32(b, 2);
    let v = b.reshape(v, [t.clone(), kv_heads.into(), 1usize.into(), dim_v.into()]);
    let v = b.permute(v, [1, 2, 0, 3]);
    let mixed = b.matmul(weights, v);
    let mixed = b.permute(mixed, [2, 0, 1, 3]);
    let y = b.reshape(mixed, [t, heads.into(), dim_v.into()]);
    b.cast(y, q_ty.dtype)
}
