//! Traces of requests for OpenTelemetry: one span `llm_request` for each choice, with vLLM's attributes, when it has ended.
//! What a span says is decided here; making and sending it is [`otlp`]'s, or nobody's in a build without that feature.
//! Nothing here waits, and nothing that goes wrong concerns the request. Called by `metrics::Tracker` and `middleware`.

#[cfg(feature = "otlp")]
mod otlp;
#[cfg(not(feature = "otlp"))]
mod without;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::middleware::RequestId;
use crate::llm::{Finish, GenerateRequest};

#[cfg(feature = "otlp")]
pub(crate) use otlp::Parent;
#[cfg(feature = "otlp")]
pub use otlp::Traces;
#[cfg(not(feature = "otlp"))]
pub(crate) use without::Parent;
#[cfg(not(feature = "otlp"))]
pub use without::Traces;

/// How long the end of the server waits for spans to be sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// This build cannot.
    #[error("this build has no traces; build it with --features otlp (it is among the default features)")]
    NotBuilt,
    /// Not an address of a collector.
    #[error("{endpoint}: {message}; expected the address of a collector, such as http://localhost:4318/v1/traces")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong.
        message: String,
    },
    /// Another protocol is asked for.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL is {0}; only http/protobuf is spoken, which collectors take on port 4318")]
    Protocol(String),
    /// The exporter cannot start.
    #[error("{0}")]
    Start(String),
}

/// What a span tells of a request besides how it went.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// When the request came.
    pub(crate) arrival: Instant,
    /// The answer's id.
    pub(crate) id: String,
    /// The span of the caller.
    pub(crate) parent: Parent,
    pub(crate) n: usize,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
}

impl Origin {
    /// A request that generates nothing, until [`Origin::with`] says what it generates.
    pub(crate) fn new(arrival: Instant, id: String, request: &RequestId) -> Self {
        Self { arrival, id, parent: request.parent.clone(), n: 1, max_tokens: None, temperature: 0.0, top_p: 0.0 }
    }

    /// The same with a generation's parameters.
    pub(crate) fn with(mut self, request: Option<&GenerateRequest>) -> Arc<Self> {
        if let Some(params) = request.map(|request| &request.params) {
            (self.n, self.max_tokens) = (params.n, params.max_tokens);
            (self.temperature, self.top_p) = (params.temperature, params.top_p);
        }
        Arc::new(self)
    }
}

/// How a choice ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ending<'a> {
    /// It is complete.
    Complete(&'a Finish),
    /// The engine failed.
    Failed,
    /// The client left, or the server had to stop.
    Left,
}

/// A span's attribute.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Count(i64),
    Number(f64),
    Words(Vec<&'static str>),
}

/// vLLM's attributes; times are in seconds.
fn attributes(model: &str, origin: &Origin, ending: Ending<'_>) -> Vec<(&'static str, Value)> {
    let count = |count: usize| Value::Count(i64::try_from(count).unwrap_or(i64::MAX));
    let seconds = |from: Instant, to: Instant| Value::Number(to.saturating_duration_since(from).as_secs_f64());
    let mut all = vec![
        ("gen_ai.request.id", Value::Text(origin.id.clone())),
        ("gen_ai.response.model", Value::Text(model.to_owned())),
        ("gen_ai.request.n", count(origin.n)),
    ];
    if origin.temperature > 0.0 {
        all.push(("gen_ai.request.temperature", Value::Number(f64::from(origin.temperature))));
    }
    if origin.top_p > 0.0 {
        all.push(("gen_ai.request.top_p", Value::Number(f64::from(origin.top_p))));
    }
    if let Some(max_tokens) = origin.max_tokens {
        all.push(("gen_ai.request.max_tokens", count(max_tokens)));
    }
    let finish = match ending {
        Ending::Complete(finish) => finish,
        Ending::Failed | Ending::Left => {
            let reason = if matches!(ending, Ending::Failed) { "error" } else { "abort" };
            all.push(("gen_ai.response.finish_reasons", Value::Words(vec![reason])));
            all.push(("gen_ai.latency.e2e", seconds(origin.arrival, Instant::now())));
            return all;
        }
    };
    let timings = &finish.timings;
    all.extend([
        ("gen_ai.response.finish_reasons", Value::Words(vec![finish.reason.as_str()])),
        ("gen_ai.usage.prompt_tokens", count(finish.prompt_tokens)),
        ("gen_ai.usage.completion_tokens", count(finish.completion_tokens)),
        ("gen_ai.latency.e2e", seconds(origin.arrival, timings.finished)),
    ]);
    if let Some(scheduled) = timings.first_scheduled {
        all.push(("gen_ai.latency.time_in_queue", seconds(timings.arrival, scheduled)));
        all.push(("gen_ai.latency.time_in_model_inference", seconds(scheduled, timings.finished)));
        if let Some(first) = timings.first_token {
            all.push(("gen_ai.latency.time_in_model_prefill", seconds(scheduled, first)));
            all.push(("gen_ai.latency.time_in_model_decode", seconds(first, timings.finished)));
        }
    }
    if let Some(first) = timings.first_token {
        all.push(("gen_ai.latency.time_to_first_token", seconds(origin.arrival, first)));
    }
    all
}
