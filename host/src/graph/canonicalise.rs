//! Drops shape ops and casts that change nothing and merges chains of them, so that later passes and
//! executors see one form of each thing.

use plugin_api::spec::SpecError;
use plugin_api::{ConstData, Dim, Graph, Node, Op, Value};

use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, |out, node| {
        let Some(&x) = node.inputs.first() else { return Ok(None) };
        if turned_around(out, node) {
            return out.push(node.op.clone(), vec![node.inputs[1], x], &node.name).map(Some);
        }
        if changes_nothing(out, node, x) {
            return Ok(Some(x));
        }
        if let Some(part) = part(out, node, x)? {
            return Ok(Some(part));
        }
        match indexed(out, node) {
            Some((op, inputs)) => out.push(op, inputs, &node.name).map(Some),
            None => merge(out, node, x),
        }
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

/// Whether a sum or product has the value of fixed size first: values of the step come first.
fn turned_around(out: &Graph, node: &Node) -> bool {
    let fixed = |v: Value| out.ty(v).shape.as_consts().is_some();
    match (&node.op, node.inputs.as_slice()) {
        (Op::Add | Op::Mul | Op::Max | Op::Min | Op::And | Op::Or, [a, b]) => fixed(*a) && !fixed(*b),
        _ => false,
    }
}

/// Indexing that is simpler than it looks: neighbours taken by literal indices, and whole rows gathered.
fn indexed(out: &Graph, node: &Node) -> Option<(Op, Vec<Value>)> {
    let (x, index) = (*node.inputs.first()?, out.node(*node.inputs.get(1)?));
    match (&node.op, &index.op) {
        (Op::Take { axis }, Op::Const { shape, data: ConstData::I64(places), .. }) if shape.len() == 1 => {
            let (first, size) = (*places.first()?, out.ty(x).shape.0[*axis].as_const()?);
            let run = first >= 0 && first + places.len() as i64 <= size;
            let neighbours = run && places.iter().zip(first..).all(|(a, b)| *a == b);
            let (start, end) = (Dim::from(first), Dim::from(first + places.len() as i64));
            neighbours.then(|| (Op::Slice { axis: *axis, start, end, step: 1 }, vec![x]))
        }
        (Op::Gather { axis: 0 }, Op::Broadcast { .. }) => {
            let column = out.node(index.inputs[0]);
            let (Op::Reshape { shape }, [places]) = (&column.op, column.inputs.as_slice()) else { return None };
            let rows = shape.len() == out.ty(x).shape.rank() && shape[1..].iter().all(Dim::is_one);
            (rows && out.ty(*places).shape.0 == shape[..1]).then(|| (Op::Take { axis: 0 }, vec![x, *places]))
        }
        _ => None,
    }
}

/// A slice of what was joined, within one of the parts.
fn part(out: &mut Graph, node: &Node, x: Value) -> Result<Option<Value>, SpecError> {
    let (Op::Slice { axis, start, end, step }, Op::Concat { axis: joined }) = (&node.op, &out.node(x).op) else {
        return Ok(None);
    };
    let (Some(from), Some(to)) = (start.as_const(), end.as_const()) else { return Ok(None) };
    if axis != joined {
        return Ok(None);
    }
    let mut before = 0;
    for part in out.node(x).inputs.clone() {
        let Some(size) = out.ty(part).shape.0[*axis].as_const() else { return Ok(None) };
        if before <= from && to <= before + size {
            if (before, before + size, *step) == (from, to, 1) {
                return Ok(Some(part));
            }
            let op = Op::Slice { axis: *axis, start: (from - before).into(), end: (to - before).into(), step: *step };
            return out.push(op, vec![part], &node.name).map(Some);
        }
        before += size;
    }
    Ok(None)
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
        // Between the float types nothing is lost (decision 4).
        (Op::Cast { dtype }, Op::Cast { dtype: middle }) if dtype.is_float() && middle.is_float() => node.op.clone(),
        _ => return Ok(None),
    };
    // The merged op may itself change nothing: reshape there and back.
    let candidate = Node { op, inputs: inner.inputs.clone(), ty: node.ty.clone(), name: node.name.clone() };
    if changes_nothing(out, &candidate, inner.inputs[0]) {
        return Ok(Some(inner.inputs[0]));
    }
    out.push(candidate.op, candidate.inputs, &candidate.name).map(Some)
}
