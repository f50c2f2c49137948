//! Chat requests: messages through the model's chat template into a prompt, and the sampling parameters.
//! Called by the chat handler, and for templates by `/tokenize`.

use serde_json::{Map, Value};

use super::sampling::{self, Form, Truncation};
use super::{formats, messages, structured, tools};
use crate::llm::{GenerateRequest, Prompt};
use crate::server::error::ApiError;
use crate::server::parsers::Plan;
use crate::server::protocol::chat::ChatRequest;
use crate::server::protocol::common::Int;
use crate::server::state::AppState;
use crate::text::ChatTemplate;

/// A chat request in range.
pub(crate) struct Chat {
    /// The name to answer with.
    pub(crate) model: String,
    pub(crate) request: GenerateRequest,
    /// With `echo`: what the answer begins with.
    pub(crate) echo: Option<String>,
    /// What its text means.
    pub(crate) meaning: Meaning,
    /// How many alternatives `logprobs` shows.
    pub(crate) logprobs: Option<usize>,
    pub(crate) form: Form,
    pub(crate) request_id: Option<String>,
}

/// What an answer's text means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meaning {
    pub(crate) plan: Plan,
    /// Reasoning is part of the answer.
    pub(crate) reasoning: bool,
    /// Only the first call counts.
    pub(crate) single: bool,
}

/// Checks a chat request.
pub(crate) fn chat(state: &AppState, mut raw: ChatRequest) -> Result<Chat, ApiError> {
    let mut shared = raw.take_shared();
    let model = super::model(state, shared.model.as_deref())?;
    super::pooling::generates(state)?;
    let form = sampling::form(&shared)?;
    let mut params = sampling::params(state, &mut shared)?;
    let structure = structured::asked(&mut shared)?;
    let format = formats::tools(state, raw.chat_template.as_deref());
    let offer =
        tools::offer(raw.tools.take(), raw.tool_choice.take(), raw.parallel_tool_calls, format, structure.is_some())?;
    let top = raw.top_logprobs.map_or(0, |Int(top)| top);
    params.logprobs = match (raw.logprobs.unwrap_or(false), top) {
        (true, top) => Some(top),
        (false, 0) => None,
        (false, _) => {
            return Err(ApiError::field("top_logprobs", "goes with logprobs: true; set logprobs to true"));
        }
    };
    if form.stream && params.prompt_logprobs.is_some() {
        return Err(ApiError::field("prompt_logprobs", "is not available with stream: true; set stream to false"));
    }
    if params.n > state.config.max_choices {
        let message = format!("must be at most {}, got {}; send several requests", state.config.max_choices, params.n);
        return Err(ApiError::field("n", message));
    }
    let (name, asked) = match raw.max_completion_tokens {
        Some(value) => ("max_completion_tokens", Some(value)),
        None => ("max_tokens", shared.max_tokens),
    };
    let asked = asked.map(|value| sampling::count(name, value)).transpose()?.map(|asked| (name, asked));
    params.max_tokens = asked.map(|(_, asked)| asked);
    super::check_params(state, &params)
        .map_err(|error| rename(rename(error, "max_tokens", name), "logprobs", "top_logprobs"))?;

    let structure = match (structure, offer.structure) {
        (None, Some(structure)) => Some(structured::Asked { structure, field: "tools" }),
        (asked, _) => asked,
    };
    params.grammar = structure.map(|asked| structured::compile(state, &asked)).transpose()?;
    let truncation = Truncation::new(&shared, state.llm.info().max_model_len)?;
    let mut template = Template { tools: offer.tools, ..Template::of(&raw) };
    template = template.with_effort(raw.reasoning_effort)?;
    let own_template = template.chat_template.clone();
    let Rendered { text, last } = template.render(state, raw.messages)?;
    let reasoning = formats::reasoning(state, own_template.as_deref(), &text);
    let plan = Plan { reasoning, tools: offer.calls, schemas: offer.schemas };
    let meaning = Meaning { plan, reasoning: raw.include_reasoning.unwrap_or(true), single: offer.single };
    formats::adjust(state, &meaning, &mut params)?;
    let tokenizer = super::tokenizer(state, "chat")?;
    let mut tokens = tokenizer
        .encode(&text, shared.add_special_tokens.unwrap_or(false))
        .map_err(|e| ApiError::field("messages", e.to_string()))?;
    if let Some(truncation) = truncation {
        truncation.apply(&mut tokens);
    }
    let default = state.llm.default_params().max_tokens;
    let max_tokens =
        sampling::max_tokens(state, tokens.len(), asked, default).map_err(|error| match error.param.as_deref() {
            Some("prompt") => ApiError { param: Some("messages".into()), ..error },
            _ => error,
        })?;
    params.max_tokens = Some(max_tokens);
    params.min_tokens = params.min_tokens.min(max_tokens);
    let all = state.llm.info().vocab_size;
    let logprobs = match params.logprob_token_ids.len() {
        0 => params.logprobs.map(|top| usize::try_from(top).unwrap_or(all)),
        asked => params.logprobs.map(|_| asked),
    };
    let echo = (shared.echo.unwrap_or(false) && last.role == "assistant").then_some(last.content);
    let priority = sampling::priority(&shared)?;
    let request = GenerateRequest { prompt: Prompt::Tokens(tokens), params, priority };
    Ok(Chat { model, request, echo, meaning, logprobs, form, request_id: shared.request_id })
}

/// `reasoning_effort` is the template's business; with "none" the model is not to think, in the terms of most templates.
fn with_effort(mut kwargs: Map<String, Value>, effort: Option<String>) -> Result<Map<String, Value>, ApiError> {
    const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    let Some(effort) = effort else {
        return Ok(kwargs);
    };
    if !EFFORTS.contains(&effort.as_str()) {
        let shown: String = effort.chars().take(40).collect();
        let message = format!("expected one of {}, got {shown:?}", EFFORTS.join(", "));
        return Err(ApiError::field("reasoning_effort", message));
    }
    kwargs.entry("enable_thinking").or_insert(Value::Bool(effort != "none"));
    kwargs.insert("reasoning_effort".into(), Value::String(effort));
    Ok(kwargs)
}

/// The range check knows one name for a field; the request may have used another.
fn rename(error: ApiError, from: &str, to: &str) -> ApiError {
    if error.param.as_deref() != Some(from) || from == to {
        return error;
    }
    ApiError { param: Some(to.to_owned()), message: error.message.replacen(from, to, 1), ..error }
}

/// How messages become text.
pub(crate) struct Template {
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: bool,
    pub(crate) chat_template: Option<String>,
    pub(crate) kwargs: Map<String, Value>,
    pub(crate) documents: Option<Vec<Map<String, Value>>>,
    pub(crate) tools: Option<Value>,
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
pub const RESERVED: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

impl Template {
    /// With `reasoning_effort` among the names that the template knows.
    pub(crate) fn with_effort(self, effort: Option<String>) -> Result<Self, ApiError> {
        Ok(Self { kwargs: with_effort(self.kwargs, effort)?, ..self })
    }

    /// What a chat request asks of the template, for those who want the prompt alone.
    pub(crate) fn of(raw: &ChatRequest) -> Self {
        Self {
            add_generation_prompt: raw.add_generation_prompt,
            continue_final_message: raw.continue_final_message.unwrap_or(false),
            chat_template: raw.chat_template.clone(),
            kwargs: raw.chat_template_kwargs.clone().unwrap_or_default(),
            documents: raw.documents.clone(),
            tools: raw.tools.clone().filter(|tools| !tools.is_empty()).map(Value::Array),
        }
    }

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
        for (name, value) in &state.config.chat_template_kwargs {
            self.kwargs.entry(name).or_insert_with(|| value.clone());
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
                own = ChatTemplate::new(&source, tokenizer.special_tokens().clone());
                own.source(false).map_err(|e| ApiError::field("chat_template", e.to_string()))?;
                &own
            }
            None => tokenizer.chat_template().ok_or_else(|| {
                ApiError::bad_request(
                    "this model has no chat template; use /v1/completions, or start the server with --chat-template FILE",
                )
            })?,
        };
        let mut text = template
            .render(&messages, add_generation_prompt, self.tools.as_ref(), &self.kwargs)
            .map_err(|e| ApiError::field("messages", e.to_string()))?;
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
        let cut =
            |rendered: &str, content| end_of_final_message(rendered, content).map(|end| rendered[..end].to_owned());
        assert_eq!(cut("<a>yes</a><a>yes</a>", "yes").unwrap(), "<a>yes</a><a>yes");
        assert_eq!(cut("<a> one two </a>", " one two ").unwrap(), "<a> one two ");
        assert_eq!(cut("<a>one two</a>", " one two ").unwrap(), "<a>one two");
        assert!(cut("<a></a>", " ").is_err());
        assert!(cut("<a>x</a>", "y").is_err());
    }
}
