//! OpenAI's Responses API: `POST /v1/responses`. A request is turned into a chat request (`request`), runs like one, and
//! leaves as a response object, whole or built up by events (`stream`). Nothing is stored: a conversation is what the
//! client sends.

mod request;
mod stream;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::Response;
use serde_json::{Value, json};

use super::body;
use super::calls::{Called, Message, Reader, call_id};
use super::error::{ApiError, json as answer};
use super::middleware::RequestId;
use super::run::Running;
use super::script;
use super::state::AppState;
use super::traces::Origin;
use super::validate::{self, chat};
use crate::engine::FinishReason;
use crate::llm::Finish;
pub(crate) use request::ResponsesRequest;

/// Handles one request.
pub(crate) async fn handle(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let config = &state.config;
    let (raw, _) = body::read::<ResponsesRequest>(request, config.max_body_size, config.read_timeout).await?;
    let shared = state.clone();
    // Tools and formats may need a grammar.
    let (chat, echo) = validate::off_loop(usize::MAX, move || {
        let (raw, echo) = request::as_chat(raw)?;
        Ok((chat::chat(&shared, raw).map_err(request::renamed)?, echo))
    })
    .await?;
    let params = &chat.request.params;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let shown = validate::request_id(&id, chat.request_id)?;
    let mut frame = Frame { id: shown.to_string(), created, model: chat.model, fields: echo };
    frame.fields["temperature"] = json!(params.temperature);
    frame.fields["top_p"] = json!(params.top_p);
    let origin = Origin::new(arrival, frame.id.clone(), &id);
    let running = Running::start(&state, vec![chat.request], origin)?;
    let reader = Reader::new(&chat.meaning);
    if chat.form.stream {
        let script = stream::Events::new(state.clone(), frame, chat.meaning);
        return Ok(script::play(running, reader, script, config.keep_alive));
    }
    let (message, finish) = script::whole(running, reader, || call_id(&chat.meaning.plan)).await?;
    let usage = usage(&state, &finish, &message.reasoning);
    let output = items(&frame.id, &message, finish.reason != FinishReason::Length);
    Ok(answer(&frame.response(Some(&finish), output, usage)))
}

/// What all forms of one response have in common.
struct Frame {
    id: String,
    created: u64,
    model: String,
    /// Fields that repeat the request.
    fields: Value,
}

impl Frame {
    /// The response object; without `finish` it is under way.
    fn response(&self, finish: Option<&Finish>, output: Vec<Value>, usage: Value) -> Value {
        let (status, details) = match finish.map(|finish| finish.reason) {
            None => ("in_progress", Value::Null),
            Some(FinishReason::Length) => ("incomplete", json!({"reason": "max_output_tokens"})),
            Some(_) => ("completed", Value::Null),
        };
        let mut response = json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": details,
            "model": self.model,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": usage,
        });
        if let (Value::Object(response), Value::Object(fields)) = (&mut response, &self.fields) {
            response.extend(fields.clone());
        }
        response
    }
}

fn usage(state: &AppState, finish: &Finish, reasoning: &str) -> Value {
    let tokenizer = state.llm.tokenizer().filter(|_| !reasoning.is_empty());
    let thought = tokenizer.and_then(|tokenizer| tokenizer.encode(reasoning, false).ok()).map_or(0, |ids| ids.len());
    json!({
        "input_tokens": finish.prompt_tokens,
        "input_tokens_details": {"cached_tokens": finish.cached_tokens},
        "output_tokens": finish.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought.min(finish.completion_tokens)},
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    })
}

/// The output of a whole message: reasoning, text, calls.
fn items(id: &str, message: &Message, complete: bool) -> Vec<Value> {
    let mut items = Vec::new();
    if !message.reasoning.is_empty() {
        items.push(reasoning_item(id, &message.reasoning, complete));
    }
    if !message.content.is_empty() || message.calls.is_empty() {
        items.push(message_item(id, &message.content, complete));
    }
    items.extend(message.calls.iter().map(|call| call_item(call, complete)));
    items
}

fn status(complete: bool) -> &'static str {
    if complete { "completed" } else { "incomplete" }
}

fn reasoning_item(id: &str, text: &str, complete: bool) -> Value {
    let content = json!([{"type": "reasoning_text", "text": text}]);
    json!({"type": "reasoning", "id": format!("rs_{id}"), "summary": [], "content": content, "encrypted_content": null,
           "status": status(complete)})
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message_item(id: &str, text: &str, complete: bool) -> Value {
    json!({"type": "message", "id": format!("msg_{id}"), "status": status(complete), "role": "assistant",
           "content": [text_part(text)]})
}

fn call_item(call: &Called, complete: bool) -> Value {
    json!({"type": "function_call", "id": format!("fc_{}", call.id), "call_id": call.id, "name": call.name,
           "arguments": call.arguments, "status": status(complete)})
}
