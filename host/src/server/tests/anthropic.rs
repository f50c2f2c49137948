//! `/v1/messages` and `/v1/messages/count_tokens`. The model copies its prompt, and the template is the last message
//! alone (`tools.rs`).

use serde_json::{Value, json};

use super::tools::{CALLS, server};
use super::{Server, Setup, http};
use crate::server::config::ServerConfig;

const PATH: &str = "/v1/messages";

fn says(text: &str) -> Value {
    json!({"model": "copy", "max_tokens": 300, "temperature": 0, "messages": [{"role": "user", "content": text}]})
}

fn tools() -> Value {
    json!([{"name": "weather", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
           {"name": "now", "input_schema": {"type": "object"}}])
}

/// The message that events build up.
fn built(events: &[Value]) -> Value {
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let mut message = events[0]["message"].clone();
    let mut json_text = String::new();
    let mut open = None;
    for event in &events[1..] {
        let index = event["index"].as_u64().map(|index| index as usize);
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!((open, index), (None, Some(message["content"].as_array().unwrap().len())));
                open = index;
                message["content"].as_array_mut().unwrap().push(event["content_block"].clone());
            }
            "content_block_delta" => {
                assert_eq!(index, open);
                let block = &mut message["content"][index.unwrap()];
                let delta = &event["delta"];
                match delta["type"].as_str().unwrap() {
                    "text_delta" => {
                        block["text"] =
                            json!(format!("{}{}", block["text"].as_str().unwrap(), delta["text"].as_str().unwrap()))
                    }
                    "thinking_delta" => {
                        block["thinking"] = json!(format!(
                            "{}{}",
                            block["thinking"].as_str().unwrap(),
                            delta["thinking"].as_str().unwrap()
                        ));
                    }
                    "input_json_delta" => json_text += delta["partial_json"].as_str().unwrap(),
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                let block = &mut message["content"][open.take().unwrap()];
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&std::mem::take(&mut json_text)).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            "message_stop" | "ping" => {}
            other => panic!("{other}"),
        }
    }
    message
}

/// The whole answer, after a look at whether the stream says the same.
async fn both(server: &Server, mut body: Value) -> Value {
    let mut whole = server.ok(PATH, body.clone()).await;
    body["stream"] = json!(true);
    let mut streamed = built(&server.named_events(PATH, body).await);
    for message in [&mut whole, &mut streamed] {
        assert!(message["id"].as_str().unwrap().starts_with("msg_"));
        message["id"] = Value::Null;
        // The second of two equal requests finds its prompt in the cache.
        let usage = &mut message["usage"];
        let prompt = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
        (usage["input_tokens"], usage["cache_read_input_tokens"]) = (json!(prompt), json!(0));
        for block in message["content"].as_array_mut().unwrap().iter_mut().filter(|block| block["type"] == "tool_use") {
            assert!(block["id"].is_string());
            block["id"] = Value::Null;
        }
    }
    assert_eq!(streamed, whole);
    whole
}

#[tokio::test]
async fn a_message_has_anthropics_shape() {
    let server = server(ServerConfig::default()).await;
    let message = both(&server, says("Hello.")).await;
    assert_eq!(
        (&message["type"], &message["role"], &message["model"]),
        (&json!("message"), &json!("assistant"), &json!("copy"))
    );
    assert_eq!(message["content"], json!([{"type": "text", "text": "Hello."}]));
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    assert_eq!((&message["usage"]["input_tokens"], &message["usage"]["output_tokens"]), (&json!(6), &json!(7)));
    let mut short = says("Hello.");
    short["max_tokens"] = json!(2);
    assert_eq!(both(&server, short).await["stop_reason"], "max_tokens");
    let mut stopped = says("Hello.");
    stopped["stop_sequences"] = json!(["lo"]);
    let message = both(&server, stopped).await;
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!("lo")));
    assert_eq!(message["content"][0]["text"], "Hel");
}

#[tokio::test]
async fn tools_and_thinking_are_blocks() {
    let server = server(ServerConfig::default()).await;
    let mut body = says(&format!("<think>Hm.</think>{CALLS}"));
    body["tools"] = tools();
    let message = both(&server, body.clone()).await;
    let expected = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Köln"}},
        {"type": "tool_use", "id": null, "name": "now", "input": {}},
    ]);
    assert_eq!((&message["content"], &message["stop_reason"]), (&expected, &json!("tool_use")));
    body["tool_choice"] = json!({"type": "tool", "name": "now"});
    body["tools"][1]["input_schema"] = json!({"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": false});
    let message = both(&server, body).await;
    assert_eq!(message["content"][0], json!({"type": "tool_use", "id": null, "name": "now", "input": {"a": "b"}}));
}

#[tokio::test]
async fn conversations_reach_the_template() {
    let template = "{# <tool_call> #}{% for m in messages %}<{{ m.role }}>{{ m.reasoning or '' }}{{ m.content }}\
                    {% for c in m.tool_calls %}{{ c.function.name }}={{ c.function.arguments.x }}{% endfor %}{% endfor %}";
    let server = Setup { tokenizer: Some(super::tokenizer(Some(template))), ..Setup::default() }.start().await;
    let body = json!({"max_tokens": 200, "temperature": 0, "system": [{"type": "text", "text": "S"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "T", "signature": ""}, {"type": "text", "text": "c"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 7}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]},
            {"type": "text", "text": "d"}]},
    ]});
    let text = "<system>S<user>a\nb<assistant>Tcf=7<tool>r<user>d";
    assert_eq!(server.ok(PATH, body.clone()).await["content"][0]["text"], text);
    let mut count = body;
    for name in ["max_tokens", "temperature"] {
        count.as_object_mut().unwrap().remove(name);
    }
    assert_eq!(server.ok("/v1/messages/count_tokens", count).await, json!({"input_tokens": text.len()}));
}

#[tokio::test]
async fn errors_have_anthropics_form() {
    let server = server(ServerConfig { api_keys: vec!["key".into()], ..ServerConfig::default() }).await;
    let post = async |body: Value| {
        let headers = [("content-type", "application/json"), ("x-api-key", "key")];
        http::request(server.address, "POST", PATH, &headers, body.to_string().as_bytes()).await
    };
    assert_eq!(post(says("a")).await.status, 200);
    let refused = async |name: &str, value: Value, words: &str| {
        let mut body = says("a");
        body[name] = value;
        let reply = post(body).await;
        assert_eq!(reply.status, 400, "{name}");
        let error = reply.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    };
    refused("max_tokens", Value::Null, "max_tokens: is missing").await;
    refused("max_tokens", json!(100_000), "maximum context length").await;
    refused("foo", json!(1), "unknown field").await;
    refused("messages", json!([{"role": "tool", "content": "x"}]), "messages[0].role").await;
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    refused("messages", image, "messages[0].content[0].type").await;
    refused("thinking", json!({"type": "enabled", "budget_tokens": 1024}), "budget_tokens").await;
    refused("tool_choice", json!({"type": "maybe"}), "tool_choice").await;
    let mut body = says("a");
    body["model"] = json!("nope");
    assert_eq!(post(body).await.json()["error"]["type"], "not_found_error");
}

#[tokio::test]
async fn an_output_format_holds() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false,
                        "x-guidance": {"whitespace_flexible": false}});
    let body = |config: Value| json!({"model": "copy", "max_tokens": 60, "messages": [{"role": "user", "content": "x"}], "output_config": config});
    let format = json!({"format": {"type": "json_schema", "schema": schema}, "effort": "low"});
    let answer = server.ok("/v1/messages", body(format)).await;
    let text = answer["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!({"a": 1}));
    for (config, word) in [
        (json!({"effort": "most"}), "output_config.effort"),
        (json!({"format": {"type": "json"}}), "output_config.format"),
        (json!({"style": 1}), "output_config.style"),
    ] {
        let reply = server.post("/v1/messages", body(config)).await;
        assert_eq!(reply.status, 400);
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains(word), "{}", reply.text());
    }
}
