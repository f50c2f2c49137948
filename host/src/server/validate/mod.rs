//! From a raw request to work. Raw types (`protocol`) hold what was sent; what leaves here is of another type, in
//! range, with every default filled in, so that no handler checks anything again. It runs nothing.
//! Defaults: request, then the model's generation_config.json, then vLLM's.

pub(crate) mod chat;
pub(crate) mod completion;
pub(crate) mod formats;
pub(crate) mod messages;
pub(crate) mod pooling;
pub(crate) mod sampling;
pub(crate) mod structured;
pub(crate) mod tools;

use std::sync::Arc;

use axum::http::StatusCode;

use super::error::ApiError;
use super::middleware::RequestId;
use super::state::AppState;
use crate::llm::RequestParams;
use crate::text::Tokenizer;

/// The names under which the model is served.
pub(crate) fn served_names(state: &AppState) -> &[String] {
    let info = state.llm.info();
    if info.served_names.is_empty() { std::slice::from_ref(&info.name) } else { &info.served_names }
}

/// Checks `model` and gives the name to answer with.
pub(crate) fn model(state: &AppState, asked: Option<&str>) -> Result<String, ApiError> {
    let names = served_names(state);
    let Some(asked) = asked else {
        return Ok(names.first().cloned().unwrap_or_default());
    };
    if names.iter().any(|name| name == asked) {
        return Ok(asked.to_owned());
    }
    let shown: String = asked.chars().take(200).collect();
    let message = format!("The model `{shown}` does not exist; this server has: {}", names.join(", "));
    Err(ApiError { param: Some("model".into()), ..ApiError::new(StatusCode::NOT_FOUND, message) })
}

/// The tokenizer, or why `what` cannot be done without one.
pub(crate) fn tokenizer<'a>(state: &'a AppState, what: &str) -> Result<&'a Tokenizer, ApiError> {
    state.llm.tokenizer().map(Arc::as_ref).ok_or_else(|| {
        ApiError::bad_request(format!(
            "{what} needs a tokenizer, and this model was loaded without one; send prompt as token ids to \
             /v1/completions, or put tokenizer.json into the model's folder"
        ))
    })
}

/// Every id must be in the vocabulary.
pub(crate) fn token_ids(field: &str, ids: &[u32], vocab_size: usize) -> Result<(), ApiError> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(at) => {
            let message = format!("token id {} is out of range; the model has {vocab_size} tokens, from 0", ids[at]);
            Err(ApiError::field(format!("{field}[{at}]"), message))
        }
    }
}

/// Ranges of the sampling parameters.
pub(crate) fn check_params(state: &AppState, params: &RequestParams) -> Result<(), ApiError> {
    params.validate(state.llm.info()).map_err(|error| ApiError::field(error.field, error.message))
}

/// The id to answer with: the header's, else the body's `request_id`, else the fresh one that the header step made.
pub(crate) fn request_id(of_header: &RequestId, of_body: Option<String>) -> Result<Arc<str>, ApiError> {
    match of_body {
        Some(id) if !of_header.given => match RequestId::from_client(&id) {
            Some(id) => Ok(id.text),
            None => Err(ApiError::field("request_id", "must be 1 to 128 letters, digits or any of -_.:/+=")),
        },
        _ => Ok(of_header.text.clone()),
    }
}

/// Bodies up to this size are tokenised where they are: that takes less time than another thread's attention.
const SMALL: usize = 4 << 10;

/// Runs work that takes long for long inputs (templates, tokenising) where it holds no other request up.
pub(crate) async fn off_loop<T: Send + 'static>(
    body_size: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body_size <= SMALL {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Let the panic layer report it like any other.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ApiError::unavailable("the server is shutting down")),
    }
}
