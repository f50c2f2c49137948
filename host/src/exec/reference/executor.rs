//! The engine's view of the reference: an [`Executor`] that recomputes every sequence from its first token.

use plugin_api::{Graph, Model, spec};

use super::{EvalError, Inputs, Prepared, WeightSource};
use crate::exec::{
    BLOCK_SIZE, ExecError, ExecSpec, Executor, Gives, LogitRows, MAX_PROMPT_ROWS, PrefixCaching, Step, StepSeq,
};

/// The most that one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// New tokens of all sequences.
    pub max_tokens: usize,
    /// Sequences.
    pub max_seqs: usize,
}

/// Runs a graph, as a rule a model's `decode`, without a cache.
pub struct ReferenceExecutor {
    prepared: Prepared,
    spec: ExecSpec,
    logits: Vec<f32>,
}

impl ReferenceExecutor {
    /// Verifies the model and reads its weights; runs the graph `decode`.
    pub fn new(model: &Model, weights: WeightSource<'_>, limits: Limits) -> Result<Self, EvalError> {
        spec::verify(model)?;
        let missing = || EvalError::Inputs("the model has no graph `decode` with an output `logits`".into());
        Self::of_graph(model.graphs.get("decode").ok_or_else(missing)?, weights, limits)
    }

    /// The same for a verified graph with an output of [`Gives`].
    pub fn of_graph(graph: &Graph, weights: WeightSource<'_>, limits: Limits) -> Result<Self, EvalError> {
        let missing = || EvalError::Inputs("the graph has no output `logits` or `hidden` of rank 2".into());
        let mut graph = graph.clone();
        let (gives, rows) = Gives::of(&graph).ok_or_else(missing)?;
        graph.outputs = vec![(gives.name().into(), rows)];
        let width = graph.ty(rows).shape.0.get(1).and_then(|d| d.as_const()).and_then(|n| usize::try_from(n).ok());

        let states = graph.kv_states();
        let windows: Option<Vec<usize>> = states.iter().map(|s| s.window.map(|w| w as usize)).collect();
        let per_token = |s: &plugin_api::KvState| s.heads.saturating_mul(s.key_dim.saturating_add(s.value_dim));
        let numbers = states.iter().map(per_token).fold(0usize, usize::saturating_add);
        let by_length = graph.length_dependence();
        let row_width = width.ok_or_else(missing)?;
        let spec = ExecSpec {
            gives,
            row_width,
            input_vocab_size: gives.input_vocab_size(&graph, row_width),
            extra_rows: match gives {
                Gives::Logits => MAX_PROMPT_ROWS,
                Gives::HiddenStates => limits.max_tokens,
            },
            // What a cache in f32 would take. None is kept; the engine accounts for blocks all the same.
            kv_bytes_per_block: numbers.saturating_mul(BLOCK_SIZE * size_of::<f32>()).max(1),
            window: windows.and_then(|w| w.into_iter().max()),
            prefix_cache: PrefixCaching::Shared,
            state_bytes_per_seq: 0,
            by_length,
            max_tokens: limits.max_tokens,
            max_seqs: limits.max_seqs,
        };
        Ok(ReferenceExecutor { prepared: Prepared::new(&graph, weights)?, spec, logits: Vec::new() })
    }

    fn append_logits(&mut self, seq: &StepSeq<'_>) -> Result<(), ExecError> {
        let first = match seq.logits {
            LogitRows::None => return Ok(()), // and nothing is kept for later
            LogitRows::Last => seq.tokens.len() - 1,
            LogitRows::From(position) => position.max(seq.computed),
        };
        let rows: Vec<usize> = (first..seq.tokens.len()).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let inputs = Inputs::sequence(seq.tokens, seq.context_len, &rows);
        for (_, tensor) in self.prepared.run(&inputs)? {
            let data = tensor.as_f32().ok_or_else(|| ExecError::Failed("the logits are not floats".into()))?;
            self.logits.extend_from_slice(data);
        }
        Ok(())
    }
}

impl Executor for ReferenceExecutor {
    fn spec(&self) -> &ExecSpec {
        &self.spec
    }

    fn allocate_cache(&mut self, _blocks: usize) -> Result<(), ExecError> {
        Ok(())
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        check(step, &self.spec)?;
        self.logits.clear();
        for seq in step.seqs {
            self.append_logits(seq)?;
        }
        Ok(&self.logits)
    }
}

/// The rules of [`Step`]: an executor with a cache depends on them, so the oracle holds the engine to them.
fn check(step: &Step<'_>, spec: &ExecSpec) -> Result<(), ExecError> {
    let bad = |message: String| Err(ExecError::BadStep(message));
    if step.seqs.len() > spec.max_seqs {
        return bad(format!("{} sequences, the limit is {}", step.seqs.len(), spec.max_seqs));
    }
    let mut ids = std::collections::HashSet::new();
    let mut new_tokens = 0usize;
    for seq in step.seqs {
        let (id, len) = (seq.id, seq.tokens.len());
        if !ids.insert(id) {
            return bad(format!("sequence {id} is there twice"));
        }
        if seq.computed >= len {
            return bad(format!("sequence {id} has {len} tokens of which {} are computed: none is new", seq.computed));
        }
        if seq.blocks.len().saturating_mul(BLOCK_SIZE) < len {
            return bad(format!("sequence {id} has {} blocks for {len} tokens", seq.blocks.len()));
        }
        new_tokens = new_tokens.saturating_add(len - seq.computed);
    }
    if new_tokens > spec.max_tokens {
        return bad(format!("{new_tokens} new tokens, the limit is {}", spec.max_tokens));
    }
    Ok(())
}
