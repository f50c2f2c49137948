//! What a device draws against the sampler: the same token for the same logits, in every schedule of the emulated one.

use kernels::cuda::{EmulatedOptions, View, emulated, sample};

use super::Random;
use super::sampling::random_params;
use crate::engine::SamplingParams;
use crate::engine::sampler::{History, SampleError, Sampler, draw, token_of};
use crate::exec::Draw;

/// One row, and what the sampler makes of it.
struct Case {
    logits: Vec<f32>,
    draw: Draw,
    expected: Result<u32, SampleError>,
    about: String,
}

fn case(logits: Vec<f32>, params: &SamplingParams, prompt: &[u32], output: &[u32], seed: u64) -> Option<Case> {
    let mut history = History::new(prompt, params);
    output.iter().for_each(|&token| history.push(token));
    let draw = draw(params, &history, seed)?;
    let expected = Sampler::default().sample(&logits, None, params, &history, seed);
    let about = format!("{params:?} {prompt:?} {output:?}");
    Some(Case { logits, draw, expected, about })
}

/// Cases of one vocabulary, as rows of one launch; the rows are drawn from backwards.
fn check(cases: &[Case], seeds: std::ops::Range<u64>) {
    let vocab = cases[0].logits.len();
    let bytes: Vec<u8> = cases.iter().flat_map(|case| &case.logits).flat_map(|x| x.to_ne_bytes()).collect();
    for seed in seeds {
        let device = emulated(&EmulatedOptions { seed, ..EmulatedOptions::default() }).unwrap();
        let memory = device.upload(&bytes).unwrap();
        let rows = View::<f32>::dense(&memory, cases.len(), vocab);
        let draws: Vec<(usize, &Draw)> = cases.iter().map(|case| &case.draw).enumerate().rev().collect();
        let drawn = sample(&device, rows, &draws).unwrap();
        for (case, drawn) in cases.iter().rev().zip(drawn) {
            // NaN is no number that equals itself.
            let (got, expected) = (format!("{:?}", token_of(drawn)), format!("{:?}", case.expected));
            assert_eq!(got, expected, "schedule {seed}: {} {:?}", case.about, &case.logits[..vocab.min(40)]);
        }
    }
}

#[test]
fn a_device_draws_what_the_sampler_does() {
    let mut random = Random(21);
    let mut drawn = 0;
    for vocab in [4, 9, 23, 40] {
        let mut cases = vec![];
        for seed in 0..120 {
            // Halves, so that ties are frequent.
            let logits = (0..vocab).map(|_| random.below(24) as f32 / 2.0 - 6.0).collect();
            let params = random_params(&mut random, vocab);
            let tokens =
                |random: &mut Random, count| -> Vec<u32> { (0..count).map(|_| random.below(vocab) as u32).collect() };
            let (before, after) = (random.range(1, 5), random.below(8));
            let (prompt, output) = (tokens(&mut random, before), tokens(&mut random, after));
            cases.extend(case(logits, &params, &prompt, &output, seed));
        }
        drawn += cases.len();
        check(&cases, 0..5);
    }
    assert!(drawn > 100, "{drawn} cases are for devices");
}

#[test]
fn a_device_draws_what_the_sampler_does_from_a_large_vocabulary() {
    let mut random = Random(12);
    let mut cases = vec![];
    let logits: Vec<f32> = (0..20_000).map(|_| 12.0 * random.float() - 6.0).collect();
    for (seed, top_k) in [0, 1, 40, 5000, 0, 19_999].into_iter().enumerate() {
        for (top_p, min_p) in [(1.0, 0.0), (0.9, 0.0), (0.3, 0.05), (1e-6, 0.0)] {
            let mut logits = logits.clone();
            logits[777 + seed] = f32::NEG_INFINITY;
            let temperature = [0.3, 1.0, 2.0][(seed + cases.len()) % 3];
            let repetition_penalty = if seed % 2 == 0 { 1.0 } else { 1.3 };
            let params =
                SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, ..SamplingParams::default() };
            cases.extend(case(logits, &params, &[1, 19_999, 30_000], &[7, 7], seed as u64));
        }
    }
    assert_eq!(cases.len(), 24);
    check(&cases, 3..5);
}

#[test]
fn a_device_finds_the_same_faults() {
    let mut cases = vec![];
    let (none, infinite) = (f32::NEG_INFINITY, f32::INFINITY);
    for temperature in [0.0, 0.8] {
        for logits in
            [[0.0, f32::NAN, infinite], [1.0, infinite, 0.0], [none; 3], [none, -1e38, none], [-0.0, 0.0, none]]
        {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            cases.extend(case(logits.to_vec(), &params, &[1], &[], 5));
            // What penalties make infinite: the logit of a seen token.
            let repetition_penalty = 1e-3;
            let params = SamplingParams { repetition_penalty, ..params };
            cases.extend(case(logits.map(|x| if x == 1.0 { 3e38 } else { x }).to_vec(), &params, &[0], &[], 5));
            cases.extend(case(vec![1.0, 3e38, 2.0], &params, &[0], &[1], 5));
        }
    }
    assert!(cases.iter().any(|case| matches!(case.expected, Err(SampleError::NothingLeft))));
    check(&cases, 0..5);
}

#[test]
fn what_a_device_does_not_know_stays_with_the_sampler() {
    let asked = |params: SamplingParams| draw(&params, &History::new(&[1], &params), 3);
    let plain = SamplingParams::default;
    assert!(asked(plain()).is_some());
    assert_eq!(asked(SamplingParams { temperature: 1e-6, ..plain() }).unwrap().temperature, 0.0, "vLLM's threshold");
    assert!(asked(SamplingParams { repetition_penalty: 2.0, ..plain() }).is_some_and(|draw| draw.seen == [(1, 0)]));
    for params in [
        SamplingParams { allowed_token_ids: Some(vec![1]), ..plain() },
        SamplingParams { bad_words: vec![vec![1]], ..plain() },
        SamplingParams { min_tokens: 1, ..plain() },
        SamplingParams { logit_bias: vec![(1, 1.0)], ..plain() },
    ] {
        assert_eq!(asked(params.clone()), None, "{params:?}");
    }
}
