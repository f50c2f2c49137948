//! More requests at once than the server will have: each is answered, and the server stays well.

use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::http;
use crate::program::Place;

const REQUESTS: usize = 2000;
const QUEUE: usize = 64;
/// Memory that the server may take for them, beyond what it took for a few.
const MEMORY: u64 = 256 << 20;

/// The most memory that the process has had so far.
fn peak_memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn two_thousand_requests_at_once_are_taken_or_refused_and_the_server_stays_well() {
    // Each of them is an open file here too.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let place = Place::new();
    let queue = QUEUE.to_string();
    let server = place.serve(&["--disable-access-log", "--max-num-queued-reqs", &queue, "--max-num-seqs", "32"]);
    let body = |i: usize| {
        let prompt = format!("Tell me about number {i}");
        json!({"prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": true, "stream": i.is_multiple_of(2)})
    };
    for i in 0..8 {
        server.post("/v1/completions", body(i).to_string().as_bytes());
    }
    let before = peak_memory(server.id());
    let mut unhealthy = 0;
    let mut sockets = Vec::with_capacity(REQUESTS);
    for i in 0..REQUESTS {
        sockets.push(http::send(server.address(), "POST", "/v1/completions", body(i).to_string().as_bytes()));
        if i % 100 == 0 {
            unhealthy += usize::from(server.get("/health").status != 200);
        }
    }
    let (mut taken, mut refused) = (0, 0);
    for socket in sockets {
        let reply = http::read(socket);
        match reply.status {
            200 => taken += 1,
            429 => {
                refused += 1;
                assert!(reply.text().contains("RateLimitError"), "{}", reply.text());
            }
            other => panic!("{other}: {}", reply.text()),
        }
        let text = reply.text();
        assert!(!text.contains("event: error"), "{text}");
    }
    assert_eq!((taken + refused, unhealthy), (REQUESTS, 0));
    assert!(refused > 0 && taken >= QUEUE, "{taken} were taken, {refused} refused");
    assert_eq!(server.metric_of("vllm:admission_rejections_total", "max_num_queued_reqs") as usize, refused);
    // Whoever was taken did not wait long: the queue is short.
    let mean = server.metric("vllm:e2e_request_latency_seconds_sum") / (taken as f64);
    assert!(mean < 10.0, "an admitted request took {mean} s on average");
    let grown = peak_memory(server.id()).saturating_sub(before);
    assert!(grown < MEMORY, "{grown} bytes more");
    server.wait_until_idle(Duration::from_secs(20));
    assert_eq!(server.get("/health/ready").status, 200);
    eprintln!("{taken} taken, {refused} refused, {} MiB more memory, {mean:.3} s on average", grown >> 20);
}
