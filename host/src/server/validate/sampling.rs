//! The fields that completions and chat share, turned into [`RequestParams`]: types narrowed, defaults filled in
//! (request, then generation_config.json, then vLLM's). The ranges themselves are `RequestParams::validate`'s.

use crate::llm::RequestParams;
use crate::server::error::ApiError;
use crate::server::protocol::common::{Int, Num, StreamOptions, TokenId};
use crate::server::protocol::sampling::Shared;
use crate::server::state::AppState;

/// What concerns the answer's form rather than the generation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Form {
    /// Server-sent events instead of one JSON object.
    pub(crate) stream: bool,
    /// Usage in a last chunk of its own.
    pub(crate) include_usage: bool,
    /// Usage so far in every chunk.
    pub(crate) continuous_usage: bool,
    /// `token_ids` and `prompt_token_ids` in the answer.
    pub(crate) return_token_ids: bool,
    /// Tokens in logprobs as `token_id:N`.
    pub(crate) tokens_as_ids: bool,
    /// `prompt_logprobs` in the answer.
    pub(crate) prompt_logprobs: bool,
}

/// How a prompt that is too long is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Truncation {
    keep: usize,
    left: bool,
}

impl Truncation {
    /// `truncate_prompt_tokens` and `truncation_side`; -1 keeps as much as the context holds.
    pub(crate) fn new(shared: &Shared, max_model_len: usize) -> Result<Option<Self>, ApiError> {
        let (keep, side) = (shared.truncate_prompt_tokens, shared.truncation_side.as_deref());
        Self::of(keep, side, max_model_len.saturating_sub(1), max_model_len)
    }

    /// The same; `most` tokens are what the context holds of a prompt.
    pub(crate) fn of(
        keep: Option<Int>,
        side: Option<&str>,
        most: usize,
        max_model_len: usize,
    ) -> Result<Option<Self>, ApiError> {
        let left = match side {
            None | Some("left") => true,
            Some("right") => false,
            Some(other) => {
                let message = format!("expected \"left\" or \"right\", got {other:?}");
                return Err(ApiError::field("truncation_side", message));
            }
        };
        let keep = match keep {
            None => return Ok(None),
            Some(Int(-1)) => most,
            Some(Int(n)) if n >= 1 && n as u64 <= max_model_len as u64 => n as usize,
            Some(Int(n)) => {
                let message = format!("must be -1 or from 1 to the context length of {max_model_len}, got {n}");
                return Err(ApiError::field("truncate_prompt_tokens", message));
            }
        };
        Ok(Some(Self { keep, left }))
    }

    /// Cuts `tokens` if it is longer than what is kept.
    pub(crate) fn apply(self, tokens: &mut Vec<u32>) {
        let excess = tokens.len().saturating_sub(self.keep);
        if self.left {
            tokens.drain(..excess);
        } else {
            tokens.truncate(self.keep);
        }
    }
}

/// An integer that must not be negative. Larger than `usize` cannot happen on 64-bit machines.
pub(crate) fn count(name: &str, value: Int) -> Result<usize, ApiError> {
    usize::try_from(value.0).map_err(|_| ApiError::field(name, format!("must not be negative, got {}", value.0)))
}

/// The form of the answer, as far as both APIs share it.
pub(crate) fn form(shared: &Shared) -> Result<Form, ApiError> {
    let stream = shared.stream.unwrap_or(false);
    if shared.stream_options.is_some() && !stream {
        return Err(ApiError::field(
            "stream_options",
            "goes with stream: true only; leave it out or set stream to true",
        ));
    }
    let StreamOptions { include_usage, continuous_usage_stats } = shared.stream_options.unwrap_or_default();
    let include_usage = include_usage.unwrap_or(false);
    Ok(Form {
        stream,
        include_usage,
        // As with vLLM: without include_usage it has no effect.
        continuous_usage: include_usage && continuous_usage_stats.unwrap_or(false),
        return_token_ids: shared.return_token_ids.unwrap_or(false),
        tokens_as_ids: shared.return_tokens_as_token_ids.unwrap_or(false),
        prompt_logprobs: shared.prompt_logprobs.is_some(),
    })
}

/// The sampling parameters. `max_tokens`, and what `logprobs` means, differ between the APIs: the caller sets them.
pub(crate) fn params(state: &AppState, shared: &mut Shared) -> Result<RequestParams, ApiError> {
    let f32 = |value: Option<Num>| value.map(|Num(value)| value as f32);
    let ids = |ids: Vec<TokenId>| ids.into_iter().map(|TokenId(id)| id).collect::<Vec<_>>();
    let mut params = state.llm.default_params();
    if let Some(n) = shared.n {
        params.n = count("n", n)?;
    }
    params.temperature = f32(shared.temperature).unwrap_or(params.temperature);
    params.top_p = f32(shared.top_p).unwrap_or(params.top_p);
    params.top_k = shared.top_k.map_or(params.top_k, |Int(top_k)| top_k);
    params.min_p = f32(shared.min_p).unwrap_or(params.min_p);
    params.repetition_penalty = f32(shared.repetition_penalty).unwrap_or(params.repetition_penalty);
    params.presence_penalty = f32(shared.presence_penalty).unwrap_or(params.presence_penalty);
    params.frequency_penalty = f32(shared.frequency_penalty).unwrap_or(params.frequency_penalty);
    params.logit_bias = logit_bias(shared)?;
    params.seed = shared.seed.map(|Int(seed)| seed);
    params.stop = shared.stop.take().unwrap_or_default().0;
    params.stop_token_ids = ids(shared.stop_token_ids.take().unwrap_or_default());
    params.include_stop_str_in_output = shared.include_stop_str_in_output.unwrap_or(false);
    params.ignore_eos = shared.ignore_eos.unwrap_or(false);
    if let Some(min_tokens) = shared.min_tokens {
        params.min_tokens = count("min_tokens", min_tokens)?;
    }
    params.bad_words = shared.bad_words.take().unwrap_or_default();
    params.allowed_token_ids = shared.allowed_token_ids.take().map(ids);
    params.skip_special_tokens = shared.skip_special_tokens.unwrap_or(true);
    params.spaces_between_special_tokens = shared.spaces_between_special_tokens.unwrap_or(true);
    params.logprob_token_ids = ids(shared.logprob_token_ids.take().unwrap_or_default());
    params.prompt_logprobs = shared.prompt_logprobs.map(|Int(count)| count);
    if state.llm.tokenizer().is_none() {
        for (name, given) in [("stop", !params.stop.is_empty()), ("bad_words", !params.bad_words.is_empty())] {
            if given {
                let message =
                    "needs a tokenizer, and this model was loaded without one; use stop_token_ids or logit_bias";
                return Err(ApiError::field(name, message));
            }
        }
    }
    Ok(params)
}

/// Keys are token ids written as strings.
fn logit_bias(shared: &mut Shared) -> Result<Vec<(u32, f32)>, ApiError> {
    let all = shared.logit_bias.take().unwrap_or_default();
    let one = |(key, Num(bias)): (String, Num)| {
        let id = key.parse().map_err(|_| {
            let shown: String = key.chars().take(40).collect();
            ApiError::field("logit_bias", format!("{shown:?} is not a token id; write ids as strings, such as \"42\""))
        })?;
        Ok((id, bias as f32))
    };
    all.into_iter().map(one).collect()
}

/// `priority`: lower runs first.
pub(crate) fn priority(shared: &Shared) -> Result<i32, ApiError> {
    priority_of(shared.priority)
}

/// The same where it stands alone.
pub(crate) fn priority_of(priority: Option<Int>) -> Result<i32, ApiError> {
    let Int(priority) = priority.unwrap_or(Int(0));
    i32::try_from(priority).map_err(|_| {
        let message = format!("must be from {} to {}, got {priority}", i32::MIN, i32::MAX);
        ApiError::field("priority", message)
    })
}

/// Checks a prompt against the context and settles how much may be generated. `field` is the name under which the
/// request gave the limit, if it did; `default` applies otherwise, and `None` there fills the context.
pub(crate) fn max_tokens(
    state: &AppState,
    prompt: usize,
    asked: Option<(&'static str, usize)>,
    default: Option<usize>,
) -> Result<usize, ApiError> {
    let limit = state.llm.info().max_model_len;
    if prompt == 0 {
        return Err(ApiError::field("prompt", "is empty; it must have at least one token"));
    }
    if prompt >= limit {
        let message = format!(
            "This model's maximum context length is {limit} tokens, and the prompt has {prompt} tokens, which leaves no \
             room for output. Shorten the prompt, or set truncate_prompt_tokens"
        );
        return Err(ApiError { param: Some("prompt".into()), ..ApiError::bad_request(message) });
    }
    let room = limit - prompt;
    match asked {
        Some((field, asked)) if asked > room => {
            let message = format!(
                "This model's maximum context length is {limit} tokens. You asked for {asked} output tokens ({field}) and \
                 the prompt has {prompt} tokens. Shorten the prompt, or set {field} to at most {room}"
            );
            Err(ApiError { param: Some(field.into()), ..ApiError::bad_request(message) })
        }
        Some((_, asked)) => Ok(asked),
        None => {
            // A KV cache smaller than the context bounds what a default may ask for.
            let cache = state.llm.engine().max_request_tokens().saturating_sub(prompt).max(1);
            Ok(default.unwrap_or(room).min(room).min(cache))
        }
    }
}
