//! Structured output over a model that wants random tokens: what comes out must still be what was asked for.

use serde_json::{Value, json};

use super::super::tests::{EOS, VOCAB, config, finish, llm, model, one, tokenizer};
use super::*;
use crate::engine::FinishReason;
use crate::engine::sim::SimOptions;
use crate::llm::{GenerationConfig, Llm, LlmError, ModelInfo, Prompt, RequestParams, StopReason};

fn params(llm: &Llm, structure: &Structure) -> RequestParams {
    let grammar = match llm.grammar(structure) {
        Ok(grammar) => Some(grammar),
        Err(error) => panic!("{structure:?}: {error}"),
    };
    RequestParams { grammar, max_tokens: Some(300), seed: Some(5), ..RequestParams::default() }
}

fn refused(structure: &Structure) -> String {
    match llm().grammar(structure) {
        Err(LlmError::Grammar(error)) => error.to_string(),
        other => panic!("{structure:?}: {other:?}"),
    }
}

fn person() -> Structure {
    Structure::JsonSchema(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["cat", "dog"]},
            "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        },
        "required": ["name", "kind", "ages"],
        "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false},
    }))
}

#[test]
fn schemas_regexes_choices_and_grammars_hold_for_any_seed() {
    let llm = llm();
    for seed in 0..8 {
        let text = |structure: &Structure| {
            let output = one(&llm, &RequestParams { seed: Some(seed), ..params(&llm, structure) });
            assert_eq!(finish(&output).reason, FinishReason::Stop, "{}", output.text);
            output.text
        };
        let Ok(value) = serde_json::from_str::<Value>(&text(&person())) else { panic!("not JSON") };
        assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 6), "{value}");
        assert!(["cat", "dog"].iter().any(|kind| value["kind"] == **kind), "{value}");
        assert!(value["ages"].as_array().is_some_and(|ages| ages.len() <= 3), "{value}");
        let year = text(&Structure::Regex("(19|20)[0-9]{2}-[a-c]{1,3}".into()));
        assert!(year.len() >= 6 && year.as_bytes()[4] == b'-', "{year}");
        let choices = vec!["one \"quoted\"".to_owned(), "zwölf".into(), "a\\b\n".into()];
        assert!(choices.contains(&text(&Structure::Choice(choices.clone()))));
        let sum = text(&Structure::Lark("start: num (\"+\" num){2}\nnum: /[0-9]{1,2}/".into()));
        assert_eq!(sum.matches('+').count(), 2, "{sum}");
    }
}

#[test]
fn an_object_of_any_kind_is_json_as_far_as_it_goes() {
    let llm = llm();
    let output = one(&llm, &params(&llm, &Structure::JsonObject));
    assert!(output.text.starts_with('{'), "{}", output.text);
    // Random text seldom ends; where it does, it is whole.
    if finish(&output).reason == FinishReason::Stop {
        assert!(serde_json::from_str::<Value>(&output.text).is_ok(), "{}", output.text);
    }
}

#[test]
fn a_guided_request_is_the_same_alone_and_in_company() {
    let llm = llm();
    let guided = RequestParams { n: 3, logprobs: Some(2), ..params(&llm, &person()) };
    let Ok(alone) = llm.generate([Prompt::Text("hello".into())], &guided) else { panic!("failed") };
    let texts = |completion: &crate::llm::Completion| -> Vec<String> {
        completion.choices.iter().map(|choice| format!("{} {:?}", choice.text, choice.logprobs)).collect()
    };
    assert_ne!(alone[0].choices[0].text, alone[0].choices[1].text);
    let free = RequestParams { max_tokens: Some(60), ..RequestParams::default() };
    let others: Vec<_> = (0..4)
        .filter_map(|_| {
            llm.submit(crate::llm::GenerateRequest { prompt: "x".to_owned().into(), params: free.clone(), priority: 0 })
                .ok()
        })
        .collect();
    let Ok(crowded) = llm.generate(["hello", "hello"], &guided) else { panic!("failed") };
    drop(others);
    assert_eq!(texts(&crowded[0]), texts(&alone[0]));
    assert_eq!(texts(&crowded[1]), texts(&alone[0]));
}

#[test]
fn a_text_that_is_whole_ends_without_an_eos_token() {
    let llm = llm();
    let structure = Structure::Choice(vec!["yes".into()]);
    let output = one(&llm, &RequestParams { ignore_eos: true, ..params(&llm, &structure) });
    assert_eq!((output.text.as_str(), finish(&output).completion_tokens), ("yes", 3));
    assert_eq!(finish(&output).stop_reason, None);
    // Where more could follow, the model chooses when to end: with eos, or not at all if it has none.
    let digits = Structure::Regex("[0-9]+".into());
    let output = one(&llm, &RequestParams { logit_bias: vec![(EOS, 100.0)], ..params(&llm, &digits) });
    assert_eq!(output.token_ids.len(), 2, "one digit and eos: {:?}", output.token_ids);
    let endless = {
        let Ok(engine) = crate::engine::Engine::start(
            Box::new(crate::engine::sim::SimExecutor::new(SimOptions::new(VOCAB))),
            config(),
        ) else {
            panic!("no engine")
        };
        let info = ModelInfo { vocab_size: VOCAB, max_model_len: 400, ..ModelInfo::default() };
        Llm::from_parts(engine, Some(tokenizer()), info, GenerationConfig::default())
    };
    let output = one(&endless, &RequestParams { max_tokens: Some(20), ..params(&endless, &digits) });
    assert_eq!((output.text.len(), finish(&output).reason), (20, FinishReason::Length));
}

#[test]
fn stop_strings_and_token_limits_end_guided_texts_too() {
    let llm = llm();
    let letters = Structure::Regex("[ab]{200}".into());
    let output = one(&llm, &RequestParams { stop: vec!["bb".into()], ..params(&llm, &letters) });
    assert_eq!(finish(&output).stop_reason, Some(StopReason::Text("bb".into())));
    let output = one(&llm, &RequestParams { max_tokens: Some(7), ..params(&llm, &letters) });
    assert_eq!((output.text.len(), finish(&output).reason), (7, FinishReason::Length));
}

#[test]
fn a_grammar_may_begin_behind_a_mark() {
    let llm = llm();
    let mut params = params(&llm, &Structure::Regex("[0-9]{4}".into()));
    params.grammar = params.grammar.map(|grammar| grammar.after(&[u32::from(b'<'), u32::from(b'>')]));
    // Only these three: the mark will come, sooner or later.
    params.allowed_token_ids = Some(b"<>7".map(u32::from).to_vec());
    let output = one(&llm, &params);
    let Some((before, after)) = output.text.split_once("<>") else { panic!("{}", output.text) };
    assert_eq!(after, "7777", "{before}");
}

#[test]
fn what_does_not_compile_says_why() {
    let contains = |structure: Structure, words: &str| {
        let message = refused(&structure);
        assert!(message.contains(words), "{message}");
        assert!(!message.contains('\n') && message.len() < 700, "{message}");
    };
    contains(Structure::Regex("a(b".into()), "unclosed");
    contains(Structure::JsonSchema(json!({"type": "thing"})), "thing");
    contains(Structure::JsonSchema(json!({"$ref": "http://elsewhere/schema.json"})), "elsewhere");
    contains(Structure::Lark("begin: \"a\"".into()), "start");
    contains(Structure::Choice(vec![]), "at least one choice");
    contains(Structure::Regex("(".repeat(10_000)), "nested deeper than 200");
    contains(Structure::Regex("a".repeat(300_000)), "the limit is 262144");
    contains(Structure::JsonSchema(json!({"type": "string", "minLength": 5, "maxLength": 2})), "ength");
}

#[test]
fn large_grammars_end_in_a_grammar_or_an_error() {
    let llm = llm();
    let deep = (0..150).fold(json!({"type": "integer"}), |inner, _| json!({"type": "array", "items": inner}));
    let alternatives: Vec<String> = (0..2000).map(|i| format!("choice number {i}")).collect();
    for structure in [
        Structure::Regex("a".repeat(50_000)),
        Structure::Regex("(a|b)?".repeat(5000)),
        Structure::Regex("[a-z]{1,1000}{1,1000}".into()),
        Structure::JsonSchema(deep),
        Structure::Choice(alternatives),
        Structure::Lark(format!("start: {}", "a ".repeat(20_000) + "\na: \"x\"")),
    ] {
        // No crash, whichever it is.
        let _ = llm.grammar(&structure);
    }
    let Ok(_) = llm.grammar(&person()) else { panic!("the compiler does not go on") };
    let _ = model(SimOptions::new(VOCAB), config(), None);
}
