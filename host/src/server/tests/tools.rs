//! Tool calls and reasoning over HTTP. The model copies its prompt, and the template is the last message alone: the
//! test writes what the model says.

use serde_json::{Value, json};

use super::{Server, Setup, tokenizer};
use crate::server::config::{FormatChoice, ServerConfig};
use crate::server::parsers::{ReasoningFormat, ToolFormat};

const PATH: &str = "/v1/chat/completions";
pub(super) const ECHO: &str = "{# <tool_call> </think> #}{{ messages[-1].content }}";
pub(super) const CALLS: &str = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

pub(super) async fn server(config: ServerConfig) -> Server {
    Setup { tokenizer: Some(tokenizer(Some(ECHO))), max_model_len: 1024, config, ..Setup::default() }.start().await
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}}, "required": ["city"],
                            "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "weather", "parameters": parameters}},
           {"type": "function", "function": {"name": "now"}}])
}

fn says(text: &str, extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}], "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// What a stream adds up to, as a message.
async fn streamed(server: &Server, mut body: Value) -> (Value, Value) {
    body["stream"] = json!(true);
    let (mut message, mut finish) = (json!({"role": "assistant"}), Value::Null);
    for event in server.events(PATH, body).await {
        let choice = &event["choices"][0];
        assert!(finish.is_null(), "a chunk after the end: {choice}");
        finish = choice["finish_reason"].clone();
        let delta = &choice["delta"];
        for name in ["content", "reasoning", "reasoning_content"] {
            if let Some(text) = delta[name].as_str() {
                let so_far = message[name].as_str().unwrap_or_default().to_owned();
                message[name] = json!(so_far + text);
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let calls = message.as_object_mut().unwrap().entry("tool_calls").or_insert(json!([]));
            let calls = calls.as_array_mut().unwrap();
            if index == calls.len() {
                calls.push(json!({"id": call["id"], "type": call["type"], "function": {"name": call["function"]["name"], "arguments": ""}}));
            }
            let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
            calls[index]["function"]["arguments"] = json!(so_far + call["function"]["arguments"].as_str().unwrap());
        }
    }
    (message, finish)
}

fn calls(message: &Value) -> Vec<(String, Value)> {
    let one = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("chatcmpl-tool-"));
        let arguments = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        (call["function"]["name"].as_str().unwrap().to_owned(), arguments)
    };
    message["tool_calls"].as_array().into_iter().flatten().map(one).collect()
}

#[tokio::test]
async fn calls_are_found_whole_and_in_streams() {
    let server = server(ServerConfig::default()).await;
    let body = says(CALLS, json!({"tools": tools()}));
    let choice = server.ok(PATH, body.clone()).await["choices"][0].clone();
    let expected = [("weather".to_owned(), json!({"city": "Köln"})), ("now".to_owned(), json!({}))];
    for (message, finish) in
        [(choice["message"].clone(), choice["finish_reason"].clone()), streamed(&server, body).await]
    {
        assert_eq!(calls(&message), expected);
        assert_eq!((&message["content"], &finish), (&json!("Let me see."), &json!("tool_calls")));
    }
    let one = says(CALLS, json!({"tools": tools(), "parallel_tool_calls": false}));
    assert_eq!(calls(&server.ok(PATH, one).await["choices"][0]["message"]).len(), 1);
    // Without tools, or with none wanted, text is text.
    for extra in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let choice = server.ok(PATH, says(CALLS, extra)).await["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(CALLS), &json!("stop")));
        assert_eq!(choice["message"].get("tool_calls"), None);
    }
    let plain = server.ok(PATH, says("Just text.", json!({"tools": tools()}))).await["choices"][0].clone();
    assert_eq!((&plain["message"]["content"], &plain["finish_reason"]), (&json!("Just text."), &json!("stop")));
}

#[tokio::test]
async fn forced_calls_fit_their_schemas() {
    let server = server(ServerConfig::default()).await;
    for seed in 0..4 {
        let named = json!({"type": "function", "function": {"name": "weather"}});
        let extra =
            json!({"tools": tools(), "tool_choice": named, "temperature": 1.5, "seed": seed, "max_tokens": 400});
        let body = says("hi", extra);
        let choice = server.ok(PATH, body.clone()).await["choices"][0].clone();
        let whole = calls(&choice["message"]);
        assert_eq!((whole.len(), whole[0].0.as_str(), &choice["finish_reason"]), (1, "weather", &json!("stop")));
        assert!(["Bonn", "Ulm"].contains(&whole[0].1["city"].as_str().unwrap()));
        assert_eq!(calls(&streamed(&server, body).await.0), whole);

        let extra = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "temperature": 1.5,
                           "seed": seed, "max_tokens": 400});
        let mut asked = tools();
        asked[1]["function"]["parameters"] = asked[0]["function"]["parameters"].clone();
        let mut body = says("hi", extra);
        body["tools"] = asked;
        let choice = server.ok(PATH, body).await["choices"][0].clone();
        assert_eq!((calls(&choice["message"]).len(), &choice["finish_reason"]), (1, &json!("tool_calls")));
    }
}

#[tokio::test]
async fn reasoning_is_told_from_content() {
    let server = server(ServerConfig::default()).await;
    let text = "<think>\nHm < 5?\n</think>\n\nYes.";
    for (message, _) in [
        (server.ok(PATH, says(text, json!({}))).await["choices"][0]["message"].clone(), Value::Null),
        streamed(&server, says(text, json!({}))).await,
    ] {
        assert_eq!((&message["content"], &message["reasoning"]), (&json!("Yes."), &json!("Hm < 5?")));
        assert_eq!(message["reasoning_content"], message["reasoning"]);
    }
    let hidden =
        server.ok(PATH, says(text, json!({"include_reasoning": false}))).await["choices"][0]["message"].clone();
    assert_eq!((&hidden["content"], &hidden["reasoning"]), (&json!("Yes."), &Value::Null));
    // A structure begins behind reasoning that the prompt has begun.
    let body = says("x</think>y<think>", json!({"structured_outputs": {"choice": ["left"]}, "max_tokens": 60}));
    let message = server.ok(PATH, body).await["choices"][0]["message"].clone();
    assert_eq!((&message["content"], &message["reasoning"]), (&json!("left"), &json!("x")));
}

#[tokio::test]
async fn formats_can_be_given_and_switched_off() {
    let config = ServerConfig {
        tool_call_parser: FormatChoice::Is(ToolFormat::Pythonic),
        reasoning_parser: FormatChoice::Is(ReasoningFormat::DeepseekR1),
        ..ServerConfig::default()
    };
    let given = server(config).await;
    let message =
        given.ok(PATH, says("so</think>[now()]", json!({"tools": tools()}))).await["choices"][0]["message"].clone();
    assert_eq!((calls(&message).len(), &message["reasoning"]), (1, &json!("so")));
    assert_eq!(message["content"], Value::Null);
    let tags = "tags:<why>,</why>".parse().unwrap();
    let given = server(ServerConfig { reasoning_parser: tags, ..ServerConfig::default() }).await;
    let message = given.ok(PATH, says("<why>so</why> Yes.", json!({}))).await["choices"][0]["message"].clone();
    assert_eq!((&message["content"], &message["reasoning"]), (&json!("Yes."), &json!("so")));
    let off = FormatChoice::Off;
    let config = ServerConfig { tool_call_parser: FormatChoice::Off, reasoning_parser: off, ..ServerConfig::default() };
    let off = server(config).await;
    let text = "<think>a</think>b";
    assert_eq!(off.ok(PATH, says(text, json!({}))).await["choices"][0]["message"]["content"], text);
    let message = off.refused(PATH, says("a", json!({"tools": tools()})), 400, Some("tool_choice")).await;
    assert!(message.contains("--tool-call-parser"), "{message}");
}

#[tokio::test]
async fn tools_reach_the_template_and_tool_messages_come_back() {
    let template = "{# <tool_call> #}{% for t in tools %}{{ t.function.name }} {% endfor %}\
                    {% for m in messages %}{{ m.role }}:{% for c in m.tool_calls %}{{ c.function.arguments.city }}{% endfor %}{{ m.content }} {% endfor %}";
    let server = Setup { tokenizer: Some(tokenizer(Some(template))), ..Setup::default() }.start().await;
    let call =
        json!({"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bonn\"}"}});
    let messages = json!([{"role": "user", "content": "?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
                          {"role": "tool", "tool_call_id": "1", "content": "rain"}]);
    let body = json!({"messages": messages, "tools": tools(), "temperature": 0});
    let message = server.ok(PATH, body).await["choices"][0]["message"].clone();
    assert_eq!(message["content"], "weather now user:? assistant:Bonn tool:rain ");
    let effort = json!({"messages": messages, "reasoning_effort": "enormous"});
    server.refused(PATH, effort, 400, Some("reasoning_effort")).await;
}
