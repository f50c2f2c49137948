//! What the server says about itself: models, health, version, metrics. Reads only.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::{ApiError, json as answer};
use super::state::{AppState, Phase};
use super::validate;
use crate::engine::EngineState;

/// `GET /v1/models`.
pub(crate) async fn models(State(state): State<Arc<AppState>>) -> Response {
    let names = validate::served_names(&state);
    let data: Vec<Value> = names.iter().map(|name| describe(&state, name)).collect();
    answer(&json!({"object": "list", "data": data}))
}

/// `GET /v1/models/NAME`.
pub(crate) async fn model(State(state): State<Arc<AppState>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    validate::model(&state, Some(&name))?;
    Ok(answer(&describe(&state, &name)))
}

fn describe(state: &AppState, name: &str) -> Value {
    let info = state.llm.info();
    json!({
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "host",
        "root": info.name,
        "parent": null,
        "max_model_len": info.max_model_len,
        "permission": [],
        "host": {
            "version": env!("CARGO_PKG_VERSION"),
            "plugin": info.plugin,
            "plugin_version": info.plugin_version,
            "model_impl": info.model_impl,
            "transformers": info.transformers,
            "runner": if info.pooler.is_some() { "pooling" } else { "generate" },
            "executor": info.executor,
            "architecture": info.architecture,
            "dtype": info.dtype,
            "vocab_size": info.vocab_size,
            "tokenizer": state.llm.tokenizer().is_some(),
        },
    })
}

/// What keeps the engine from moving, if anything does. Load is no trouble: the longest step is one token budget of
/// prefill, and only a step that takes much longer counts as a hang.
fn trouble(state: &AppState) -> Option<&'static str> {
    let stats = state.llm.engine().stats();
    if state.phase() != Phase::Serving {
        Some("shutting down")
    } else if stats.state != EngineState::Running {
        Some("the engine takes no more requests")
    } else if stats.busy && stats.since_heartbeat > state.config.hang_timeout {
        Some("the engine hangs")
    } else {
        None
    }
}

fn probe(trouble: Option<&str>) -> Response {
    match trouble {
        None => answer(&json!({"status": "ok"})),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, answer(&json!({"status": trouble}))).into_response(),
    }
}

/// `GET /health`: whether requests are taken and the engine moves.
pub(crate) async fn health(State(state): State<Arc<AppState>>) -> Response {
    probe(trouble(&state))
}

/// `GET /health/ready`: whether a request sent now would be taken. A full queue says no, so that a load balancer
/// turns to others.
pub(crate) async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let engine = state.llm.engine();
    let full = engine.stats().waiting >= engine.config().max_waiting;
    probe(trouble(&state).or_else(|| full.then_some("the queue is full")))
}

/// `GET /load`: requests that are being answered, under vLLM's name.
pub(crate) async fn load(State(state): State<Arc<AppState>>) -> Response {
    answer(&json!({"server_load": state.load.now()}))
}

/// `GET /version`.
pub(crate) async fn version() -> Response {
    answer(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    state.metrics.scrape(&headers)
}
