//! What the engine's thread tells the outside about itself: counters for /metrics, a heartbeat for
//! /health. Written by the step loop only; read by anyone, at any time, without waiting for a step.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::handle::SubmitError;

/// Whether the engine takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EngineState {
    /// Takes requests.
    Running = 0,
    /// Finishes what it has.
    Draining = 1,
    /// Ends what it has.
    Stopping = 2,
    /// The thread has ended.
    Stopped = 3,
}

impl EngineState {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Running,
            1 => Self::Draining,
            2 => Self::Stopping,
            _ => Self::Stopped,
        }
    }
}

/// Upper bounds of [`Stats::step_tokens`]; what is above the last is counted after it.
pub const STEP_BUCKETS: [usize; 13] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// A snapshot. Counts are since the start.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Sequences that hold a place in the batch.
    pub running: usize,
    /// Sequences that wait for one (preempted ones too).
    pub waiting: usize,
    /// KV blocks that sequences hold. Blocks that hold only cached content are not counted.
    pub kv_blocks_used: usize,
    /// All KV blocks.
    pub kv_blocks_total: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found.
    pub prefix_hits: u64,
    /// Prompt tokens of the requests that were admitted.
    pub prompt_tokens: u64,
    /// Of these, those whose keys and values came from the prefix cache.
    pub prompt_cached: u64,
    /// Tokens chosen.
    pub generation_tokens: u64,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Steps begun.
    pub steps: u64,
    /// Steps that the executor failed.
    pub failed_steps: u64,
    /// Steps by how many tokens they computed, up to each of [`STEP_BUCKETS`] and above.
    pub step_tokens: [u64; STEP_BUCKETS.len() + 1],
    /// Tokens computed in all steps.
    pub step_tokens_sum: u64,
    /// A step runs, or requests wait for one.
    pub busy: bool,
    /// Since the step loop last went round. If `busy` and this is large, the executor hangs.
    pub since_heartbeat: Duration,
    /// Whether requests are taken.
    pub state: EngineState,
}

/// The shared side of it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) next_id: AtomicU64,
    /// Requests submitted that have not run yet: what `max_waiting` bounds.
    pub(super) queued: AtomicUsize,
    /// Tokens of their prompts.
    pub(super) queued_tokens: AtomicUsize,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) prompt_cached: AtomicU64,
    pub(super) generation_tokens: AtomicU64,
    pub(super) running: AtomicUsize,
    pub(super) waiting: AtomicUsize,
    pub(super) kv_blocks_used: AtomicUsize,
    pub(super) kv_blocks_total: usize,
    pub(super) prefix_queries: AtomicU64,
    pub(super) prefix_hits: AtomicU64,
    pub(super) preemptions: AtomicU64,
    pub(super) steps: AtomicU64,
    step_tokens: [AtomicU64; STEP_BUCKETS.len() + 1],
    step_tokens_sum: AtomicU64,
    pub(super) failed_steps: AtomicU64,
    pub(super) busy: AtomicBool,
    state: AtomicU8,
    started: Instant,
    heartbeat: AtomicU64, // nanoseconds after `started`
    stopped: (Mutex<bool>, Condvar),
}

impl Shared {
    pub(super) fn new(kv_blocks_total: usize) -> Self {
        Self {
            next_id: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            queued_tokens: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            prompt_cached: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            kv_blocks_used: AtomicUsize::new(0),
            kv_blocks_total,
            prefix_queries: AtomicU64::new(0),
            prefix_hits: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            step_tokens: Default::default(),
            step_tokens_sum: AtomicU64::new(0),
            failed_steps: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            state: AtomicU8::new(EngineState::Running as u8),
            started: Instant::now(),
            heartbeat: AtomicU64::new(0),
            stopped: (Mutex::new(false), Condvar::new()),
        }
    }

    /// Counts the prompt tokens of requests that are about to wait, unless they are too many. What comes to an empty
    /// queue is always taken: it could never run otherwise.
    pub(super) fn queue_tokens(&self, tokens: usize, limit: Option<usize>) -> Result<(), SubmitError> {
        let limit = limit.unwrap_or(usize::MAX);
        let room = |waiting: usize| {
            let sum = waiting.saturating_add(tokens);
            (waiting == 0 || sum <= limit).then_some(sum)
        };
        match self.queued_tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, room) {
            Ok(_) => Ok(()),
            Err(waiting) => Err(SubmitError::TokensQueued { waiting, tokens, limit }),
        }
    }

    /// A request waits no more.
    pub(super) fn unqueue(&self, tokens: usize) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
        self.queued_tokens.fetch_sub(tokens, Ordering::AcqRel);
    }

    pub(super) fn state(&self) -> EngineState {
        EngineState::from_u8(self.state.load(Ordering::Acquire))
    }

    /// Goes on to `state`; never back.
    pub(super) fn advance_to(&self, state: EngineState) {
        self.state.fetch_max(state as u8, Ordering::AcqRel);
        if state == EngineState::Stopped {
            *self.stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.stopped.1.notify_all();
        }
    }

    /// Waits for [`EngineState::Stopped`]; false if `timeout` came first.
    pub(super) fn wait_stopped(&self, timeout: Duration) -> bool {
        let guard = self.stopped.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.stopped.1.wait_timeout_while(guard, timeout, |stopped| !*stopped);
        *result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// A step of this many tokens begins.
    pub(super) fn count_step(&self, tokens: usize) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let bucket = STEP_BUCKETS.partition_point(|&bound| bound < tokens);
        self.step_tokens[bucket].fetch_add(1, Ordering::Relaxed);
        self.step_tokens_sum.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    pub(super) fn beat(&self) {
        self.heartbeat.store(self.started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Stats {
        let state = self.state();
        let heartbeat = Duration::from_nanos(self.heartbeat.load(Ordering::Relaxed));
        // Requests that the thread has not taken from the channel yet wait too.
        let waiting = self.waiting.load(Ordering::Relaxed).max(self.queued.load(Ordering::Relaxed));
        let waiting = if state == EngineState::Stopped { 0 } else { waiting };
        Stats {
            running: self.running.load(Ordering::Relaxed),
            waiting,
            kv_blocks_used: self.kv_blocks_used.load(Ordering::Relaxed),
            kv_blocks_total: self.kv_blocks_total,
            prefix_queries: self.prefix_queries.load(Ordering::Relaxed),
            prefix_hits: self.prefix_hits.load(Ordering::Relaxed),
            prompt_cached: self.prompt_cached.load(Ordering::Relaxed),
            step_tokens: std::array::from_fn(|i| self.step_tokens[i].load(Ordering::Relaxed)),
            step_tokens_sum: self.step_tokens_sum.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            generation_tokens: self.generation_tokens.load(Ordering::Relaxed),
            preemptions: self.preemptions.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            failed_steps: self.failed_steps.load(Ordering::Relaxed),
            busy: self.busy.load(Ordering::Relaxed),
            since_heartbeat: self.started.elapsed().saturating_sub(heartbeat),
            state,
        }
    }
}
