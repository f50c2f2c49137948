//! Requests that are wrong: each gets a clear error that names what is at fault, and the server lives on.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Server, Setup, http};
use crate::server::config::ServerConfig;

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn fields_out_of_range_are_named() {
    let server = Server::start().await;
    let cases = [
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("5")),
        ("max_tokens", json!(1_000_000_000_000_i64)),
        ("temperature", json!("NaN")),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("temperature", json!([0.5])),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("logprobs", json!(21)),
        ("logprobs", json!(-2)),
        ("prompt_logprobs", json!(-2)),
        ("min_tokens", json!(17)),
        ("stop", json!([""])),
        ("stop", json!(5)),
        ("seed", json!("x")),
        ("seed", json!(1e30)),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([258])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"999": 1})),
        ("stop_token_ids[0]", json!([-1])),
        ("priority", json!(1e12)),
        ("truncate_prompt_tokens", json!(0)),
        ("truncation_side", json!("up")),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("request_id", json!("bad id")),
        ("echo", json!(1)),
    ];
    for (param, value) in cases {
        let name = param.split('[').next().unwrap();
        let message = server.refused(PATH, json!({"prompt": "a", name: value}), 400, Some(param)).await;
        assert!(message.starts_with(param) || param == "max_tokens", "{message}");
    }
    server.ok(PATH, json!({"prompt": "a", "max_tokens": 2.0, "temperature": 1})).await;
}

#[tokio::test]
async fn prompts_that_cannot_be_are_named() {
    let server = Setup { max_model_len: 20, ..Setup::default() }.start().await;
    for (prompt, param) in [
        (Value::Null, "prompt"),
        (json!(""), "prompt"),
        (json!([]), "prompt"),
        (json!([[]]), "prompt"),
        (json!(["a", ""]), "prompt"),
        (json!([1, "a"]), "prompt"),
        (json!([-1]), "prompt[0]"),
        (json!([[1, 2], [300]]), "prompt[1][0]"),
        (json!(5), "prompt"),
        (json!("x".repeat(20)), "prompt"),
    ] {
        server.refused(PATH, json!({"prompt": prompt}), 400, Some(param)).await;
    }
    let message = server.refused(PATH, json!({"prompt": "x".repeat(30)}), 400, Some("prompt")).await;
    assert!(message.contains("maximum context length is 20") && message.contains("30 tokens"), "{message}");
    let body = json!({"prompt": "x".repeat(15), "max_tokens": 6});
    let message = server.refused(PATH, body, 400, Some("max_tokens")).await;
    assert!(message.contains("at most 5"), "{message}");
}

#[tokio::test]
async fn unknown_and_unsupported_fields_are_refused_by_name() {
    let server = Server::start().await;
    let message = server.refused(PATH, json!({"prompt": "a", "temprature": 1}), 400, Some("temprature")).await;
    assert!(message.contains("did you mean temperature?"), "{message}");
    server.refused(PATH, json!({"prompt": "a", "zzz": null}), 400, Some("zzz")).await;
    let options = json!({"include_usage": true, "foo": 1});
    let body = json!({"prompt": "a", "stream": true, "stream_options": options});
    server.refused(PATH, body, 400, Some("stream_options.foo")).await;

    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (name, value) in [
        ("functions", tool),
        ("best_of", json!(2)),
        ("audio", json!({"voice": "x"})),
        ("modalities", json!(["text", "audio"])),
        ("guided_regex", json!("a")),
        ("store", json!(true)),
        ("use_beam_search", json!(true)),
        ("cache_salt", json!("x")),
    ] {
        let message = server.refused("/v1/chat/completions", chat(json!({name: value})), 400, Some(name)).await;
        assert!(message.contains("not supported"), "{message}");
    }
    server.refused(PATH, json!({"prompt": "a", "suffix": "b"}), 400, Some("suffix")).await;
    server.refused(PATH, json!({"prompt": "a", "messages": []}), 400, Some("messages")).await;

    // Given so that they ask for nothing, they are fine.
    let harmless = json!({"tools": null, "tool_choice": "none", "response_format": {"type": "text"}, "best_of": 1,
        "parallel_tool_calls": true, "user": "u", "store": false, "metadata": {"a": "b"}, "n": 1, "audio": null,
        "modalities": ["text"], "service_tier": "auto", "logit_bias": null, "stop": null, "seed": null, "logprobs": null,
        "top_logprobs": null, "stream": null, "stream_options": null, "max_completion_tokens": null});
    server.ok("/v1/chat/completions", chat(harmless)).await;
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let server = Server::start().await;
    for (body, words) in [
        (&b""[..], "JSON"),
        (b"{", "JSON"),
        (b"{\"prompt\": \"a\"} x", "JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{\"prompt\": \"\xff\xfe\"}", "UTF-8"),
        (b"{\"prompt\": \"\\ud800\"}", "JSON"),
        (b"{\"prompt\": \"a\", \"temperature\": NaN}", "JSON"),
        (b"{\"prompt\": \"a\", \"temperature\": 1e999}", "JSON"),
    ] {
        let reply = server.post_raw(PATH, body).await;
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, 400, "{error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    }
    let reply = server.post_raw(PATH, b"{\"prompt\": \"a\", \"temperature\": 1e999}").await;
    assert_eq!(reply.json()["error"]["param"], "temperature");
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.post_raw(PATH, deep.as_bytes()).await.status, 400);
    for kind in [None, Some("application/x-www-form-urlencoded"), Some("text/plain")] {
        let headers: Vec<(&str, &str)> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        let reply = http::request(server.address, "POST", PATH, &headers, b"{}").await;
        assert_eq!(reply.status, 415);
        assert!(reply.json()["error"]["message"].as_str().unwrap().contains("application/json"));
    }
    let headers = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(http::request(server.address, "POST", PATH, &headers, b"{\"prompt\":\"a\"}").await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let server = Server::start().await;
    let body = json!({"prompt": "x".repeat(10_000_000)});
    let message = server.refused(PATH, body, 413, None).await;
    assert!(message.contains("8388608") && message.contains("--max-body-size"), "{message}");

    // The same in chunks, which announce no length.
    let config = ServerConfig { max_body_size: 1000, ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    let mut bytes = format!(
        "POST {PATH} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\n\
                             transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..20 {
        bytes.extend(format!("64\r\n{}\r\n", "x".repeat(100)).bytes());
    }
    bytes.extend(b"0\r\n\r\n");
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, &bytes).await.unwrap();
    assert_eq!(http::read(socket).await.status, 413);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_refused_before_it_sends() {
    let server = Server::start().await;
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: 10000000\r\n\r\n"
    );
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(2), http::read(socket)).await.unwrap();
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn a_body_that_does_not_come() {
    let config = ServerConfig { read_timeout: Duration::from_millis(300), ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    let head =
        format!("POST {PATH} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{");
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
    assert_eq!(http::read(socket).await.status, 408);
}

#[tokio::test]
async fn routes_methods_and_models_that_do_not_exist() {
    let server = Server::start().await;
    let reply = server.get("/v1/nothing").await;
    assert_eq!((reply.status, reply.json()["error"]["code"].as_u64()), (404, Some(404)));
    let reply = server.get(PATH).await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(reply.json()["error"]["type"], "MethodNotAllowedError");
    let message = server.refused(PATH, json!({"model": "nope", "prompt": "a"}), 404, Some("model")).await;
    assert!(message.contains("`nope`") && message.contains("copy, org/alias"), "{message}");
    server
        .refused("/v1/chat/completions", json!({"model": "nope", "messages": [{"role": "user"}]}), 404, Some("model"))
        .await;
    server.ok(PATH, json!({"model": null, "prompt": "a"})).await;
}
