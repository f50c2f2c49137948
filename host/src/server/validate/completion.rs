//! Completion requests: prompts to token ids, and parameters in range. Called by the completions handler.

use super::sampling::{self, Form, Truncation};
use super::structured;
use crate::llm::{GenerateRequest, Prompt};
use crate::server::error::ApiError;
use crate::server::protocol::common::Int;
use crate::server::protocol::completion::{CompletionRequest, RawPrompt};
use crate::server::state::AppState;

/// vLLM's default for completions.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A completion request in range.
pub(crate) struct Completion {
    /// The name to answer with.
    pub(crate) model: String,
    /// One a prompt.
    pub(crate) requests: Vec<GenerateRequest>,
    /// With `echo`: the prompts' texts.
    pub(crate) echo: Option<Vec<String>>,
    /// Echo only: `max_tokens` was 0.
    pub(crate) echo_only: bool,
    /// Whether the answer has `logprobs`.
    pub(crate) logprobs: bool,
    pub(crate) form: Form,
    pub(crate) request_id: Option<String>,
}

/// Checks a completion request.
pub(crate) fn completion(state: &AppState, mut raw: CompletionRequest) -> Result<Completion, ApiError> {
    let mut shared = raw.take_shared();
    let model = super::model(state, shared.model.as_deref())?;
    super::pooling::generates(state)?;
    let form = sampling::form(&shared)?;
    let mut params = sampling::params(state, &mut shared)?;
    params.logprobs = raw.logprobs.map(|Int(count)| count);
    let structure = structured::asked(&mut shared)?;
    if form.stream && params.prompt_logprobs.is_some() {
        return Err(ApiError::field("prompt_logprobs", "is not available with stream: true; set stream to false"));
    }
    let echoed = shared.echo.unwrap_or(false);
    let asked = shared.max_tokens.map(|value| sampling::count("max_tokens", value)).transpose()?;
    let echo_only = echoed && asked == Some(0);
    // Log-probabilities of the prompt come out of the step that makes the first token: one is generated, not shown.
    let asked = if echo_only { Some(1) } else { asked }.map(|asked| ("max_tokens", asked));
    if echoed && params.prompt_logprobs.is_none() {
        params.prompt_logprobs = params.logprobs;
    }
    if form.stream && echoed && params.n > 1 && params.logprobs.is_some() {
        // The first choice alone reports on the prompt, and the others may come before it.
        let message =
            "more than one choice with echo and logprobs is not available with stream: true; set stream to false";
        return Err(ApiError::field("n", message));
    }
    let prompts = raw.prompt.map(|prompts| prompts.0).unwrap_or_default();
    if prompts.is_empty() {
        return Err(ApiError::field("prompt", "is missing or empty; send a text, token ids, or a list of either"));
    }
    // Ranges first: an absurd max_tokens should not be reported as a prompt that is too long.
    params.max_tokens = Some(asked.map_or(DEFAULT_MAX_TOKENS, |(_, asked)| asked));
    super::check_params(state, &params)?;
    let (choices, limit) = (prompts.len().saturating_mul(params.n), state.config.max_choices);
    if choices > limit {
        let message = format!(
            "{} prompts times n = {} make {choices} choices, the limit is {limit}; send several requests, or raise the \
             server's --max-choices",
            prompts.len(),
            params.n
        );
        return Err(ApiError::field("prompt", message));
    }

    params.grammar = structure.map(|asked| structured::compile(state, &asked)).transpose()?;
    let truncation = Truncation::new(&shared, state.llm.info().max_model_len)?;
    let priority = sampling::priority(&shared)?;
    let mut echo = echoed.then(Vec::new);
    let mut requests = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.into_iter().enumerate() {
        let (mut tokens, text) = tokens(state, i, prompt, shared.add_special_tokens.unwrap_or(true))?;
        if let Some(truncation) = truncation {
            truncation.apply(&mut tokens);
        }
        if let Some(echo) = &mut echo {
            echo.push(match (text, truncation, state.llm.tokenizer()) {
                (Some(text), None, _) => text,
                (_, _, Some(tokenizer)) => {
                    tokenizer.decode(&tokens, false).map_err(|e| ApiError::field("prompt", e.to_string()))?
                }
                (_, _, None) => String::new(),
            });
        }
        let mut params = params.clone();
        params.max_tokens = Some(sampling::max_tokens(state, tokens.len(), asked, Some(DEFAULT_MAX_TOKENS))?);
        params.min_tokens = params.min_tokens.min(params.max_tokens.unwrap_or(usize::MAX));
        requests.push(GenerateRequest { prompt: Prompt::Tokens(tokens), params, priority });
    }
    let (request_id, logprobs) = (shared.request_id, params.logprobs.is_some());
    Ok(Completion { model, requests, echo, echo_only, logprobs, form, request_id })
}

/// A prompt's ids, and its text if that is what was sent.
fn tokens(
    state: &AppState,
    index: usize,
    prompt: RawPrompt,
    add_special_tokens: bool,
) -> Result<(Vec<u32>, Option<String>), ApiError> {
    let field = format!("prompt[{index}]");
    match prompt {
        RawPrompt::Text(text) => {
            let tokenizer = super::tokenizer(state, "a text prompt")?;
            let tokens =
                tokenizer.encode(&text, add_special_tokens).map_err(|e| ApiError::field(field, e.to_string()))?;
            Ok((tokens, Some(text)))
        }
        RawPrompt::Tokens(tokens) => {
            super::token_ids(&field, &tokens, state.llm.info().input_vocab_size)?;
            Ok((tokens, None))
        }
    }
}
