//! Structured output over HTTP, and `/render`.

use serde_json::{Value, json};

use super::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"], "additionalProperties": false,
    })
}

#[tokio::test]
async fn every_kind_of_structure_holds_whole_and_streamed() {
    let server = Server::start().await;
    let schema_format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema()}});
    let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value["a"].is_u64());
    let digits = |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    type Fits<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [(Value, Fits<'_>); 5] = [
        (json!({"response_format": schema_format}), &is_json),
        (json!({"structured_outputs": {"json": schema(), "disable_any_whitespace": true}}), &is_json),
        (json!({"structured_outputs": {"regex": "[0-9]{3}"}}), &digits),
        (json!({"structured_outputs": {"choice": ["left", "right"]}}), &|text| ["left", "right"].contains(&text)),
        (json!({"structured_outputs": {"grammar": "start: \"<\" /[a-c]/ \">\""}}), &|text| text.len() == 3),
    ];
    for (extra, fits) in cases {
        for path in [COMPLETIONS, CHAT] {
            let mut body = json!({"n": 2, "seed": 4, "max_tokens": 100, "temperature": 1.5});
            match path {
                CHAT => body["messages"] = json!([{"role": "user", "content": "hi"}]),
                _ => body["prompt"] = json!("hi"),
            }
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let whole = server.ok(path, body.clone()).await;
            body["stream"] = json!(true);
            let events = server.events(path, body).await;
            for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
                let text = choice.pointer("/message/content").unwrap_or(&choice["text"]).as_str().unwrap();
                assert!(fits(text), "{extra}: {text}");
                assert_eq!(choice["finish_reason"], "stop", "{extra}: {text}");
                let mine = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
                let pieces = mine.map(|c| c.pointer("/delta/content").unwrap_or(&c["text"]).as_str().unwrap_or(""));
                assert_eq!(pieces.collect::<String>(), text);
            }
        }
    }
}

#[tokio::test]
async fn structures_go_with_stop_strings_and_logprobs() {
    let server = Server::start().await;
    let body = json!({"prompt": "b", "max_tokens": 50, "temperature": 0, "logprobs": 2,
                      "structured_outputs": {"regex": "[xy]{3}b[xy]{9}"}, "stop": "b"});
    let choice = server.ok(COMPLETIONS, body).await["choices"][0].clone();
    assert_eq!((choice["text"].as_str().unwrap().len(), &choice["stop_reason"]), (3, &json!("b")));
    // The log-probabilities are the model's own: what was excluded is still the likeliest.
    let top = choice["logprobs"]["top_logprobs"][0].as_object().unwrap();
    assert_eq!((top.len(), top.keys().next().unwrap().as_str()), (3, "b"));
}

#[tokio::test]
async fn what_does_not_compile_is_refused_with_its_reason() {
    let server = Server::start().await;
    let refused = async |field: &str, extra: Value, words: &str| {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let message = server.refused(COMPLETIONS, body, 400, Some(field)).await;
        assert!(message.contains(words), "{message}");
    };
    refused("structured_outputs", json!({"structured_outputs": {"regex": "a("}}), "unclosed").await;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "thing"}}});
    refused("response_format", json!({"response_format": schema}), "thing").await;
    refused("structured_outputs.foo", json!({"structured_outputs": {"foo": 1}}), "unknown field").await;
    refused("guided_json", json!({"guided_json": {"type": "object"}}), "structured_outputs").await;
    refused("response_format", json!({"response_format": 5}), "map").await;
    let server = super::Setup { tokenizer: None, ..super::Setup::default() }.start().await;
    let body = json!({"prompt": [1], "structured_outputs": {"regex": "a"}});
    server.refused(COMPLETIONS, body, 400, Some("structured_outputs")).await;
}

#[tokio::test]
async fn logprobs_of_given_tokens() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0,
                      "logprobs": true, "logprob_token_ids": [104, 105, 60]});
    let content = server.ok(CHAT, body).await["choices"][0]["logprobs"]["content"].clone();
    let tokens: Vec<&str> =
        content[0]["top_logprobs"].as_array().unwrap().iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!((tokens.len(), tokens[0]), (3, "<"));
    let body = json!({"prompt": "a", "logprob_token_ids": [1]});
    server.refused(COMPLETIONS, body, 400, Some("logprob_token_ids")).await;
}

#[tokio::test]
async fn render_shows_what_would_run() {
    let server = Server::start().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "max_tokens": 3});
    let answer = server.ok("/v1/chat/completions/render", body.clone()).await;
    let text: String =
        answer["token_ids"].as_array().unwrap().iter().map(|id| char::from(id.as_u64().unwrap() as u8)).collect();
    assert_eq!(text, "<user>hi\n<assistant>");
    assert_eq!(
        (&answer["sampling_params"]["temperature"], &answer["sampling_params"]["max_tokens"]),
        (&json!(0.5), &json!(3))
    );
    assert!(answer["request_id"].as_str().unwrap().starts_with("chatcmpl-"));
    let answer = server.ok("/v1/completions/render", json!({"prompt": [[97], [98]], "stream": true})).await;
    assert_eq!((&answer[0]["token_ids"], &answer[1]["token_ids"]), (&json!([97]), &json!([98])));
    assert_eq!((&answer[0]["stream"], &answer[0]["sampling_params"]["max_tokens"]), (&json!(true), &json!(16)));
    server.refused("/v1/completions/render", json!({"prompt": "a", "top_p": 2}), 400, Some("top_p")).await;
    assert_eq!(server.llm.engine().stats().generation_tokens, 0);
}
