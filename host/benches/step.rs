//! What a step costs around the model: schedule, block tables, sampling, events. The executor does nothing; the time that
//! counts is that from its return to its next call, for 64 sequences of which each computes one token.
//!
//!     cargo bench -p host --bench step
//!
//! `small` has a vocabulary of 1,000, so that almost nothing of the time is spent looking at logits; the others have one of
//! 128,256. Events are read by tasks of a runtime of one thread, as a server does. Measures of time are not CI's business.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use host::engine::sim::SimOptions;
use host::engine::{Engine, EngineConfig, EngineEvent, EngineHandle, EngineRequest, SamplingParams};
use host::exec::{BLOCK_SIZE, ExecError, ExecSpec, Executor, LogitRows, Step};
use kernels::cpu::Pool;

const SEQUENCES: usize = 64;
const PROMPT: usize = 500;
const LARGE: usize = 128_256;

/// Nanoseconds between steps of all sequences, and how many of them there were.
#[derive(Default)]
struct Clock {
    nanoseconds: AtomicU64,
    steps: AtomicU64,
    /// When the step before returned, if all sequences had one token in it.
    since: Mutex<Option<Instant>>,
}

/// Gives the same rows in every step.
struct Nothing {
    spec: ExecSpec,
    rows: Vec<f32>,
    clock: Arc<Clock>,
    threads: Arc<Pool>,
}

impl Executor for Nothing {
    fn spec(&self) -> &ExecSpec {
        &self.spec
    }

    fn threads(&self) -> Option<Arc<Pool>> {
        Some(Arc::clone(&self.threads))
    }

    fn allocate_cache(&mut self, _blocks: usize) -> Result<(), ExecError> {
        Ok(())
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        let now = Instant::now();
        let whole = step.seqs.len() == SEQUENCES && step.seqs.iter().all(|seq| seq.computed + 1 == seq.tokens.len());
        let mut since = self.clock.since.lock().map_err(|e| ExecError::Failed(e.to_string()))?;
        if let (true, Some(since)) = (whole, *since) {
            self.clock.nanoseconds.fetch_add((now - since).as_nanos() as u64, Relaxed);
            self.clock.steps.fetch_add(1, Relaxed);
        }
        if !whole {
            // Before all have come. They come while others run.
            std::thread::sleep(Duration::from_millis(1));
        }
        let rows = step.seqs.iter().filter(|seq| seq.logits != LogitRows::None).count();
        *since = whole.then(Instant::now);
        Ok(&self.rows[..rows * self.spec.row_width])
    }
}

/// Numbers as a model has them: most near 0, few large, about normal with a deviation of 3.
fn rows(vocabulary: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..SEQUENCES * vocabulary).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 3.0).collect()
}

/// The time of `steps` steps.
fn measure(rows: &[f32], vocabulary: usize, params: &SamplingParams, steps: u64) -> Duration {
    // Some steps until all sequences run.
    let tokens = steps as usize + 16;
    let clock = Arc::new(Clock::default());
    let spec = SimOptions::new(vocabulary).spec;
    let threads = Arc::new(Pool::new(kernels::cpu::default_threads(), false).expect("a pool"));
    let executor = Nothing { spec, rows: rows.to_vec(), clock: Arc::clone(&clock), threads };
    let mut config = EngineConfig::new(PROMPT + tokens, SEQUENCES * ((PROMPT + tokens) / BLOCK_SIZE + 2));
    (config.max_num_batched_tokens, config.max_num_seqs) = (SEQUENCES * PROMPT, SEQUENCES);
    let engine = match Engine::start(Box::new(executor), config) {
        Ok(engine) => engine,
        Err(error) => panic!("{error}"),
    };
    read_all(&engine, &SamplingParams { max_tokens: tokens, ..params.clone() });
    let measured = clock.steps.load(Relaxed);
    assert!(measured >= steps, "{measured} of {steps} steps had all sequences in them");
    Duration::from_nanos(clock.nanoseconds.load(Relaxed) * steps / measured)
}

/// Runs all sequences to their ends.
fn read_all(engine: &EngineHandle, params: &SamplingParams) {
    let request = |i: usize| EngineRequest {
        // Nothing in common: no prompt waits for another's blocks.
        prompt: (0..PROMPT).map(|p| ((i * 37 + p * 11) % 1000) as u32).collect(),
        params: SamplingParams { seed: Some(i as u64), ignore_eos: true, ..params.clone() },
        pooling: None,
        restriction: None,
        priority: 0,
        arrival: Instant::now(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let streams = engine.submit_all((0..SEQUENCES).map(request).collect()).expect("submits");
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            runtime.spawn(async move {
                while let Some(event) = stream.next().await {
                    assert!(!matches!(event, EngineEvent::Failed(_)), "{event:?}");
                }
            })
        })
        .collect();
    for reader in readers {
        runtime.block_on(reader).expect("reads to the end");
    }
}

fn all(criterion: &mut Criterion) {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let cases = [
        ("small/greedy", 1000, greedy.clone()),
        ("small/temperature", 1000, SamplingParams::default()),
        ("small/top_p", 1000, SamplingParams { top_p: 0.95, ..SamplingParams::default() }),
        ("large/greedy", LARGE, greedy.clone()),
        ("large/temperature", LARGE, SamplingParams::default()),
        ("large/top_k", LARGE, SamplingParams { top_k: 50, ..SamplingParams::default() }),
        ("large/top_p", LARGE, SamplingParams { top_p: 0.95, ..SamplingParams::default() }),
        ("large/top_k_top_p", LARGE, SamplingParams { top_k: 50, top_p: 0.95, ..SamplingParams::default() }),
        ("large/logprobs", LARGE, SamplingParams { logprobs: Some(5), ..greedy }),
    ];
    let mut group = criterion.benchmark_group("step_of_64");
    group.sample_size(10).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    let mut logits = (0, vec![]);
    for (name, vocabulary, params) in cases {
        if logits.0 != vocabulary {
            logits = (vocabulary, rows(vocabulary));
        }
        group.bench_function(name, |b| b.iter_custom(|steps| measure(&logits.1, vocabulary, &params, steps)));
    }
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
