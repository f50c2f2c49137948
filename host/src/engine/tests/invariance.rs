//! A request's answer does not depend on what else runs, on how prompts are cut, on the prefix cache or on
//! preemption. The simulator's logits hash the whole history and it checks every slot it reads, so wrong
//! bookkeeping shows as other tokens or as a failed request.

use std::collections::BTreeMap;

use super::{Harness, Random, limits, request};
use crate::engine::scheduler::Limits;
use crate::engine::sim::SimOptions;
use crate::engine::{EngineRequest, SamplingParams};
use crate::exec::{MAX_PROMPT_ROWS, PrefixCaching};
use plugin_api::LengthDependence;

const VOCAB: usize = 40;

/// Requests with all kinds of parameters and few distinct beginnings.
fn workload(random: &mut Random, count: usize, most: usize) -> Vec<EngineRequest> {
    let request = |_| {
        let prompt_len = random.range(1, most);
        let (common, kind) = (random.below(prompt_len + 1), random.below(3) as u32);
        let prompt = (0..prompt_len).map(|i| if i < common { kind } else { random.below(VOCAB) as u32 }).collect();
        let max_tokens = random.range(1, most);
        let params = SamplingParams {
            max_tokens,
            min_tokens: random.below(max_tokens + 1) / 2,
            temperature: if random.chance(30) { 0.0 } else { 0.3 + random.float() },
            top_k: if random.chance(30) { random.range(1, 20) } else { 0 },
            top_p: if random.chance(30) { 0.7 } else { 1.0 },
            presence_penalty: if random.chance(20) { 1.0 } else { 0.0 },
            repetition_penalty: if random.chance(20) { 1.3 } else { 1.0 },
            eos_token_ids: vec![5],
            ignore_eos: random.chance(50),
            stop_token_ids: if random.chance(20) { vec![6, 7] } else { Vec::new() },
            seed: Some(random.below(1000) as u64),
            logprobs: random.chance(20).then_some(2),
            prompt_logprobs: random.chance(10).then_some(1),
            ..SamplingParams::default()
        };
        EngineRequest { priority: random.below(3) as i32, ..request(prompt, params) }
    };
    (0..count).map(request).collect()
}

fn options(window: Option<usize>, prefix_cache: PrefixCaching) -> SimOptions {
    let mut options = SimOptions::new(VOCAB);
    options.spec.window = window;
    options.spec.prefix_cache = prefix_cache;
    options
}

/// Each alone, in a large pool, its prompt in one piece, nothing cached.
fn alone(requests: &[EngineRequest], options: &SimOptions) -> Vec<Vec<String>> {
    let run = |request: &EngineRequest| {
        let limits = Limits { max_num_batched_tokens: 4096, max_num_seqs: 1, ..limits(64) };
        let limits = Limits {
            window: options.spec.window,
            prefix_cache: PrefixCaching::Unsupported,
            extra_rows: MAX_PROMPT_ROWS,
            by_length: options.spec.by_length,
            ..limits
        };
        let mut harness = Harness::new(options.clone(), limits);
        let id = harness.submit(request.clone());
        harness.finish(2000);
        harness.transcript(id)
    };
    requests.iter().map(run).collect()
}

#[test]
fn answers_do_not_depend_on_company_chunks_cache_or_preemption() {
    let (mut preemptions, mut hits, mut tokens) = (0, 0, 0);
    for seed in 0..40 {
        let mut random = Random(seed * 77_777);
        let window = random.chance(30).then(|| random.range(1, 40));
        let kind = [PrefixCaching::Shared, PrefixCaching::Unsupported][random.below(2)];
        let by_length = [
            None,
            Some(LengthDependence { above: 30, growing: false }),
            Some(LengthDependence { above: 80, growing: true }),
        ][random.below(3)];
        let mut options = options(window, kind);
        options.spec.by_length = by_length;
        let requests = workload(&mut random, 24, 60);
        let expected = alone(&requests, &options);
        for _ in 0..3 {
            let max_num_seqs = random.range(1, 12);
            let limits = Limits {
                max_num_seqs,
                max_num_batched_tokens: max_num_seqs + random.below(80),
                // 60 tokens of prompt and 60 of output take 8 blocks.
                kv_blocks: random.range(8, 18),
                window,
                prefix_cache: if random.chance(25) { PrefixCaching::Unsupported } else { kind },
                extra_rows: MAX_PROMPT_ROWS,
                by_length,
            };
            let mut harness = Harness::new(options.clone(), limits);
            let mut ids = BTreeMap::new();
            let mut cancelled = Vec::new();
            let mut left: Vec<usize> = (0..requests.len()).collect();
            while !left.is_empty() {
                for _ in 0..random.below(6).min(left.len()) {
                    let index = left.swap_remove(random.below(left.len()));
                    ids.insert(harness.submit(requests[index].clone()), index);
                }
                // A copy of a request that its client gives up on at some time.
                if random.chance(30) {
                    cancelled.push(harness.submit(requests[random.below(requests.len())].clone()));
                }
                if random.chance(30) && !cancelled.is_empty() {
                    harness.cancel(cancelled.swap_remove(random.below(cancelled.len())));
                }
                harness.step();
            }
            harness.finish(10_000);
            for (&id, &index) in &ids {
                assert_eq!(
                    harness.transcript(id),
                    expected[index],
                    "seed {seed}, request {index}: {:?}",
                    requests[index]
                );
                tokens += harness.tokens(id).len();
            }
            preemptions += harness.core.scheduler().counts().preemptions;
            hits += harness.core.scheduler().counts().hits;
        }
    }
    // The test is worth nothing if these never happen.
    assert!(preemptions > 130 && hits > 2000 && tokens > 40_000, "{preemptions} {hits} {tokens}");
}

#[test]
fn answers_do_not_depend_on_the_threads_that_choose() {
    // Rows so long that they are shared out as soon as two sequences run.
    let mut options = SimOptions::new(40_000);
    options.verify = false;
    let requests: Vec<_> = workload(&mut Random(3), 9, 12)
        .into_iter()
        .map(|mut request| {
            request.params.eos_token_ids.clear();
            request
        })
        .collect();
    let expected = alone(&requests, &options);
    for threads in [2, 5] {
        options.threads = kernels::cpu::Pool::new(threads, false).ok().map(std::sync::Arc::new);
        let mut harness = Harness::new(options.clone(), limits(64));
        let ids: Vec<u64> = requests.iter().map(|request| harness.submit(request.clone())).collect();
        harness.finish(100);
        for (id, expected) in ids.into_iter().zip(&expected) {
            assert_eq!(&harness.transcript(id), expected);
        }
    }
}

#[test]
fn parameters_end_a_generation_as_they_should() {
    let mut harness = Harness::new(options(None, PrefixCaching::Shared), limits(64));
    let base = SamplingParams { max_tokens: 50, temperature: 0.0, ..SamplingParams::default() };
    let free = harness.submit(request(vec![1, 2, 3], base.clone()));
    harness.finish(200);
    let tokens = harness.tokens(free);
    assert_eq!(tokens.len(), 50);
    let Some(at) = (5..50).find(|&at| !tokens[..at].contains(&tokens[at])) else { panic!("some token is new") };
    // The same again, but that token is eos; then a stop token; then not before it is too late.
    let eos = SamplingParams { eos_token_ids: vec![tokens[at]], ..base.clone() };
    let stop = SamplingParams { stop_token_ids: vec![tokens[at]], ..base.clone() };
    let ignored = SamplingParams { ignore_eos: true, ..eos.clone() };
    let late = SamplingParams { min_tokens: 50, ..eos.clone() };
    let ids = [eos, stop, ignored, late].map(|params| harness.submit(request(vec![1, 2, 3], params)));
    harness.finish(200);
    for id in &ids[..2] {
        assert_eq!(harness.tokens(*id), tokens[..=at]);
        let end = format!("finished Stop Some({})", tokens[at]);
        assert_eq!(harness.transcript(*id).last(), Some(&end));
    }
    assert_eq!(harness.tokens(ids[2]), tokens);
    assert_eq!(harness.tokens(ids[3]).len(), 50);
    assert!(!harness.tokens(ids[3])[..49].contains(&tokens[at]));
    assert_eq!(harness.transcript(ids[3]).last().map(String::as_str), Some("finished Length None"));
}

#[test]
fn prompt_logprobs_cover_a_prompt_that_is_cut_into_pieces() {
    let prompt: Vec<u32> = (0..300).map(|i| i * 7 % VOCAB as u32).collect();
    let params = SamplingParams { max_tokens: 2, prompt_logprobs: Some(1), ..SamplingParams::default() };
    let mut harness =
        Harness::new(options(None, PrefixCaching::Shared), Limits { max_num_batched_tokens: 128, ..limits(64) });
    let id = harness.submit(request(prompt.clone(), params));
    harness.finish(20);
    let Some(crate::engine::EngineEvent::PromptLogprobs(got)) = harness.events[&id].get(1) else {
        panic!("{:?}", harness.events[&id]);
    };
    assert_eq!(got.len(), 300);
    assert!(got[0].is_none());
    for (entry, &token) in got.iter().zip(&prompt).skip(1) {
        assert!(
            entry.as_ref().is_some_and(|entry| entry.token == token && entry.logprob < 0.0 && entry.top.len() == 1)
        );
    }
}
