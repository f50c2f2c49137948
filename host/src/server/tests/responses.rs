//! `/v1/responses`. The model copies its prompt, and the template is the last message alone (`tools.rs`).

use serde_json::{Value, json};

use super::tools::{CALLS, server};
use super::{Server, Setup};
use crate::server::config::ServerConfig;

const PATH: &str = "/v1/responses";

fn says(text: &str) -> Value {
    json!({"model": "copy", "input": text, "temperature": 0})
}

/// A response without what differs from run to run.
fn anonymous(mut response: Value) -> Value {
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    (response["id"], response["created_at"]) = (Value::Null, Value::Null);
    // The second of two equal requests finds its prompt in the cache.
    response["usage"]["input_tokens_details"] = Value::Null;
    for item in response["output"].as_array_mut().unwrap() {
        assert!(item["id"].is_string());
        item["id"] = Value::Null;
        if item["type"] == "function_call" {
            item["call_id"] = Value::Null;
        }
    }
    response
}

/// The whole answer, after a look at whether the stream says the same.
async fn both(server: &Server, mut body: Value) -> Value {
    let whole = anonymous(server.ok(PATH, body.clone()).await);
    body["stream"] = json!(true);
    let events = server.named_events(PATH, body).await;
    let mut texts = Vec::new();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
        match event["type"].as_str().unwrap() {
            "response.output_item.added" => {
                assert_eq!(event["output_index"], texts.len());
                texts.push(String::new());
            }
            kind if kind.ends_with(".delta") => *texts.last_mut().unwrap() += event["delta"].as_str().unwrap(),
            "response.output_text.done" | "response.reasoning_text.done" => {
                assert_eq!(event["text"], texts.last().unwrap().as_str())
            }
            "response.function_call_arguments.done" => assert_eq!(event["arguments"], texts.last().unwrap().as_str()),
            _ => {}
        }
    }
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("response.created"), &json!("response.in_progress")));
    let last = events.last().unwrap();
    assert_eq!(last["type"], format!("response.{}", whole["status"].as_str().unwrap()));
    assert_eq!(anonymous(last["response"].clone()), whole);
    whole
}

#[tokio::test]
async fn a_response_has_openais_shape() {
    let server = server(ServerConfig::default()).await;
    let response = both(&server, says("Hello.")).await;
    assert_eq!(
        (&response["object"], &response["status"], &response["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    let item = &response["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(item["content"], json!([{"type": "output_text", "text": "Hello.", "annotations": [], "logprobs": []}]));
    assert_eq!((&response["usage"]["input_tokens"], &response["usage"]["output_tokens"]), (&json!(6), &json!(7)));
    let mut short = says("Hello.");
    short["max_output_tokens"] = json!(2);
    let response = both(&server, short).await;
    assert_eq!(
        (&response["status"], &response["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(response["max_output_tokens"], 2);
}

#[tokio::test]
async fn reasoning_calls_and_formats() {
    let server = server(ServerConfig::default()).await;
    let mut body = says(&format!("<think>Hm.</think>{CALLS}"));
    body["tools"] = json!([{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true},
                           {"type": "function", "name": "now"}]);
    let response = both(&server, body).await;
    let output = response["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(output[0]["content"][0]["text"], "Hm.");
    assert_eq!((&output[2]["name"], &output[2]["arguments"]), (&json!("weather"), &json!("{\"city\": \"Köln\"}")));
    assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 3);

    let schema = json!({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": false,
                       "x-guidance": {"whitespace_flexible": false}});
    let mut body = says("x");
    body["text"] = json!({"format": {"type": "json_schema", "name": "n", "schema": schema}});
    let response = both(&server, body).await;
    let value: Value = serde_json::from_str(response["output"][0]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(value, json!({"a": "b"}));
}

#[tokio::test]
async fn items_reach_the_template() {
    let template = "{# <tool_call> #}{% for m in messages %}<{{ m.role }}>{{ m.reasoning or '' }}{{ m.content }}\
                    {% for c in m.tool_calls %}{{ c.function.name }}={{ c.function.arguments.x }}{% endfor %}{% endfor %}";
    let server = Setup { tokenizer: Some(super::tokenizer(Some(template))), ..Setup::default() }.start().await;
    let body = json!({"temperature": 0, "instructions": "S", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "T"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\": 7}"},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
        {"role": "user", "content": "d"},
    ]});
    let response = server.ok(PATH, body).await;
    assert_eq!(response["output"][0]["content"][0]["text"], "<system>S<user>a<assistant>Tcf=7<tool>r<user>d");
}

#[tokio::test]
async fn what_has_no_counterpart_is_refused() {
    let server = Server::start().await;
    for (name, value, param) in [
        ("store", json!(true), "store"),
        ("previous_response_id", json!("resp_1"), "previous_response_id"),
        ("background", json!(true), "background"),
        ("include", json!(["reasoning.encrypted_content"]), "include"),
        ("input", Value::Null, "input"),
        ("input", json!([]), "input"),
        ("input", json!([{"type": "web_search_call"}]), "input[0].type"),
        ("input", json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0]"),
        ("tools", json!([{"type": "web_search"}]), "tools[0].type"),
        ("reasoning", json!({"generate_summary": "auto"}), "reasoning.generate_summary"),
        ("text", json!({"format": {"type": "grammar"}}), "text.format.type"),
        ("max_output_tokens", json!(100_000), "max_output_tokens"),
        ("temprature", json!(1), "temprature"),
    ] {
        let mut body = says("a");
        body[name] = value;
        server.refused(PATH, body, 400, Some(param)).await;
    }
    server.refused(PATH, json!({"model": "nope", "input": "a"}), 404, Some("model")).await;
    let harmless = json!({"input": "a", "store": false, "metadata": {"a": "b"}, "truncation": "disabled", "include": [],
                          "tool_choice": "auto", "tools": [], "reasoning": {"effort": null}, "user": "u"});
    assert_eq!(server.ok(PATH, harmless).await["metadata"], json!({"a": "b"}));
}

#[tokio::test]
async fn vllms_sampling_fields_have_their_effect() {
    let server = Server::start().await;
    let text = |answer: &Value| answer["output"][0]["content"][0]["text"].as_str().unwrap_or_default().to_owned();
    let plain = server.ok("/v1/responses", json!({"input": "abc", "temperature": 0})).await;
    assert!(text(&plain).contains("abc"));
    let cut = server.ok("/v1/responses", json!({"input": "abc", "temperature": 0, "stop": ["c"]})).await;
    assert!(!text(&cut).is_empty() && !text(&cut).contains('c'), "{cut}");
    let body = json!({"input": "abc", "structured_outputs": {"choice": ["left"]}, "request_id": "mine"});
    let chosen = server.ok("/v1/responses", body).await;
    assert_eq!(text(&chosen), "left");
    assert!(chosen["id"].as_str().unwrap().contains("mine"));
    server.refused("/v1/responses", json!({"input": "a", "top_k": -5}), 400, Some("top_k")).await;
}
