//! The sampler against a slow one that sorts everything, in f64, and recounts the history each time.

use super::Random;
use crate::engine::SamplingParams;
use crate::engine::sampler::{History, SampleError, Sampler, derive_seed, random};

fn sample(
    logits: &[f32],
    params: &SamplingParams,
    prompt: &[u32],
    output: &[u32],
    seed: u64,
) -> Result<u32, SampleError> {
    let mut history = History::new(prompt, params);
    output.iter().for_each(|&token| history.push(token));
    Sampler::default().sample(logits, None, params, &history, seed)
}

/// What may change which token is best, one rule after the other.
fn naive_logits(logits: &[f32], params: &SamplingParams, prompt: &[u32], output: &[u32]) -> Vec<f32> {
    let mut out = logits.to_vec();
    for (token, logit) in out.iter_mut().enumerate() {
        let token = token as u32;
        let ends = |word: &Vec<u32>| {
            let whole: Vec<u32> = output.iter().copied().chain([token]).collect();
            whole.ends_with(word)
        };
        let early = output.len() < params.min_tokens && params.is_stop(token);
        let allowed = params.allowed_token_ids.as_ref().is_none_or(|allowed| allowed.contains(&token));
        if !allowed || early || params.bad_words.iter().any(ends) {
            *logit = f32::NEG_INFINITY;
        }
        for &(biased, bias) in &params.logit_bias {
            *logit += if biased == token { bias } else { 0.0 };
        }
        let count = output.iter().filter(|&&other| other == token).count();
        if count > 0 || prompt.contains(&token) {
            *logit *= if *logit > 0.0 { 1.0 / params.repetition_penalty } else { params.repetition_penalty };
        }
        *logit -= params.frequency_penalty * count as f32 + if count > 0 { params.presence_penalty } else { 0.0 };
    }
    out
}

fn naive(logits: &[f32], params: &SamplingParams, prompt: &[u32], output: &[u32], seed: u64) -> u32 {
    let logits = naive_logits(logits, params, prompt, output);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if params.temperature == 0.0 {
        return order[0] as u32;
    }
    let scaled = |token: usize| f64::from(logits[token] / params.temperature);
    let max = scaled(order[0]);
    let weight = |token: usize| (scaled(token) - max).exp();
    order.retain(|&token| weight(token) > 1e-12 && weight(token) >= f64::from(params.min_p));
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let mut held = 0.0;
    let mut kept = Vec::new();
    for token in order {
        if held >= f64::from(params.top_p) * total {
            break;
        }
        held += weight(token);
        kept.push(token);
    }
    kept.sort_unstable();
    let position = (prompt.len() + output.len()) as u64;
    let mut left = random(seed, position) as f64 / 2f64.powi(64) * held;
    for &token in &kept {
        left -= weight(token);
        if left < 0.0 {
            return token as u32;
        }
    }
    kept[kept.len() - 1] as u32
}

pub(super) fn random_params(random: &mut Random, vocab: usize) -> SamplingParams {
    let ids = |random: &mut Random, most: usize| -> Vec<u32> {
        (0..random.range(1, most)).map(|_| random.below(vocab) as u32).collect()
    };
    let mut params = SamplingParams { temperature: 0.2 + 2.0 * random.float(), ..SamplingParams::default() };
    if random.chance(20) {
        params.temperature = 0.0;
    }
    if random.chance(40) {
        params.top_k = random.range(1, vocab + 3);
    }
    if random.chance(40) {
        params.top_p = 0.05 + 0.95 * random.float();
    }
    if random.chance(30) {
        params.min_p = random.float() * 0.3;
    }
    if random.chance(30) {
        params.presence_penalty = 4.0 * random.float() - 2.0;
        params.frequency_penalty = 4.0 * random.float() - 2.0;
    }
    if random.chance(30) {
        params.repetition_penalty = 0.5 + random.float();
    }
    if random.chance(30) {
        let token = random.below(vocab) as u32;
        params.logit_bias = vec![(token, 6.0 * random.float() - 3.0), (random.below(vocab) as u32, 1.0)];
    }
    if random.chance(20) {
        params.allowed_token_ids = Some((0..vocab as u32).filter(|_| random.chance(50)).chain([1]).collect());
    }
    if random.chance(30) {
        params.bad_words = (0..random.range(1, 4)).map(|_| ids(random, 3)).filter(|word| word != &[1]).collect();
    }
    if random.chance(30) {
        params.min_tokens = random.below(6);
        params.eos_token_ids = vec![0];
        params.stop_token_ids = vec![3];
        params.ignore_eos = random.chance(30);
    }
    params
}

#[test]
fn agrees_with_the_naive_sampler() {
    let mut random = Random(7);
    let mut differing = 0;
    for case in 0..20_000 {
        let vocab = random.range(4, 40);
        // Halves, so that ties are frequent.
        let logits: Vec<f32> = (0..vocab).map(|_| random.below(24) as f32 / 2.0 - 6.0).collect();
        let params = random_params(&mut random, vocab);
        let tokens =
            |random: &mut Random, count| -> Vec<u32> { (0..count).map(|_| random.below(vocab) as u32).collect() };
        let (before, after) = (random.range(1, 5), random.below(8));
        let (prompt, output) = (tokens(&mut random, before), tokens(&mut random, after));
        let expected = naive(&logits, &params, &prompt, &output, case);
        let got = sample(&logits, &params, &prompt, &output, case);
        let plain = SamplingParams { temperature: params.temperature, ..SamplingParams::default() };
        differing += usize::from(naive(&logits, &plain, &prompt, &output, case) != expected);
        assert_eq!(got, Ok(expected), "case {case}: {params:?} {logits:?} {prompt:?} {output:?}");
    }
    assert!(differing > 2000, "the parameters hardly matter: {differing}");
}

#[test]
fn agrees_on_a_large_vocabulary() {
    let mut random = Random(11);
    let mut logits: Vec<f32> = (0..50_000).map(|_| 12.0 * random.float() - 6.0).collect();
    logits[777] = f32::NEG_INFINITY;
    for case in 0..60 {
        let params = SamplingParams {
            temperature: 0.5 + random.float(),
            top_k: [0, 1, 40, 5000][random.below(4)],
            top_p: [1.0, 0.9, 0.3, 1e-6][random.below(4)],
            min_p: [0.0, 0.05][random.below(2)],
            ..SamplingParams::default()
        };
        assert_eq!(
            sample(&logits, &params, &[1], &[], case),
            Ok(naive(&logits, &params, &[1], &[], case)),
            "{params:?}"
        );
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
    let params = SamplingParams { temperature: 2.0, ..SamplingParams::default() };
    let mut history = History::new(&[1], &params);
    let mut counts = [0f64; 4];
    let mut sampler = Sampler::default();
    for _ in 0..40_000 {
        // Positions of one sequence, as in a real generation.
        let Ok(token) = sampler.sample(&logits, None, &params, &history, 5) else { panic!("a token") };
        counts[token as usize] += 1.0;
        history.push(token);
    }
    let weights = logits.map(|logit| f64::from(logit / 2.0).exp());
    for (count, weight) in counts.iter().zip(weights) {
        let expected = 40_000.0 * weight / weights.iter().sum::<f64>();
        assert!((count - expected).abs() < 4.0 * expected.sqrt() + 1e-9, "{counts:?}");
    }
}

#[test]
fn a_guides_mask_excludes_tokens() {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let history = History::new(&[1], &params);
    let logits: Vec<f32> = (0..70).map(|token| token as f32).collect();
    let pick = |mask: &[u32]| Sampler::default().sample(&logits, Some(mask), &params, &history, 0);
    assert_eq!(pick(&[u32::MAX, u32::MAX, u32::MAX]), Ok(69));
    assert_eq!(pick(&[1 << 3, 1 << 8, 0]), Ok(40));
    assert_eq!(pick(&[1 << 3 | 1]), Ok(3), "what the mask does not reach is excluded");
    assert_eq!(pick(&[0, 0, 0]), Err(SampleError::NothingLeft));
}

#[test]
fn logprobs_of_given_tokens() {
    let mut sampler = Sampler::default();
    let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY];
    let Ok(all) = sampler.logprobs(&logits, 1, 4) else { panic!("finite logits") };
    let Ok(some) = sampler.logprobs_of(&logits, 1, &[0, 2, 0, 9]) else { panic!("finite logits") };
    assert_eq!((some.token, some.logprob, some.rank), (1, all.logprob, 1));
    assert_eq!(some.top, all.top[1..]);
}

#[test]
fn numbers_are_a_function_of_seed_and_position() {
    assert_eq!(random(1, 2), random(1, 2));
    let mut all: Vec<u64> = (0..100).flat_map(|seed| (0..100).map(move |position| random(seed, position))).collect();
    let ones: u32 = all.iter().map(|x| x.count_ones()).sum();
    assert!((f64::from(ones) / 640_000.0 - 0.5).abs() < 0.005);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 10_000);
    assert_eq!(derive_seed(9, 0), 9);
    assert_ne!(derive_seed(9, 1), derive_seed(9, 2));
}

#[test]
fn greedy_takes_the_first_of_equal_logits() {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    assert_eq!(sample(&[1.0, 5.0, 5.0], &params, &[0], &[], 0), Ok(1));
    assert_eq!(sample(&[f32::NEG_INFINITY, -2.0, -1.0], &params, &[0], &[], 0), Ok(2));
}

#[test]
fn broken_logits_are_an_error() {
    for params in [SamplingParams::default(), SamplingParams { temperature: 0.0, ..SamplingParams::default() }] {
        let error = |logits: &[f32]| sample(logits, &params, &[0], &[], 0).err().map(|error| error.to_string());
        assert!(error(&[0.0, f32::NAN]).is_some_and(|text| text.contains("NaN as the logit of token 1")));
        assert!(error(&[f32::INFINITY, 0.0]).is_some_and(|text| text.contains("inf as the logit of token 0")));
        assert!(error(&[f32::NEG_INFINITY; 3]).is_some_and(|text| text.contains("no token is left")));
    }
    let params = SamplingParams {
        allowed_token_ids: Some(vec![1]),
        min_tokens: 1,
        stop_token_ids: vec![1],
        ..SamplingParams::default()
    };
    assert_eq!(sample(&[0.0, 1.0], &params, &[0], &[], 0), Err(SampleError::NothingLeft));
}

#[test]
fn min_tokens_hides_eos_only_until_then() {
    let params =
        SamplingParams { temperature: 0.0, min_tokens: 2, eos_token_ids: vec![1], ..SamplingParams::default() };
    let logits = [0.0, 9.0, 1.0];
    assert_eq!(sample(&logits, &params, &[0], &[2], 0), Ok(2));
    assert_eq!(sample(&logits, &params, &[0], &[2, 2], 0), Ok(1));
}

#[test]
fn logprobs_agree_with_a_sorted_log_softmax() {
    let mut random = Random(3);
    let mut sampler = Sampler::default();
    for _ in 0..500 {
        let vocab = random.range(2, 600);
        let mut logits: Vec<f32> = (0..vocab).map(|_| random.below(200) as f32 / 7.0 - 20.0).collect();
        logits[random.below(vocab)] = f32::NEG_INFINITY;
        let (token, count) = (random.below(vocab), random.below(vocab + 2));
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let logprob = |token: usize| (f64::from(logits[token]) - sum.ln()) as f32;
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let Ok(got) = sampler.logprobs(&logits, token as u32, count) else { panic!("finite logits") };
        assert_eq!(
            (got.token, got.rank as usize),
            (token as u32, 1 + order.iter().position(|&t| t == token).unwrap_or(0))
        );
        assert!(got.logprob == logprob(token) || (got.logprob - logprob(token)).abs() < 1e-5);
        order.truncate(count);
        order.retain(|&token| logits[token] > f32::NEG_INFINITY);
        assert_eq!(got.top.iter().map(|&(token, _)| token as usize).collect::<Vec<_>>(), order);
        assert!(got.top.iter().all(|&(token, value)| (value - logprob(token as usize)).abs() < 1e-5));
    }
    assert!(sampler.logprobs(&[0.0, f32::NAN], 0, 1).is_err());
}
