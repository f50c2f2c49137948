//! HTTP: the OpenAI-compatible API in front of [`crate::llm`]. Requests come in as raw protocol types
//! (`protocol`), are checked into work (`validate`), run as generations, and leave as JSON or server-sent events
//! (`answer`). What is not supported is refused by name; nothing is ignored. It never tokenises on the
//! event loop's time for long, never touches the engine's thread, and holds no state beyond metrics: dropping a
//! connection drops its generations. Called by `cli` through [`serve`].

mod answer;
mod anthropic;
mod body;
mod calls;
mod chat;
mod completions;
mod config;
mod cors;
mod error;
mod info;
mod listen;
mod logprobs;
mod metrics;
mod middleware;
mod openapi;
mod page;
mod parsers;
mod pooling;
mod protocol;
mod render;
mod responses;
mod run;
mod script;
mod serve;
mod stall;
mod state;
#[cfg(test)]
mod tests;
mod tls;
mod tokenize;
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "what a span would say is asked for by nobody then"))]
mod traces;
mod validate;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

pub use config::{FormatChoice, ServerConfig};
pub use cors::{CorsConfig, CorsError};
pub use error::ApiError;
#[cfg(unix)]
pub use listen::UnixSocket;
pub use listen::{Listener, Socket};
pub use middleware::random_key;
pub use parsers::{ReasoningFormat, ToolFormat};
pub use serve::{ServerError, serve};
pub use tls::{TlsError, TlsFiles};
pub use traces::{Traces, TracesError};
pub use validate::chat::RESERVED as RESERVED_KWARGS;

use state::AppState;

/// All routes and what surrounds them.
fn router(state: Arc<AppState>) -> Result<Router, CorsError> {
    let router = Router::new()
        .route("/v1/completions", post(completions::handle))
        .route("/v1/completions/render", post(render::completions))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/chat/completions/render", post(render::chats))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/responses", post(responses::handle))
        .route("/v1/embeddings", post(pooling::embeddings))
        .route("/v1/score", post(pooling::scores))
        .route("/score", post(pooling::scores))
        .route("/v1/rerank", post(pooling::reranking))
        .route("/v2/rerank", post(pooling::reranking))
        .route("/rerank", post(pooling::reranking))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*name}", get(info::model))
        .route("/", get(page::page))
        .route("/health", get(info::health))
        .route("/health/ready", get(info::ready))
        .route("/ping", get(info::health).post(info::health))
        .route("/load", get(info::load))
        .route("/version", get(info::version))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi::handle))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(middleware::not_found)
        .method_not_allowed_fallback(middleware::wrong_method)
        // `body` has its own limit, with its own message.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(state.clone(), middleware::authorize))
        .layer(CatchPanicLayer::custom(middleware::panicked));
    // Outside the keys: a browser's preflight carries none.
    let router = match state.config.cors.layer()? {
        Some(layer) => router.layer(layer),
        None => router,
    };
    let router =
        router.layer(axum::middleware::from_fn_with_state(state.clone(), middleware::observe)).with_state(state);
    Ok(router)
}
