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
        tools: Option<Vec<Value>>,
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        reasoning_effort: Option<String>,
        include_reasoning: Option<bool>,
    }
}

/// Fields of the chat API that this server does not support.
const UNSUPPORTED: [Unsupported; 39] = unsupported([
    Unsupported::unless("functions", is_empty),
    Unsupported::unless("function_call", |v| v.as_str() == Some("none")),
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
    pub(crate) content: Option<&'a str>,
    pub(crate) refusal: Option<()>,
    pub(crate) annotations: Option<()>,
    pub(crate) audio: Option<()>,
    pub(crate) function_call: Option<()>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) tool_calls: &'a [ToolCall],
    pub(crate) reasoning: Option<&'a str>,
    /// The older name for the same, which many clients read; only there if there is reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
}

impl<'a> ChatMessage<'a> {
    pub(crate) fn assistant(content: Option<&'a str>, reasoning: Option<&'a str>, tool_calls: &'a [ToolCall]) -> Self {
        Self {
            role: "assistant",
            content,
            refusal: None,
            annotations: None,
            audio: None,
            function_call: None,
            tool_calls,
            reasoning,
            reasoning_content: reasoning,
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

/// A call of a tool; in a stream, what is new of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ToolCall {
    /// Its place among the calls; in streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    pub(crate) function: FunctionCall,
}

/// The function of a call.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct FunctionCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

/// What is new of a message.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) tool_calls: &'a [ToolCall],
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
