//! The reference executor: runs an unoptimised graph op by op, in f32, and says what its result must be.
//!
//! It is the oracle for every pass and kernel, so it favours plainness over speed: composites are replaced
//! by their one definition in primitives, every primitive is written out as `plugin_api::Op` documents it,
//! sums and matrix products are accumulated in f64 and rounded once. It keeps no cache (the meaning of a
//! graph is what it computes for one sequence, given whole), never reads the network or files, and never
//! panics on what a plugin or a user sends. Called by the engine (`--executor reference`, through
//! [`ReferenceExecutor`]), and by the tests of passes and kernels (through [`eval`] and [`eval_values`]).
//!
//! `prepare` folds a graph and runs it, `ops` dispatches one op, `graph::elementwise` and `lanes` compute,
//! `executor` speaks the engine's language.

mod checkpoint;
mod executor;
pub(super) mod lanes;
mod ops;
mod prepare;
#[cfg(test)]
mod tests;

use plugin_api::{ConstData, Graph, Op, SpecError, Value};

pub use checkpoint::{checkpoint, read_packed, read_tensor};
pub use executor::{Limits, ReferenceExecutor};
pub use prepare::{MAX_ELEMENTS, Prepared};

/// A value as plain data, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements; `F32` for the types `float` and `f32`.
    pub data: ConstData,
}

/// What the host supplies for one sequence. `T` is the number of its tokens, `R` that of its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// `InputKind::TokenIds`.
    pub token_ids: Vec<i64>,
    /// `InputKind::Positions`.
    pub positions: Vec<i64>,
    /// `Op::ContextLength`.
    pub context_length: Vec<i64>,
    /// Indices of the tokens that `select_outputs` picks.
    pub rows: Vec<usize>,
}

/// Reads a tensor of the checkpoint, stored floats as f32 and stored integers as i64; the error says why it cannot.
pub type WeightSource<'a> = &'a dyn Fn(&str) -> Result<Tensor, String>;

/// Why a graph could not be evaluated.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvalError {
    /// The graph is not well-formed.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A weight is missing or does not fit.
    #[error("weight `{name}`: {message}")]
    Weight {
        /// Its name in the checkpoint.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// The inputs do not fit together.
    #[error("inputs: {0}")]
    Inputs(String),
    /// A node could not be computed. Composites were replaced by their definitions: `node` counts these.
    #[error("node %{node}{} = {op}: {message}", if .name.is_empty() { String::new() } else { format!(" ({name})") })]
    Node {
        /// Index of the node in the expanded graph.
        node: usize,
        /// Its name, the same as that of the composite it comes from.
        name: String,
        /// Its op and attributes.
        op: String,
        /// What is wrong, with the value that is.
        message: String,
    },
}

impl From<EvalError> for super::ExecError {
    fn from(e: EvalError) -> Self {
        super::ExecError::Failed(e.to_string())
    }
}

impl Tensor {
    /// Floats.
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Tensor {
        Tensor { shape: shape.into(), data: ConstData::F32(data) }
    }

    /// Integers.
    pub fn i64(shape: impl Into<Vec<usize>>, data: Vec<i64>) -> Tensor {
        Tensor { shape: shape.into(), data: ConstData::I64(data) }
    }

    /// Truth values.
    pub fn bool(shape: impl Into<Vec<usize>>, data: Vec<bool>) -> Tensor {
        Tensor { shape: shape.into(), data: ConstData::Bool(data) }
    }

    /// The elements if they are floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            ConstData::F32(v) => Some(v),
            _ => None,
        }
    }
}

impl Inputs {
    /// A prompt from its first token, with logits wanted for the tokens at `rows`.
    pub fn prompt(tokens: &[u32], rows: &[usize]) -> Inputs {
        Inputs::sequence(tokens, tokens.len(), rows)
    }

    /// The beginning of a sequence that is `context_len` tokens long.
    pub fn sequence(tokens: &[u32], context_len: usize, rows: &[usize]) -> Inputs {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Inputs {
            token_ids: tokens.iter().map(|&t| t.into()).collect(),
            positions: (0..tokens.len()).map(number).collect(),
            context_length: vec![number(context_len); tokens.len()],
            rows: rows.to_vec(),
        }
    }
}

/// Computes one primitive of a step of `tokens` tokens whose rows `rows` are selected; `shape` is that of
/// the result. For executors that have no kernel for it.
pub(super) fn apply(
    op: &Op,
    inputs: &[&Tensor],
    shape: &[usize],
    tokens: usize,
    rows: &[usize],
) -> Result<Tensor, EvalError> {
    let blank = vec![0; tokens];
    let inputs_of_step =
        Inputs { token_ids: blank.clone(), positions: blank.clone(), context_length: blank, rows: rows.to_vec() };
    let step = ops::Step::new(&inputs_of_step)?;
    let fail = |e: ops::OpError| EvalError::Node { node: 0, name: String::new(), op: op.name(), message: e.0 };
    let arrays: Vec<_> =
        inputs.iter().map(|t| ops::from_data(t.data.clone(), &t.shape)).collect::<Result<_, _>>().map_err(fail)?;
    let refs: Vec<_> = arrays.iter().collect();
    ops::apply(op, &refs, shape, &step).and_then(|array| ops::to_tensor(&array)).map_err(fail)
}

/// The outputs of a graph for one sequence, by name. Loads every weight anew: keep a [`Prepared`] to
/// evaluate a graph more than once.
pub fn eval(graph: &Graph, inputs: &Inputs, weights: WeightSource<'_>) -> Result<Vec<(String, Tensor)>, EvalError> {
    Prepared::new(graph, weights)?.run(inputs)
}

/// Chosen values of a graph for one sequence, whether they are outputs or not; for tests of passes.
pub fn eval_values(
    graph: &Graph,
    values: &[Value],
    inputs: &Inputs,
    weights: WeightSource<'_>,
) -> Result<Vec<Tensor>, EvalError> {
    let outputs = values.iter().map(|v| (format!("%{}", v.0), *v)).collect();
    let graph = Graph { nodes: graph.nodes.clone(), outputs };
    Ok(eval(&graph, inputs, weights)?.into_iter().map(|(_, t)| t).collect())
}
