//! What computes a step. An [`Executor`] holds the model's weights, its plan and the paged KV cache;
//! the engine tells it which tokens of which sequences to run and gets logits back. An executor never
//! decides what runs, never samples and never talks to a client. Called by `engine` (and its tests).

pub mod cpu;
pub mod cuda;
pub mod reference;

use std::sync::Arc;

use ::kernels::cpu::Pool;
pub use ::kernels::cuda::{Draw, Drawn};
use plugin_api::{Graph, LengthDependence, Value};

/// Arithmetic of a model's matrix products, `--dtype`. Everything beside them is computed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Weights of any type are read exactly.
    Float32,
    /// Weights and inputs are rounded to bfloat16; sums are kept in f32.
    Bfloat16,
    /// Weights are rounded to float16; inputs and sums are kept in f32.
    Float16,
}

impl Dtype {
    /// As in configurations and flags.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
        }
    }

    /// From [`Dtype::name`], or vLLM's short forms.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Some(match name {
            "float32" | "float" => Dtype::Float32,
            "bfloat16" => Dtype::Bfloat16,
            "float16" | "half" => Dtype::Float16,
            _ => return None,
        })
    }
}

/// `--quantization`: what matrices of linear layers are held as, whatever they are stored in. See `cpu::precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// int8 with a scale for each row.
    Int8,
    /// int4 with a scale for every 32 weights of a row; the head in int8.
    Int4,
}

impl Quantization {
    /// As in flags.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Int8 => "int8",
            Quantization::Int4 => "int4",
        }
    }

    /// From [`Quantization::name`].
    pub fn from_name(name: &str) -> Option<Quantization> {
        [Quantization::Int8, Quantization::Int4].into_iter().find(|q| q.name() == name)
    }
}

/// `--kv-cache-dtype`: what keys and values are kept as. Attention computes in f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCacheDtype {
    /// As computed.
    Float32,
    /// Rounded to bfloat16.
    Bfloat16,
    /// Rounded to int8, with an f32 scale for each key and value of each head: what vLLM calls `int8_per_token_head`.
    Int8,
}

impl KvCacheDtype {
    /// As in configurations and flags.
    pub fn name(self) -> &'static str {
        match self {
            KvCacheDtype::Float32 => "float32",
            KvCacheDtype::Bfloat16 => "bfloat16",
            KvCacheDtype::Int8 => "int8",
        }
    }

    /// From [`KvCacheDtype::name`], or vLLM's names.
    pub fn from_name(name: &str) -> Option<KvCacheDtype> {
        Some(match name {
            "float32" | "float" => KvCacheDtype::Float32,
            "bfloat16" => KvCacheDtype::Bfloat16,
            "int8" | "int8_per_token_head" => KvCacheDtype::Int8,
            _ => return None,
        })
    }

    /// Bytes of one key or value of one head with `dim` elements.
    pub fn bytes(self, dim: usize) -> usize {
        match self {
            KvCacheDtype::Float32 => dim.saturating_mul(4),
            KvCacheDtype::Bfloat16 => dim.saturating_mul(2),
            KvCacheDtype::Int8 => dim.saturating_add(4),
        }
    }

    /// Bytes of one token of an attention state.
    pub fn bytes_per_token(self, state: &plugin_api::KvState) -> usize {
        state.heads.saturating_mul(self.bytes(state.key_dim).saturating_add(self.bytes(state.value_dim)))
    }
}

/// Tokens in one KV block.
pub const BLOCK_SIZE: usize = 16;

/// The most rows of logits that the engine asks for *in excess of one row a sequence* in one step (they are
/// for `prompt_logprobs`). So a step never has more than `max_seqs + MAX_PROMPT_ROWS` rows. Hidden states are narrower:
/// there, every token of a step may have its row ([`ExecSpec::extra_rows`]).
pub const MAX_PROMPT_ROWS: usize = 64;

/// A block of the KV cache. `BlockId::MAX` stands for a block that was freed because it lies outside
/// every sliding window; it is never read.
pub type BlockId = u32;

/// Which rows, of logits or of hidden states, a sequence wants from a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None (the middle of a prompt).
    None,
    /// The row of the last token only.
    Last,
    /// The rows of all absolute positions `>=` this that are computed in this step.
    From(usize),
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepSeq<'a> {
    /// Names the sequence from its first step to [`Executor::forget`].
    pub id: u64,
    /// The whole sequence up to the end of this step.
    pub tokens: &'a [u32],
    /// `tokens[..computed]` are in the cache; `tokens[computed..]` are computed now.
    pub computed: usize,
    /// Length of the whole sequence as known now, tokens of later steps included: prompts may take several.
    pub context_len: usize,
    /// Block `i` holds positions `i * BLOCK_SIZE ..`; covers all of `tokens`.
    pub blocks: &'a [BlockId],
    /// The logit rows wanted.
    pub logits: LogitRows,
}

/// What runs in one call: sequences laid end to end.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Every sequence of the step, each at most once.
    pub seqs: &'a [StepSeq<'a>],
}

/// How far cached keys and values may be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixCaching {
    /// They depend on the tokens before them only.
    Shared,
    /// State cannot be shared (recurrent layers).
    Unsupported,
}

/// What the rows are that an executor gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// Logits over the vocabulary: what the graph `decode` has.
    Logits,
    /// What the last linear layer reads: what [`crate::graph::embed()`] makes of it.
    HiddenStates,
}

impl Gives {
    /// The name of the graph's output.
    pub fn name(self) -> &'static str {
        match self {
            Gives::Logits => "logits",
            Gives::HiddenStates => "hidden",
        }
    }

    /// How many token ids a graph takes that gives rows of this width: where no embedding says it, logits do; hidden states
    /// say nothing.
    pub fn input_vocab_size(self, graph: &Graph, row_width: usize) -> usize {
        graph.input_vocab_size().unwrap_or(match self {
            Gives::Logits => row_width,
            Gives::HiddenStates => usize::MAX,
        })
    }

    /// What a graph gives, and where.
    pub fn of(graph: &Graph) -> Option<(Gives, Value)> {
        [Gives::Logits, Gives::HiddenStates].into_iter().find_map(|gives| Some((gives, graph.output(gives.name())?)))
    }
}

/// What the engine must know of an executor.
#[derive(Debug, Clone)]
pub struct ExecSpec {
    /// What its rows are.
    pub gives: Gives,
    /// Numbers in a row: of logits, as many as the vocabulary has tokens.
    pub row_width: usize,
    /// Token ids that a sequence may have: rows of the embedding, which can be more than the head has.
    pub input_vocab_size: usize,
    /// The most rows of one step in excess of one a sequence.
    pub extra_rows: usize,
    /// Bytes of one KV block over all layers.
    pub kv_bytes_per_block: usize,
    /// If *all* layers have a sliding window: the largest. Blocks wholly before `computed - window` may be freed.
    pub window: Option<usize>,
    /// Whether cached blocks may be shared.
    pub prefix_cache: PrefixCaching,
    /// Bytes of state of fixed size that a running sequence has beside its blocks (recurrent layers).
    pub state_bytes_per_seq: usize,
    /// Keys and values also depend on the length of the whole sequence (some rope scalings): they are shared
    /// within a class of lengths, and computed anew when a sequence grows into another class.
    pub by_length: Option<LengthDependence>,
    /// The most tokens in one step.
    pub max_tokens: usize,
    /// The most sequences in one step.
    pub max_seqs: usize,
}

/// Why an executor could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExecError {
    /// The KV cache could not be allocated.
    #[error("cannot allocate a KV cache of {blocks} blocks ({bytes} bytes): {reason}; lower --kv-cache-memory")]
    Cache {
        /// Blocks asked for.
        blocks: usize,
        /// Their bytes.
        bytes: usize,
        /// What the allocator said.
        reason: String,
    },
    /// The step breaks a rule of [`Step`]; a bug of the caller.
    #[error("malformed step: {0}")]
    BadStep(String),
    /// A kernel or device failed.
    #[error("{0}")]
    Failed(String),
}

/// What comes of a step in which tokens were chosen.
#[derive(Debug)]
pub struct StepRows<'a> {
    /// The rows of the sequences without a draw, as [`Executor::execute`] gives them.
    pub rows: &'a [f32],
    /// What came of each draw, in order.
    pub drawn: Vec<Drawn>,
}

/// Computes steps of one model. Owned by the engine's thread.
pub trait Executor: Send {
    /// Fixed facts; the same for the life of the executor.
    fn spec(&self) -> &ExecSpec;

    /// Allocates the KV cache. Called once, before the first step.
    fn allocate_cache(&mut self, blocks: usize) -> Result<(), ExecError>;

    /// Runs one step and returns its rows as `[rows, row_width]`, row-major, in the order of `step.seqs`.
    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError>;

    /// Threads that have nothing to do between two steps, on which tokens can be chosen.
    fn threads(&self) -> Option<Arc<Pool>> {
        None
    }

    /// Whether [`Executor::execute_and_draw`] chooses tokens.
    fn draws(&self) -> bool {
        false
    }

    /// Runs one step in which the next tokens of some sequences are chosen where their logits are: of those that `draws`,
    /// in the order of `step.seqs`, has a [`Draw`] for. They ask for [`LogitRows::Last`], and their rows do not come
    /// back. Only for executors that [`Executor::draws`] is true of.
    fn execute_and_draw(&mut self, step: &Step<'_>, draws: &[Option<Draw>]) -> Result<StepRows<'_>, ExecError> {
        if draws.iter().any(Option::is_some) {
            return Err(ExecError::BadStep("this executor chooses no tokens".into()));
        }
        Ok(StepRows { rows: self.execute(step)?, drawn: vec![] })
    }

    /// The sequence was finished or preempted: executors that keep state per sequence drop it.
    fn forget(&mut self, id: u64) {
        let _ = id;
    }
}
