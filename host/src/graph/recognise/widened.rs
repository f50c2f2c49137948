//! Tables and matrices of weights, read as they are stored.

use plugin_api::{DType, Graph, Node, Op, SpecError, Value};

use super::pattern::uncast;
use super::{Replaced, cast};

/// Rows taken of a table of weights are an embedding. (Other tables are not of the model's type: they stay exact.)
pub(super) fn embedding(out: &mut Graph, node: &Node) -> Replaced {
    let (Op::Take { axis: 0 }, [table, ids]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
    let stored = matches!(&out.node(*table).op, Op::Weight { dtype: DType::Float, shape, .. } if shape.len() == 2);
    if !stored {
        return Ok(None);
    }
    out.push(Op::Embedding, vec![*ids, *table], &node.name).map(Some)
}

/// A linear layer whose weights were made wider: the products are the same (decision 4), and the weights stay as stored.
pub(super) fn linear(out: &mut Graph, node: &Node) -> Replaced {
    let (Op::Linear, DType::F32) = (&node.op, node.ty.dtype) else { return Ok(None) };
    let mut inputs = vec![];
    for &v in &node.inputs[1..] {
        let stored = stored(out, v, &node.name)?;
        let Some(stored) = stored else { return Ok(None) };
        inputs.push(stored);
    }
    let x = uncast(out, node.inputs[0]);
    inputs.insert(0, cast(out, x, DType::Float, &node.name)?);
    let y = out.push(Op::Linear, inputs, &node.name)?;
    cast(out, y, DType::F32, &node.name).map(Some)
}

/// The weight in the model's type that a value is the wider form of.
fn stored(out: &mut Graph, v: Value, name: &str) -> Result<Option<Value>, SpecError> {
    let node = out.node(v).clone();
    Ok(match &node.op {
        Op::Cast { .. } if out.ty(node.inputs[0]).dtype == DType::Float => Some(node.inputs[0]),
        Op::Permute { .. } | Op::Reshape { .. } | Op::Slice { .. } => {
            let inner = stored(out, node.inputs[0], name)?;
            inner.map(|x| out.push(node.op, vec![x], name)).transpose()?
        }
        _ => None,
    })
}
