//! `POST /v1/completions/render` and `POST /v1/chat/completions/render`: what a request would make the engine do,
//! without doing it. The answer has vLLM's form: token ids of the prompt and sampling parameters. Routers use it to
//! look at prompts before they choose a server, and people to see what a chat template made of their messages.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::body;
use super::error::{ApiError, json as answer};
use super::middleware::RequestId;
use super::protocol::chat::ChatRequest;
use super::protocol::completion::CompletionRequest;
use super::state::AppState;
use super::validate::sampling::Form;
use super::validate::{self, chat, completion};
use crate::llm::{GenerateRequest, Prompt, RequestParams};

/// Handles a completion request: a list, since it may have several prompts.
pub(crate) async fn completions(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let config = &state.config;
    let (raw, _) = body::read::<CompletionRequest>(request, config.max_body_size, config.read_timeout).await?;
    let shared = state.clone();
    let work = validate::off_loop(usize::MAX, move || completion::completion(&shared, raw)).await?;
    let id = validate::request_id(&id, work.request_id)?;
    let all = work.requests.iter().map(|request| rendered("cmpl", &id, &work.model, request, &work.form));
    Ok(answer(&all.collect::<Vec<_>>()))
}

/// Handles a chat request.
pub(crate) async fn chats(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let config = &state.config;
    let (raw, _) = body::read::<ChatRequest>(request, config.max_body_size, config.read_timeout).await?;
    let shared = state.clone();
    let work = validate::off_loop(usize::MAX, move || chat::chat(&shared, raw)).await?;
    let id = validate::request_id(&id, work.request_id)?;
    Ok(answer(&rendered("chatcmpl", &id, &work.model, &work.request, &work.form)))
}

fn rendered(prefix: &str, id: &str, model: &str, request: &GenerateRequest, form: &Form) -> Value {
    let tokens = match &request.prompt {
        Prompt::Tokens(tokens) => tokens.as_slice(),
        Prompt::Text(_) => &[],
    };
    json!({
        "request_id": format!("{prefix}-{id}"),
        "token_ids": tokens,
        "features": null,
        "sampling_params": parameters(&request.params),
        "model": model,
        "stream": form.stream,
        "stream_options": form.stream.then(|| json!({"include_usage": form.include_usage,
                                                     "continuous_usage_stats": form.continuous_usage})),
        "cache_salt": null,
        "priority": request.priority,
    })
}

/// vLLM's `SamplingParams`, as far as they exist here.
fn parameters(params: &RequestParams) -> Value {
    let bias: Map<String, Value> = params.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
    json!({
        "n": params.n,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "seed": params.seed,
        "stop": params.stop,
        "stop_token_ids": params.stop_token_ids,
        "include_stop_str_in_output": params.include_stop_str_in_output,
        "ignore_eos": params.ignore_eos,
        "bad_words": params.bad_words,
        "allowed_token_ids": params.allowed_token_ids,
        "logit_bias": (!bias.is_empty()).then_some(bias),
        "logprobs": params.logprobs,
        "logprob_token_ids": (!params.logprob_token_ids.is_empty()).then_some(&params.logprob_token_ids),
        "prompt_logprobs": params.prompt_logprobs,
        "skip_special_tokens": params.skip_special_tokens,
        "spaces_between_special_tokens": params.spaces_between_special_tokens,
    })
}
