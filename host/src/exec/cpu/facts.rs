//! What `lower` asks a graph before it chooses kernels: what does not depend on the step, what shares memory,
//! how long values live, and whether the graph can be batched at all.

use std::collections::HashMap;

use plugin_api::{Dim, Graph, Node, Op, Type, Value};

use super::lower::LowerError;
use crate::graph::rows::{per_token, rowwise};

/// What the graph says about its nodes.
pub(super) struct Facts {
    /// Does not depend on the step.
    pub(super) is_static: Vec<bool>,
    /// The node in whose call this linear or convolution is computed, as its epilogue or activation.
    pub(super) fused_into: Vec<Option<usize>>,
    /// Values that are the same memory: the first of them.
    pub(super) class: Vec<usize>,
    /// By class: the last node whose call reads it.
    pub(super) last_use: Vec<usize>,
    /// Linears computed in one call, by their input.
    pub(super) groups: HashMap<Value, Vec<usize>>,
}

impl Facts {
    pub(super) fn of(graph: &Graph) -> Facts {
        let n = graph.nodes.len();
        let is_static = static_nodes(graph);
        let mut readers: Vec<Vec<usize>> = vec![vec![]; n];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|v| readers[v.index()].push(i));
        }
        // An output is read after the last node.
        graph.outputs.iter().for_each(|(_, v)| readers[v.index()].push(usize::MAX));

        let mut fused_into = vec![None; n];
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| !is_static[*i]) {
            let candidates: &[Value] = match node.op {
                // The right side first: the left is usually the residual stream.
                Op::Add if graph.ty(node.inputs[0]) == graph.ty(node.inputs[1]) => &[node.inputs[1], node.inputs[0]],
                Op::Activation { .. } => &[node.inputs[0]],
                _ => &[],
            };
            let activates = matches!(node.op, Op::Activation { .. });
            let fusable = |v: &&Value| {
                let j = v.index();
                let before = &graph.nodes[j].op;
                let takes = *before == Op::Linear || (activates && matches!(before, Op::CausalConv1d { .. }));
                takes && !is_static[j] && readers[j] == [i] && node.ty.shape.rank() == 2
            };
            let both_dynamic = node.inputs.iter().all(|v| !is_static[v.index()]);
            if let Some(v) = candidates.iter().find(fusable).filter(|_| both_dynamic) {
                fused_into[v.index()] = Some(i);
            }
        }
        let mut class: Vec<usize> = (0..n).collect();
        let mut last_use: Vec<usize> = (0..n).collect();
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| !is_static[*i]) {
            if is_view(graph, node) {
                class[i] = class[node.inputs[0].index()];
            }
            let call = fused_into[i].unwrap_or(i);
            for v in &node.inputs {
                let c = class[v.index()];
                last_use[c] = last_use[c].max(call);
            }
        }
        for (_, v) in &graph.outputs {
            last_use[class[v.index()]] = usize::MAX;
        }
        let mut groups: HashMap<Value, Vec<usize>> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let whole = node.ty.shape.rank() == 2;
            if node.op == Op::Linear && whole && !is_static[i] && fused_into[i].is_none() {
                groups.entry(node.inputs[0]).or_default().push(i);
            }
        }
        Facts { is_static, fused_into, class, last_use, groups }
    }

    pub(super) fn check_rows(&self, graph: &Graph) -> Result<(), LowerError> {
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| !self.is_static[*i]) {
            let dims = &node.ty.shape.0;
            let selected = dims.first() == Some(&Dim::R());
            let shaped = (selected || per_token(&node.ty)) && dims[1..].iter().all(|d| d.as_const().is_some());
            let by_row = match &node.op {
                Op::Input { .. } | Op::ContextLength { .. } | Op::SelectOutputs => true,
                // Kept as they are only where a kernel keeps their state.
                Op::Attention { .. } | Op::CausalConv1d { .. } | Op::LinearAttention { .. } => true,
                _ if selected => rowwise_selected(graph, node),
                _ => rowwise(graph, node),
            };
            if !(shaped && by_row && bounds_fixed(&node.op)) {
                return Err(LowerError::NotBatchable {
                    node: i,
                    name: node.name.clone(),
                    op: node.op.name(),
                    ty: node.ty.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// `rowwise` for values of selected rows: the same rule with R in the place of T.
fn rowwise_selected(graph: &Graph, node: &Node) -> bool {
    let rows_as_tokens = |ty: &Type| {
        let mut ty = ty.clone();
        if let Some(first) = ty.shape.0.first_mut().filter(|d| **d == Dim::R()) {
            *first = Dim::T();
        }
        ty
    };
    let mut local = Graph::default();
    let mut copy = node.clone();
    for (k, v) in node.inputs.iter().enumerate() {
        if per_token(graph.ty(*v)) {
            return false;
        }
        // Only the types matter to the rule.
        let ty = rows_as_tokens(graph.ty(*v));
        local.nodes.push(Node { op: Op::Neg, inputs: vec![], ty, name: String::new() });
        copy.inputs[k] = Value(k as u32);
    }
    copy.ty = rows_as_tokens(&node.ty);
    rowwise(&local, &copy)
}

/// Sizes of the dimensions beside the rows.
pub(super) fn row_dims(ty: &Type) -> Vec<usize> {
    ty.shape.0[1..].iter().map(constant).collect()
}

pub(super) fn constant(d: &Dim) -> usize {
    // `check_rows` admits constants only.
    d.as_const().and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// Whether the value is its first input's memory, looked at differently.
pub(super) fn is_view(graph: &Graph, node: &Node) -> bool {
    let Some(&x) = node.inputs.first() else { return false };
    let from = graph.ty(x);
    match &node.op {
        Op::Reshape { .. } => from.shape.0.first() == node.ty.shape.0.first(),
        Op::Cast { dtype } => *dtype == from.dtype || (dtype.is_float() && from.dtype.is_float()),
        Op::Slice { axis, step: 1, .. } => *axis >= 1 && from.shape.0[1..*axis].iter().all(Dim::is_one),
        _ => false,
    }
}

pub(super) fn static_nodes(graph: &Graph) -> Vec<bool> {
    let mut out: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let fixed = !matches!(node.op, Op::Input { .. } | Op::ContextLength { .. })
            && node.ty.shape.as_consts().is_some()
            && bounds_fixed(&node.op);
        out.push(fixed && node.inputs.iter().all(|v| out[v.index()]));
    }
    out
}

/// Whether the op means the same in every step: a slice from T - 4 to T does not, though its size is constant.
fn bounds_fixed(op: &Op) -> bool {
    match op {
        Op::Slice { start, end, .. } => start.as_const().is_some() && end.as_const().is_some(),
        _ => true,
    }
}
