//! Vectors do not depend on chunks, company or cache, and are what they are called.

use super::{Harness, Random, limits, request};
use crate::engine::scheduler::Limits;
use crate::engine::sim::SimOptions;
use crate::engine::{EngineEvent, EngineRequest, Pooling, SamplingParams};
use crate::exec::PrefixCaching;

const WIDTH: usize = 12;

fn prompts(random: &mut Random) -> Vec<EngineRequest> {
    let one = |i: usize| {
        // Some share their beginnings.
        let start = random.below(3) as u32;
        let prompt: Vec<u32> = (0..random.range(1, 90)).map(|at| (start + at as u32 * 5) % WIDTH as u32).collect();
        let pooling = Some([Pooling::Last, Pooling::Mean][i % 2]);
        EngineRequest { pooling, ..request(prompt, SamplingParams::default()) }
    };
    (0..12).map(one).collect()
}

fn vector(harness: &Harness, id: u64) -> Vec<f32> {
    let vectors: Vec<&Vec<f32>> = harness.events[&id]
        .iter()
        .filter_map(|event| match event {
            EngineEvent::Pooled(vector) => Some(vector),
            _ => None,
        })
        .collect();
    assert_eq!(vectors.len(), 1, "{:?}", harness.events[&id]);
    assert!(matches!(harness.events[&id].last(), Some(EngineEvent::Finished { .. })));
    vectors[0].clone()
}

#[test]
fn vectors_do_not_depend_on_how_they_are_computed() {
    let mut hits = 0;
    for seed in 0..20 {
        let mut random = Random(seed * 9973);
        let requests = prompts(&mut random);
        let alone: Vec<Vec<f32>> = requests
            .iter()
            .map(|request| {
                let limits = Limits {
                    max_num_batched_tokens: 128,
                    prefix_cache: PrefixCaching::Unsupported,
                    extra_rows: 128,
                    ..limits(16)
                };
                let mut harness = Harness::new(SimOptions::new(WIDTH), limits);
                let id = harness.submit(request.clone());
                harness.finish(1);
                vector(&harness, id)
            })
            .collect();
        let limits = Limits {
            max_num_batched_tokens: random.range(8, 50),
            extra_rows: random.range(1, 50),
            ..limits(random.range(6, 14))
        };
        let mut options = SimOptions::new(WIDTH);
        options.spec.extra_rows = limits.extra_rows;
        let mut harness = Harness::new(options, limits);
        let ids: Vec<u64> = requests.iter().map(|request| harness.submit(request.clone())).collect();
        harness.finish(2000);
        for (id, expected) in ids.into_iter().zip(&alone) {
            assert_eq!(vector(&harness, id), *expected);
        }
        hits += harness.core.scheduler().counts().hits;
    }
    assert!(hits > 0, "the prefix cache was never used");
}

#[test]
fn the_mean_is_the_mean_of_the_states_that_last_gives_one_by_one() {
    let prompt: Vec<u32> = (0..40u32).map(|at| at * 7 % WIDTH as u32).collect();
    let mut options = SimOptions::new(WIDTH);
    options.spec.extra_rows = 64;
    let mut harness = Harness::new(options, Limits { max_num_batched_tokens: 16, extra_rows: 64, ..limits(32) });
    let mut pool = |prompt: &[u32], pooling: Pooling| {
        let plain = request(prompt.to_vec(), SamplingParams::default());
        let id = harness.submit(EngineRequest { pooling: Some(pooling), ..plain });
        harness.finish(100);
        vector(&harness, id)
    };
    let states: Vec<Vec<f32>> = (1..=prompt.len()).map(|end| pool(&prompt[..end], Pooling::Last)).collect();
    let mean = pool(&prompt, Pooling::Mean);
    for (column, &found) in mean.iter().enumerate() {
        let expected = states.iter().map(|state| f64::from(state[column])).sum::<f64>() / prompt.len() as f64;
        assert!((f64::from(found) - expected).abs() < 1e-6, "{found} instead of {expected}");
    }
}
