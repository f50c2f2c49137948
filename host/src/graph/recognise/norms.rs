//! Norms that are written out: statistics first, then weight and bias as they follow.

use std::sync::LazyLock;

use plugin_api::{Graph, Node, Op, Value};

use super::pattern::short::{any, is};
use super::pattern::{Pattern, uncast};
use super::{Replaced, cast};
use crate::graph::fold;

/// What a norm without weights is.
#[derive(Clone, Copy)]
enum Norm {
    Rms,
    Layer,
    /// x / sqrt(sum(x^2) + eps)
    Euclidean,
}

static NORMS: LazyLock<Vec<(Norm, Pattern)>> = LazyLock::new(|| {
    let sum = |x: Pattern| Pattern::Reduced(Op::Sum { axis: 0, keep: true }, Box::new(x));
    let squares = || sum(is(Op::Mul, [any(0), any(0)]));
    // x times 1 / sqrt(y), in its two spellings.
    let scaled = |x: &Pattern, y: &Pattern| {
        let by_root = is(Op::Mul, [x.clone(), is(Op::Rsqrt, [y.clone()])]);
        [by_root, is(Op::Div, [x.clone(), is(Op::Sqrt, [y.clone()])])]
    };
    let mut out = vec![];
    let rms = Op::RmsNorm { eps: Pattern::EPS, unit_offset: false };
    // The root mean square of x - mean is a layer norm: that first.
    for (norm, op) in [(Norm::Layer, Op::LayerNorm { eps: Pattern::EPS }), (Norm::Rms, rms)] {
        if let Ok(Pattern::Is(Op::Mul, parts)) = Pattern::defined(&op)
            && let [x, Pattern::Is(Op::Rsqrt, inner)] = parts.as_slice()
        {
            out.extend(scaled(x, &inner[0]).map(|p| (norm, p)));
        }
    }
    // And without eps.
    out.extend(scaled(&any(0), &is(Op::Div, [squares(), Pattern::Size])).map(|p| (Norm::Rms, p)));
    out.extend(scaled(&any(0), &is(Op::Add, [squares(), Pattern::Free(0)])).map(|p| (Norm::Euclidean, p)));
    out
});

/// x / sqrt(mean(x^2) + eps), (x - mean) / sqrt(variance + eps), x / sqrt(sum(x^2) + eps)
pub(super) fn norm(out: &mut Graph, node: &Node) -> Replaced {
    if !matches!(node.op, Op::Mul | Op::Div) {
        return Ok(None);
    }
    for (norm, pattern) in NORMS.iter() {
        let Some(found) = pattern.matches(out, node) else { continue };
        let (Some(x), eps) = (found.value(0), found.number(0).unwrap_or(0.0)) else { continue };
        let Some(size) = out.ty(x).shape.0.last().and_then(|d| d.as_const()) else { continue };
        if out.ty(x).shape != node.ty.shape || !out.ty(x).dtype.is_float() || eps.is_nan() || eps < 0.0 {
            continue;
        }
        let y = match norm {
            Norm::Rms => out.push(Op::RmsNorm { eps, unit_offset: false }, vec![x], &node.name)?,
            Norm::Layer => out.push(Op::LayerNorm { eps }, vec![x], &node.name)?,
            Norm::Euclidean => {
                let n = size as f32;
                let weight = Op::scalar(out.ty(x).dtype, 1.0 / n.sqrt());
                let weight = out.push(weight, vec![], &node.name)?;
                let weight = out.push(Op::Broadcast { shape: vec![size.into()] }, vec![weight], &node.name)?;
                out.push(Op::RmsNorm { eps: eps / n, unit_offset: false }, vec![x, weight], &node.name)?
            }
        };
        return cast(out, y, node.ty.dtype, &node.name).map(Some);
    }
    Ok(None)
}

/// norm(x) * w, and norm(x) * (1 + w)
pub(super) fn weight(out: &mut Graph, node: &Node) -> Replaced {
    let (Op::Mul, [a, b]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
    for (norm, weight) in [(*a, *b), (*b, *a)] {
        let norm = out.node(uncast(out, norm)).clone();
        if norm.inputs.len() != 1 || !is_vector_for(out, &norm, weight) || norm.ty.shape != node.ty.shape {
            continue;
        }
        let weight = uncast(out, weight);
        let (op, weight) = match norm.op {
            Op::RmsNorm { eps, .. } => match one_more(out, weight) {
                Some(w) => (Op::RmsNorm { eps, unit_offset: true }, w),
                None => (Op::RmsNorm { eps, unit_offset: false }, weight),
            },
            Op::LayerNorm { eps } => (Op::LayerNorm { eps }, weight),
            _ => continue,
        };
        let weight = cast(out, weight, norm.ty.dtype, &node.name)?;
        let y = out.push(op, vec![norm.inputs[0], weight], &node.name)?;
        return cast(out, y, node.ty.dtype, &node.name).map(Some);
    }
    Ok(None)
}

/// layer_norm(x, w) + b
pub(super) fn bias(out: &mut Graph, node: &Node) -> Replaced {
    let (Op::Add, [a, b]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
    for (norm, bias) in [(*a, *b), (*b, *a)] {
        let norm = out.node(uncast(out, norm)).clone();
        let fits = matches!(norm.op, Op::LayerNorm { .. } | Op::Linear) && norm.inputs.len() == 2;
        if !fits || !is_vector_for(out, &norm, bias) || norm.ty.shape != node.ty.shape {
            continue;
        }
        let bias = uncast(out, bias);
        let bias = cast(out, bias, norm.ty.dtype, &node.name)?;
        let y = out.push(norm.op, vec![norm.inputs[0], norm.inputs[1], bias], &node.name)?;
        return cast(out, y, node.ty.dtype, &node.name).map(Some);
    }
    Ok(None)
}

/// Whether the value has one element for each of the last axis, and nothing to do with tokens.
fn is_vector_for(out: &Graph, norm: &Node, v: Value) -> bool {
    let dims = &out.ty(v).shape.0;
    dims.len() == 1 && norm.ty.shape.0.last() == dims.last() && dims[0].as_const().is_some()
}

/// w of 1 + w
fn one_more(out: &Graph, v: Value) -> Option<Value> {
    let node = out.node(v);
    let (Op::Add, [a, b]) = (&node.op, node.inputs.as_slice()) else { return None };
    let one = |v: Value| fold::number(out, v) == Some(1.0) && out.ty(v).shape.rank() == 0;
    match (one(*a), one(*b)) {
        (_, true) => Some(uncast(out, *a)),
        (true, _) => Some(uncast(out, *b)),
        _ => None,
    }
}
