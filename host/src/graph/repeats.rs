//! Computes once what is repeated: an elementwise op of a value that holds its elements twice (tables of angles for both
//! halves of a head) becomes the repetition of the op. Later passes then see what the value repeats.

use plugin_api::spec::SpecError;
use plugin_api::{DType, Graph, Node, Op, Value};

use super::fold;
use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, |out, node| {
        let Some(at) = operand(out, node) else { return Ok(None) };
        let repeated = out.node(node.inputs[at]).clone();
        // The op on what is repeated.
        let once = |out: &mut Graph, x: Value| {
            let inputs = node.inputs.iter().enumerate().map(|(i, &v)| if i == at { x } else { v }).collect();
            out.push(node.op.clone(), inputs, &node.name)
        };
        match &repeated.op {
            Op::Concat { .. }
                if repeated.inputs.len() > 1 && repeated.inputs.iter().all(|v| *v == repeated.inputs[0]) =>
            {
                let y = once(out, repeated.inputs[0])?;
                out.push(repeated.op.clone(), vec![y; repeated.inputs.len()], &node.name).map(Some)
            }
            Op::Broadcast { .. } => {
                let y = once(out, repeated.inputs[0])?;
                out.push(repeated.op.clone(), vec![y], &node.name).map(Some)
            }
            Op::Reshape { .. } if matches!(out.node(repeated.inputs[0]).op, Op::Broadcast { .. }) => {
                let stretched = out.node(repeated.inputs[0]).clone();
                let y = once(out, stretched.inputs[0])?;
                let y = out.push(stretched.op, vec![y], &node.name)?;
                out.push(repeated.op.clone(), vec![y], &node.name).map(Some)
            }
            _ => Ok(None),
        }
    })
}

/// The one operand of an elementwise op that is no literal number.
fn operand(out: &Graph, node: &Node) -> Option<usize> {
    use Op::*;
    let number = |v: Value| match &out.node(v).op {
        Const { shape, dtype: DType::Float | DType::F32, .. } if shape.is_empty() => fold::number(out, v),
        _ => None,
    };
    match (&node.op, node.inputs.as_slice()) {
        (Neg | Abs | Exp | Log | Sqrt | Rsqrt | Sin | Cos | Tanh | Sigmoid | Cast { .. }, _) => Some(0),
        (Add | Sub | Mul | Div | Pow, [a, b]) => match (number(*a), number(*b)) {
            (None, Some(_)) => Some(0),
            (Some(_), None) => Some(1),
            _ => None,
        },
        _ => None,
    }
}
