//! Makes the graph of an embedding model of an optimised `decode`: the same layers, ending where the last linear layer,
//! the one that gives the logits, begins. What it read is the hidden state after the final norm, the output `hidden`.
//! Every architecture gets it so, and no plugin has to know. Called by `llm` when a model is served for pooling.

use plugin_api::spec::SpecError;
use plugin_api::{Graph, Op, Value};

use super::rows::per_token;
use super::{dce, order, select};

/// Why a model has no hidden state to give.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EmbedError {
    /// There is no linear layer at the end.
    #[error(
        "the logits do not come from one linear layer over one hidden state, but from `{op}` ({name}), which reads {reads} \
         values of the tokens"
    )]
    NoHead {
        /// The op where the search ended.
        op: String,
        /// Where it comes from.
        name: String,
        /// How many of its inputs depend on the tokens.
        reads: usize,
    },
    /// The graph has other outputs than a `decode` has.
    #[error("the graph has no output `logits`")]
    NoLogits,
    /// The new graph broke a rule: a defect of this pass.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// The graph with the output `hidden: float[R, width]`.
pub fn embed(decode: &Graph) -> Result<Graph, EmbedError> {
    let logits = decode.output("logits").ok_or(EmbedError::NoLogits)?;
    let hidden = input_of_head(decode, logits)?;
    let mut graph = decode.clone();
    // Where the rows are chosen behind the head only, all tokens would have theirs.
    let hidden = match per_token(decode.ty(hidden)) {
        true => graph.push(Op::SelectOutputs, vec![hidden], "hidden")?,
        false => hidden,
    };
    graph.outputs = vec![("hidden".to_owned(), hidden)];
    Ok(order::run(&select::run(&dce::run(&graph)?)?)?)
}

/// From the logits upwards, through what changes them one by one (scales, caps, masks), to what their matrix product
/// reads.
fn input_of_head(graph: &Graph, logits: Value) -> Result<Value, EmbedError> {
    let dynamic = dynamic(graph);
    let mut at = logits;
    loop {
        let node = graph.node(at);
        let reads: Vec<Value> = node.inputs.iter().copied().filter(|v| dynamic[v.index()]).collect();
        let (op, name) = (node.op.to_string(), node.name.clone());
        let &[input] = reads.as_slice() else {
            return Err(EmbedError::NoHead { op, name, reads: reads.len() });
        };
        let is_matrix = |v: Value| graph.ty(v).shape.rank() == 2;
        match node.op {
            Op::Linear | Op::Matmul if node.inputs[0] == input && is_matrix(input) => return Ok(input),
            // Nothing behind the head mixes rows or looks tokens up.
            Op::Attention { .. } | Op::Embedding | Op::Take { .. } => {
                return Err(EmbedError::NoHead { op, name, reads: reads.len() });
            }
            _ => at = input,
        }
    }
}

/// Which values depend on the tokens.
fn dynamic(graph: &Graph) -> Vec<bool> {
    let mut out: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let leaf = matches!(node.op, Op::Input { .. } | Op::ContextLength { .. });
        out.push(leaf || node.inputs.iter().any(|v| out[v.index()]));
    }
    out
}
