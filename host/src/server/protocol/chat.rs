//! `/v1/chat/completions`: request and answers. Messages stay JSON objects: the chat template reads them, and
//! what a message may contain is checked in `validate::messages`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::common::{Int, Num, OneOrMany, StopCause, StreamOptions, TokenId};
use super::fields::{RawRequest, Unsupported};
use super::sampling::{is_empty, raw_request, unsupported};

raw_request! {
    /// A chat completion request as sent.
    ChatRequest {
        messages: Vec<Map<String, Value>>,
        logprobs: Option<bool>,
        top_logprobs: Option<Int>,
        max_completion_tokens: Option<Int>,
        add_generation_prompt: Option<bool>,
        continue_final_message: Option<bool>,
        chat_template: Option<String>,
        chat_template_kwargs: Option<Map<String, Value>>,
        documents: Option<Vec<Map<String, Value>>>,
    }
}

/// Fields of the chat API that this server does not support.
const UNSUPPORTED: [Unsupported; 43] = unsupported([
    Unsupported::unless("tools", is_empty),
    Unsupported::unless("tool_choice", |v| v.as_str() == Some("none")),
    Unsupported::unless("functions", is_empty),
    Unsupported::unless("function_call", |v| v.as_str() == Some("none")),
    Unsupported::unless("parallel_tool_calls", Value::is_boolean),
    Unsupported::always("reasoning_effort"),
    Unsupported::unless("include_reasoning", |v| v == &Value::Bool(true)),
    Unsupported::unless("modalities", |v| v.as_array().is_some_and(|a| a.iter().all(|m| m.as_str() == Some("text")))),
    Unsupported::always("audio"),
    Unsupported::always("prediction"),
    Unsupported::unless("verbosity", |v| v.as_str() == Some("medium")),
    Unsupported::always("web_search_options"),
    Unsupported::unless("mm_processor_kwargs", is_empty),
    Unsupported::unless("return_prompt_text", |v| v == &Value::Bool(false)),
    Unsupported::unless("return_assistant_tokens_mask", |v| v == &Value::Bool(false)),
]);

impl RawRequest for ChatRequest {
    const UNSUPPORTED: &'static [Unsupported] = &UNSUPPORTED;
}

/// One alternative token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChatTopLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Option<Vec<u8>>,
}

/// One generated token's log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ChatLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) top_logprobs: Vec<ChatTopLogprob>,
}

/// `logprobs` of a choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatLogprob>,
}

/// The assistant's message. The fields that are always null are there because vLLM sends them.
#[derive(Debug, Serialize)]
pub(crate) struct ChatMessage<'a> {
    pub(crate) role: &'static str,
    pub(crate) content: &'a str,
    pub(crate) refusal: Option<()>,
    pub(crate) annotations: Option<()>,
    pub(crate) audio: Option<()>,
    pub(crate) function_call: Option<()>,
    pub(crate) reasoning: Option<()>,
}

impl<'a> ChatMessage<'a> {
    pub(crate) fn assistant(content: &'a str) -> Self {
        Self {
            role: "assistant",
            content,
            refusal: None,
            annotations: None,
            audio: None,
            function_call: None,
            reasoning: None,
        }
    }
}

/// One choice of a whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice<'a> {
    pub(crate) index: usize,
    pub(crate) message: ChatMessage<'a>,
    pub(crate) logprobs: Option<&'a ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<&'a [u32]>,
}

/// What is new of a message.
#[derive(Debug, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a str>,
}

/// One choice in a stream.
#[derive(Debug, Serialize)]
pub(crate) struct ChatDeltaChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: Delta<'a>,
    pub(crate) logprobs: Option<&'a ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<&'a [u32]>,
}
