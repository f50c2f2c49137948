//! Which format the model's text has: what the operator said, else what the chat template shows; and what that asks of
//! the generation. Called for chats.

use crate::llm::RequestParams;
use crate::server::config::FormatChoice;
use crate::server::error::ApiError;
use crate::server::parsers::{ReasoningFormat, ToolFormat, Tools};
use crate::server::state::AppState;
use crate::text::Tokenizer;

use super::chat::Meaning;

/// The template that tells: the request's own, else the model's.
fn template<'a>(state: &'a AppState, own: Option<&'a str>, with_tools: bool) -> Option<&'a str> {
    own.or_else(|| state.llm.tokenizer()?.chat_template()?.source(with_tools).ok())
}

/// How the model writes tool calls, if that is known.
pub(crate) fn tools(state: &AppState, own_template: Option<&str>) -> Option<ToolFormat> {
    match &state.config.tool_call_parser {
        FormatChoice::Is(format) => Some(*format),
        FormatChoice::Off => None,
        FormatChoice::Auto => ToolFormat::of_template(template(state, own_template, true)?),
    }
}

/// How the answer to `prompt` marks reasoning, if it will, and whether the prompt has begun it.
pub(crate) fn reasoning(state: &AppState, own_template: Option<&str>, prompt: &str) -> Option<(ReasoningFormat, bool)> {
    let format = match &state.config.reasoning_parser {
        FormatChoice::Is(format) => format.clone(),
        FormatChoice::Off => return None,
        FormatChoice::Auto => ReasoningFormat::of_template(template(state, own_template, false)?)?,
    };
    let (start, end) = format.tags();
    let prompt = prompt.trim_end();
    // A template that has closed it already wants none.
    if format != ReasoningFormat::Harmony && prompt.ends_with(end) {
        return None;
    }
    let begun = prompt.ends_with(start);
    Some((format, begun))
}

/// What looking for all that asks of the generation: tokens that must be seen, and where a grammar begins.
pub(crate) fn adjust(state: &AppState, meaning: &Meaning, params: &mut RequestParams) -> Result<(), ApiError> {
    let Some(tokenizer) = state.llm.tokenizer() else {
        return Ok(());
    };
    let special = |mark: &str| tokenizer.token_id(mark).is_some_and(|id| tokenizer.is_special(id));
    let tools: &[&str] = match &meaning.plan.tools {
        Tools::Auto(format) => format.marks(),
        _ => &[],
    };
    let tags = match &meaning.plan.reasoning {
        Some((ReasoningFormat::Harmony, _)) => ["<|channel|>", "<|message|>"].to_vec(),
        Some((format, _)) => vec![format.tags().0, format.tags().1],
        None => Vec::new(),
    };
    if tools.iter().chain(&tags).any(|mark| special(mark)) {
        params.skip_special_tokens = false;
    }
    if let (Some(grammar), Some((format, begun))) = (&params.grammar, &meaning.plan.reasoning) {
        let behind = match format {
            ReasoningFormat::Harmony => "<|channel|>final<|message|>",
            // Reasoning that nobody will see is not waited for, nor reasoning that may never come.
            _ if !meaning.reasoning || !(*begun || format.is_from_the_start()) => return Ok(()),
            _ => format.tags().1,
        };
        params.grammar = Some(grammar.after(&encode(tokenizer, behind)?));
    }
    Ok(())
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, ApiError> {
    tokenizer.encode(text, false).map_err(|error| ApiError::internal(error.to_string()))
}
