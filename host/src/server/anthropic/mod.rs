//! Anthropic's Messages API: `POST /v1/messages` and `/v1/messages/count_tokens`. A request is turned into a chat request
//! (`request`), runs like one, and leaves in Anthropic's form, whole or streamed (`stream`). Errors too have its form.

mod request;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::body;
use super::calls::{Message, Reader, call_id};
use super::error::{ApiError, json as answer};
use super::middleware::RequestId;
use super::run::Running;
use super::script;
use super::state::AppState;
use super::traces::Origin;
use super::validate::{self, chat};
use crate::engine::FinishReason;
use crate::llm::{Finish, StopReason};
pub(crate) use request::{CountRequest, MessagesRequest};

/// An error in Anthropic's form.
pub(crate) struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

fn error_body(error: &ApiError) -> Value {
    let kind = match error.status.as_u16() {
        400 | 408 | 413 | 415 => "invalid_request_error",
        401 => "authentication_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = error_body(&self.0);
        let (mut parts, _) = self.0.into_response().into_parts();
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        (parts.status, parts.headers, Json(body)).into_response()
    }
}

/// `POST /v1/messages`.
pub(crate) async fn messages(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let arrival = Instant::now();
    let config = &state.config;
    let (raw, _) = body::read::<MessagesRequest>(request, config.max_body_size, config.read_timeout).await?;
    let shared = state.clone();
    // Tools may need a grammar.
    let chat =
        validate::off_loop(usize::MAX, move || chat::chat(&shared, request::as_chat(raw)?).map_err(request::renamed))
            .await?;
    let origin = Origin::new(arrival, format!("msg_{}", id.text), &id);
    let id = origin.id.clone();
    let running = Running::start(&state, vec![chat.request], origin)?;
    let reader = Reader::new(&chat.meaning);
    let prompt = running.prompts.concat().len();
    if chat.form.stream {
        let script = stream::Events::new(id, chat.model, prompt, chat.meaning);
        return Ok(script::play(running, reader, script, config.keep_alive));
    }
    let (message, finish) = script::whole(running, reader, || call_id(&chat.meaning.plan)).await?;
    let (reason, sequence) = stop(&finish, !message.calls.is_empty());
    Ok(answer(&json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": chat.model,
        "content": blocks(message),
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens),
    })))
}

/// `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let config = &state.config;
    let (raw, size) = body::read::<CountRequest>(request, config.max_body_size, config.read_timeout).await?;
    let count = validate::off_loop(size, move || {
        let raw = request::as_chat(raw.into())?;
        validate::model(&state, raw.model.as_deref())?;
        validate::tools::check_all(raw.tools.as_deref().unwrap_or_default())?;
        let tokenizer = validate::tokenizer(&state, "counting tokens")?;
        let template = chat::Template::of(&raw).with_effort(raw.reasoning_effort).map_err(request::renamed)?;
        let text = template.render(&state, raw.messages)?.text;
        tokenizer.encode(&text, false).map_err(|error| ApiError::field("messages", error.to_string()))
    });
    Ok(answer(&json!({"input_tokens": count.await?.len()})))
}

fn usage(prompt: usize, cached: usize, output: usize) -> Value {
    json!({
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": output,
    })
}

/// Why it ended: the reason, and the stop sequence.
fn stop(finish: &Finish, called: bool) -> (&'static str, Option<&str>) {
    match (finish.reason, &finish.stop_reason) {
        (FinishReason::Length, _) => ("max_tokens", None),
        (_, Some(StopReason::Text(text))) => ("stop_sequence", Some(text)),
        _ if called => ("tool_use", None),
        _ => ("end_turn", None),
    }
}

fn blocks(message: Message) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !message.reasoning.is_empty() {
        blocks.push(json!({"type": "thinking", "thinking": message.reasoning, "signature": ""}));
    }
    if !message.content.is_empty() || message.calls.is_empty() {
        blocks.push(json!({"type": "text", "text": message.content}));
    }
    for call in message.calls {
        // What a model wrote is JSON as a rule; what is not is shown as it is.
        let input = serde_json::from_str(&call.arguments).unwrap_or(json!({"_text": call.arguments}));
        blocks.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    blocks
}
