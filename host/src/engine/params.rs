//! What goes into the engine and what comes out of it: plain data, no behaviour beyond defaults.
//! Filled by `llm` (which checks ranges against what a user sent); read by the scheduler and the sampler.

use std::sync::Arc;
use std::time::Instant;

use super::guide::Restriction;
use super::pool::Pooling;

/// How to choose tokens and when to stop. Every field is already in range: `llm::RequestParams::validate`
/// reports what is not. [`Default`] is vLLM's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// The most tokens to generate (at least 1). Also ended by the engine's `max_model_len`.
    pub max_tokens: usize,
    /// Before this many tokens, eos and stop ids are not chosen.
    pub min_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the most likely tokens that hold this much probability; 1 is off.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 is off.
    pub top_k: usize,
    /// Keep tokens with at least this share of the most likely one's probability; 0 is off.
    pub min_p: f32,
    /// Subtracted once from each token in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens in prompt and output; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// If given, only these can be chosen.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Token sequences that must not be produced.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end the generation.
    pub stop_token_ids: Vec<u32>,
    /// The model's end-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Do not end at `eos_token_ids`.
    pub ignore_eos: bool,
    /// None: taken from the operating system when the request is submitted.
    pub seed: Option<u64>,
    /// Report the chosen token's log-probability and those of this many most likely ones.
    pub logprobs: Option<usize>,
    /// Report these tokens in place of the most likely ones; empty: do not. Only together with `logprobs`.
    pub logprob_token_ids: Vec<u32>,
    /// The same as `logprobs` for every token of the prompt.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            stop_token_ids: Vec::new(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
            seed: None,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether the most likely token is taken (vLLM's threshold).
    pub fn greedy(&self) -> bool {
        self.temperature < 1e-5
    }

    /// Whether choosing `token` ends the generation.
    pub fn is_stop(&self, token: u32) -> bool {
        (!self.ignore_eos && self.eos_token_ids.contains(&token)) || self.stop_token_ids.contains(&token)
    }
}

/// A prompt to continue, or to make a vector of.
#[derive(Debug, Clone)]
pub struct EngineRequest {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to continue.
    pub params: SamplingParams,
    /// One vector is wanted and no token: `params` and `restriction` have no part in it.
    pub pooling: Option<Pooling>,
    /// What the output is restricted to.
    pub restriction: Option<Arc<dyn Restriction>>,
    /// Lower runs first, as in vLLM; equal priorities run in order of submission.
    pub priority: i32,
    /// When the client's request came in (for the timings in [`EngineEvent::Finished`] only).
    pub arrival: Instant,
}

/// The log-probability of one token, from the model's raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// 1 for the most likely token; equal logits rank by token id.
    pub rank: u32,
    /// The most likely tokens, best first, without those of probability 0; or the tokens asked for, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An eos token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the model's context length was reached.
    Length,
    /// The client or a shutdown ended it.
    Abort,
}

impl FinishReason {
    /// As in OpenAI's `finish_reason` (`abort` is vLLM's).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// When things happened to a request.
#[derive(Debug, Clone, Copy)]
pub struct Timings {
    /// As given in [`EngineRequest::arrival`].
    pub arrival: Instant,
    /// It first got a place in a step.
    pub first_scheduled: Option<Instant>,
    /// Its first token was chosen.
    pub first_token: Option<Instant>,
    /// It ended.
    pub finished: Instant,
}

/// What the engine tells about a request. `Finished` or `Failed` comes last, exactly once.
#[derive(Debug, Clone)]
pub enum EngineEvent {
    /// It has a place in a step for the first time.
    Started {
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: usize,
        /// When.
        at: Instant,
    },
    /// One entry for each prompt token (none for the first); comes before the first `Token`.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// A token was chosen (stop tokens too).
    Token {
        /// The token.
        token: u32,
        /// If asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The prompt's vector; `Finished` comes next.
    Pooled(Vec<f32>),
    /// The generation ended.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The eos or stop token that ended it.
        stop_token: Option<u32>,
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: usize,
        /// How often it lost its blocks and was computed again.
        preemptions: u32,
        /// When things happened.
        timings: Timings,
    },
    /// The generation could not go on; the message says why.
    Failed(String),
}
