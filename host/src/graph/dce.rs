//! Dead code: nodes that no output depends on are dropped.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Value};

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let mut live = vec![false; graph.nodes.len()];
    for (_, v) in &graph.outputs {
        live[v.index()] = true;
    }
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if live[i] {
            node.inputs.iter().for_each(|v| live[v.index()] = true);
        }
    }
    let mut out = Graph::default();
    let mut map = vec![Value(0); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        let inputs = node.inputs.iter().map(|v| map[v.index()]).collect();
        map[i] = out.push(node.op.clone(), inputs, &node.name)?;
    }
    out.outputs = graph.outputs.iter().map(|(name, v)| (name.clone(), map[v.index()])).collect();
    Ok(out)
}
