//! What the server says about itself: models, health, version, metrics. Reads only.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::{ApiError, json as answer};
use super::state::{AppState, Phase};
use super::validate;
use crate::engine::EngineState;

/// A step that takes longer than this is a hang, not load: the longest step is one token budget of prefill.
const HANG: Duration = Duration::from_secs(120);

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
            "executor": info.executor,
            "architecture": info.architecture,
            "dtype": info.dtype,
            "vocab_size": info.vocab_size,
            "tokenizer": state.llm.tokenizer().is_some(),
        },
    })
}

/// `GET /health`: whether requests are taken and the engine moves.
pub(crate) async fn health(State(state): State<Arc<AppState>>) -> Response {
    let stats = state.llm.engine().stats();
    let trouble = if state.phase() != Phase::Serving {
        Some("shutting down")
    } else if stats.state != EngineState::Running {
        Some("the engine takes no more requests")
    } else if stats.busy && stats.since_heartbeat > HANG {
        Some("the engine hangs")
    } else {
        None
    };
    match trouble {
        None => answer(&json!({"status": "ok"})),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, answer(&json!({"status": trouble}))).into_response(),
    }
}

/// `GET /version`.
pub(crate) async fn version() -> Response {
    answer(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    state.metrics.scrape()
}
