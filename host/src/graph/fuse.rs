//! Recognises composites that are spelled with simpler composites: `activation(gate) * up`.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Op};

use super::rewrite::rewrite;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, |out, node| {
        let (Op::Mul, [a, b]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
        for (gate, up) in [(*a, *b), (*b, *a)] {
            let Op::Activation { kind } = out.node(gate).op else { continue };
            if out.ty(gate) == out.ty(up) {
                let x = out.node(gate).inputs[0];
                return out.push(Op::Gated { kind }, vec![x, up], &node.name).map(Some);
            }
        }
        Ok(None)
    })
}
