//! Operations: clients that leave, overload, draining, keys, health, metrics.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::scrape::sample;
use super::{Server, Setup, Trouble, http};
use crate::server::config::ServerConfig;

pub(super) const PATH: &str = "/v1/completions";

/// A server whose every step takes a while, so that there is time to interfere.
pub(super) fn slow() -> Setup {
    Setup { delay: Duration::from_millis(10), ..Setup::default() }
}

pub(super) fn endless(stream: bool) -> Value {
    json!({"prompt": "abc", "max_tokens": 200, "ignore_eos": true, "temperature": 0, "stream": stream})
}

pub(super) async fn send(server: &Server, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let bytes = http::encode("POST", PATH, &[("content-type", "application/json")], body.to_string().as_bytes());
    socket.write_all(&bytes).await.unwrap();
    socket
}

pub(super) async fn running(server: &Server, count: usize) {
    for _ in 0..500 {
        if server.llm.engine().stats().running == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never {count} running: {:?}", server.llm.engine().stats());
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let server = slow().start().await;
    for stream in [true, false] {
        let sockets = futures_util::future::join_all((0..4).map(async |_| send(&server, &endless(stream)).await)).await;
        running(&server, 4).await;
        if stream {
            let mut first = [0; 64];
            for mut socket in sockets {
                assert!(socket.read(&mut first).await.unwrap() > 0);
            }
        } else {
            drop(sockets);
        }
        let left = Instant::now();
        server.idle().await;
        // 200 tokens would take two seconds.
        assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
    }
    let metrics = server.get("/metrics").await.text();
    assert!(sample(&metrics, "vllm:request_success_total", "finished_reason=\"abort\"") >= 8.0, "{metrics}");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let server = Setup { max_model_len: 4000, ..Setup::default() }.start().await;
    let body = json!({"prompt": "abc", "max_tokens": 3900, "ignore_eos": true, "stream": true, "logprobs": 20});
    let silent = send(&server, &body).await;
    let answer = server.ok(PATH, json!({"prompt": "abc", "max_tokens": 5, "temperature": 0})).await;
    assert_eq!(answer["choices"][0]["text"], "abc");
    // The engine finishes the silent client's request and frees its blocks; the answer waits for its reader.
    server.idle().await;
    let reply = http::read(silent).await;
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after() {
    let server = Setup { max_waiting: 2, max_num_seqs: 1, ..slow() }.start().await;
    let mut sockets = vec![send(&server, &endless(true)).await];
    running(&server, 1).await;
    for _ in 0..2 {
        sockets.push(send(&server, &endless(true)).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let reply = server.post(PATH, endless(true)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{}", reply.text());
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("queue is full"));
    let metrics = server.get("/metrics").await.text();
    assert_eq!(sample(&metrics, "vllm:num_requests_waiting", "model_name"), 2.0);
    drop(sockets);
    server.idle().await;
}

#[tokio::test]
async fn draining_lets_requests_finish() {
    let mut server = slow().start().await;
    let mut body = endless(true);
    body["max_tokens"] = json!(40);
    let socket = send(&server, &body).await;
    let idle = TcpStream::connect(server.address).await.unwrap();
    running(&server, 1).await;
    server.stop.take().unwrap().send(()).unwrap();
    let reply = http::read(socket).await;
    assert!(reply.text().contains("\"finish_reason\":\"length\"") && reply.text().ends_with("data: [DONE]\n\n"));
    tokio::time::timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn draining_ends_with_an_error_what_takes_too_long() {
    for stream in [true, false] {
        let config = ServerConfig { shutdown_timeout: Duration::from_millis(100), ..ServerConfig::default() };
        let mut server = Setup { config, ..slow() }.start().await;
        let socket = send(&server, &endless(stream)).await;
        running(&server, 1).await;
        server.stop.take().unwrap().send(()).unwrap();
        let reply = http::read(socket).await;
        if stream {
            let text = reply.text();
            assert!(
                text.contains("event: error\ndata: {\"error\":{\"message\":\"the server is shutting down"),
                "{text}"
            );
            assert!(text.ends_with("data: [DONE]\n\n"));
        } else {
            assert_eq!(reply.status, 503);
        }
        tokio::time::timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn silent_streams_are_kept_alive() {
    let config = ServerConfig { keep_alive: Duration::from_millis(40), ..ServerConfig::default() };
    let server = Setup { delay: Duration::from_millis(150), config, ..Setup::default() }.start().await;
    let reply = server.post(PATH, json!({"prompt": "ab", "max_tokens": 2, "stream": true})).await;
    assert!(reply.text().starts_with(": keep-alive\n\n"), "{}", reply.text());
}

#[tokio::test]
async fn keys_guard_everything_but_health() {
    let config = ServerConfig { api_keys: vec!["secret".into(), "other".into()], ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    assert_eq!(server.get("/health").await.status, 200);
    for path in ["/v1/models", "/version", "/metrics", "/nothing", "/v1/completions"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.json()["error"]["type"], "AuthenticationError");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(server.post(PATH, json!({"prompt": "a"})).await.status, 401);
    for key in ["Bearer secret", "bearer other"] {
        let reply = http::request(server.address, "GET", "/v1/models", &[("authorization", key)], b"").await;
        assert_eq!(reply.status, 200);
    }
}

#[tokio::test]
async fn what_the_server_says_about_itself() {
    let server = Server::start().await;
    let models = server.get("/v1/models").await.json();
    let ids: Vec<&Value> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["copy", "org/alias"]);
    assert_eq!(models["data"][0]["max_model_len"], 256);
    assert_eq!(models["data"][0]["host"]["plugin"], "test");
    assert_eq!(models["data"][0]["host"]["model_impl"], "native");
    assert_eq!(models["data"][0]["host"]["architecture"], "CopyForCausalLM");
    assert_eq!(server.get("/v1/models/org/alias").await.json()["id"], "org/alias");
    assert_eq!(server.get("/v1/models/nope").await.status, 404);
    assert_eq!(server.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.get("/health").await.json()["status"], "ok");
    server.llm.engine().shutdown();
    assert_eq!(server.get("/health").await.status, 503);
    assert_eq!(server.post(PATH, json!({"prompt": "a"})).await.status, 503);
}

#[tokio::test]
async fn request_ids_are_repeated() {
    let server = Server::start().await;
    let headers = [("content-type", "application/json"), ("x-request-id", "my-id-1")];
    let reply = http::request(server.address, "POST", PATH, &headers, b"{\"prompt\": \"a\"}").await;
    assert_eq!(reply.header("x-request-id"), Some("my-id-1"));
    assert_eq!(reply.json()["id"], "cmpl-my-id-1");
    let answer = server.ok(PATH, json!({"prompt": "a", "request_id": "mine"})).await;
    assert_eq!(answer["id"], "cmpl-mine");
    let errors = server.get("/nothing").await;
    assert_eq!(errors.header("x-request-id").unwrap().len(), 32);
}

#[tokio::test]
async fn an_engine_that_fails_says_so_in_mid_stream() {
    for trouble in [Trouble::Error, Trouble::Panic] {
        let server = Setup { trouble, ..slow() }.start().await;
        let reply = server.post(PATH, endless(true)).await;
        let text = reply.text();
        let error = text.split("event: error\ndata: ").nth(1).unwrap_or_else(|| panic!("no error in {text}"));
        let (error, rest) = error.split_once("\n\n").unwrap();
        assert_eq!(rest, "data: [DONE]\n\n");
        let error: Value = serde_json::from_str(error).unwrap();
        assert!(error["error"]["code"].as_u64().unwrap() >= 500, "{error}");
        // A failed step costs the requests in it; a panic costs the engine, and health says so.
        let healthy = server.get("/health").await.status == 200;
        assert_eq!(healthy, trouble == Trouble::Error);
        let metrics = server.get("/metrics").await.text();
        assert_eq!(sample(&metrics, "vllm:request_success_total", "finished_reason=\"error\""), 1.0);
        let reply = server.post(PATH, json!({"prompt": "a", "max_tokens": 1})).await;
        assert_eq!(reply.status, if healthy { 200 } else { 503 }, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_is_a_json_500() {
    let response = crate::server::middleware::panicked(Box::new("secret detail"));
    assert_eq!(response.status(), 500);
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["type"], "InternalServerError");
    assert!(!body.to_string().contains("secret"));
}
