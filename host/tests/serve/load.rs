//! Many clients at once, and clients that leave.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::program::{Place, Server};

const CLIENTS: usize = 64;

/// Calls `work` with every number below `count`, `CLIENTS` at a time.
fn at_once(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    work(i);
                }
            });
        }
    });
}

fn request(words: &str, i: usize) -> Value {
    json!({"prompt": format!("{words} {i}"), "max_tokens": 4 + i % 9, "temperature": 0, "ignore_eos": true})
}

/// The text of a stream, which must be whole.
fn streamed(server: &Server, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let reply = server.post("/v1/completions", body.to_string().as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
    let all = reply.text();
    assert!(all.ends_with("data: [DONE]\n\n"), "{all}");
    let events = all.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    let parsed = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap());
    parsed.map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_thousand_requests_are_answered_as_if_alone_and_leavers_leave_nothing() {
    let place = Place::new();
    let server = place.serve(&["--disable-access-log"]);
    let beginnings = ["San Francisco is a", "What is AI?", "The sky is", "Once upon a time", "Tell me about number"];
    let requests: Vec<Value> = (0..40).map(|i| request(beginnings[i % beginnings.len()], i)).collect();
    let alone: Vec<String> = requests.iter().map(|body| server.complete(body)).collect();
    let different: std::collections::HashSet<&String> = alone.iter().collect();
    assert!(different.len() > 30, "the answers say too little: {alone:?}");

    at_once(1000, |i| {
        let which = i * 7 % requests.len();
        let text = if i % 3 == 0 { streamed(&server, &requests[which]) } else { server.complete(&requests[which]) };
        assert_eq!(text, alone[which], "request {i}: {}", requests[which]);
    });
    server.wait_until_idle(Duration::from_secs(5));

    at_once(200, |i| {
        let body = json!({"prompt": format!("Once upon a time {i}"), "max_tokens": 400, "ignore_eos": true,
                          "temperature": 1.0, "stream": i % 4 != 0});
        let socket = http::send(server.address(), "POST", "/v1/completions", body.to_string().as_bytes());
        if i % 4 == 0 {
            // Leaves before there is an answer.
            std::thread::sleep(Duration::from_millis(20));
        } else {
            let mut some = [0; 300];
            std::io::Read::read_exact(&mut { socket }, &mut some).unwrap();
        }
    });
    server.wait_until_idle(Duration::from_secs(5));
    let ended = |reason: &str| server.metric_of("vllm:request_success_total", &format!("finished_reason=\"{reason}\""));
    // Nobody reads 400 tokens; those who left before their request was read are not counted.
    assert!((150.0..=200.0).contains(&ended("abort")), "{}", ended("abort"));
    assert_eq!((ended("length"), ended("error")), (1040.0, 0.0));
    assert_eq!(server.complete(&requests[3]), alone[3]);
    assert!(!server.log().contains("ERROR") && !server.log().contains("panicked"), "{}", server.log());
}
