//! Computes what does not depend on weights or the step, and removes arithmetic that changes nothing.
//!
//! Literals are folded with the executors' own arithmetic (`elementwise`), so a table that a graph spells out equals one
//! that it states. Algebra is limited to what is exact: x * 1, x + 0, powers that are products, casts there and back.
//! (Both float types are f32 beside matrix products; decision 4.)

use plugin_api::spec::SpecError;
use plugin_api::{ConstData, DType, Dim, Graph, InputKind, Node, Op, Value};

use super::constants::{self, Constant, sizes};
use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, |out, node| {
        if let Some(value) = literal(out, node) {
            return out.push(value, vec![], &node.name).map(Some);
        }
        match simpler(out, node) {
            Some(Simpler::Value(v)) => Ok(Some(v)),
            Some(Simpler::Op(op, inputs)) => out.push(op, inputs, &node.name).map(Some),
            Some(Simpler::Scalar(op, x, number)) => {
                let number = out.push(Op::scalar(out.ty(x).dtype, number), vec![], &node.name)?;
                let inputs = if op == Op::Div { vec![number, x] } else { vec![x, number] };
                out.push(op, inputs, &node.name).map(Some)
            }
            Some(Simpler::Cube(x)) => {
                let square = out.push(Op::Mul, vec![x, x], &node.name)?;
                out.push(Op::Mul, vec![square, x], &node.name).map(Some)
            }
            None => Ok(None),
        }
    })
}

/// What a node can be replaced by.
enum Simpler {
    Value(Value),
    Op(Op, Vec<Value>),
    /// The op of a value and a number; for `Div` the number comes first.
    Scalar(Op, Value, f32),
    Cube(Value),
}

/// The literal that the node computes.
fn literal(out: &Graph, node: &Node) -> Option<Op> {
    if let Op::Iota { len } = &node.op
        && *len == Dim::T()
    {
        // A graph means one whole sequence, from its first token (decision 2).
        return Some(Op::Input { kind: InputKind::Positions });
    }
    if node.inputs.is_empty() || node.op.is_composite() || matches!(node.op, Op::Broadcast { .. }) {
        return None;
    }
    // Without a look at the data first: most nodes read something that is not a literal.
    let known = |v: &Value| matches!(out.node(*v).op, Op::Const { .. } | Op::Iota { .. });
    if !node.inputs.iter().all(|v| known(v) || is_filled(out, *v)) {
        return None;
    }
    let shape = sizes(&node.ty.shape.0)?;
    let inputs: Vec<Constant> = node.inputs.iter().map(|&v| value(out, v)).collect::<Option<_>>()?;
    let folded = constants::apply(&node.op, &inputs.iter().collect::<Vec<_>>(), node.ty.dtype, &shape)?;
    Some(Op::Const { dtype: node.ty.dtype, shape: folded.shape, data: folded.data })
}

/// Whether this is a small literal stretched to a constant shape.
fn is_filled(out: &Graph, v: Value) -> bool {
    let node = out.node(v);
    matches!(node.op, Op::Broadcast { .. })
        && matches!(out.node(node.inputs[0]).op, Op::Const { .. })
        && node.ty.shape.as_consts().is_some()
}

fn value(out: &Graph, v: Value) -> Option<Constant> {
    let node = out.node(v);
    match &node.op {
        Op::Broadcast { .. } => {
            let inner = Constant::of(&out.node(node.inputs[0]).op)?;
            constants::apply(&node.op, &[&inner], node.ty.dtype, &sizes(&node.ty.shape.0)?)
        }
        op => Constant::of(op),
    }
}

/// The number of which all elements of a literal are, also if it was stretched or cast.
pub(super) fn number(graph: &Graph, v: Value) -> Option<f32> {
    let node = graph.node(v);
    match &node.op {
        Op::Const { data, .. } if data.len() <= 64 => match data {
            ConstData::Bool(_) => None,
            data => Constant { shape: vec![], data: data.clone() }.number(),
        },
        Op::Broadcast { .. } | Op::Reshape { .. } => number(graph, node.inputs[0]),
        Op::Cast { dtype: DType::Float | DType::F32 } => number(graph, node.inputs[0]),
        _ => None,
    }
}

fn truth(graph: &Graph, v: Value) -> Option<bool> {
    let node = graph.node(v);
    match &node.op {
        Op::Const { data: ConstData::Bool(v), .. } => {
            let first = *v.first()?;
            v.iter().all(|&b| b == first).then_some(first)
        }
        Op::Broadcast { .. } | Op::Reshape { .. } => truth(graph, node.inputs[0]),
        _ => None,
    }
}

fn simpler(out: &Graph, node: &Node) -> Option<Simpler> {
    use Simpler::{Op as As, Scalar, Value as Same};
    let (a, b) = (*node.inputs.first()?, node.inputs.get(1).copied());
    // Only in the place of a value of the same type.
    let same = |v: Value| (*out.ty(v) == node.ty).then_some(Same(v));
    let is = |v: Option<Value>, x: f32| v.and_then(|v| number(out, v)) == Some(x);
    let inner = || out.node(a);
    match &node.op {
        Op::Add => match () {
            _ if is(b, 0.0) => same(a),
            _ if is(Some(a), 0.0) => same(b?),
            _ => None,
        },
        Op::Mul => match () {
            _ if is(b, 1.0) => same(a),
            _ if is(Some(a), 1.0) => same(b?),
            _ => None,
        },
        Op::Sub if is(b, 0.0) => same(a),
        Op::Sub if node.ty.dtype.is_float() => {
            let number = scalar(out, b?)?;
            (*out.ty(a) == node.ty).then_some(Scalar(Op::Add, a, -number))
        }
        Op::Div if is(b, 1.0) => same(a),
        // 1 / sqrt(x) is what rsqrt is defined as.
        Op::Div if is(Some(a), 1.0) && out.node(b?).op == Op::Sqrt && *out.ty(b?) == node.ty => {
            Some(As(Op::Rsqrt, out.node(b?).inputs.clone()))
        }
        Op::Pow => power(out, node, a, number(out, b?)?),
        Op::Not if inner().op == Op::Not => same(inner().inputs[0]),
        Op::Neg if inner().op == Op::Neg => same(inner().inputs[0]),
        Op::And | Op::Or => {
            let neutral = node.op == Op::And;
            match (truth(out, a), truth(out, b?)) {
                (Some(t), _) if t == neutral => same(b?),
                (_, Some(t)) if t == neutral => same(a),
                _ => None,
            }
        }
        Op::Select => match truth(out, a)? {
            true => same(b?),
            false => same(*node.inputs.get(2)?),
        },
        _ => None,
    }
}

/// A number that is a literal of no or only unit dimensions.
fn scalar(out: &Graph, v: Value) -> Option<f32> {
    let single = out.ty(v).shape.0.iter().all(Dim::is_one);
    if single { number(out, v) } else { None }
}

fn power(out: &Graph, node: &Node, x: Value, exponent: f32) -> Option<Simpler> {
    if *out.ty(x) != node.ty {
        return None;
    }
    Some(match exponent {
        1.0 => Simpler::Value(x),
        2.0 => Simpler::Op(Op::Mul, vec![x, x]),
        3.0 => Simpler::Cube(x),
        0.5 => Simpler::Op(Op::Sqrt, vec![x]),
        -0.5 => Simpler::Op(Op::Rsqrt, vec![x]),
        -1.0 => Simpler::Scalar(Op::Div, x, 1.0),
        _ => return None,
    })
}
