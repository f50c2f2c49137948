//! The library face: prompts in, text out. Checks parameters, tokenises, starts one engine request for
//! each choice, and makes text of their tokens in the reader's own task. Knows no HTTP and schedules
//! nothing. `server` and `cli` sit on it, and whoever uses `host` as a library:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use host::{Llm, LlmOptions, SamplingParams};
//!
//! fn main() -> ExitCode {
//!     // Plugins run in processes of their own: this program, started again.
//!     if host::registry::is_worker() {
//!         return host::registry::worker_main();
//!     }
//!     match run() {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("error: {error}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//!
//! fn run() -> Result<(), Box<dyn std::error::Error>> {
//!     let llm = Llm::load(&LlmOptions::new("meta-llama/Llama-3.2-1B"))?; // `LlmOptions::default()`: the demo model
//!     let prompts = ["San Francisco is a", "What is AI?"];
//!     let params = SamplingParams { max_tokens: Some(32), temperature: 0.0, ..llm.default_params() };
//!     for completion in llm.generate(&prompts, params)? {
//!         println!("{}", completion.text());
//!     }
//!     Ok(())
//! }
//! ```

mod build;
mod checkpoint;
mod device;
mod gguf;
mod guide;
mod load;
mod model_code;
mod options;
mod output;
mod pooling;
mod settings;
mod stop;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use checkpoint::Checkpoint;
pub use device::kernel_cache;
pub use guide::{Grammar, GrammarError, Structure};
pub use load::{Blueprint, Chosen};
/// [`RequestParams`] by the name that vLLM has for it.
pub use options::RequestParams as SamplingParams;
pub use options::{GenerateRequest, ModelInfo, ParamError, Prompt, RequestParams};
pub use output::{Finish, Generation, Output, StopReason};
pub use pooling::{Embedding, Matryoshka, Pooled, Pooler, PoolerConfig, cosine};
pub use settings::{
    DeviceChoice, DtypeChoice, ExecutorKind, GenerationDefaults, GenerationSource, KvCacheDtypeChoice, LlmOptions,
    LoadError, ModelSource, OrAuto, RunnerChoice,
};

use guide::Compiler;
use output::{Choice, ChoiceSetup};

use crate::engine::{self, EngineHandle, EngineRequest, SubmitError, TokenLogprobs};
use crate::text::{Detokenizer, GenerationConfig, TextError, Tokenizer};

/// Why a request was refused or ended.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// Prompt and output do not fit into the context.
    #[error(
        "max_tokens: the prompt has {prompt} tokens and max_tokens is {max_tokens}, together {}, but the model's context \
         length is {max_model_len}; lower max_tokens to at most {} or shorten the prompt",
        prompt.saturating_add(*max_tokens), max_model_len - prompt
    )]
    ContextLength {
        /// Prompt tokens.
        prompt: usize,
        /// Output tokens asked for.
        max_tokens: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// The model came without a tokenizer.
    #[error("{field}: this model has no tokenizer (no tokenizer.json), so it takes no text; {instead}")]
    NoTokenizer {
        /// What was given as text.
        field: &'static str,
        /// What to give instead.
        instead: &'static str,
    },
    /// The structured output cannot be followed.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The text could not be tokenised, or the tokens not be made text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The engine took it not.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// It failed while it ran.
    #[error("{0}")]
    Failed(String),
}

/// A model that generates. Cheap to clone.
#[derive(Clone)]
pub struct Llm {
    inner: Arc<Inner>,
}

struct Inner {
    engine: EngineHandle,
    tokenizer: Option<Arc<Tokenizer>>,
    info: ModelInfo,
    generation_config: GenerationConfig,
    compiler: Compiler,
}

impl std::fmt::Debug for Llm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llm").field("info", &self.inner.info).finish_non_exhaustive()
    }
}

/// The whole answer to one prompt.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The prompt in tokens.
    pub prompt_token_ids: Vec<u32>,
    /// If asked for; one entry a prompt token.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// One [`Output`] for each of `n`, whole, in order; `finish` is always set.
    pub choices: Vec<Output>,
}

impl Completion {
    /// The text of the first choice, which is all there is with `n` 1.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |choice| &choice.text)
    }

    /// The tokens of the first choice.
    pub fn token_ids(&self) -> &[u32] {
        self.choices.first().map_or(&[], |choice| &choice.token_ids)
    }
}

impl Llm {
    /// Puts a model together from its parts.
    pub fn from_parts(
        engine: EngineHandle,
        tokenizer: Option<Arc<Tokenizer>>,
        info: ModelInfo,
        generation_config: GenerationConfig,
    ) -> Self {
        Self { inner: Arc::new(Inner { engine, tokenizer, info, generation_config, compiler: Compiler::new() }) }
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Its engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.inner.engine
    }

    /// Its tokenizer, if it came with one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.inner.tokenizer.as_ref()
    }

    /// The defaults that it came with.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.generation_config
    }

    /// vLLM's defaults with those of the model's `generation_config.json` over them. `max_tokens` is the
    /// model's `max_new_tokens`, else None.
    pub fn default_params(&self) -> RequestParams {
        let config = &self.inner.generation_config;
        let base = RequestParams::default();
        RequestParams {
            max_tokens: config.max_new_tokens,
            temperature: config.temperature.unwrap_or(base.temperature),
            top_p: config.top_p.unwrap_or(base.top_p),
            top_k: config.top_k.map_or(base.top_k, |k| k as i64),
            min_p: config.min_p.unwrap_or(base.min_p),
            repetition_penalty: config.repetition_penalty.unwrap_or(base.repetition_penalty),
            ..base
        }
    }

    /// Compiles what the output is to be, for [`RequestParams::grammar`]. The first time this takes up to a second for
    /// a large vocabulary, and later as long as the structure is complex: not for async code.
    pub fn grammar(&self, structure: &Structure) -> Result<Grammar, LlmError> {
        let Inner { engine, tokenizer, generation_config, compiler, .. } = &*self.inner;
        let Some(tokenizer) = tokenizer else {
            return Err(LlmError::NoTokenizer { field: "structured_outputs", instead: "use allowed_token_ids" });
        };
        Ok(compiler.compile(structure, tokenizer, engine.spec().row_width, &generation_config.eos_token_ids)?)
    }

    /// Checks, tokenises and queues a request. Does not wait for the engine; tokenising a long text takes
    /// its time, though.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, LlmError> {
        let arrival = Instant::now();
        let GenerateRequest { prompt, params, priority } = request;
        params.validate(&self.inner.info)?;
        let prompt = self.tokens(prompt, params.add_special_tokens)?;
        self.submit_tokens(prompt, &params, priority, arrival)
    }

    /// Completes all prompts (texts, or token ids), as many at a time as the engine takes, and returns the
    /// answers in order. The first error ends it. Blocks: not for async code.
    pub fn generate<P: Into<Prompt>>(
        &self,
        prompts: impl IntoIterator<Item = P>,
        params: impl Borrow<RequestParams>,
    ) -> Result<Vec<Completion>, LlmError> {
        let prompts = prompts.into_iter().map(Into::into).collect();
        self.generate_with(prompts, params.borrow(), &mut |_, _| {})
    }

    /// The same; `progress` is told how many prompts of how many are done.
    pub fn generate_with(
        &self,
        prompts: Vec<Prompt>,
        params: &RequestParams,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Completion>, LlmError> {
        params.validate(&self.inner.info)?;
        let total = prompts.len();
        let mut running: VecDeque<(Generation, Completion)> = VecDeque::new();
        let mut done = Vec::with_capacity(total);
        for prompt in prompts {
            let prompt = self.tokens(prompt, params.add_special_tokens)?;
            let generation = loop {
                match self.submit_tokens(prompt.clone(), params, 0, Instant::now()) {
                    Err(LlmError::Submit(SubmitError::QueueFull { limit })) if params.n <= limit => {
                        // Someone else's requests fill the queue if none of ours is left to wait for.
                        if running.is_empty() {
                            std::thread::sleep(Duration::from_millis(5));
                        } else if advance(&mut running, &mut done)? {
                            progress(done.len(), total);
                        }
                    }
                    other => break other?,
                }
            };
            let choices = (0..params.n).map(|index| Output { index, ..Output::default() }).collect();
            let completion = Completion { prompt_token_ids: prompt, prompt_logprobs: None, choices };
            running.push_back((generation, completion));
        }
        while !running.is_empty() {
            if advance(&mut running, &mut done)? {
                progress(done.len(), total);
            }
        }
        Ok(done)
    }

    fn tokens(&self, prompt: Prompt, add_special_tokens: bool) -> Result<Vec<u32>, LlmError> {
        match (prompt, &self.inner.tokenizer) {
            (Prompt::Tokens(tokens), _) => Ok(tokens),
            (Prompt::Text(text), Some(tokenizer)) => Ok(tokenizer.encode(&text, add_special_tokens)?),
            (Prompt::Text(_), None) => {
                Err(LlmError::NoTokenizer { field: "prompt", instead: "pass the prompt as token ids" })
            }
        }
    }

    fn submit_tokens(
        &self,
        prompt: Vec<u32>,
        params: &RequestParams,
        priority: i32,
        arrival: Instant,
    ) -> Result<Generation, LlmError> {
        let Inner { engine, tokenizer, generation_config, .. } = &*self.inner;
        let max_model_len = engine.config().max_model_len;
        if let Some(max_tokens) = params.max_tokens
            && prompt.len() < max_model_len
            && prompt.len().saturating_add(max_tokens) > max_model_len
        {
            return Err(LlmError::ContextLength { prompt: prompt.len(), max_tokens, max_model_len });
        }
        if tokenizer.is_none() && !params.stop.is_empty() {
            return Err(LlmError::NoTokenizer { field: "stop", instead: "use stop_token_ids" });
        }
        let bad_words = self.bad_words(&params.bad_words)?;
        let eos = &generation_config.eos_token_ids;
        let sampling = |index| params.sampling(index, prompt.len(), &bad_words, eos, engine);
        let all: Vec<engine::SamplingParams> = (0..params.n).map(sampling).collect();
        let restriction = params.grammar.clone().map(|grammar| Arc::new(grammar) as Arc<dyn engine::Restriction>);
        let request = |params: &engine::SamplingParams| EngineRequest {
            prompt: prompt.clone(),
            params: params.clone(),
            pooling: None,
            restriction: restriction.clone(),
            priority,
            arrival,
        };
        let streams = engine.submit_all(all.iter().map(request).collect())?;
        let detokenizer = |it: &Arc<Tokenizer>| {
            let detokenizer = Detokenizer::new(it, params.skip_special_tokens, &prompt);
            detokenizer.with_spaces_between_special_tokens(params.spaces_between_special_tokens)
        };
        let setup = |(index, (events, sampling))| ChoiceSetup {
            index,
            events,
            detokenizer: tokenizer.as_ref().filter(|_| params.detokenize).map(detokenizer),
            stops: params.stop.clone(),
            include_stop: params.include_stop_str_in_output,
            params: sampling,
            prompt_tokens: prompt.len(),
            arrival,
        };
        let choices = streams.into_iter().zip(all).enumerate().map(setup).map(Choice::new).collect();
        Ok(Generation::new(prompt, choices))
    }

    /// Each word as it is at the beginning of a text and as it is after a space, as vLLM does.
    fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, LlmError> {
        let mut out: Vec<Vec<u32>> = Vec::new();
        for word in words {
            let Some(tokenizer) = &self.inner.tokenizer else {
                return Err(LlmError::NoTokenizer { field: "bad_words", instead: "use logit_bias" });
            };
            let word = word.trim_start();
            let plain = tokenizer.encode(word, false)?;
            let spaced = tokenizer.encode(&format!(" {word}"), false)?;
            // Some tokenizers make the space a token of its own; that adds nothing.
            if spaced.len() == plain.len() && spaced.first() != plain.first() {
                out.push(spaced);
            }
            out.push(plain);
        }
        Ok(out)
    }
}

/// Waits for news of the oldest generation; true if it was done. The others go on meanwhile: the engine
/// keeps their tokens for them.
fn advance(running: &mut VecDeque<(Generation, Completion)>, done: &mut Vec<Completion>) -> Result<bool, LlmError> {
    let Some((generation, completion)) = running.front_mut() else {
        return Ok(false);
    };
    if let Some(output) = generation.blocking_next() {
        let Output { index, text, token_ids, logprobs, finish, prompt_logprobs } = output?;
        let choice = &mut completion.choices[index];
        choice.text.push_str(&text);
        choice.token_ids.extend(token_ids);
        choice.logprobs.extend(logprobs);
        choice.finish = finish.or(choice.finish.take());
        completion.prompt_logprobs = prompt_logprobs.or(completion.prompt_logprobs.take());
        return Ok(false);
    }
    done.extend(running.pop_front().map(|(_, completion)| completion));
    Ok(true)
}
