//! `/metrics`: vLLM's names, and a dashboard that asks for nothing else.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::operate::{PATH, endless, running, send, slow};
use super::{Server, Setup, http};

/// The value of the sample of this name whose labels contain `label`.
pub(super) fn sample(metrics: &str, name: &str, label: &str) -> f64 {
    let line = metrics
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))
        .unwrap_or_else(|| panic!("no {name} with {label} in\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// What vLLM's dashboards and routers read, as they write it: name, labels beside `model_name` and `engine`.
const VLLM: [(&str, &[&str]); 31] = [
    ("vllm:num_requests_running", &[]),
    ("vllm:num_requests_waiting", &[]),
    ("vllm:num_requests_waiting_by_reason", &["reason"]),
    ("vllm:kv_cache_usage_perc", &[]),
    ("vllm:cache_config_info", &["block_size", "cache_dtype", "enable_prefix_caching", "num_gpu_blocks"]),
    ("vllm:prefix_cache_queries_total", &[]),
    ("vllm:prefix_cache_hits_total", &[]),
    ("vllm:num_preemptions_total", &[]),
    ("vllm:prompt_tokens_total", &[]),
    ("vllm:prompt_tokens_cached_total", &[]),
    ("vllm:prompt_tokens_by_source_total", &["source"]),
    ("vllm:generation_tokens_total", &[]),
    ("vllm:request_success_total", &["finished_reason"]),
    ("vllm:admission_rejections_total", &["reason"]),
    ("vllm:iteration_tokens_total_bucket", &["le"]),
    ("vllm:time_to_first_token_seconds_bucket", &["le"]),
    ("vllm:inter_token_latency_seconds_bucket", &["le"]),
    ("vllm:request_time_per_output_token_seconds_bucket", &["le"]),
    ("vllm:e2e_request_latency_seconds_bucket", &["le"]),
    ("vllm:request_queue_time_seconds_bucket", &["le"]),
    ("vllm:request_inference_time_seconds_bucket", &["le"]),
    ("vllm:request_prefill_time_seconds_bucket", &["le"]),
    ("vllm:request_decode_time_seconds_bucket", &["le"]),
    ("vllm:request_prompt_tokens_bucket", &["le"]),
    ("vllm:request_generation_tokens_bucket", &["le"]),
    ("vllm:request_max_num_generation_tokens_bucket", &["le"]),
    ("vllm:request_prefill_kv_computed_tokens_bucket", &["le"]),
    ("vllm:request_params_n_bucket", &["le"]),
    ("vllm:request_params_max_tokens_bucket", &["le"]),
    ("http_requests_total", &["handler", "method", "status"]),
    ("process_cpu_seconds_total", &[]),
];

#[tokio::test]
async fn metrics_have_vllms_names_and_labels() {
    let server = Server::start().await;
    server.ok(PATH, json!({"prompt": "abc", "max_tokens": 4})).await;
    let text = server.get("/metrics").await.text();
    for (name, labels) in VLLM {
        for label in ["model_name", "engine"].iter().chain(labels) {
            sample(&text, name, &format!("{label}=\""));
        }
    }
    assert_eq!(sample(&text, "vllm:cache_config_info", "num_gpu_blocks=\"256\""), 1.0);
    assert_eq!(sample(&text, "vllm:iteration_tokens_total_bucket", "le=\"+Inf\""), 4.0);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = Server::start().await;
    let body = json!({"prompt": "a prompt of more than one block", "max_tokens": 4, "temperature": 0, "n": 2});
    server.ok(PATH, body.clone()).await;
    server.ok(PATH, body).await;
    server.idle().await;
    let text = server.get("/metrics").await.text();
    let value = |name: &str| sample(&text, name, "model_name=\"copy\"");
    assert_eq!(value("vllm:num_requests_running"), 0.0);
    assert_eq!(value("vllm:num_requests_waiting"), 0.0);
    assert_eq!(value("vllm:kv_cache_usage_perc"), 0.0);
    assert_eq!(value("vllm:num_preemptions_total"), 0.0);
    assert_eq!(value("vllm:generation_tokens_total"), 16.0);
    assert_eq!(value("vllm:prompt_tokens_total"), 4.0 * 31.0);
    assert!(value("vllm:prefix_cache_queries_total") >= value("vllm:prefix_cache_hits_total"));
    let cached = value("vllm:prompt_tokens_cached_total");
    assert!(cached > 0.0);
    assert_eq!(sample(&text, "vllm:prompt_tokens_by_source_total", "source=\"local_compute\""), 4.0 * 31.0 - cached);
    assert_eq!(value("vllm:request_prefill_kv_computed_tokens_sum"), 4.0 * 31.0 - cached);
    assert_eq!(sample(&text, "vllm:request_success_total", "finished_reason=\"length\""), 4.0);
    assert_eq!(sample(&text, "vllm:request_success_total", "finished_reason=\"abort\""), 0.0);
    assert_eq!(sample(&text, "http_requests_total", "handler=\"/v1/completions\""), 2.0);
    for (name, count) in [
        ("time_to_first_token_seconds", 4.0),
        ("e2e_request_latency_seconds", 4.0),
        ("request_queue_time_seconds", 4.0),
        ("request_prefill_time_seconds", 4.0),
        ("request_decode_time_seconds", 4.0),
        ("request_inference_time_seconds", 4.0),
        ("request_prompt_tokens", 4.0),
        ("request_generation_tokens", 4.0),
        ("request_max_num_generation_tokens", 2.0),
        ("request_params_n", 2.0),
        ("request_params_max_tokens", 2.0),
    ] {
        assert_eq!(value(&format!("vllm:{name}_count")), count, "{name}");
    }
}

#[tokio::test]
async fn rejections_are_counted_by_their_limit() {
    let server = Setup { max_waiting: 1, max_num_seqs: 1, ..slow() }.start().await;
    let mut sockets = vec![send(&server, &endless(true)).await];
    running(&server, 1).await;
    sockets.push(send(&server, &endless(true)).await);
    while server.llm.engine().stats().waiting == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(server.post(PATH, endless(false)).await.status, 429);
    let text = server.get("/metrics").await.text();
    assert_eq!(sample(&text, "vllm:admission_rejections_total", "reason=\"max_num_queued_reqs\""), 1.0);
    assert_eq!(sample(&text, "vllm:admission_rejections_total", "reason=\"max_num_queued_tokens\""), 0.0);
    drop(sockets);
}

#[tokio::test]
async fn both_text_formats_are_well_formed() {
    let server = Server::start().await;
    let plain = server.get("/metrics").await;
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let accept = [("accept", "application/openmetrics-text; version=1.0.0, text/plain; q=0.5")];
    let open = http::request(server.address, "GET", "/metrics", &accept, b"").await;
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(open.text().ends_with("# EOF\n") && !plain.text().contains("# EOF"));
    for (text, suffix) in [(plain.text(), ""), (open.text(), "_total")] {
        // Every sample belongs to the family declared before it, and no family comes twice.
        let (mut families, mut family) = (BTreeSet::new(), String::new());
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').unwrap();
                family = if kind == "counter" { format!("{name}{suffix}") } else { name.to_owned() };
                assert!(families.insert(family.clone()), "{name} is declared twice");
            } else if !line.starts_with('#') {
                let name = &line[..line.find('{').unwrap()];
                let rest = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} in {family}"));
                assert!(["", "_bucket", "_sum", "_count"].contains(&rest), "{line} in {family}");
            }
        }
    }
}

/// Every metric that the dashboard asks for exists.
#[tokio::test]
async fn the_dashboard_asks_for_what_there_is() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/grafana.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let server = Server::start().await;
    server.ok(PATH, json!({"prompt": "abc", "max_tokens": 4})).await;
    let text = server.get("/metrics").await.text();
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split_once('{').map(|(name, _)| name)).collect();
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            for word in words.filter(|word| word.starts_with("vllm:") || word.starts_with("process_")) {
                assert!(names.contains(word), "{}: {word}", panel["title"]);
                asked.insert(word.to_owned());
            }
        }
    }
    assert!(asked.len() > 15, "{asked:?}");
}
