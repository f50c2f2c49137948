//! `/tokenize` and `/detokenize`. Text in, ids out, and back; no generation.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;

use super::body;
use super::error::{ApiError, json};
use super::protocol::tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use super::state::AppState;
use super::validate::{self, chat::Template};

/// `POST /tokenize`.
pub(crate) async fn tokenize(State(state): State<Arc<AppState>>, request: Request<Body>) -> Result<Response, ApiError> {
    let (raw, size) =
        body::read::<TokenizeRequest>(request, state.config.max_body_size, state.config.read_timeout).await?;
    validate::model(&state, raw.model.as_deref())?;
    validate::off_loop(size, move || {
        let tokenizer = validate::tokenizer(&state, "tokenize")?;
        let (text, add_special_tokens) = match (raw.prompt, raw.messages) {
            (Some(prompt), None) => {
                let chat_only = [
                    ("add_generation_prompt", raw.add_generation_prompt.is_some()),
                    ("continue_final_message", raw.continue_final_message.is_some()),
                    ("chat_template", raw.chat_template.is_some()),
                    ("chat_template_kwargs", raw.chat_template_kwargs.is_some()),
                    ("tools", raw.tools.is_some()),
                ];
                if let Some((name, _)) = chat_only.into_iter().find(|(_, given)| *given) {
                    return Err(ApiError::field(name, "goes with messages, not with prompt; leave it out"));
                }
                (prompt, raw.add_special_tokens.unwrap_or(true))
            }
            (None, Some(messages)) => {
                validate::tools::check_all(raw.tools.as_deref().unwrap_or_default())?;
                let template = Template {
                    add_generation_prompt: raw.add_generation_prompt,
                    continue_final_message: raw.continue_final_message.unwrap_or(false),
                    chat_template: raw.chat_template,
                    kwargs: raw.chat_template_kwargs.unwrap_or_default(),
                    documents: None,
                    tools: raw.tools.filter(|tools| !tools.is_empty()).map(serde_json::Value::Array),
                };
                (template.render(&state, messages)?.text, raw.add_special_tokens.unwrap_or(false))
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request("send either prompt or messages, not both"));
            }
            (None, None) => {
                return Err(ApiError::field("prompt", "is missing; send prompt (text) or messages (chat)"));
            }
        };
        let tokens = tokenizer.encode(&text, add_special_tokens).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let strings = || tokens.iter().map(|&id| tokenizer.token_text(id)).collect();
        Ok(json(&TokenizeResponse {
            count: tokens.len(),
            max_model_len: state.llm.info().max_model_len,
            token_strs: raw.return_token_strs.unwrap_or(false).then(strings),
            tokens,
        }))
    })
    .await
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (raw, size) =
        body::read::<DetokenizeRequest>(request, state.config.max_body_size, state.config.read_timeout).await?;
    validate::model(&state, raw.model.as_deref())?;
    validate::off_loop(size, move || {
        let tokenizer = validate::tokenizer(&state, "detokenize")?;
        let tokens: Vec<u32> = raw.tokens.iter().map(|token| token.0).collect();
        validate::token_ids("tokens", &tokens, state.llm.info().input_vocab_size)?;
        // vLLM shows special tokens here.
        let prompt = tokenizer.decode(&tokens, false).map_err(|e| ApiError::bad_request(e.to_string()))?;
        Ok(json(&DetokenizeResponse { prompt }))
    })
    .await
}
