//! `/v1/chat/completions`, and `/tokenize` and `/detokenize`, which share the template.

use serde_json::{Value, json};

use super::{Server, Setup, tokenizer};
use crate::server::config::ServerConfig;
use crate::text::GenerationConfig;

const PATH: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!([{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
}

const HELLO: &str = "<system>S\n<user>Hi\n<assistant>";

#[tokio::test]
async fn a_chat_completion_has_openais_shape() {
    let server = Server::start().await;
    let body = json!({"model": "org/alias", "messages": hello(), "temperature": 0, "return_token_ids": true});
    let answer = server.ok(PATH, body).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("org/alias")));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], HELLO);
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    assert_eq!(answer["prompt_token_ids"].as_array().unwrap().len(), HELLO.len());
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), HELLO.len() + 1);
    assert_eq!(answer["usage"]["prompt_tokens"], HELLO.len());
}

#[tokio::test]
async fn a_chat_stream_says_what_the_whole_answer_says() {
    let server = Server::start().await;
    let mut body = json!({"messages": hello(), "temperature": 1.2, "seed": 3, "n": 2, "max_tokens": 30, "logprobs": true,
                          "top_logprobs": 2});
    let whole = server.ok(PATH, body.clone()).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.events(PATH, body).await;
    let usage = events.pop().unwrap()["usage"].clone();
    assert_eq!(usage["total_tokens"], whole["usage"]["total_tokens"]);
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let mine: Vec<&Value> = events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == i).collect();
        assert_eq!(mine[0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String = mine.iter().map(|c| c["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(mine.last().unwrap()["finish_reason"], choice["finish_reason"]);
        let logprobs: Vec<Value> =
            mine.iter().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().cloned().collect();
        assert_eq!(choice["logprobs"]["content"], json!(logprobs));
        assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(logprobs[0]["bytes"].as_array().unwrap().len(), 1);
    }
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk"));
}

#[tokio::test]
async fn templates_get_what_requests_give_them() {
    let server = Server::start().await;
    let text = async |extra: Value| {
        let mut body = json!({"messages": hello(), "temperature": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.ok(PATH, body).await["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(text(json!({"chat_template_kwargs": {"shout": true}})).await, format!("{HELLO}!"));
    assert_eq!(text(json!({"add_generation_prompt": false})).await, "<system>S\n<user>Hi\n");
    assert_eq!(text(json!({"max_tokens": 50, "max_completion_tokens": 2})).await, "<s");
    let prefilled = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Sure, "}]);
    let continued = json!({"messages": prefilled, "continue_final_message": true});
    assert_eq!(text(continued.clone()).await, "<user>a\n<assistant>Sure, ");
    let mut echoed = continued;
    echoed["echo"] = json!(true);
    assert_eq!(text(echoed).await, "Sure, <user>a\n<assistant>Sure, ");
}

#[tokio::test]
async fn chat_fills_the_context_unless_the_model_says_otherwise() {
    let body = json!({"messages": hello(), "temperature": 0, "ignore_eos": true});
    let server = Setup { max_model_len: 100, ..Setup::default() }.start().await;
    assert_eq!(server.ok(PATH, body.clone()).await["usage"]["total_tokens"], 100);
    let generation_config = GenerationConfig { max_new_tokens: Some(3), ..GenerationConfig::default() };
    let server = Setup { generation_config, ..Setup::default() }.start().await;
    assert_eq!(server.ok(PATH, body).await["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn generation_config_gives_defaults_that_requests_override() {
    let generation_config = GenerationConfig { temperature: Some(0.0), ..GenerationConfig::default() };
    let server = Setup { generation_config, ..Setup::default() }.start().await;
    let run = async |extra: Value| {
        let mut body = json!({"prompt": "abcdefgh", "max_tokens": 16, "ignore_eos": true, "seed": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.ok("/v1/completions", body).await["choices"][0]["text"].clone()
    };
    assert!(run(json!({})).await.as_str().unwrap().starts_with("abcdefgh"));
    assert_ne!(run(json!({})).await, run(json!({"temperature": 5.0})).await);
}

#[tokio::test]
async fn what_templates_and_chats_must_not_be() {
    let server = Server::start().await;
    let refuse = async |extra: Value, param: &str| {
        let mut body = json!({"messages": hello()});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.refused(PATH, body, 400, Some(param)).await
    };
    refuse(json!({"messages": []}), "messages").await;
    refuse(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0].type")
        .await;
    refuse(json!({"messages": [1]}), "messages[0]").await;
    refuse(json!({"chat_template": "x"}), "chat_template").await;
    refuse(json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages").await;
    refuse(json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message").await;
    refuse(json!({"top_logprobs": 2}), "top_logprobs").await;
    refuse(json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs").await;
    refuse(json!({"max_completion_tokens": 0}), "max_completion_tokens").await;
    refuse(json!({"max_completion_tokens": 999}), "max_completion_tokens").await;
    let missing = server.refused(PATH, json!({}), 400, None).await;
    assert!(missing.contains("messages"), "{missing}");
    let long = json!([{"role": "user", "content": "x".repeat(300)}]);
    refuse(json!({"messages": long}), "messages").await;

    let server = Setup { tokenizer: Some(tokenizer(None)), ..Setup::default() }.start().await;
    let message = server.refused(PATH, json!({"messages": hello()}), 400, None).await;
    assert!(message.contains("chat template") && message.contains("/v1/completions"), "{message}");
}

#[tokio::test]
async fn a_request_may_bring_a_template_where_that_is_allowed() {
    let config = ServerConfig { trust_request_chat_template: true, ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    let body = json!({"messages": hello(), "chat_template": "{{ messages[1].content }}?", "temperature": 0});
    assert_eq!(server.ok(PATH, body).await["choices"][0]["message"]["content"], "Hi?");
    let body = json!({"messages": hello(), "chat_template": "{% if %}"});
    server.refused(PATH, body, 400, Some("chat_template")).await;
}

#[tokio::test]
async fn tokenize_and_back() {
    let server = Server::start().await;
    let got = server.ok("/tokenize", json!({"model": "copy", "prompt": "Hé", "return_token_strs": true})).await;
    assert_eq!((&got["count"], &got["max_model_len"]), (&json!(3), &json!(256)));
    assert_eq!(got["tokens"], json!([72, 195, 169]));
    assert_eq!(got["token_strs"], json!(["H", "\u{fffd}", "\u{fffd}"]));
    assert_eq!(server.ok("/detokenize", json!({"tokens": got["tokens"]})).await, json!({"prompt": "Hé"}));
    let chat = server.ok("/tokenize", json!({"messages": hello(), "add_generation_prompt": false})).await;
    assert_eq!(chat["count"], HELLO.len() - "<assistant>".len());
    assert_eq!(chat["token_strs"], Value::Null);
    server.refused("/tokenize", json!({}), 400, Some("prompt")).await;
    server
        .refused("/tokenize", json!({"prompt": "a", "add_generation_prompt": true}), 400, Some("add_generation_prompt"))
        .await;
    server.refused("/tokenize", json!({"prompt": "a", "promt": 1}), 400, Some("promt")).await;
    server.refused("/detokenize", json!({"tokens": [1, 9999]}), 400, Some("tokens[1]")).await;
    server.refused("/detokenize", json!({"tokens": [1, -9]}), 400, Some("tokens[1]")).await;
}

#[tokio::test]
async fn the_template_has_the_servers_defaults_unless_the_request_says_otherwise() {
    let defaults = serde_json::from_value(json!({"shout": true})).unwrap();
    let config = ServerConfig { chat_template_kwargs: defaults, ..Setup::default().config };
    let server = Setup { config, ..Setup::default() }.start().await;
    let mut body = json!({"messages": [{"role": "user", "content": "a"}]});
    let prompt = async |body: &Value| server.ok("/tokenize", body.clone()).await["count"].as_u64().unwrap();
    let with = prompt(&body).await;
    body["chat_template_kwargs"] = json!({"shout": false});
    assert_eq!(prompt(&body).await, with - 1);
}
