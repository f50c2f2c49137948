//! Requests of the Responses API as chat requests. What has no counterpart is refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::protocol::chat::ChatRequest;
use crate::server::protocol::common::{Int, Num, OneOrMany, TokenId};
use crate::server::protocol::describe::described;
use crate::server::protocol::fields::{RawRequest, Unsupported, shorten};
use crate::server::protocol::sampling::{Shared, is_empty};

described! {
    /// `/v1/responses` as sent.
    #[derive(Debug, Deserialize)]
    pub(crate) struct ResponsesRequest {
        model: Option<String>,
        input: Option<Value>,
        instructions: Option<String>,
        max_output_tokens: Option<Int>,
        temperature: Option<f64>,
        top_p: Option<f64>,
        stream: Option<bool>,
        tools: Option<Vec<Value>>,
        tool_choice: Option<Value>,
        parallel_tool_calls: Option<bool>,
        text: Option<Map<String, Value>>,
        reasoning: Option<Map<String, Value>>,
        metadata: Option<Map<String, Value>>,
        user: Option<String>,
        top_k: Option<Int>,
        min_p: Option<Num>,
        presence_penalty: Option<Num>,
        frequency_penalty: Option<Num>,
        repetition_penalty: Option<Num>,
        logit_bias: Option<BTreeMap<String, Num>>,
        seed: Option<Int>,
        stop: Option<OneOrMany>,
        stop_token_ids: Option<Vec<TokenId>>,
        ignore_eos: Option<bool>,
        skip_special_tokens: Option<bool>,
        include_stop_str_in_output: Option<bool>,
        structured_outputs: Option<Map<String, Value>>,
        include_reasoning: Option<bool>,
        chat_template_kwargs: Option<Map<String, Value>>,
        priority: Option<Int>,
        request_id: Option<String>,
    }
}

impl RawRequest for ResponsesRequest {
    const UNSUPPORTED: &'static [Unsupported] = &[
        Unsupported::hint("store", |v| v == &Value::Bool(false), "set it to false: nothing is stored"),
        Unsupported::hint("previous_response_id", |_| false, "send the whole conversation as input"),
        Unsupported::hint("conversation", |_| false, "send the whole conversation as input"),
        Unsupported::unless("background", |v| v == &Value::Bool(false)),
        Unsupported::unless("truncation", |v| v.as_str() == Some("disabled")),
        Unsupported::unless("include", is_empty),
        Unsupported::unless("top_logprobs", |v| v.as_i64() == Some(0)),
        Unsupported::unless("service_tier", |v| matches!(v.as_str(), Some("auto" | "default"))),
        Unsupported::unless("prompt_cache_key", Value::is_string),
        Unsupported::unless("safety_identifier", Value::is_string),
        Unsupported::unless("stream_options", is_empty),
        Unsupported::always("max_tool_calls"),
        Unsupported::hint("prompt", |_| false, "send what it stands for as input"),
        Unsupported::always("cache_salt"),
        Unsupported::hint("previous_input_messages", is_empty, "send the whole conversation as input"),
        Unsupported::unless("enable_response_messages", |v| v == &Value::Bool(false)),
        Unsupported::unless("watermarking", |v| v == &Value::Bool(false)),
        Unsupported::unless("session_id", Value::is_string),
        Unsupported::unless("media_io_kwargs", is_empty),
        Unsupported::unless("mm_processor_kwargs", is_empty),
        Unsupported::unless("mm_payload", is_empty),
        Unsupported::unless("return_mm_kwargs", Value::is_boolean),
        Unsupported::unless("vllm_xargs", is_empty),
        Unsupported::unless("kv_transfer_params", is_empty),
        Unsupported::unless("ec_transfer_params", is_empty),
    ];
}

/// The same request to the chat API, and the fields that the response repeats.
pub(super) fn as_chat(raw: ResponsesRequest) -> Result<(ChatRequest, Value), ApiError> {
    let mut messages = Messages::default();
    if let Some(instructions) = &raw.instructions {
        messages.all.push(json!({"role": "system", "content": instructions}));
    }
    match raw.input {
        Some(Value::String(text)) => messages.all.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() => {
            for (index, item) in items.into_iter().enumerate() {
                messages.item(&format!("input[{index}]"), item)?;
            }
        }
        Some(other) => {
            return Err(ApiError::field(
                "input",
                format!("expected a text or a list of items, got {}", shorten(&other)),
            ));
        }
        None => return Err(ApiError::field("input", "is missing; send a text or a list of items")),
    }
    messages.flush();
    let text = raw.text.unwrap_or_default();
    let (format, shown_format) = format(text)?;
    let effort = reasoning(raw.reasoning.unwrap_or_default())?;
    let tools = raw.tools.unwrap_or_default();
    let tool_choice = raw.tool_choice.map(tool_choice).transpose()?;
    let echo = json!({
        "instructions": raw.instructions,
        "max_output_tokens": raw.max_output_tokens.map(|Int(tokens)| tokens),
        "metadata": raw.metadata.unwrap_or_default(),
        "parallel_tool_calls": raw.parallel_tool_calls.unwrap_or(true),
        "reasoning": {"effort": effort, "summary": null},
        "text": {"format": shown_format},
        "tool_choice": tool_choice.as_ref().map_or(json!("auto"), |(_, shown)| shown.clone()),
        "tools": tools,
        "user": raw.user,
    });
    let mut chat = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            chat.insert(name.to_owned(), value);
        }
    };
    set("model", json!(raw.model));
    set("messages", Value::Array(messages.all));
    set("max_completion_tokens", json!(raw.max_output_tokens.map(|Int(tokens)| tokens)));
    set("temperature", json!(raw.temperature));
    set("top_p", json!(raw.top_p));
    set("stream", json!(raw.stream));
    set("parallel_tool_calls", json!(raw.parallel_tool_calls));
    set("response_format", format);
    set("reasoning_effort", json!(effort));
    if !tools.is_empty() {
        let tools = tools.into_iter().enumerate().map(|(index, it)| tool(&format!("tools[{index}]"), it));
        set("tools", Value::Array(tools.collect::<Result<_, _>>()?));
    }
    if let Some((choice, _)) = tool_choice {
        // Without tools, auto is what this API's clients send.
        let idle = echo["tools"] == json!([]) && choice == json!("auto");
        set("tool_choice", if idle { Value::Null } else { choice });
    }
    let mut chat: ChatRequest =
        serde_json::from_value(Value::Object(chat)).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let shared = Shared {
        top_k: raw.top_k,
        min_p: raw.min_p,
        presence_penalty: raw.presence_penalty,
        frequency_penalty: raw.frequency_penalty,
        repetition_penalty: raw.repetition_penalty,
        logit_bias: raw.logit_bias,
        seed: raw.seed,
        stop: raw.stop,
        stop_token_ids: raw.stop_token_ids,
        ignore_eos: raw.ignore_eos,
        skip_special_tokens: raw.skip_special_tokens,
        include_stop_str_in_output: raw.include_stop_str_in_output,
        structured_outputs: raw.structured_outputs,
        priority: raw.priority,
        request_id: raw.request_id,
        ..chat.take_shared()
    };
    chat.put_shared(shared);
    chat.include_reasoning = raw.include_reasoning;
    chat.chat_template_kwargs = raw.chat_template_kwargs;
    Ok((chat, echo))
}

/// Errors of the chat request in this API's names.
pub(super) fn renamed(error: ApiError) -> ApiError {
    let name = |param: &str| match param {
        "max_completion_tokens" => Some("max_output_tokens"),
        "response_format" => Some("text.format"),
        "messages" => Some("input"),
        _ => None,
    };
    match error.param.as_deref().and_then(|param| Some((param.to_owned(), name(param)?))) {
        Some((old, new)) => ApiError { message: error.message.replace(&old, new), param: Some(new.into()), ..error },
        None => error,
    }
}

/// Items become messages; what the assistant thought, said and called in a row is one of them.
#[derive(Default)]
struct Messages {
    all: Vec<Value>,
    thought: Vec<String>,
    said: Option<String>,
    calls: Vec<Value>,
}

impl Messages {
    fn flush(&mut self) {
        let said = self.said.take();
        if said.is_none() && self.calls.is_empty() && self.thought.is_empty() {
            return;
        }
        let mut message = json!({"role": "assistant", "content": said.unwrap_or_default()});
        if !self.thought.is_empty() {
            message["reasoning"] = json!(std::mem::take(&mut self.thought).join("\n"));
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = Value::Array(std::mem::take(&mut self.calls));
        }
        self.all.push(message);
    }

    fn item(&mut self, path: &str, item: Value) -> Result<(), ApiError> {
        let string = |name: &str| {
            let text = item[name].as_str().map(str::to_owned);
            text.ok_or_else(|| ApiError::field(format!("{path}.{name}"), "expected a string"))
        };
        match item["type"].as_str() {
            None | Some("message") => {
                let role = string("role")?;
                let content = texts(&format!("{path}.content"), &item["content"])?;
                if role == "assistant" {
                    if self.said.is_some() || !self.calls.is_empty() {
                        self.flush();
                    }
                    self.said = Some(content);
                } else {
                    self.flush();
                    self.all.push(json!({"role": role, "content": content}));
                }
            }
            Some("function_call") => {
                let (id, name, arguments) = (string("call_id")?, string("name")?, string("arguments")?);
                let function = json!({"name": name, "arguments": arguments});
                self.calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            Some("function_call_output") => {
                self.flush();
                let content = texts(&format!("{path}.output"), &item["output"])?;
                self.all.push(json!({"role": "tool", "tool_call_id": string("call_id")?, "content": content}));
            }
            Some("reasoning") => {
                if self.said.is_some() || !self.calls.is_empty() {
                    self.flush();
                }
                let parts = item["content"].as_array().into_iter().flatten();
                self.thought.extend(parts.filter_map(|part| part["text"].as_str().map(str::to_owned)));
            }
            Some(kind) => {
                let kind: String = kind.chars().take(60).collect();
                let message = format!(
                    "items of type {kind} are not supported by this server; it reads message, function_call, \
                     function_call_output and reasoning"
                );
                return Err(ApiError::field(format!("{path}.type"), message));
            }
        }
        Ok(())
    }
}

/// A text, or parts put together.
fn texts(path: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(ApiError::field(path, format!("expected a text or parts, got {}", shorten(other)))),
    };
    let mut all = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("input_text" | "output_text" | "text"), Some(text)) => all.push(text),
            (kind, _) => {
                let kind: String = kind.unwrap_or("none").chars().take(60).collect();
                let message = format!("expected a part of type input_text or output_text with text, got {kind}");
                return Err(ApiError::field(format!("{path}[{index}]"), message));
            }
        }
    }
    Ok(all.join("\n"))
}

/// `text`: the chat API's `response_format`, and the format to show.
fn format(mut text: Map<String, Value>) -> Result<(Value, Value), ApiError> {
    let format = text.remove("format").filter(|format| !format.is_null()).unwrap_or(json!({"type": "text"}));
    match text.into_iter().find(|(_, value)| !value.is_null()) {
        None => {}
        Some((name, value)) if name == "verbosity" && value == "medium" => {}
        Some((name, value)) => {
            let message = format!("is not supported by this server (given: {}); leave it out", shorten(&value));
            return Err(ApiError::field(format!("text.{name}"), message));
        }
    }
    let asked = match format["type"].as_str() {
        Some("text") => Value::Null,
        Some("json_object") => json!({"type": "json_object"}),
        Some("json_schema") => {
            let mut schema = format.as_object().cloned().unwrap_or_default();
            schema.remove("type");
            json!({"type": "json_schema", "json_schema": schema})
        }
        _ => {
            let message = format!("expected text, json_object or json_schema, got {}", shorten(&format["type"]));
            return Err(ApiError::field("text.format.type", message));
        }
    };
    Ok((asked, format))
}

/// `reasoning`: the effort. Summaries are not made, so asking for one is refused.
fn reasoning(mut reasoning: Map<String, Value>) -> Result<Option<String>, ApiError> {
    let effort = match reasoning.remove("effort") {
        None | Some(Value::Null) => None,
        Some(Value::String(effort)) => Some(effort),
        Some(other) => {
            return Err(ApiError::field("reasoning.effort", format!("expected a string, got {}", shorten(&other))));
        }
    };
    reasoning.retain(|name, value| !value.is_null() && (name != "summary" || value != "auto"));
    match reasoning.into_iter().next() {
        None => Ok(effort),
        Some((name, value)) => {
            let message = format!("is not supported by this server (given: {}); leave it out", shorten(&value));
            Err(ApiError::field(format!("reasoning.{name}"), message))
        }
    }
}

/// This API's tools are flat.
fn tool(path: &str, tool: Value) -> Result<Value, ApiError> {
    match tool {
        Value::Object(mut tool) if tool.get("type").and_then(Value::as_str) == Some("function") => {
            tool.remove("type");
            Ok(json!({"type": "function", "function": tool}))
        }
        other => {
            let message =
                format!("{} is not supported by this server; it has tools of type function", shorten(&other["type"]));
            Err(ApiError::field(format!("{path}.type"), message))
        }
    }
}

/// The chat API's form, and the one to show.
fn tool_choice(choice: Value) -> Result<(Value, Value), ApiError> {
    match (choice["type"].as_str(), choice["name"].as_str()) {
        (Some("function"), Some(name)) => Ok((json!({"type": "function", "function": {"name": name}}), choice)),
        _ if choice.is_string() => Ok((choice.clone(), choice)),
        _ => {
            let message = "expected none, auto, required or {\"type\": \"function\", \"name\": \"…\"}";
            Err(ApiError::field("tool_choice", format!("{message}, got {}", shorten(&choice))))
        }
    }
}
