//! Prometheus metrics under vLLM's names, so that dashboards and autoscalers made for it work. Counters of the
//! engine are read when scraped (`engine`); timings are observed as answers pass through ([`Tracker`]). It decides nothing.

mod engine;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::error::ApiError;
use super::state::AppState;
use super::traces::{Ending, Origin};
use crate::engine::{FinishReason, SubmitError};
use crate::llm::{Finish, Llm};

use engine::{EngineCollector, ProcessCollector};

const TTFT_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    handler: String,
    method: &'static str,
    status: &'static str,
}

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    success: Family<Reason, Counter>,
    rejections: Family<Rejection, Counter>,
    handled: Family<Handled, Counter>,
    first_token: Histogram,
    inter_token: Histogram,
    per_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    max_generation_tokens: Histogram,
    computed_tokens: Histogram,
    params_n: Histogram,
    params_max_tokens: Histogram,
}

impl Metrics {
    /// Registers everything, labelled with the model's (first served) name.
    pub(crate) fn new(llm: &Llm) -> Self {
        let info = llm.info();
        let model = info.served_names.first().unwrap_or(&info.name).clone();
        let labels = [("model_name", model), ("engine", String::from("0"))];
        let mut registry = Registry::with_labels(labels.into_iter().map(|(k, v)| (Cow::Borrowed(k), Cow::Owned(v))));
        let mut histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            registry.register(format!("vllm:{name}"), help, histogram.clone());
            histogram
        };
        let lengths = one_two_five(info.max_model_len);
        let mut metrics = Self {
            first_token: histogram(
                "time_to_first_token_seconds",
                "Time from arrival to the first token",
                &TTFT_BUCKETS,
            ),
            inter_token: histogram("inter_token_latency_seconds", "Time between tokens of a request", &TOKEN_BUCKETS),
            per_token: histogram("request_time_per_output_token_seconds", "A request's mean", &TOKEN_BUCKETS),
            e2e: histogram("e2e_request_latency_seconds", "Time from arrival to the last token", &REQUEST_BUCKETS),
            queue: histogram("request_queue_time_seconds", "Time before the first step", &REQUEST_BUCKETS),
            inference: histogram("request_inference_time_seconds", "From first step to last token", &REQUEST_BUCKETS),
            prefill: histogram("request_prefill_time_seconds", "From first step to first token", &REQUEST_BUCKETS),
            decode: histogram("request_decode_time_seconds", "From first token to last token", &REQUEST_BUCKETS),
            prompt_tokens: histogram("request_prompt_tokens", "Prompt tokens of a request", &lengths),
            generation_tokens: histogram("request_generation_tokens", "Output tokens of a request", &lengths),
            max_generation_tokens: histogram(
                "request_max_num_generation_tokens",
                "Output tokens of a request's longest choice",
                &lengths,
            ),
            computed_tokens: histogram(
                "request_prefill_kv_computed_tokens",
                "Prompt tokens of a request that the prefix cache did not have",
                &lengths,
            ),
            params_n: histogram("request_params_n", "The parameter n", &[1.0, 2.0, 5.0, 10.0, 20.0]),
            params_max_tokens: histogram("request_params_max_tokens", "The parameter max_tokens", &lengths),
            success: Family::default(),
            rejections: Family::default(),
            handled: Family::default(),
            registry: Registry::default(),
        };
        registry.register("vllm:request_success", "Requests that ended, by reason", metrics.success.clone());
        for finished_reason in ["stop", "length", "abort", "error"] {
            drop(metrics.success.get_or_create(&Reason { finished_reason }));
        }
        registry.register(
            "vllm:admission_rejections",
            "Requests refused because too much waits, by the limit",
            metrics.rejections.clone(),
        );
        for reason in ["max_num_queued_reqs", "max_num_queued_tokens"] {
            drop(metrics.rejections.get_or_create(&Rejection { reason }));
        }
        registry.register("http_requests", "Answers by route, method and class of status", metrics.handled.clone());
        registry.register_collector(Box::new(EngineCollector(llm.clone())));
        registry.register_collector(Box::new(ProcessCollector::new()));
        metrics.registry = registry;
        metrics
    }

    /// The answer to a scrape: OpenMetrics to whom asks for it, else the older text format that vLLM gives.
    pub(crate) fn scrape(&self, headers: &HeaderMap) -> Response {
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            return ApiError::internal("the metrics could not be written").into_response();
        }
        let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accepts.contains("application/openmetrics-text") {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            return ([(header::CONTENT_TYPE, kind)], text).into_response();
        }
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], plain(&text)).into_response()
    }

    /// A request was refused for want of room.
    pub(crate) fn rejected(&self, error: &SubmitError) {
        let reason = match error {
            SubmitError::QueueFull { .. } => "max_num_queued_reqs",
            SubmitError::TokensQueued { .. } => "max_num_queued_tokens",
            _ => return,
        };
        self.rejections.get_or_create(&Rejection { reason }).inc();
    }

    /// A request was taken.
    pub(crate) fn taken(&self, n: usize, max_tokens: Option<usize>) {
        self.params_n.observe(n as f64);
        if let Some(max_tokens) = max_tokens {
            self.params_max_tokens.observe(max_tokens as f64);
        }
    }

    /// All choices of a request are complete; the longest has `tokens`.
    pub(crate) fn longest(&self, tokens: usize) {
        self.max_generation_tokens.observe(tokens as f64);
    }

    /// An answer began.
    pub(crate) fn handled(&self, handler: String, method: &Method, status: StatusCode) {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let status = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.handled.get_or_create(&Handled { handler, method, status }).inc();
    }

    fn ended(&self, finished_reason: &'static str) {
        self.success.get_or_create(&Reason { finished_reason }).inc();
    }
}

/// OpenMetrics made Prometheus' text format 0.0.4: counters are declared with their suffix, and there is no end mark.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(&name) => {
                out.push_str(&format!("# {kind} {name}_total {rest}"));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// 1, 2, 5, 10, 20, … up to `max` (vLLM's buckets for token counts).
fn one_two_five(max: usize) -> Vec<f64> {
    let max = max as f64;
    let decades = (0..12).map(|exponent| 10f64.powi(exponent));
    decades.flat_map(|ten| [1.0, 2.0, 5.0].map(|m| m * ten)).take_while(|&value| value <= max).collect()
}

/// Follows one choice of one request through its answer. A tracker that is dropped before
/// [`Tracker::finish`] counts as aborted: the client left.
#[derive(Debug)]
pub(crate) struct Tracker {
    state: Arc<AppState>,
    origin: Arc<Origin>,
    last: Option<Instant>,
    ended: bool,
}

impl Tracker {
    pub(crate) fn new(state: &Arc<AppState>, origin: &Arc<Origin>) -> Self {
        Self { state: state.clone(), origin: origin.clone(), last: None, ended: false }
    }

    fn trace(&self, ending: Ending<'_>) {
        if let Some(traces) = &self.state.config.traces {
            let info = self.state.llm.info();
            traces.record(info.served_names.first().unwrap_or(&info.name), &self.origin, ending);
        }
    }

    /// `tokens` new tokens are there.
    pub(crate) fn tokens(&mut self, tokens: usize) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        let metrics = &self.state.metrics;
        match self.last.replace(now) {
            None => metrics.first_token.observe((now - self.origin.arrival).as_secs_f64()),
            Some(last) => metrics.inter_token.observe((now - last).as_secs_f64() / tokens as f64),
        }
    }

    /// The choice is complete.
    pub(crate) fn finish(&mut self, finish: &Finish) {
        self.ended = true;
        self.trace(Ending::Complete(finish));
        let Finish { reason, prompt_tokens: prompt, completion_tokens: generated, timings, .. } = finish;
        let (prompt, generated) = (*prompt, *generated);
        let metrics = &self.state.metrics;
        metrics.ended(reason.as_str());
        metrics.prompt_tokens.observe(prompt as f64);
        metrics.generation_tokens.observe(generated as f64);
        metrics.computed_tokens.observe(prompt.saturating_sub(finish.cached_tokens) as f64);
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        metrics.e2e.observe(seconds(timings.arrival, timings.finished));
        let Some(scheduled) = timings.first_scheduled else {
            return;
        };
        metrics.queue.observe(seconds(timings.arrival, scheduled));
        metrics.inference.observe(seconds(scheduled, timings.finished));
        let Some(first) = timings.first_token else {
            return;
        };
        metrics.prefill.observe(seconds(scheduled, first));
        metrics.decode.observe(seconds(first, timings.finished));
        if generated > 1 {
            metrics.per_token.observe(seconds(first, timings.finished) / (generated - 1) as f64);
        }
    }

    /// The engine failed on the request; counts unless the choice was complete already.
    pub(crate) fn fail(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.state.metrics.ended("error");
            self.trace(Ending::Failed);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if !self.ended {
            self.state.metrics.ended(FinishReason::Abort.as_str());
            self.trace(Ending::Left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{one_two_five, plain};

    #[test]
    fn the_older_format_declares_counters_with_their_suffix() {
        let text = "# HELP a Some.\n# TYPE a counter\na_total 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n# EOF\n";
        let expected =
            "# HELP a_total Some.\n# TYPE a_total counter\na_total 1\n# HELP b Other.\n# TYPE b gauge\nb 2\n";
        assert_eq!(plain(text), expected);
    }

    #[test]
    fn token_buckets_end_at_the_context_length() {
        assert_eq!(one_two_five(60), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(one_two_five(1), [1.0]);
    }
}
