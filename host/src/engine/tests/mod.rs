//! Tests of the engine as a whole; the harness drives [`Core`] step by step, without a thread.

mod drawn;
mod guides;
mod invariance;
mod lifecycle;
mod policy;
mod pooling;
mod sampling;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{Receiver, channel};

use super::handle::Submission;
use super::params::{EngineEvent, EngineRequest, SamplingParams};
use super::scheduler::Limits;
use super::sim::{SimExecutor, SimOptions};
use super::stats::Shared;
use super::step::Core;
use crate::exec::{Executor, MAX_PROMPT_ROWS, PrefixCaching};

/// A small generator for test inputs.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (super::sampler::random(self.0, 0) % bound as u64) as usize
    }

    fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn float(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 20) as f32
    }
}

fn limits(kv_blocks: usize) -> Limits {
    Limits {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        kv_blocks,
        window: None,
        prefix_cache: PrefixCaching::Shared,
        extra_rows: MAX_PROMPT_ROWS,
        by_length: None,
    }
}

fn request(prompt: Vec<u32>, params: SamplingParams) -> EngineRequest {
    EngineRequest { prompt, params, pooling: None, restriction: None, priority: 0, arrival: Instant::now() }
}

/// An engine without its thread.
struct Harness {
    core: Core,
    shared: Arc<Shared>,
    streams: BTreeMap<u64, Receiver<EngineEvent>>,
    events: BTreeMap<u64, Vec<EngineEvent>>,
    next_id: u64,
}

impl Harness {
    fn new(options: SimOptions, limits: Limits) -> Self {
        let mut executor = SimExecutor::new(options);
        assert!(executor.allocate_cache(limits.kv_blocks).is_ok());
        let shared = Arc::new(Shared::new(limits.kv_blocks));
        let core = Core::new(Box::new(executor), limits, Arc::clone(&shared));
        Self { core, shared, streams: BTreeMap::new(), events: BTreeMap::new(), next_id: 0 }
    }

    fn submit(&mut self, request: EngineRequest) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let (events, receiver) = channel(request.params.max_tokens + 4);
        let max_len = request.prompt.len() + request.params.max_tokens;
        let seed = request.params.seed.unwrap_or(0);
        self.shared.queued.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let guide = request.restriction.as_ref().map(|restriction| restriction.guide());
        self.core.add(Submission { id, seed, request, guide, max_len, events });
        self.streams.insert(id, receiver);
        self.events.insert(id, Vec::new());
        id
    }

    fn cancel(&mut self, id: u64) {
        self.streams.remove(&id);
    }

    fn step(&mut self) {
        self.core.step();
        self.core.scheduler().check();
        for (id, stream) in &mut self.streams {
            while let Ok(event) = stream.try_recv() {
                self.events.entry(*id).or_default().push(event);
            }
        }
    }

    /// Steps until nothing is left. Panics if that takes more than `most` steps.
    fn finish(&mut self, most: usize) {
        for _ in 0..most {
            if self.core.scheduler().is_idle() {
                break;
            }
            self.step();
        }
        assert!(self.core.scheduler().is_idle(), "not done after {most} steps");
        assert_eq!(self.core.scheduler().block_usage().0, 0, "blocks are still held");
        assert_eq!(self.core.requests(), 0, "requests are still known");
        assert_eq!(self.shared.queued.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    /// What a client would compare: everything but instants and counts of how it was scheduled.
    fn transcript(&self, id: u64) -> Vec<String> {
        let line = |event: &EngineEvent| match event {
            EngineEvent::Started { .. } => None,
            EngineEvent::Finished { reason, stop_token, .. } => Some(format!("finished {reason:?} {stop_token:?}")),
            other => Some(format!("{other:?}")),
        };
        self.events[&id].iter().filter_map(line).collect()
    }

    fn tokens(&self, id: u64) -> Vec<u32> {
        let token = |event: &EngineEvent| match event {
            EngineEvent::Token { token, .. } => Some(*token),
            _ => None,
        };
        self.events[&id].iter().filter_map(token).collect()
    }
}
