//! The one definition of every composite op, in primitive ops.
//!
//! A definition is the op's documentation, its reference implementation, its fallback where a backend
//! lacks a kernel, and what passes that recognise the composite are tested against. Those that mix tokens are in
//! `sequence`.

mod sequence;

use crate::builder::Builder;
use crate::dim::Dim;
use crate::model::{Graph, Value};
use crate::op::{Activation, Op};
use crate::spec::SpecError;
use crate::types::{DType, Shape};

/// Appends the definition of `op` applied to `inputs`; `None` if `op` is a primitive.
pub fn define(b: &mut Builder, op: &Op, inputs: &[Value]) -> Option<Value> {
    Some(match *op {
        Op::Linear => linear(b, inputs),
        Op::Embedding => b.op(Op::Take { axis: 0 }, &[inputs[1], inputs[0]]),
        Op::RmsNorm { eps, unit_offset } => rms_norm(b, inputs, eps, unit_offset),
        Op::LayerNorm { eps } => layer_norm(b, inputs, eps),
        Op::Rope { interleaved } => rope(b, inputs, interleaved),
        Op::Softmax => softmax(b, inputs[0]),
        Op::Activation { kind } => activation(b, inputs[0], kind),
        Op::Gated { kind } => {
            let gate = activation(b, inputs[0], kind);
            b.mul(gate, inputs[1])
        }
        Op::GroupedLinear => grouped_linear(b, inputs),
        Op::CausalMask { window, chunk } => sequence::causal_mask(b, window, chunk),
        Op::CausalConv1d { .. } => sequence::causal_conv1d(b, inputs),
        Op::LinearAttention { .. } => sequence::linear_attention(b, inputs),
        Op::Attention { .. } => sequence::attention(b, op, inputs),
        _ => return None,
    })
}

/// The same graph with every composite replaced by its definition.
pub fn expand(graph: &Graph) -> Result<Graph, SpecError> {
    let mut b = Builder::new();
    let mut map: Vec<Value> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        check_size(&b)?;
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let value = b.scope(node.name.clone(), |b| match define(b, &node.op, &inputs) {
            Some(v) => v,
            None => b.op(node.op.clone(), &inputs),
        });
        map.push(value);
    }
    for (name, v) in &graph.outputs {
        b.output(name, map[v.index()]);
    }
    b.finish()
}

/// Most nodes of a graph whose composites are replaced: a graph at the limit of [`crate::spec::MAX_NODES`] may
/// not grow forty times.
pub const MAX_EXPANDED_NODES: usize = 4 * crate::spec::MAX_NODES;

/// Whether a graph that is being expanded may grow further, and nothing went wrong.
pub fn check_size(b: &Builder) -> Result<(), SpecError> {
    let nodes = b.so_far()?.nodes.len();
    if nodes <= MAX_EXPANDED_NODES {
        return Ok(());
    }
    let limit = format!("has {nodes} nodes when its composite ops are replaced, the limit is {MAX_EXPANDED_NODES}");
    Err(SpecError::Graph { graph: "expanded".into(), message: limit })
}

fn linear(b: &mut Builder, inputs: &[Value]) -> Value {
    let shape = b.ty(inputs[0]).shape;
    // A vector becomes a matrix of one row, since matmul takes matrices.
    let x = if shape.rank() == 1 { b.reshape(inputs[0], [Dim::from(1usize), shape.0[0].clone()]) } else { inputs[0] };
    let transposed = b.permute(inputs[1], [1, 0]);
    let mut y = b.matmul(x, transposed);
    if shape.rank() == 1 {
        let n = b.ty(y).shape.0[1].clone();
        y = b.reshape(y, [n]);
    }
    match inputs.get(2) {
        Some(&bias) => b.add(y, bias),
        None => y,
    }
}

/// Every token takes the matrices of its experts.
fn grouped_linear(b: &mut Builder, inputs: &[Value]) -> Value {
    let dims = b.ty(inputs[0]).shape.0;
    let (t, d) = (dims[0].clone(), dims[dims.len() - 1].clone());
    let choices = if dims.len() == 3 { dims[1].clone() } else { Dim::from(1usize) };
    let out = b.ty(inputs[1]).shape.0.into_iter().chain(b.ty(inputs[2]).shape.0.get(1).cloned()).collect::<Shape>();
    let x = b.reshape(inputs[0], [t, choices, d, Dim::from(1usize)]);
    let weights = b.op(Op::Take { axis: 0 }, &[inputs[2], inputs[1]]);
    let y = b.matmul(weights, x);
    let y = b.reshape(y, out);
    match inputs.get(3) {
        Some(&bias) => {
            let bias = b.op(Op::Take { axis: 0 }, &[bias, inputs[1]]);
            b.add(y, bias)
        }
        None => y,
    }
}

/// sum(x, last axis, kept) / size
fn mean(b: &mut Builder, x: Value) -> Value {
    let shape = b.ty(x).shape;
    let sum = b.op(Op::Sum { axis: shape.rank() - 1, keep: true }, &[x]);
    let size = shape.0.last().and_then(Dim::as_const);
    match size {
        Some(n) => {
            let n = b.scalar(DType::F32, n as f32);
            b.div(sum, n)
        }
        None => {
            // A symbolic size is counted: the sum of ones.
            let one = b.scalar(DType::F32, 1.0);
            let ones = b.op(Op::Broadcast { shape: shape.0.clone() }, &[one]);
            let n = b.op(Op::Sum { axis: shape.rank() - 1, keep: true }, &[ones]);
            b.div(sum, n)
        }
    }
}

fn rms_norm(b: &mut Builder, inputs: &[Value], eps: f32, unit_offset: bool) -> Value {
    let dtype = b.ty(inputs[0]).dtype;
    let x = b.cast(inputs[0], DType::F32);
    let squares = b.mul(x, x);
    let variance = mean(b, squares);
    let variance = b.shift(variance, eps);
    let factor = b.op(Op::Rsqrt, &[variance]);
    let mut y = b.mul(x, factor);
    if let Some(&weight) = inputs.get(1) {
        let mut weight = b.cast(weight, DType::F32);
        if unit_offset {
            weight = b.shift(weight, 1.0);
        }
        y = b.mul(y, weight);
    }
    b.cast(y, dtype)
}

fn layer_norm(b: &mut Builder, inputs: &[Value], eps: f32) -> Value {
    let dtype = b.ty(inputs[0]).dtype;
    let x = b.cast(inputs[0], DType::F32);
    let center = mean(b, x);
    let x = b.sub(x, center);
    let squares = b.mul(x, x);
    let variance = mean(b, squares);
    let variance = b.shift(variance, eps);
    let factor = b.op(Op::Rsqrt, &[variance]);
    let mut y = b.mul(x, factor);
    if let Some(&weight) = inputs.get(1) {
        let weight = b.cast(weight, DType::F32);
        y = b.mul(y, weight);
    }
    if let Some(&bias) = inputs.get(2) {
        let bias = b.cast(bias, DType::F32);
        y = b.add(y, bias);
    }
    b.cast(y, dtype)
}

fn rope(b: &mut Builder, inputs: &[Value], interleaved: bool) -> Value {
    let ty = b.ty(inputs[0]);
    let dims = ty.shape.0.clone();
    let (t, heads, size) = (dims[0].clone(), dims[1].clone(), dims[2].as_const().unwrap_or(0) as usize);
    let n = b.ty(inputs[1]).shape.0[1].as_const().unwrap_or(0) as usize;
    let x = b.cast(inputs[0], DType::F32);
    let table = |b: &mut Builder, v| b.reshape(v, [t.clone(), 1usize.into(), n.into()]);
    let (cos, sin) = (table(b, inputs[1]), table(b, inputs[2]));
    let rotated = b.slice(x, 2, 0usize, 2 * n);
    let (first, second) = if interleaved {
        let pairs = b.reshape(rotated, [t.clone(), heads.clone(), n.into(), 2usize.into()]);
        let part = |b: &mut Builder, i: usize| {
            let part = b.slice(pairs, 3, i, i + 1);
            b.reshape(part, [t.clone(), heads.clone(), n.into()])
        };
        (part(b, 0), part(b, 1))
    } else {
        (b.slice(rotated, 2, 0usize, n), b.slice(rotated, 2, n, 2 * n))
    };
    let turn = |b: &mut Builder, p: Value, q: Value, add: bool| {
        let (x, y) = (b.mul(p, cos), b.mul(q, sin));
        if add { b.add(x, y) } else { b.sub(x, y) }
    };
    let (first, second) = (turn(b, first, second, false), turn(b, second, first, true));
    let turned = if interleaved {
        let column = |b: &mut Builder, v| b.reshape(v, [t.clone(), heads.clone(), n.into(), 1usize.into()]);
        let (first, second) = (column(b, first), column(b, second));
        let pairs = b.concat(3, &[first, second]);
        b.reshape(pairs, [t.clone(), heads.clone(), (2 * n).into()])
    } else {
        b.concat(2, &[first, second])
    };
    let rest = b.slice(x, 2, 2 * n, size);
    let y = b.concat(2, &[turned, rest]);
    b.cast(y, ty.dtype)
}

fn softmax(b: &mut Builder, x: Value) -> Value {
    let ty = b.ty(x);
    let axis = ty.shape.rank() - 1;
    let x = b.cast(x, DType::F32);
    let max = b.op(Op::ReduceMax { axis, keep: true }, &[x]);
    let x = b.sub(x, max);
    let e = b.op(Op::Exp, &[x]);
    let sum = b.op(Op::Sum { axis, keep: true }, &[e]);
    let y = b.div(e, sum);
    b.cast(y, ty.dtype)
}

fn activation(b: &mut Builder, x: Value, kind: Activation) -> Value {
    match kind {
        Activation::Silu => {
            let s = b.op(Op::Sigmoid, &[x]);
            b.mul(x, s)
        }
        Activation::QuickGelu => {
            let scaled = b.scale(x, 1.702);
            let s = b.op(Op::Sigmoid, &[scaled]);
            b.mul(x, s)
        }
        Activation::Gelu => {
            let scaled = b.scale(x, std::f32::consts::FRAC_1_SQRT_2);
            let erf = b.op(Op::Erf, &[scaled]);
            let one_plus = b.shift(erf, 1.0);
            let half = b.scale(x, 0.5);
            b.mul(half, one_plus)
        }
        Activation::GeluTanh => {
            let square = b.mul(x, x);
            let cube = b.mul(square, x);
            let cube = b.scale(cube, 0.044715);
            let inner = b.add(x, cube);
            let inner = b.scale(inner, (2.0f32 / std::f32::consts::PI).sqrt());
            let tanh = b.op(Op::Tanh, &[inner]);
            let one_plus = b.shift(tanh, 1.0);
            let half = b.scale(x, 0.5);
            b.mul(half, one_plus)
        }
        Activation::Relu | Activation::ReluSquared => {
            let dtype = b.ty(x).dtype;
            let zero = b.scalar(dtype, 0.0);
            let y = b.op(Op::Max, &[x, zero]);
            if kind == Activation::Relu { y } else { b.mul(y, y) }
        }
        Activation::Softplus => {
            // max(x, 0) + log(1 + exp(-|x|)) does not overflow.
            let dtype = b.ty(x).dtype;
            let zero = b.scalar(dtype, 0.0);
            let positive = b.op(Op::Max, &[x, zero]);
            let abs = b.op(Op::Abs, &[x]);
            let neg = b.op(Op::Neg, &[abs]);
            let e = b.op(Op::Exp, &[neg]);
            let one_plus = b.shift(e, 1.0);
            let log = b.op(Op::Log, &[one_plus]);
            b.add(positive, log)
        }
        Activation::Sigmoid => b.op(Op::Sigmoid, &[x]),
        Activation::Tanh => b.op(Op::Tanh, &[x]),
    }
}
