//! Generations over the simulated executor, with a tokenizer of one token a byte.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::engine::sim::{SimExecutor, SimOptions};
use crate::engine::{Engine, EngineConfig, FinishReason};

pub(super) const EOS: u32 = 256;
pub(super) const VOCAB: usize = 257;

/// The characters that byte-level tokenizers write for bytes.
fn byte_char(byte: u8) -> char {
    let plain = |b: u8| (b'!'..=b'~').contains(&b) || (0xA1..=0xAC).contains(&b) || b >= 0xAE;
    let before = (0..byte).filter(|&b| !plain(b)).count() as u32;
    if plain(byte) { char::from(byte) } else { char::from_u32(256 + before).unwrap_or('?') }
}

pub(super) fn tokenizer() -> Arc<Tokenizer> {
    let vocab: serde_json::Map<_, _> = (0..=255).map(|b| (byte_char(b).to_string(), json!(b))).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": EOS, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    match Tokenizer::from_bytes(json.to_string().as_bytes(), None, None) {
        Ok(tokenizer) => Arc::new(tokenizer),
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn model(options: SimOptions, config: EngineConfig, tokenizer: Option<Arc<Tokenizer>>) -> Llm {
    let engine = match Engine::start(Box::new(SimExecutor::new(options)), config) {
        Ok(engine) => engine,
        Err(error) => panic!("{error}"),
    };
    let info = ModelInfo { vocab_size: VOCAB, max_model_len: 400, ..ModelInfo::default() };
    Llm::from_parts(engine, tokenizer, info, GenerationConfig { eos_token_ids: vec![EOS], ..Default::default() })
}

pub(super) fn config() -> EngineConfig {
    EngineConfig { max_num_seqs: 8, max_num_batched_tokens: 64, max_waiting: 16, ..EngineConfig::new(400, 100) }
}

pub(super) fn llm() -> Llm {
    model(SimOptions::new(VOCAB), config(), Some(tokenizer()))
}

/// Sampling among the letters only, so that text is text.
fn letters(max_tokens: usize) -> RequestParams {
    RequestParams {
        max_tokens: Some(max_tokens),
        seed: Some(3),
        allowed_token_ids: Some((u32::from(b'a')..=u32::from(b'e')).collect()),
        ..RequestParams::default()
    }
}

pub(super) fn one(llm: &Llm, params: &RequestParams) -> Output {
    match llm.generate(vec![Prompt::Text("hello".into())], params) {
        Ok(mut completions) => completions.remove(0).choices.remove(0),
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn finish(output: &Output) -> &Finish {
    output.finish.as_ref().unwrap_or_else(|| panic!("not finished: {output:?}"))
}

fn error<T: std::fmt::Debug>(result: Result<T, LlmError>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(value) => panic!("expected an error, got {value:?}"),
    }
}

fn request(params: RequestParams) -> GenerateRequest {
    GenerateRequest { prompt: Prompt::Text("hello".into()), params, priority: 0 }
}

#[test]
fn text_is_that_of_the_tokens_whatever_they_are() {
    let llm = llm();
    // Any bytes: mostly invalid UTF-8.
    let params = RequestParams { max_tokens: Some(200), seed: Some(1), ignore_eos: true, ..RequestParams::default() };
    let output = one(&llm, &params);
    let decoded = tokenizer().decode(&output.token_ids, true);
    assert_eq!(decoded.ok().as_deref(), Some(&output.text[..]));
    assert_eq!((finish(&output).prompt_tokens, finish(&output).completion_tokens), (5, 200));
    assert_eq!(finish(&output).reason, FinishReason::Length);
    let silent = one(&llm, &RequestParams { detokenize: false, ..params });
    assert_eq!((silent.text.as_str(), silent.token_ids), ("", output.token_ids));
}

#[tokio::test]
async fn a_stream_adds_up_to_the_whole() {
    let llm = llm();
    let params = RequestParams { n: 3, logprobs: Some(1), prompt_logprobs: Some(0), ..letters(40) };
    let Ok(mut generation) = llm.submit(request(params.clone())) else { panic!("refused") };
    assert_eq!(generation.prompt_token_ids(), b"hello".map(u32::from));
    let mut text = vec![String::new(); 3];
    let (mut tokens, mut logprobs, mut prompts) = ([0; 3], [0; 3], Vec::new());
    while let Some(output) = generation.next().await {
        let Ok(output) = output else { panic!("{output:?}") };
        text[output.index].push_str(&output.text);
        tokens[output.index] += output.token_ids.len();
        logprobs[output.index] += output.logprobs.len();
        prompts.extend(output.prompt_logprobs.map(|all| (output.index, all.len())));
    }
    assert_eq!((tokens, logprobs, prompts), ([40; 3], [40; 3], vec![(0, 5)]));
    assert!(text[0] != text[1] && text[1] != text[2], "choices draw differently");
    let (blocking, llm2) = (params, llm.clone());
    let whole = tokio::task::spawn_blocking(move || llm2.generate(vec![Prompt::Text("hello".into())], &blocking)).await;
    let Ok(Ok(whole)) = whole else { panic!("{whole:?}") };
    assert_eq!(whole[0].choices.iter().map(|choice| choice.text.clone()).collect::<Vec<_>>(), text);
    assert_eq!(whole[0].prompt_logprobs.as_ref().map(Vec::len), Some(5));
}

#[test]
fn the_first_choice_is_what_n_of_1_gives() {
    let llm = llm();
    let Ok(several) = llm.generate(vec![Prompt::Text("hello".into())], &RequestParams { n: 4, ..letters(30) }) else {
        panic!("refused")
    };
    assert_eq!(several[0].choices.iter().map(|choice| choice.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(several[0].choices[0].text, one(&llm, &letters(30)).text);
}

#[test]
fn stop_strings_end_a_choice_and_free_its_blocks() {
    let llm = llm();
    let whole = one(&llm, &letters(200)).text;
    let stop = whole[60..65].to_owned();
    let Some(at) = whole.find(&stop) else { panic!("it is in there") };
    let params = RequestParams { stop: vec!["zz".into(), stop.clone()], ..letters(200) };
    let output = one(&llm, &params);
    assert_eq!(output.text, whole[..at]);
    assert_eq!(finish(&output).reason, FinishReason::Stop);
    assert_eq!(finish(&output).stop_reason, Some(StopReason::Text(stop.clone())));
    assert_eq!((finish(&output).completion_tokens, output.token_ids.len()), (at + 5, at + 5));
    let included = one(&llm, &RequestParams { include_stop_str_in_output: true, ..params.clone() });
    assert_eq!(included.text, whole[..at + 5]);
    let late = one(&llm, &RequestParams { min_tokens: at + 5, ..params });
    assert!(late.text.len() > at + 5 && late.text.starts_with(&whole[..at + 5]));
    let start = Instant::now();
    while llm.engine().stats().kv_blocks_used > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "blocks are not freed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn stop_tokens_are_counted_but_not_in_the_text() {
    let llm = llm();
    let whole = one(&llm, &letters(50));
    let Some(at) = whole.token_ids.iter().position(|&token| token == 100) else { panic!("no d in it") };
    let stop = RequestParams { stop_token_ids: vec![100], ..letters(50) };
    let output = one(&llm, &stop);
    assert_eq!(output.text, whole.text[..at]);
    assert_eq!(output.token_ids, whole.token_ids[..=at]);
    assert_eq!(finish(&output).stop_reason, Some(StopReason::Token(100)));
    let included = one(&llm, &RequestParams { include_stop_str_in_output: true, ..stop });
    assert_eq!(included.text, whole.text[..=at]);
    // The model's own eos gives no stop_reason, and its text is left out as a special token anyway.
    let only_eos = RequestParams { allowed_token_ids: Some(vec![EOS]), ..letters(50) };
    let output = one(&llm, &only_eos);
    assert_eq!((output.text.as_str(), finish(&output).completion_tokens), ("", 1));
    assert_eq!((finish(&output).reason, &finish(&output).stop_reason), (FinishReason::Stop, &None));
    let ignored =
        one(&llm, &RequestParams { ignore_eos: true, skip_special_tokens: false, max_tokens: Some(2), ..only_eos });
    assert_eq!(ignored.text, "</s></s>");
}

#[test]
fn bad_words_do_not_appear() {
    let llm = llm();
    let whole = one(&llm, &letters(100)).text;
    let word = whole[20..22].to_owned();
    let output = one(&llm, &RequestParams { bad_words: vec![word.clone()], ..letters(100) });
    assert!(!output.text.contains(&word) && output.text.len() == 100);
}

#[test]
fn a_batch_larger_than_the_queue_keeps_its_order() {
    let llm =
        model(SimOptions::new(VOCAB), EngineConfig { max_num_seqs: 3, max_waiting: 4, ..config() }, Some(tokenizer()));
    let prompts: Vec<Prompt> = (0..40).map(|i| Prompt::Text(format!("{i} bottles"))).collect();
    let params = RequestParams { n: 2, ..letters(9) };
    let mut seen = Vec::new();
    let completions = llm.generate_with(prompts.clone(), &params, &mut |done, total| seen.push((done, total)));
    let Ok(completions) = completions else { panic!("{completions:?}") };
    assert_eq!(seen, (1..=40).map(|done| (done, 40)).collect::<Vec<_>>());
    for (prompt, completion) in prompts.into_iter().zip(&completions) {
        let Ok(alone) = llm.generate(vec![prompt], &params) else { panic!("refused") };
        assert_eq!(alone[0].prompt_token_ids, completion.prompt_token_ids);
        for (a, b) in alone[0].choices.iter().zip(&completion.choices) {
            assert_eq!((&a.text, &a.token_ids), (&b.text, &b.token_ids));
        }
    }
    // More choices than the queue can ever take is an error, not a wait without end.
    let text = error(llm.generate(vec![Prompt::Tokens(vec![1])], &RequestParams { n: 5, ..letters(2) }));
    assert!(text.contains("queue is full: 4"), "{text}");
}

#[test]
fn without_a_tokenizer_tokens_go_in_and_come_out() {
    let llm = model(SimOptions::new(VOCAB), config(), None);
    let Ok(completions) = llm.generate(vec![Prompt::Tokens(vec![1, 2])], letters(5)) else { panic!("refused") };
    assert_eq!((completions[0].choices[0].text.as_str(), completions[0].choices[0].token_ids.len()), ("", 5));
    let text = error(llm.generate(vec![Prompt::Text("hi".into())], letters(5)));
    assert!(text.contains("no tokenizer") && text.contains("pass the prompt as token ids"), "{text}");
    for params in [
        RequestParams { stop: vec!["a".into()], ..letters(5) },
        RequestParams { bad_words: vec!["a".into()], ..letters(5) },
    ] {
        assert!(error(llm.generate(vec![Prompt::Tokens(vec![1])], &params)).contains("no tokenizer"));
    }
}

#[test]
fn lengths_are_those_of_the_context() {
    let llm = llm();
    let filled = one(&llm, &RequestParams { max_tokens: None, ..letters(1) });
    assert_eq!(finish(&filled).completion_tokens, 395);
    let text = error(llm.generate(vec![Prompt::Text("hello".into())], letters(396)));
    assert!(
        text.contains("max_tokens is 396") && text.contains("together 401") && text.contains("at most 395"),
        "{text}"
    );
    let text = error(llm.generate(vec![Prompt::Tokens(vec![1; 400])], letters(1)));
    assert!(text.contains("has 400 tokens"), "{text}");
    // A cache smaller than the context: None fills the cache.
    let small = model(SimOptions::new(VOCAB), EngineConfig { kv_blocks: 3, ..config() }, Some(tokenizer()));
    let filled = one(&small, &RequestParams { max_tokens: None, ..letters(1) });
    assert_eq!(finish(&filled).completion_tokens, 49 - 5);
}

#[test]
fn a_failure_is_an_error_of_the_generation() {
    let llm = model(SimOptions { failing_steps: vec![2], ..SimOptions::new(VOCAB) }, config(), Some(tokenizer()));
    let text = error(llm.generate(vec![Prompt::Text("hello".into())], letters(5)));
    assert!(text.contains("simulated failure"), "{text}");
    assert_eq!(one(&llm, &letters(5)).text.len(), 5);
}

#[tokio::test]
async fn dropping_a_generation_aborts_all_its_choices() {
    let options = SimOptions { step_time: Duration::from_millis(1), ..SimOptions::new(VOCAB) };
    let llm = model(options, config(), Some(tokenizer()));
    let Ok(mut generation) = llm.submit(request(RequestParams { n: 3, ..letters(390) })) else { panic!("refused") };
    let first = generation.next().await;
    assert!(matches!(first, Some(Ok(_))), "{first:?}");
    assert!(llm.engine().stats().kv_blocks_used > 0);
    drop(generation);
    let start = Instant::now();
    while llm.engine().stats().running > 0 || llm.engine().stats().kv_blocks_used > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "not aborted");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn defaults_come_from_the_generation_config() {
    let config =
        GenerationConfig { temperature: Some(0.6), top_k: Some(40), max_new_tokens: Some(7), ..Default::default() };
    let base = llm();
    let llm = Llm::from_parts(base.engine().clone(), None, base.info().clone(), config);
    let expected = RequestParams { temperature: 0.6, top_k: 40, max_tokens: Some(7), ..RequestParams::default() };
    assert_eq!(llm.default_params(), expected);
    assert_eq!(base.default_params(), RequestParams { max_tokens: None, ..RequestParams::default() });
}
