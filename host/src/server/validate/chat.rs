//! Chat requests: messages through the model's chat template into a prompt, and the sampling parameters.
//! Called by the chat handler, and for templates by `/tokenize`.

use serde_json::{Map, Value};

use super::messages;
use crate::server::error::ApiError;
use crate::server::state::AppState;

/// How messages become text.
pub(crate) struct Template {
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: bool,
    pub(crate) chat_template: Option<String>,
    pub(crate) kwargs: Map<String, Value>,
    pub(crate) documents: Option<Vec<Map<String, Value>>>,
}

/// A rendered chat.
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// The last message, as the answer continues or echoes it.
    pub(crate) last: Last,
}

/// The last message of a chat.
pub(crate) struct Last {
    pub(crate) role: String,
    pub(crate) content: String,
}

/// Names that a template gets from the server itself.
const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

impl Template {
    /// Checks the messages and renders them.
    pub(crate) fn render(mut self, state: &AppState, raw: Vec<Map<String, Value>>) -> Result<Rendered, ApiError> {
        let tokenizer = super::tokenizer(state, "chat")?;
        let messages = messages::normalise(raw)?;
        let add_generation_prompt = match (self.add_generation_prompt, self.continue_final_message) {
            (Some(true), true) => {
                let message = "cannot be true together with add_generation_prompt; set one of them to false";
                return Err(ApiError::field("continue_final_message", message));
            }
            (asked, continues) => asked.unwrap_or(!continues),
        };
        if let Some(name) = RESERVED.iter().find(|name| self.kwargs.contains_key(**name)) {
            let path = format!("chat_template_kwargs.{name}");
            return Err(ApiError::field(path, "is set by the server; use the request's own field"));
        }
        if let Some(documents) = self.documents.take() {
            let documents = documents.into_iter().map(Value::Object).collect();
            self.kwargs.insert("documents".into(), Value::Array(documents));
        }
        let own;
        let template = match self.chat_template {
            Some(_) if !state.config.trust_request_chat_template => {
                let message = "this server does not take chat templates from requests; leave it out, or start the \
                               server with --trust-request-chat-template";
                return Err(ApiError::field("chat_template", message));
            }
            Some(source) => {
                own = tokenizer
                    .compile_chat_template(&source)
                    .map_err(|e| ApiError::field("chat_template", e.to_string()))?;
                &own
            }
            None => tokenizer.chat_template().ok_or_else(|| {
                ApiError::bad_request(
                    "this model has no chat template; use /v1/completions, or start the server with --chat-template FILE",
                )
            })?,
        };
        let mut text = template
            .render(&messages, add_generation_prompt, None, &self.kwargs)
            .map_err(|e| ApiError::field("messages", format!("the chat template refused them: {e}")))?;
        let field = |name| messages.last().and_then(|m| m.get(name)).and_then(Value::as_str).unwrap_or_default();
        let last = Last { role: field("role").to_owned(), content: field("content").to_owned() };
        if self.continue_final_message {
            text.truncate(end_of_final_message(&text, &last.content)?);
        }
        Ok(Rendered { text, last })
    }
}

/// Where the final message's text ends in the rendered chat, so that the model goes on right behind it. As in
/// transformers: a template that trims messages gets the trimmed text looked for.
fn end_of_final_message(rendered: &str, content: &str) -> Result<usize, ApiError> {
    let missing = || {
        let message = "the final message does not appear in the rendered chat, so it cannot be continued; \
                       set it to false, or make the message's content non-empty plain text";
        ApiError::field("continue_final_message", message)
    };
    let trimmed = content.trim();
    let start = if trimmed.is_empty() { None } else { rendered.rfind(trimmed) }.ok_or_else(missing)?;
    let untrimmed_end = content.trim_start();
    Ok(start + if rendered[start..].starts_with(untrimmed_end) { untrimmed_end.len() } else { trimmed.len() })
}

#[cfg(test)]
mod tests {
    use super::end_of_final_message;

    #[test]
    fn the_final_message_is_cut_behind_its_text() {
        let cut = |rendered: &str, content| end_of_final_message(rendered, content).map(|end| rendered[..end].to_owned());
        assert_eq!(cut("<a>yes</a><a>yes</a>", "yes").unwrap(), "<a>yes</a><a>yes");
        assert_eq!(cut("<a> one two </a>", " one two ").unwrap(), "<a> one two ");
        assert_eq!(cut("<a>one two</a>", " one two ").unwrap(), "<a>one two");
        assert!(cut("<a></a>", " ").is_err());
        assert!(cut("<a>x</a>", "y").is_err());
    }
}
