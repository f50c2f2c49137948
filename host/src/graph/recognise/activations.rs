//! Activation functions and softmax that are written out.

use std::sync::LazyLock;

use plugin_api::{Activation, Graph, Node, Op};

use super::pattern::Pattern;
use super::pattern::short::{any, is, num};
use super::pattern::uncast;
use super::{Replaced, cast};
use crate::graph::fold;
use crate::graph::rows::per_token;

static ACTIVATIONS: LazyLock<Vec<(Op, Pattern)>> = LazyLock::new(|| {
    use Activation::*;
    let mut out = vec![];
    for kind in [Silu, Gelu, GeluTanh, QuickGelu, Softplus] {
        let op = Op::Activation { kind };
        out.extend(Pattern::defined(&op).map(|p| (op, p)));
    }
    out.extend(Pattern::defined(&Op::Softmax).map(|p| (Op::Softmax, p)));
    let x = || any(0);
    let mul = |a, b| is(Op::Mul, [a, b]);
    let one_plus = |a| is(Op::Add, [a, num(1.0)]);
    let half = |inner: Pattern| mul(mul(x(), num(0.5)), one_plus(inner));
    let op = |kind| Op::Activation { kind };
    // tanh of x * sqrt(2 / pi) * (1 + 0.044715 x^2)
    let tanh = mul(mul(x(), num(0.797_884_6)), one_plus(mul(mul(x(), x()), num(0.044_715))));
    out.push((op(GeluTanh), half(is(Op::Tanh, [tanh]))));
    out.push((op(Gelu), half(is(Op::Erf, [is(Op::Div, [x(), num(std::f32::consts::SQRT_2)])]))));
    // x / (1 + exp(-x))
    out.push((op(Silu), is(Op::Div, [x(), one_plus(is(Op::Exp, [is(Op::Neg, [x()])]))])));
    // Softmax without the largest element taken off: the same but for overflow.
    let e = || is(Op::Exp, [x()]);
    let sum = Pattern::Reduced(Op::Sum { axis: 0, keep: true }, Box::new(e()));
    out.push((Op::Softmax, is(Op::Div, [e(), sum])));
    out
});

pub(super) fn activation(out: &mut Graph, node: &Node) -> Replaced {
    if !matches!(node.op, Op::Mul | Op::Div | Op::Add) {
        return Ok(None);
    }
    for (op, pattern) in ACTIVATIONS.iter() {
        let Some(x) = pattern.matches(out, node).and_then(|f| f.value(0)) else { continue };
        if out.ty(x).shape == node.ty.shape && out.ty(x).dtype.is_float() {
            let y = out.push(op.clone(), vec![x], &node.name)?;
            return cast(out, y, node.ty.dtype, &node.name).map(Some);
        }
    }
    Ok(None)
}

/// max(x, 0), relu(x)^2, and sigmoid and tanh of values of the step.
pub(super) fn simple(out: &mut Graph, node: &Node) -> Replaced {
    let Some(&x) = node.inputs.first() else { return Ok(None) };
    if !node.ty.dtype.is_float() || !(per_token(&node.ty) || node.ty.shape.0.first() == Some(&plugin_api::Dim::R())) {
        return Ok(None);
    }
    let (kind, x) = match (&node.op, node.inputs.as_slice()) {
        (Op::Sigmoid, _) => (Activation::Sigmoid, x),
        (Op::Tanh, _) => (Activation::Tanh, x),
        (Op::Max, [a, b]) => match [(*a, *b), (*b, *a)].into_iter().find(|(_, z)| fold::number(out, *z) == Some(0.0)) {
            Some((x, _)) => (Activation::Relu, x),
            None => return Ok(None),
        },
        (Op::Mul, [a, b]) if uncast(out, *a) == uncast(out, *b) => match out.node(uncast(out, *a)) {
            Node { op: Op::Activation { kind: Activation::Relu }, inputs, .. } => (Activation::ReluSquared, inputs[0]),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    if out.ty(x).shape != node.ty.shape {
        return Ok(None);
    }
    let y = out.push(Op::Activation { kind }, vec![x], &node.name)?;
    cast(out, y, node.ty.dtype, &node.name).map(Some)
}
