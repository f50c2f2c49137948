//! Puts nodes in the order in which the outputs need them, inputs from left to right, and drops what none needs. Graphs
//! that compute the same then list it in the same order, whoever wrote them, and values live no longer than they must.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Value};

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
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
