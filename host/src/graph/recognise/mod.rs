//! Recognises composites that are written out in simpler ops, so that kernels exist for them.
//!
//! Every rule says what one node may be the last step of; rules for larger things build on what rules for smaller ones
//! made of the inputs. Rules know the composites' definitions and usual ways to write them, no model's name.

mod activations;
mod attention;
mod masks;
mod norms;
mod pattern;
mod rotary;
mod widened;

use plugin_api::spec::SpecError;
use plugin_api::{DType, Graph, Node, Op, Value};

use super::rewrite::rewrite;

type Replaced = Result<Option<Value>, SpecError>;

/// A rule: the value that computes the same as the node, if it applies. The node's inputs are in `out`.
type Rule = fn(out: &mut Graph, node: &Node) -> Replaced;

const RULES: &[Rule] = &[
    norms::norm,
    norms::weight,
    norms::bias,
    activations::activation,
    rotary::rotary,
    rotary::partial,
    widened::embedding,
    widened::linear,
    attention::grouped,
];

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    // Recognised attentions keep states of their own.
    let mut state = graph.nodes.iter().filter_map(|n| n.op.state()).max().map_or(0, |s| s.saturating_add(1));
    rewrite(graph, |out, node| {
        for rule in RULES {
            if let Some(value) = rule(out, node)? {
                return Ok(Some(value));
            }
        }
        attention::attention(out, node, &mut state)
    })
}

/// Ops that are also activation functions by themselves become these: kernels exist for them.
pub(super) fn run_simple(graph: &Graph) -> Result<Graph, SpecError> {
    rewrite(graph, activations::simple)
}

/// The value as this type: literally, or by a cast.
fn cast(out: &mut Graph, v: Value, dtype: DType, name: &str) -> Result<Value, SpecError> {
    if out.ty(v).dtype == dtype { Ok(v) } else { out.push(Op::Cast { dtype }, vec![v], name) }
}
