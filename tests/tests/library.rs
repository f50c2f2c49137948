//! The Rust API with the built-in demo model: `Llm::load(..)?.generate(&prompts, SamplingParams { .. })`.
//!
//! What it says is held to what the script that trained it wrote down, and requests to give the same bytes whatever runs
//! beside them.

use std::path::Path;
use std::sync::OnceLock;

use host::engine::FinishReason;
use host::exec::Dtype;
use host::llm::{Completion, ModelSource, Prompt, StopReason};
use host::{Llm, LlmOptions, SamplingParams};
use host_tests::library;
use serde::Deserialize;

/// `host/demo/golden.json`.
#[derive(Deserialize)]
struct Golden {
    max_new_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    greedy_text: String,
    finish: String,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/demo/golden.json");
    serde_json::from_slice(&std::fs::read(path).expect("the demo model's golden.json")).expect("is well formed")
}

fn options(dtype: Dtype) -> LlmOptions {
    LlmOptions {
        dtype: library::dtype(dtype),
        kv_cache_memory: Some(64 << 20),
        threads: Some(2),
        ..library::options(ModelSource::Demo, env!("CARGO_BIN_EXE_plugin-worker"))
    }
}

fn load(options: &LlmOptions) -> Llm {
    Llm::load(options).expect("loads")
}

/// One for the tests that need no other options: bfloat16, KV cache too, as the demo model is served.
fn demo() -> &'static Llm {
    static DEMO: OnceLock<Llm> = OnceLock::new();
    DEMO.get_or_init(|| load(&options(Dtype::Bfloat16)))
}

/// Tokens, text, and log-probabilities to the last bit.
fn bits(completion: &Completion) -> Vec<(Vec<u32>, String, Vec<u32>)> {
    let choice = |c: &host::llm::Output| {
        (c.token_ids.clone(), c.text.clone(), c.logprobs.iter().map(|t| t.logprob.to_bits()).collect())
    };
    completion.choices.iter().map(choice).collect()
}

/// Sampling that would show any difference: so hot that the model, which is very sure, says something else each time; and
/// with log-probabilities.
fn seeded(seed: i64) -> SamplingParams {
    SamplingParams {
        max_tokens: Some(24),
        temperature: 5.0,
        top_p: 0.95,
        seed: Some(seed),
        logprobs: Some(0),
        ignore_eos: true,
        ..SamplingParams::default()
    }
}

#[test]
fn the_demo_model_says_what_it_was_trained_to() {
    let golden = golden();
    assert!(golden.cases.len() >= 10);
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let llm = load(&options(dtype));
        assert_eq!(llm.info().dtype, dtype.name());
        let prompts: Vec<&str> = golden.cases.iter().map(|c| c.prompt.as_str()).collect();
        let params = SamplingParams {
            max_tokens: Some(golden.max_new_tokens),
            temperature: 0.0,
            add_special_tokens: false,
            ..llm.default_params()
        };
        let completions = llm.generate(&prompts, params).expect("generates");
        assert_eq!(completions.len(), golden.cases.len());
        for (completion, case) in completions.iter().zip(&golden.cases) {
            assert_eq!(completion.prompt_token_ids, case.prompt_ids, "{:?}", case.prompt);
            assert_eq!(completion.token_ids(), case.greedy_ids, "{:?}, {}", case.prompt, dtype.name());
            assert_eq!(completion.text(), case.greedy_text, "{:?}", case.prompt);
            let finish = completion.choices[0].finish.as_ref().expect("is finished");
            assert_eq!(finish.reason.as_str(), case.finish, "{:?}", case.prompt);
        }
    }
}

/// `LlmOptions::default()` but for where plugins are, and prompts in every form that `generate` takes.
#[test]
fn the_default_options_serve_the_demo_model() {
    let llm =
        load(&LlmOptions { registry: library::registry(env!("CARGO_BIN_EXE_plugin-worker")), ..LlmOptions::default() });
    assert_eq!((llm.info().name.as_str(), llm.info().plugin.as_str()), ("host-demo", "llama"));
    assert_eq!(llm.info().dtype, "bfloat16");
    let text = "San Francisco is a";
    let tokens = llm.tokenizer().expect("has a tokenizer").encode(text, true).expect("encodes");
    let params = SamplingParams { max_tokens: Some(7), temperature: 0.0, ..SamplingParams::default() };
    let said = |completions: Vec<Completion>| completions[0].text().to_owned();
    let first = said(llm.generate([text], &params).expect("a &str"));
    assert_eq!(first, " city on the coast of California");
    assert_eq!(said(llm.generate(vec![text.to_owned()], &params).expect("a String")), first);
    assert_eq!(said(llm.generate(&[tokens], &params).expect("token ids")), first);
    assert_eq!(said(llm.generate(&[Prompt::Text(text.into())], params).expect("a Prompt")), first);
    assert!(llm.generate(Vec::<Prompt>::new(), SamplingParams::default()).expect("nothing").is_empty());
}

#[test]
fn a_seeded_request_is_the_same_alone_and_in_a_crowd() {
    let prompts: Vec<String> = golden().cases.iter().cycle().take(16).map(|c| c.prompt.clone()).collect();
    let llm = demo();
    let together = llm.generate(&prompts, seeded(7)).expect("generates");
    let sequential = load(&LlmOptions { max_num_seqs: 1, enable_prefix_caching: false, ..options(Dtype::Bfloat16) });
    let one_by_one = sequential.generate(&prompts, seeded(7)).expect("generates");
    for ((prompt, crowd), single) in prompts.iter().zip(&together).zip(&one_by_one) {
        assert_eq!(bits(crowd), bits(single), "{prompt:?} at concurrency 16 and 1");
        assert_eq!(crowd.token_ids().len(), 24);
    }
    let alone = llm.generate(&prompts[3..4], seeded(7)).expect("generates");
    assert_eq!(bits(&alone[0]), bits(&together[3]));
    let other = llm.generate(&prompts[3..4], seeded(8)).expect("generates");
    assert_ne!(other[0].token_ids(), together[3].token_ids(), "another seed gives other tokens");
}

#[test]
fn prompts_in_chunks_give_the_same_bits() {
    let prompts: Vec<String> = golden().cases.into_iter().map(|c| c.prompt).collect();
    let params = SamplingParams { prompt_logprobs: Some(0), ..seeded(11) };
    for dtype in [Dtype::Bfloat16, Dtype::Float32] {
        let whole = load(&LlmOptions { enable_prefix_caching: false, ..options(dtype) });
        let chunked = load(&LlmOptions {
            enable_prefix_caching: false,
            max_num_batched_tokens: 3,
            max_num_seqs: 3,
            ..options(dtype)
        });
        let (whole, chunked) = (whole.generate(&prompts, &params), chunked.generate(&prompts, &params));
        for (whole, chunked) in whole.expect("generates").iter().zip(&chunked.expect("generates")) {
            assert_eq!(bits(whole), bits(chunked), "{}", dtype.name());
            let prompt_bits = |c: &Completion| -> Vec<Option<u32>> {
                let all = c.prompt_logprobs.as_ref().expect("was asked for");
                all.iter().map(|t| t.as_ref().map(|t| t.logprob.to_bits())).collect()
            };
            assert_eq!(prompt_bits(whole).len(), whole.prompt_token_ids.len());
            assert_eq!(prompt_bits(whole), prompt_bits(chunked), "{}", dtype.name());
        }
    }
}

#[test]
fn choices_differ_and_repeat() {
    let params = SamplingParams { n: 4, ..seeded(3) };
    let once = demo().generate(["Once upon a time a king"], &params).expect("generates");
    let again = demo().generate(["Once upon a time a king"], params).expect("generates");
    assert_eq!(bits(&once[0]), bits(&again[0]));
    let mut ids: Vec<&[u32]> = once[0].choices.iter().map(|c| c.token_ids.as_slice()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "four seeds, four texts");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let stop = |include| SamplingParams {
        max_tokens: Some(24),
        temperature: 0.0,
        stop: vec!["Golden Gate".into()],
        include_stop_str_in_output: include,
        ..SamplingParams::default()
    };
    for (include, expected) in [(false, "known for the "), (true, "known for the Golden Gate")] {
        let completion = demo().generate(["San Francisco is a"], stop(include)).expect("generates").remove(0);
        assert!(completion.text().ends_with(expected), "{:?}", completion.text());
        let finish = completion.choices[0].finish.clone().expect("is finished");
        assert_eq!(finish.reason, FinishReason::Stop);
        assert_eq!(finish.stop_reason, Some(StopReason::Text("Golden Gate".into())));
        assert!(finish.completion_tokens < 24);
    }
}

#[test]
fn log_probabilities_are_those_of_the_tokens_chosen() {
    let params = SamplingParams { logprobs: Some(5), ..seeded(5) };
    let greedy = SamplingParams { temperature: 0.0, ..params.clone() };
    for (params, is_greedy) in [(greedy, true), (params, false)] {
        let completion = demo().generate(["What is AI?"], params).expect("generates").remove(0);
        let choice = &completion.choices[0];
        assert_eq!(choice.logprobs.len(), choice.token_ids.len());
        for (token, logprobs) in choice.token_ids.iter().zip(&choice.logprobs) {
            assert_eq!(logprobs.token, *token);
            assert!(logprobs.logprob <= 0.0 && logprobs.rank >= 1);
            assert_eq!(logprobs.top.len(), 5);
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
            assert!(logprobs.top.iter().map(|t| t.1.exp()).sum::<f32>() <= 1.0 + 1e-4);
            if let Some((_, listed)) = logprobs.top.iter().find(|(id, _)| id == token) {
                assert_eq!(listed.to_bits(), logprobs.logprob.to_bits());
            }
            assert!(!is_greedy || (logprobs.rank == 1 && logprobs.top[0].0 == *token));
        }
    }
}
