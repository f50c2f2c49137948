//! Rebuilds a graph node by node: the loop that every pass shares.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Node, Value};

/// Copies `graph`; for every node, `rule` sees the new graph and the node with its inputs already
/// translated, and may give a value of the new graph that replaces it.
pub(super) fn rewrite(
    graph: &Graph,
    mut rule: impl FnMut(&mut Graph, &Node) -> Result<Option<Value>, SpecError>,
) -> Result<Graph, SpecError> {
    let mut out = Graph::default();
    let mut map: Vec<Value> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let mut node = node.clone();
        for v in &mut node.inputs {
            *v = map[v.index()];
        }
        let value = match rule(&mut out, &node)? {
            Some(value) => value,
            None => out.push(node.op, node.inputs, &node.name)?,
        };
        map.push(value);
    }
    out.outputs = graph.outputs.iter().map(|(name, v)| (name.clone(), map[v.index()])).collect();
    Ok(out)
}
