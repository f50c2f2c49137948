//! Puts nodes in the order in which the outputs need them, inputs from left to right, and drops what none needs. Graphs
//! that compute the same then list it in the same order, whoever wrote them, and values live no longer than they must.
//! Of a sum or product, the operand with the shorter way from the leaves comes first: `x + f(x)` however it was written.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Op, Value};

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let graph = &shorter_operand_first(graph);
    let mut out = Graph::default();
    let mut map: Vec<Option<Value>> = vec![None; graph.nodes.len()];
    // A node is looked at twice: its inputs are put above it first.
    let mut stack: Vec<(Value, bool)> = graph.outputs.iter().rev().map(|(_, v)| (*v, false)).collect();
    while let Some((v, ready)) = stack.pop() {
        if map[v.index()].is_some() {
            continue;
        }
        let node = graph.node(v);
        if !ready {
            stack.push((v, true));
            stack.extend(node.inputs.iter().rev().filter(|i| map[i.index()].is_none()).map(|&i| (i, false)));
            continue;
        }
        let inputs = node.inputs.iter().filter_map(|i| map[i.index()]).collect();
        map[v.index()] = Some(out.push(node.op.clone(), inputs, &node.name)?);
    }
    out.outputs = graph.outputs.iter().filter_map(|(name, v)| Some((name.clone(), map[v.index()]?))).collect();
    Ok(out)
}

/// Sums and products give the same bits in either order.
fn shorter_operand_first(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let mut depth = vec![0u32; graph.nodes.len()];
    for (i, node) in graph.nodes.iter_mut().enumerate() {
        depth[i] = node.inputs.iter().map(|v| depth[v.index()] + 1).max().unwrap_or(0);
        if matches!(node.op, Op::Add | Op::Mul) {
            node.inputs.sort_by_key(|v| depth[v.index()]); // stable
        }
    }
    graph
}
