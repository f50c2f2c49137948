//! The scheduler alone, with thousands of random arrivals, cancellations and priorities, and pools and
//! budgets so small that they are always short.

use plugin_api::LengthDependence;
use std::collections::BTreeMap;

use super::Random;
use crate::engine::Sequence;
use crate::engine::scheduler::{Limits, Outcome, Scheduler};
use crate::exec::{BLOCK_SIZE, MAX_PROMPT_ROWS, PrefixCaching};

/// A request of the simulation.
struct Job {
    priority: i32,
    /// Ends at this length.
    length: usize,
    arrived: usize,
    /// Tokens of all jobs that were there when it came, its own too.
    ahead: usize,
}

struct World {
    random: Random,
    limits: Limits,
    scheduler: Scheduler,
    jobs: BTreeMap<u64, Job>,
    next_id: u64,
    now: usize,
    priorities: bool,
    admitted: Vec<u64>,
    preemptions: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed * 1_000_003);
        let max_num_seqs = random.range(1, 6);
        let limits = Limits {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + random.below(60),
            kv_blocks: random.range(3, 24),
            window: random.chance(30).then(|| random.range(1, 50)),
            prefix_cache: match random.below(2) {
                0 => PrefixCaching::Unsupported,
                _ => PrefixCaching::Shared,
            },
            extra_rows: MAX_PROMPT_ROWS,
            by_length: None,
        };
        let scheduler = Scheduler::new(limits.clone());
        let priorities = random.chance(50);
        Self {
            random,
            limits,
            scheduler,
            jobs: BTreeMap::new(),
            next_id: 0,
            now: 0,
            priorities,
            admitted: Vec::new(),
            preemptions: 0,
        }
    }

    fn arrive(&mut self) {
        let random = &mut self.random;
        // With a window the pool bounds what is held at once, not the length.
        let mut length = random.range(2, 120);
        while self.limits.peak_blocks(length - 1, length - 1) > self.limits.kv_blocks {
            length = length * 2 / 3;
            if length < 2 {
                return;
            }
        }
        let prompt_len = random.range(1, length - 1);
        // Few distinct beginnings, so that prompts share blocks.
        let (common, kind) = (random.below(prompt_len + 1), random.below(3) as u32);
        let prompt = (0..prompt_len).map(|i| if i < common { kind } else { random.below(50) as u32 }).collect();
        let priority = if self.priorities { random.below(3) as i32 } else { 0 };
        let id = self.next_id;
        self.next_id += 1;
        let sequence = Sequence::new(id, priority, prompt, random.chance(10));
        let ahead = length + self.jobs.values().map(|job| job.length).sum::<usize>();
        self.jobs.insert(id, Job { priority, length, arrived: self.now, ahead });
        self.scheduler.add(sequence);
    }

    fn cancel(&mut self) {
        let at = self.random.below(self.jobs.len().max(1));
        if let Some((&id, job)) = self.jobs.iter().nth(at) {
            self.scheduler.abort(job.priority, id);
            self.jobs.remove(&id);
        }
    }

    fn step(&mut self) {
        self.now += 1;
        let decision = self.scheduler.schedule();
        self.scheduler.check();
        assert!(decision.impossible.is_empty(), "every job fits the pool");
        assert!(decision.preempted.is_empty() || decision.admitted.is_empty());
        self.preemptions += decision.preempted.len() as u64;
        self.admitted.extend(&decision.admitted);
        let running = self.scheduler.running();
        let tokens: usize = running.iter().map(|seq| seq.scheduled).sum();
        assert_eq!(tokens, decision.tokens);
        assert!(tokens <= self.limits.max_num_batched_tokens, "budget exceeded");
        assert!(running.iter().all(|seq| seq.scheduled > 0), "whoever runs makes progress");
        assert!(self.jobs.is_empty() || !running.is_empty(), "something always runs");
        let rows: usize = running.iter().map(|seq| seq.logit_positions().len()).sum();
        assert!(rows <= running.len() + MAX_PROMPT_ROWS, "{rows} rows");
        for seq in running {
            assert!(seq.prompt_rows.is_none() || seq.output_len() == 0);
            assert!(seq.step_end() <= seq.blocks.len() * BLOCK_SIZE, "no block for a token");
            assert!(seq.cached_tokens < seq.prompt_len, "the last prompt token is always computed");
        }
        let Self { random, jobs, now, priorities, .. } = self;
        self.scheduler.complete(|seq| {
            let job = &jobs[&seq.id];
            if !seq.samples() {
                return Outcome::Continue;
            }
            if seq.tokens.len() + 1 < job.length {
                return Outcome::Token(random.below(50) as u32);
            }
            // First come, first served: the first in order gets a token each step and is never preempted.
            let waited = *now - job.arrived;
            assert!(*priorities || waited <= job.ahead, "job {} took {waited} steps", seq.id);
            jobs.remove(&seq.id);
            Outcome::Finish
        });
        self.scheduler.check();
    }
}

#[test]
fn nothing_leaks_starves_or_exceeds_its_limits() {
    let (mut preemptions, mut hits, mut jobs) = (0, 0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..100 {
            if world.random.chance(40) && world.jobs.len() < 30 {
                world.arrive();
            }
            if world.random.chance(5) {
                world.cancel();
            }
            world.step();
        }
        let left: usize = world.jobs.values().map(|job| job.length).sum();
        for _ in 0..=left {
            world.step();
        }
        assert!(world.jobs.is_empty() && world.scheduler.is_idle(), "seed {seed}: {} jobs left", world.jobs.len());
        assert_eq!(world.scheduler.block_usage().0, 0);
        if !world.priorities {
            let mut first: Vec<u64> = Vec::new();
            world.admitted.iter().for_each(|id| {
                if !first.contains(id) {
                    first.push(*id)
                }
            });
            assert!(first.is_sorted(), "seed {seed}: admitted out of order");
        }
        preemptions += world.preemptions;
        hits += world.scheduler.counts().hits;
        jobs += world.next_id;
    }
    // The test is worth nothing if these never happen.
    assert!(jobs > 5000 && preemptions > 400 && hits > 5000, "{jobs} jobs, {preemptions} preemptions, {hits} hits");
}

/// Runs one step in which every sequence that is due gets token 7.
fn run(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
    scheduler.schedule();
    let scheduled = scheduler.running().iter().map(|seq| (seq.id, seq.scheduled)).collect();
    scheduler.complete(|seq| if seq.samples() { Outcome::Token(7) } else { Outcome::Continue });
    scheduled
}

#[test]
fn long_prompts_are_cut_and_do_not_stop_the_others() {
    let mut scheduler = Scheduler::new(Limits { max_num_batched_tokens: 32, ..super::limits(32) });
    scheduler.add(Sequence::new(0, 0, vec![1; 10], false));
    scheduler.add(Sequence::new(1, 0, vec![2; 70], false));
    scheduler.add(Sequence::new(2, 0, vec![3; 5], false));
    assert_eq!(run(&mut scheduler), [(0, 10), (1, 22)]);
    assert_eq!(run(&mut scheduler), [(0, 1), (1, 31)]);
    assert_eq!(run(&mut scheduler), [(0, 1), (1, 17), (2, 5)]);
    assert_eq!(run(&mut scheduler), [(0, 1), (1, 1), (2, 1)]);
    // A long prompt of higher priority leaves each of the others one token a step.
    scheduler.add(Sequence::new(3, -1, vec![4; 100], false));
    assert_eq!(run(&mut scheduler), [(3, 29), (0, 1), (1, 1), (2, 1)]);
    assert_eq!(run(&mut scheduler), [(3, 29), (0, 1), (1, 1), (2, 1)]);
}

#[test]
fn the_last_in_order_is_preempted_and_comes_back_first() {
    // Three sequences of one block each, and one block more.
    let limits = Limits { prefix_cache: PrefixCaching::Unsupported, ..super::limits(6) };
    let mut scheduler = Scheduler::new(limits);
    for id in 0..3 {
        scheduler.add(Sequence::new(id, 0, vec![1; 16], false));
    }
    scheduler.add(Sequence::new(3, 5, vec![1; 16], false));
    // The pool has room for three with a block each to grow.
    assert_eq!(run(&mut scheduler), [(0, 16), (1, 16), (2, 16)]);
    for _ in 0..16 {
        run(&mut scheduler);
    }
    assert_eq!(scheduler.block_usage(), (6, 6));
    let decision = scheduler.schedule();
    assert_eq!((&decision.preempted[..], &decision.admitted[..]), (&[2][..], &[][..]));
    assert_eq!(scheduler.running().len(), 2);
    assert_eq!(scheduler.waiting(), 2);
    scheduler.complete(|_| Outcome::Finish);
    let decision = scheduler.schedule();
    assert_eq!(decision.admitted, [2, 3]);
    assert_eq!(scheduler.running()[0].scheduled, 33, "computed again, output and all");
    scheduler.check();
}

#[test]
fn cached_blocks_are_shared_but_the_last_token_is_computed() {
    let mut scheduler = Scheduler::new(super::limits(16));
    scheduler.add(Sequence::new(0, 0, vec![1; 48], false));
    // The same prompt waits until the first has computed it, and shares its blocks while it runs.
    scheduler.add(Sequence::new(1, 0, vec![1; 48], false));
    assert_eq!(run(&mut scheduler), [(0, 48)]);
    assert_eq!(run(&mut scheduler), [(0, 1), (1, 16)]);
    assert_eq!(scheduler.running()[0].blocks[..2], scheduler.running()[1].blocks[..2]);
    assert_ne!(scheduler.running()[0].blocks[2], scheduler.running()[1].blocks[2]);
    assert_eq!(scheduler.counts().hits, 32);
    // Finished sequences leave their blocks, prompt and output.
    scheduler.schedule();
    scheduler.complete(|_| Outcome::Finish);
    scheduler.add(Sequence::new(2, 0, [vec![1; 48], vec![7, 7, 9]].concat(), false));
    assert_eq!(run(&mut scheduler), [(2, 3)]);
    // Whoever wants the logits of the prompt computes it all.
    scheduler.add(Sequence::new(3, 0, vec![1; 48], true));
    assert_eq!(run(&mut scheduler), [(2, 1), (3, 48)]);
    scheduler.check();
}

#[test]
fn the_class_of_the_length_is_part_of_the_content() {
    let mut scheduler =
        Scheduler::new(Limits { by_length: Some(LengthDependence { above: 45, growing: true }), ..super::limits(32) });
    scheduler.add(Sequence::new(0, 0, vec![1; 40], false));
    run(&mut scheduler);
    scheduler.add(Sequence::new(1, 0, vec![1; 50], false));
    scheduler.add(Sequence::new(2, 0, [vec![1; 39], vec![2]].concat(), false));
    assert_eq!(run(&mut scheduler), [(0, 1), (1, 50), (2, 8)]);
}

#[test]
fn a_sequence_that_grows_into_another_class_is_computed_anew() {
    let by_length = Some(LengthDependence { above: 33, growing: true });
    let mut scheduler = Scheduler::new(Limits { by_length, ..super::limits(32) });
    scheduler.add(Sequence::new(0, 0, vec![1; 32], false));
    let steps: Vec<_> = (0..4).map(|_| run(&mut scheduler)).collect();
    assert_eq!(steps, [[(0, 32)], [(0, 1)], [(0, 34)], [(0, 35)]]);
    scheduler.check();
}

#[test]
fn windows_free_blocks_and_a_long_sequence_fits_a_small_pool() {
    let limits = Limits { window: Some(32), max_num_batched_tokens: 16, ..super::limits(6) };
    let mut scheduler = Scheduler::new(Limits { max_num_seqs: 2, ..limits });
    scheduler.add(Sequence::new(0, 0, vec![1; 400], false));
    for _ in 0..100 {
        run(&mut scheduler);
        scheduler.check();
        assert!(scheduler.block_usage().0 <= 5, "{:?}", scheduler.block_usage());
    }
    assert_eq!(scheduler.counts().preemptions, 0);
    assert!(scheduler.running()[0].output_len() > 70);
}

#[test]
fn a_sequence_that_the_pool_cannot_hold_ends_instead_of_waiting_forever() {
    // The engine refuses such requests; the policy must not hang if one gets through.
    let mut scheduler = Scheduler::new(super::limits(2));
    scheduler.add(Sequence::new(0, 0, vec![1; 40], false));
    scheduler.add(Sequence::new(1, 0, vec![2; 20], false));
    assert_eq!(run(&mut scheduler), [(0, 32)]);
    let decision = scheduler.schedule();
    assert_eq!((decision.impossible, decision.admitted), (vec![0], vec![1]));
    scheduler.check();
}
