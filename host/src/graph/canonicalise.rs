//! Drops shape ops and casts that change nothing and merges chains of them, so that later passes and
//! executors see one form of each thing.

use plugin_api::spec::SpecError;
use plugin_api::{Dim, Graph, Node, Op, Value};

use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, |out, node| {
        let Some(&x) = node.inputs.first() else { return Ok(None) };
        if changes_nothing(out, node, x) {
            return Ok(Some(x));
        }
        merge(out, node, x)
    })
}

fn changes_nothing(out: &Graph, node: &Node, x: Value) -> bool {
    let ty = out.ty(x);
    match &node.op {
        Op::Reshape { .. } | Op::Broadcast { .. } | Op::Cast { .. } => *ty == node.ty,
        Op::Permute { axes } => axes.iter().enumerate().all(|(i, &a)| i == a),
        Op::Slice { axis, start, end, step } => *step == 1 && *start == Dim::from(0usize) && *end == ty.shape.0[*axis],
        Op::Concat { .. } => node.inputs.len() == 1,
        _ => false,
    }
}

/// reshape(reshape(x)) and permute(permute(x)) are one; so are slices of slices along one axis.
fn merge(out: &mut Graph, node: &Node, x: Value) -> Result<Option<Value>, SpecError> {
    let inner = out.node(x).clone();
    let op = match (&node.op, &inner.op) {
        (Op::Reshape { shape }, Op::Reshape { .. }) => Op::Reshape { shape: shape.clone() },
        (Op::Permute { axes }, Op::Permute { axes: first }) => {
            Op::Permute { axes: axes.iter().map(|&a| first[a]).collect() }
        }
        (Op::Slice { axis, start, end, step: 1 }, Op::Slice { axis: first_axis, start: first_start, step: 1, .. })
            if axis == first_axis =>
        {
            match (first_start.add(start), first_start.add(end)) {
                (Ok(start), Ok(end)) => Op::Slice { axis: *axis, start, end, step: 1 },
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    // The merged op may itself change nothing: reshape there and back.
    let candidate = Node { op, inputs: inner.inputs.clone(), ty: node.ty.clone(), name: node.name.clone() };
    if changes_nothing(out, &candidate, inner.inputs[0]) {
        return Ok(Some(inner.inputs[0]));
    }
    out.push(candidate.op, candidate.inputs, &candidate.name).map(Some)
}
