//! Recognises composites that are spelled with simpler composites: `activation(gate) * up`. An activation that
//! something else reads too is left alone: it is computed anyway.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Op};

use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let mut readers = vec![0usize; graph.nodes.len()];
    for v in graph.nodes.iter().flat_map(|n| &n.inputs).chain(graph.outputs.iter().map(|(_, v)| v)) {
        readers[v.index()] += 1;
    }
    // Every node becomes one node: values keep their numbers, so `readers` holds for the new graph too.
    rewrite(graph, |out, node| {
        let (Op::Mul, [a, b]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
        for (gate, up) in [(*a, *b), (*b, *a)] {
            let Op::Activation { kind } = out.node(gate).op else { continue };
            if readers[gate.index()] == 1 && out.ty(gate) == out.ty(up) {
                let x = out.node(gate).inputs[0];
                return out.push(Op::Gated { kind }, vec![x, up], &node.name).map(Some);
            }
        }
        Ok(None)
    })
}
