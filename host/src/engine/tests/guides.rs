//! Guides whose masks are late: their sequences wait, the others go on, and what comes out is the same.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::guide::{Guide, GuideError, Restriction};
use super::super::handle::{Engine, EngineConfig};
use super::super::params::FinishReason;
use super::*;

const VOCAB: usize = 64;

/// How often each mask is asked for in vain, drawn anew for every token.
#[derive(Debug)]
struct Late {
    most: usize,
    random: Arc<Mutex<u64>>,
}

struct LateGuide {
    most: usize,
    random: Arc<Mutex<u64>>,
    left: usize,
    mask: [u32; 2],
}

impl Restriction for Late {
    fn guide(&self) -> Box<dyn Guide> {
        Box::new(LateGuide { most: self.most, random: Arc::clone(&self.random), left: 0, mask: [0xffff, 0] })
    }
}

impl Guide for LateGuide {
    fn is_ready(&mut self) -> bool {
        let ready = self.left == 0;
        self.left = self.left.saturating_sub(1);
        ready
    }

    fn allowed(&mut self) -> Result<Option<&[u32]>, GuideError> {
        assert_eq!(self.left, 0, "the engine waits for a mask");
        Ok(Some(&self.mask))
    }

    fn push(&mut self, token: u32) -> Result<bool, GuideError> {
        // What may follow depends on what came.
        self.mask = [0x0f0f_0f0f_u32.rotate_left(token % 4), 0xff << (token % 8)];
        let Ok(mut random) = self.random.lock() else { return Ok(false) };
        let mut draw = Random(*random);
        self.left = draw.below(self.most + 1);
        *random = draw.0;
        Ok(false)
    }
}

/// Transcripts of a random mix of free and guided requests, and how often blocks were taken away.
fn run(seed: u64, most: usize) -> (Vec<Vec<String>>, u64) {
    let mut random = Random(seed << 32);
    let mut limits = limits(random.range(9, 14));
    limits.window = random.chance(30).then_some(20);
    let mut options = SimOptions::new(VOCAB);
    options.spec.window = limits.window;
    let mut harness = Harness::new(options, limits);
    let restriction: Arc<dyn Restriction> = Arc::new(Late { most, random: Arc::new(Mutex::new(seed)) });
    let mut ids = Vec::new();
    for _ in 0..12 {
        let prompt = (0..random.range(1, 40)).map(|_| random.below(VOCAB) as u32).collect();
        let max_tokens = random.range(1, 90);
        let params = SamplingParams { max_tokens, seed: Some(random.0), ..SamplingParams::default() };
        let restriction = random.chance(60).then(|| Arc::clone(&restriction));
        ids.push(harness.submit(EngineRequest { restriction, ..request(prompt, params) }));
        if random.chance(50) {
            harness.step();
        }
    }
    harness.finish(20_000);
    let preemptions = harness.core.scheduler().counts().preemptions;
    (ids.into_iter().map(|id| harness.transcript(id)).collect(), preemptions)
}

#[test]
fn late_masks_change_no_token() {
    let mut preemptions = 0;
    for seed in 0..60 {
        let (prompt, _) = run(seed, 0);
        let (late, lost) = run(seed, 5);
        let same = late.iter().zip(&prompt).all(|(late, prompt)| late == prompt);
        assert!(same, "seed {seed}: {:?}", late.iter().zip(&prompt).find(|(late, prompt)| late != prompt));
        preemptions += lost;
    }
    assert!(preemptions > 20, "only {preemptions} sequences lost their blocks");
}

#[test]
fn who_leaves_while_waiting_leaves_nothing() {
    let restriction: Arc<dyn Restriction> = Arc::new(Late { most: 1000, random: Arc::new(Mutex::new(3)) });
    let mut harness = Harness::new(SimOptions::new(VOCAB), limits(20));
    let params = SamplingParams { max_tokens: 10, ..SamplingParams::default() };
    let id = harness.submit(EngineRequest { restriction: Some(restriction), ..request(vec![1, 2, 3], params) });
    (0..5).for_each(|_| harness.step());
    assert_eq!((harness.tokens(id).len(), harness.core.scheduler().running().len()), (1, 1));
    harness.cancel(id);
    harness.step();
    harness.finish(0);
}

/// Masks come when the test says so.
#[derive(Debug)]
struct Gate(Arc<AtomicBool>);

impl Restriction for Gate {
    fn guide(&self) -> Box<dyn Guide> {
        Box::new(Gate(Arc::clone(&self.0)))
    }
}

impl Guide for Gate {
    fn is_ready(&mut self) -> bool {
        self.0.load(SeqCst)
    }

    fn allowed(&mut self) -> Result<Option<&[u32]>, GuideError> {
        assert!(self.0.load(SeqCst), "the engine waits for a mask");
        Ok(None)
    }

    fn push(&mut self, _: u32) -> Result<bool, GuideError> {
        Ok(false)
    }
}

#[test]
fn a_mask_that_takes_long_holds_up_nobody_else() {
    let executor = Box::new(SimExecutor::new(SimOptions::new(VOCAB)));
    let Ok(engine) = Engine::start(executor, EngineConfig::new(100, 100)) else { panic!("no engine") };
    let open = Arc::new(AtomicBool::new(false));
    let restriction: Arc<dyn Restriction> = Arc::new(Gate(Arc::clone(&open)));
    let asks = |restriction| {
        let params = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
        match engine.submit(EngineRequest { restriction, ..request(vec![5, 6], params) }) {
            Ok(stream) => stream,
            Err(error) => panic!("{error}"),
        }
    };
    let finished = |mut stream: super::super::handle::EventStream| loop {
        match stream.blocking_next() {
            Some(EngineEvent::Finished { reason, .. }) => return reason,
            Some(EngineEvent::Failed(message)) => panic!("{message}"),
            Some(_) => {}
            None => panic!("no end"),
        }
    };
    let held = asks(Some(Arc::clone(&restriction)));
    // Beside it, and after a while in which it was alone.
    for _ in 0..3 {
        assert_eq!(finished(asks(None)), FinishReason::Length);
        let steps = engine.stats().steps;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        assert_eq!(engine.stats().steps, steps, "nothing can run");
        assert!(engine.stats().since_heartbeat < Duration::from_secs(5) && engine.stats().running == 1);
    }
    open.store(true, SeqCst);
    assert_eq!(finished(held), FinishReason::Length);
}
