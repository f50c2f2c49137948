//! Spans of requests at a collector, which is a server of the test's own: what it receives is decoded from protobuf.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use super::{Server, Setup, Trouble, http};
use crate::engine::Pooling;
use crate::server::config::ServerConfig;

use crate::server::traces::Traces;

/// What came, whole.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        async fn take(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) -> StatusCode {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            collector.0.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
            StatusCode::OK
        }
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async { axum::serve(listener, app).await });
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn attributes(span: &Span) -> HashMap<&str, Value> {
    let value = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| pair.value.clone()?.value;
    span.attributes.iter().filter_map(|pair| Some((pair.key.as_str(), value(pair)?))).collect()
}

fn number(value: &Value) -> f64 {
    match value {
        Value::DoubleValue(number) => *number,
        Value::IntValue(number) => *number as f64,
        other => panic!("{other:?} is no number"),
    }
}

async fn server(collector: &str, setup: Setup) -> Server {
    let config = ServerConfig { traces: Some(Traces::start(collector).unwrap()), ..setup.config };
    Setup { config, ..setup }.start().await
}

/// The end of the server sends what waits.
async fn stop(mut server: Server) {
    server.stop.take().unwrap().send(()).unwrap();
    server.task.await.unwrap().unwrap();
}

// The collector answers while the server's end waits for it, so these tests need a second thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_has_the_attributes_of_vllm() {
    let (collector, address) = Collector::start().await;
    let server = server(&format!("http://{address}"), Setup::default()).await;
    let body = json!({"model": "copy", "prompt": "abc", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "logit_bias": {"97": 0}});
    let answer = server.ok("/v1/completions", body).await;
    stop(server).await;
    let [span] = &collector.spans()[..] else { panic!("{} spans", collector.spans().len()) };
    assert_eq!((span.name.as_str(), span.kind), ("llm_request", 2));
    assert!(span.parent_span_id.is_empty() && span.end_time_unix_nano >= span.start_time_unix_nano);
    let found = attributes(span);
    assert_eq!(found["gen_ai.request.id"], Value::StringValue(answer["id"].as_str().unwrap().to_owned()));
    assert_eq!(found["gen_ai.response.model"], Value::StringValue("copy".into()));
    for (key, value) in [
        ("gen_ai.usage.prompt_tokens", 3.0),
        ("gen_ai.usage.completion_tokens", answer["usage"]["completion_tokens"].as_f64().unwrap()),
        ("gen_ai.request.max_tokens", 3.0),
        ("gen_ai.request.temperature", 0.5),
        ("gen_ai.request.n", 1.0),
    ] {
        assert_eq!(number(&found[key]), value, "{key}");
    }
    assert!((number(&found["gen_ai.request.top_p"]) - 0.9).abs() < 1e-6);
    let latency = |name: &str| number(&found[format!("gen_ai.latency.{name}").as_str()]);
    assert!(latency("time_in_queue") >= 0.0 && latency("time_in_model_decode") >= 0.0);
    assert!(latency("time_to_first_token") <= latency("e2e"));
    assert!(latency("time_in_model_prefill") <= latency("time_in_model_inference"));
    let requests = collector.0.lock().unwrap();
    let resource = &requests[0].resource_spans[0].resource.as_ref().unwrap().attributes;
    let name = resource.iter().find(|pair| pair.key == "service.name").unwrap();
    assert!(name.value.as_ref().unwrap().value.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_belongs_to_the_trace_of_the_caller() {
    let (collector, address) = Collector::start().await;
    let server = server(&format!("http://{address}/v1/traces"), Setup::default()).await;
    let body = json!({"model": "copy", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).to_string();
    for parent in [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        // Not sampled: the caller wants no trace of this one.
        "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "malformed",
    ] {
        let headers = [("content-type", "application/json"), ("traceparent", parent)];
        let reply = http::request(server.address, "POST", "/v1/chat/completions", &headers, body.as_bytes()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    stop(server).await;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spans: Vec<_> = collector.spans().iter().map(|span| (hex(&span.trace_id), hex(&span.parent_span_id))).collect();
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert_eq!(spans[0], ("0af7651916cd43dd8448eb211c80319c".into(), "b7ad6b7169203331".into()));
    assert_eq!(spans[1].1, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_choice_has_a_span_also_those_that_fail_or_are_left() {
    let (collector, address) = Collector::start().await;
    let target = format!("http://{address}");
    let first = server(&target, Setup::default()).await;
    first.ok("/v1/completions", json!({"prompt": ["abc", "c"], "n": 2, "max_tokens": 2, "temperature": 0})).await;
    stop(first).await;
    let failing = server(&target, Setup { trouble: Trouble::Error, ..Setup::default() }).await;
    let reply = failing.post("/v1/completions", json!({"prompt": "abcdefgh", "max_tokens": 30})).await;
    assert_eq!(reply.status, 500);
    stop(failing).await;
    let slow = server(&target, Setup { delay: Duration::from_millis(20), ..Setup::default() }).await;
    let body = json!({"prompt": "x".repeat(100), "max_tokens": 100, "ignore_eos": true}).to_string();
    let request = http::request(
        slow.address,
        "POST",
        "/v1/completions",
        &[("content-type", "application/json")],
        body.as_bytes(),
    );
    assert!(tokio::time::timeout(Duration::from_millis(300), request).await.is_err());
    slow.idle().await;
    stop(slow).await;
    let reasons: Vec<Value> =
        collector.spans().iter().map(|span| attributes(span)["gen_ai.response.finish_reasons"].clone()).collect();
    let word = |value: &Value| match value {
        Value::ArrayValue(list) => format!("{:?}", list.values[0].value.as_ref().unwrap()),
        other => panic!("{other:?}"),
    };
    let count = |what: &str| reasons.iter().filter(|reason| word(reason).contains(what)).count();
    assert_eq!((count("length"), count("stop"), count("error"), count("abort")), (2, 2, 1, 1), "{reasons:?}");
    assert_eq!(collector.spans().iter().filter(|span| span.status.as_ref().is_some_and(|s| s.code == 2)).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_down_hurts_no_request() {
    // A port where nobody listens, and one where nobody answers. Both are held: a free one may become another test's collector.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpSocket::new_v4().unwrap();
    gone.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    for address in [gone.local_addr().unwrap(), silent.local_addr().unwrap()] {
        let server = server(&format!("http://{address}"), Setup::default()).await;
        for _ in 0..20 {
            server.ok("/v1/completions", json!({"prompt": "ab", "max_tokens": 2})).await;
        }
        tokio::time::timeout(Duration::from_secs(30), stop(server)).await.expect("the server ends all the same");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_have_spans_too() {
    let (collector, address) = Collector::start().await;
    let pooler = Some(super::pooling::pooler(Pooling::Last));
    let server = server(&format!("http://{address}"), Setup { pooler, ..Setup::default() }).await;
    server.ok("/v1/embeddings", json!({"input": ["ab", "c"]})).await;
    stop(server).await;
    let prompts: Vec<f64> =
        collector.spans().iter().map(|span| number(&attributes(span)["gen_ai.usage.prompt_tokens"])).collect();
    assert_eq!(prompts.iter().sum::<f64>(), 3.0);
    assert_eq!(prompts.len(), 2);
}
