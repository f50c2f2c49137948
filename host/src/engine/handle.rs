//! The outside of the engine: starting its thread, submitting requests, reading their events. Checks
//! everything that can be known before a request is queued. Never touches the executor. Used by `llm`.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::guide::Guide;
use super::params::{EngineEvent, EngineRequest, SamplingParams};
use super::scheduler::Limits;
use super::stats::{EngineState, Shared, Stats};
use super::step::{self, Core};
use crate::exec::{BLOCK_SIZE, ExecError, ExecSpec, Executor, Gives, PrefixCaching};

/// What an engine is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Runner {
    /// Continues prompts; the executor gives logits.
    #[default]
    Generate,
    /// Makes vectors of prompts; the executor gives hidden states.
    Pooling,
}

/// Limits of an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The most sequences in a step.
    pub max_num_seqs: usize,
    /// The most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// The most tokens in a sequence, prompt and output.
    pub max_model_len: usize,
    /// KV blocks (of [`BLOCK_SIZE`] tokens).
    pub kv_blocks: usize,
    /// Share cached blocks where the executor allows it.
    pub enable_prefix_caching: bool,
    /// The most requests that wait for their first step; more are refused.
    pub max_waiting: usize,
    /// The most prompt tokens that wait for their first step; more are refused, but one request always may wait.
    pub max_waiting_tokens: Option<usize>,
    /// What seeds of requests without one are made from; `None`: the operating system.
    pub seed: Option<u64>,
    /// What it is for.
    pub runner: Runner,
}

impl EngineConfig {
    /// Defaults for the rest.
    pub fn new(max_model_len: usize, kv_blocks: usize) -> Self {
        Self {
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len,
            kv_blocks,
            enable_prefix_caching: true,
            max_waiting: 1024,
            max_waiting_tokens: None,
            seed: None,
            runner: Runner::Generate,
        }
    }

    fn check(&self, spec: &ExecSpec) -> Result<(), EngineError> {
        let Self { max_num_seqs: seqs, max_num_batched_tokens: tokens, max_model_len, kv_blocks, max_waiting, .. } =
            *self;
        let fail = |message: String| Err(EngineError::Config(message));
        for (name, value) in [("max_num_seqs", seqs), ("max_model_len", max_model_len), ("max_waiting", max_waiting)] {
            if value == 0 {
                return fail(format!("{name} is 0; it must be at least 1"));
            }
        }
        if tokens < seqs {
            return fail(format!(
                "max_num_batched_tokens ({tokens}) is below max_num_seqs ({seqs}); each sequence needs one token a step: \
                 raise --max-num-batched-tokens or lower --max-num-seqs"
            ));
        }
        if seqs > spec.max_seqs {
            return fail(format!("max_num_seqs is {seqs}, but the executor was built for {}", spec.max_seqs));
        }
        if tokens > spec.max_tokens {
            return fail(format!(
                "max_num_batched_tokens is {tokens}, but the executor was built for {}",
                spec.max_tokens
            ));
        }
        if kv_blocks == 0 || kv_blocks >= u32::MAX as usize {
            return fail(format!(
                "the KV cache has {kv_blocks} blocks (of {BLOCK_SIZE} tokens, {} bytes each); it needs at least 1: \
                 raise --kv-cache-memory",
                spec.kv_bytes_per_block
            ));
        }
        let wanted = match self.runner {
            Runner::Generate => Gives::Logits,
            Runner::Pooling => Gives::HiddenStates,
        };
        if spec.gives != wanted {
            return fail(format!("the executor gives {}, but the engine needs {}", spec.gives.name(), wanted.name()));
        }
        let (vocab_size, most) = (spec.row_width, super::sampler::MAX_VOCAB);
        if self.runner == Runner::Generate && (vocab_size == 0 || vocab_size > most) {
            return fail(format!("vocab_size is {vocab_size}; supported are 1 to {most}"));
        }
        Ok(())
    }

    fn limits(&self, spec: &ExecSpec) -> Limits {
        Limits {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            kv_blocks: self.kv_blocks,
            window: spec.window,
            extra_rows: spec.extra_rows,
            by_length: spec.by_length,
            prefix_cache: if self.enable_prefix_caching { spec.prefix_cache } else { PrefixCaching::Unsupported },
        }
    }
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The configuration contradicts itself or the executor.
    #[error("engine configuration: {0}")]
    Config(String),
    /// No memory for the KV cache.
    #[error(transparent)]
    Cache(#[from] ExecError),
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a request was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// `max_waiting` requests wait already.
    #[error("the queue is full: {limit} requests wait already; try again later, or raise --max-num-queued-reqs")]
    QueueFull {
        /// The bound.
        limit: usize,
    },
    /// `max_waiting_tokens` would be exceeded.
    #[error(
        "the queue is full: prompts of {waiting} tokens wait already and this one has {tokens}, the limit is {limit}; try \
         again later, or raise --max-num-queued-tokens"
    )]
    TokensQueued {
        /// Prompt tokens that wait.
        waiting: usize,
        /// Prompt tokens of this request.
        tokens: usize,
        /// The bound.
        limit: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty; it must have at least one token")]
    EmptyPrompt,
    /// No room for a single token.
    #[error(
        "the prompt has {prompt} tokens, but the model's context length is {max_model_len} and at least one is needed \
         for the output; shorten the prompt, or raise --max-model-len if the model allows it"
    )]
    PromptTooLong {
        /// Its tokens.
        prompt: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// More than the context holds.
    #[error(
        "the input has {prompt} tokens, but the model's context length is {max_model_len}; shorten it or set \
         truncate_prompt_tokens, or raise --max-model-len if the model allows it"
    )]
    InputTooLong {
        /// Its tokens.
        prompt: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// A vector is wanted of an engine that generates.
    #[error("this model is served for generation and gives no vectors; serve it with --runner pooling")]
    OnlyGenerates,
    /// A generation is wanted of an engine that pools.
    #[error("this model is served with --runner pooling and generates nothing; serve it with --runner generate")]
    OnlyPools,
    /// Could never run.
    #[error(
        "the request may need {needed} KV blocks (prompt of {prompt} tokens, max_tokens {max_tokens}), but the cache has \
         {total}; lower max_tokens or shorten the prompt, or raise --kv-cache-memory"
    )]
    ExceedsCache {
        /// Prompt tokens.
        prompt: usize,
        /// Output tokens.
        max_tokens: usize,
        /// Blocks that these take.
        needed: usize,
        /// Blocks that there are.
        total: usize,
    },
    /// Not a token of this model.
    #[error("{field}: token id {token} is out of range; the model has {vocab_size} tokens (0 to {})", vocab_size - 1)]
    TokenOutOfRange {
        /// `prompt` or a parameter.
        field: &'static str,
        /// The id.
        token: u32,
        /// The limit.
        vocab_size: usize,
    },
    /// Finishing what it has.
    #[error("the engine is shutting down and takes no more requests")]
    Draining,
    /// The thread has ended, by [`EngineHandle::shutdown`] or because the executor panicked.
    #[error("the engine has stopped; see the log for the reason, and restart the server")]
    Stopped,
}

/// A request on its way to the thread.
pub(super) struct Submission {
    pub(super) id: u64,
    pub(super) seed: u64,
    pub(super) request: EngineRequest,
    pub(super) guide: Option<Box<dyn Guide>>,
    pub(super) max_len: usize,
    pub(super) events: mpsc::Sender<EngineEvent>,
}

pub(super) enum Command {
    Submit(Box<Submission>),
    /// Look at the state again.
    Wake,
}

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Allocates the KV cache and starts the thread. It ends after [`EngineHandle::shutdown`], after
    /// [`EngineHandle::drain`] when all is done, and when every handle is gone and all is done.
    pub fn start(mut executor: Box<dyn Executor>, config: EngineConfig) -> Result<EngineHandle, EngineError> {
        let spec = executor.spec().clone();
        config.check(&spec)?;
        executor.allocate_cache(config.kv_blocks)?;
        if config.enable_prefix_caching && spec.prefix_cache == PrefixCaching::Unsupported {
            tracing::info!(
                "prefix caching is off: this model keeps a running state, which cannot be cut where two prompts part"
            );
        }
        let shared = Arc::new(Shared::new(config.kv_blocks));
        // `queued` bounds the submissions in the channel; the rest of its room is for wake-ups.
        let (commands, receiver) = sync_channel(config.max_waiting + 4);
        let limits = config.limits(&spec);
        let core = Core::new(executor, limits.clone(), Arc::clone(&shared));
        std::thread::Builder::new().name("engine".into()).spawn(move || step::run(core, receiver))?;
        Ok(EngineHandle { inner: Arc::new(Inner { config, limits, spec, shared, commands }) })
    }
}

struct Inner {
    config: EngineConfig,
    limits: Limits,
    spec: ExecSpec,
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
}

/// Talks to an engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// Checks and queues a request. Never blocks.
    pub fn submit(&self, request: EngineRequest) -> Result<EventStream, SubmitError> {
        let streams = self.submit_all(vec![request])?;
        streams.into_iter().next().ok_or(SubmitError::Stopped)
    }

    /// Checks and queues all of `requests`, or none. Never blocks.
    pub fn submit_all(&self, requests: Vec<EngineRequest>) -> Result<Vec<EventStream>, SubmitError> {
        let Inner { config, shared, commands, .. } = &*self.inner;
        match shared.state() {
            EngineState::Running => {}
            EngineState::Draining | EngineState::Stopping => return Err(SubmitError::Draining),
            EngineState::Stopped => return Err(SubmitError::Stopped),
        }
        let lengths: Vec<usize> = requests.iter().map(|request| self.check(request)).collect::<Result<_, _>>()?;
        let limit = config.max_waiting;
        let room = |queued: usize| Some(queued + requests.len()).filter(|&queued| queued <= limit);
        if shared.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            return Err(SubmitError::QueueFull { limit });
        }
        let sizes: Vec<usize> = requests.iter().map(|request| request.prompt.len()).collect();
        let tokens = sizes.iter().sum();
        if let Err(error) = shared.queue_tokens(tokens, config.max_waiting_tokens) {
            shared.queued.fetch_sub(requests.len(), Ordering::AcqRel);
            return Err(error);
        }
        let mut left_tokens = tokens;
        let mut streams = Vec::with_capacity(requests.len());
        let mut left = requests.len();
        for ((request, max_len), size) in requests.into_iter().zip(lengths).zip(sizes) {
            // Room for every event there can be: the engine never waits for a client.
            let (events, receiver) = mpsc::channel(max_len - request.prompt.len() + 4);
            let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
            // Each request of a run has another seed, the same one in every run.
            let fresh = || config.seed.map_or_else(random_seed, |seed| mix(seed ^ mix(id)));
            let seed = request.params.seed.unwrap_or_else(fresh);
            let guide = request.restriction.as_ref().map(|restriction| restriction.guide());
            let submission = Submission { id, seed, request, guide, max_len, events };
            if let Err(error) = commands.try_send(Command::Submit(Box::new(submission))) {
                shared.queued.fetch_sub(left, Ordering::AcqRel);
                shared.queued_tokens.fetch_sub(left_tokens, Ordering::AcqRel);
                return Err(match error {
                    TrySendError::Full(_) => SubmitError::QueueFull { limit },
                    TrySendError::Disconnected(_) => SubmitError::Stopped,
                });
            }
            left -= 1;
            left_tokens -= size;
            streams.push(EventStream { events: receiver, ended: false });
        }
        Ok(streams)
    }

    /// The length at which the sequence ends, if the request can run at all.
    fn check(&self, request: &EngineRequest) -> Result<usize, SubmitError> {
        let Inner { config, limits, spec, .. } = &*self.inner;
        let EngineRequest { prompt, params, pooling, .. } = request;
        match (pooling, config.runner) {
            (Some(_), Runner::Generate) => return Err(SubmitError::OnlyGenerates),
            (None, Runner::Pooling) => return Err(SubmitError::OnlyPools),
            _ => {}
        }
        let (length, max_model_len) = (prompt.len(), config.max_model_len);
        match (length, pooling) {
            (0, _) => return Err(SubmitError::EmptyPrompt),
            (_, None) if length >= max_model_len => {
                return Err(SubmitError::PromptTooLong { prompt: length, max_model_len });
            }
            (_, Some(_)) if length > max_model_len => {
                return Err(SubmitError::InputTooLong { prompt: length, max_model_len });
            }
            _ => {}
        }
        check_ids(prompt, params, spec)?;
        // The last token of a generation is never computed.
        let (max_len, computed) = match pooling {
            Some(_) => (length, length),
            None => {
                let max_len = length.saturating_add(params.max_tokens.max(1)).min(max_model_len);
                (max_len, max_len - 1)
            }
        };
        let needed = limits.peak_blocks(computed, computed);
        if needed > config.kv_blocks {
            let max_tokens = max_len - length;
            return Err(SubmitError::ExceedsCache { prompt: length, max_tokens, needed, total: config.kv_blocks });
        }
        Ok(max_len)
    }

    /// The most tokens, prompt and output, that a request can have: `max_model_len`, or less if the KV
    /// cache is smaller than that.
    pub fn max_request_tokens(&self) -> usize {
        let Inner { config, limits, .. } = &*self.inner;
        let all = config.max_model_len;
        let uncomputed = usize::from(config.runner == Runner::Generate);
        let computed = all - uncomputed;
        let fits = limits.peak_blocks(computed, computed) <= config.kv_blocks;
        if fits { all } else { config.kv_blocks * BLOCK_SIZE + uncomputed }
    }

    /// A snapshot for metrics and health.
    pub fn stats(&self) -> Stats {
        self.inner.shared.snapshot()
    }

    /// As given to [`Engine::start`].
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }

    /// The executor's.
    pub fn spec(&self) -> &ExecSpec {
        &self.inner.spec
    }

    /// Takes no more requests and finishes those it has; returns at once (see [`Self::wait_stopped`]).
    pub fn drain(&self) {
        self.advance_to(EngineState::Draining);
    }

    /// Takes no more requests and ends those it has with `Abort`; returns at once.
    pub fn shutdown(&self) {
        self.advance_to(EngineState::Stopping);
    }

    /// Waits for the thread to end; false if `timeout` came first. Blocks: not for async code.
    pub fn wait_stopped(&self, timeout: Duration) -> bool {
        self.inner.shared.wait_stopped(timeout)
    }

    fn advance_to(&self, state: EngineState) {
        self.inner.shared.advance_to(state);
        // If the channel is full the thread is awake anyway.
        let _ = self.inner.commands.try_send(Command::Wake);
    }
}

/// Every id of the prompt must be a row of the embedding, and every other one a column of the logits: so must those of a
/// prompt whose log-probabilities are wanted.
fn check_ids(prompt: &[u32], params: &SamplingParams, spec: &ExecSpec) -> Result<(), SubmitError> {
    let biased = params.logit_bias.iter().map(|&(token, _)| token);
    let below = |vocab_size: usize, field, mut ids: &mut dyn Iterator<Item = u32>| {
        let outside = (&mut ids).find(|&token| token as usize >= vocab_size);
        outside.map_or(Ok(()), |token| Err(SubmitError::TokenOutOfRange { field, token, vocab_size }))
    };
    let out = |field, ids: &mut dyn Iterator<Item = u32>| below(spec.row_width, field, ids);
    below(spec.input_vocab_size, "prompt", &mut prompt.iter().copied())?;
    if params.prompt_logprobs.is_some() {
        out("prompt_logprobs", &mut prompt.iter().skip(1).copied())?;
    }
    out("logit_bias", &mut { biased })?;
    out("allowed_token_ids", &mut params.allowed_token_ids.iter().flatten().copied())?;
    out("bad_words", &mut params.bad_words.iter().flatten().copied())?;
    out("logprob_token_ids", &mut params.logprob_token_ids.iter().copied())?;
    out("stop_token_ids", &mut params.stop_token_ids.iter().copied())
}

/// A seed from the operating system, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

/// SplitMix64's finaliser.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The events of one request. Dropping it aborts the request; its blocks are free before the next step.
#[derive(Debug)]
pub struct EventStream {
    events: mpsc::Receiver<EngineEvent>,
    ended: bool,
}

impl EventStream {
    /// The next event; None after the last.
    pub async fn next(&mut self) -> Option<EngineEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same for code that polls several.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<EngineEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(context).map(|event| Some(self.note(event)))
    }

    /// The next event; None after the last. Blocks: not for async code.
    pub fn blocking_next(&mut self) -> Option<EngineEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    fn note(&mut self, event: Option<EngineEvent>) -> EngineEvent {
        let event = event.unwrap_or_else(|| EngineEvent::Failed(SubmitError::Stopped.to_string()));
        self.ended = matches!(event, EngineEvent::Finished { .. } | EngineEvent::Failed(_));
        event
    }
}
