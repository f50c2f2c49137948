//! Anthropic's requests as chat requests. What has no counterpart is refused by name.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::protocol::chat::ChatRequest;
use crate::server::protocol::common::Int;
use crate::server::protocol::describe::described;
use crate::server::protocol::fields::{RawRequest, Unsupported, shorten};
use crate::server::protocol::sampling::is_empty;

described! {
    /// `/v1/messages` as sent.
    #[derive(Debug, Default, Deserialize)]
    pub(crate) struct MessagesRequest {
        pub(super) model: Option<String>,
        pub(super) messages: Option<Vec<Map<String, Value>>>,
        pub(super) max_tokens: Option<Int>,
        pub(super) system: Option<Value>,
        pub(super) stop_sequences: Option<Vec<String>>,
        pub(super) stream: Option<bool>,
        pub(super) temperature: Option<f64>,
        pub(super) top_p: Option<f64>,
        pub(super) top_k: Option<Int>,
        pub(super) tools: Option<Vec<Value>>,
        pub(super) tool_choice: Option<Map<String, Value>>,
        pub(super) thinking: Option<Map<String, Value>>,
        pub(super) output_config: Option<Map<String, Value>>,
        pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    }
}

impl RawRequest for MessagesRequest {
    const UNSUPPORTED: &'static [Unsupported] = &[
        Unsupported::unless("metadata", Value::is_object),
        Unsupported::unless("service_tier", |v| matches!(v.as_str(), Some("auto" | "standard_only"))),
        Unsupported::always("container"),
        Unsupported::unless("mcp_servers", is_empty),
        Unsupported::always("context_management"),
        Unsupported::always("cache_salt"),
        Unsupported::unless("watermarking", |v| v == &Value::Bool(false)),
        Unsupported::unless("mm_payload", is_empty),
        Unsupported::unless("return_mm_kwargs", Value::is_boolean),
        Unsupported::unless("vllm_xargs", is_empty),
        Unsupported::unless("kv_transfer_params", is_empty),
        Unsupported::unless("ec_transfer_params", is_empty),
    ];
}

described! {
    /// `/v1/messages/count_tokens` as sent.
    #[derive(Debug, Deserialize)]
    pub(crate) struct CountRequest {
        model: Option<String>,
        messages: Option<Vec<Map<String, Value>>>,
        system: Option<Value>,
        tools: Option<Vec<Value>>,
        tool_choice: Option<Map<String, Value>>,
        thinking: Option<Map<String, Value>>,
        output_config: Option<Map<String, Value>>,
        chat_template_kwargs: Option<Map<String, Value>>,
    }
}

impl RawRequest for CountRequest {
    const UNSUPPORTED: &'static [Unsupported] = &[Unsupported::unless("mcp_servers", is_empty)];
}

impl From<CountRequest> for MessagesRequest {
    fn from(raw: CountRequest) -> Self {
        let CountRequest { model, messages, system, tools, tool_choice, thinking, output_config, chat_template_kwargs } =
            raw;
        let asked = Self { model, messages, system, tools, tool_choice, thinking, ..Self::default() };
        Self { output_config, chat_template_kwargs, max_tokens: Some(Int(1)), ..asked }
    }
}

/// The same request to the chat API.
pub(super) fn as_chat(raw: MessagesRequest) -> Result<ChatRequest, ApiError> {
    let Some(Int(max_tokens)) = raw.max_tokens else {
        return Err(ApiError::field("max_tokens", "is missing; say how many tokens the answer may have"));
    };
    let given = raw.messages.ok_or_else(|| ApiError::field("messages", "is missing; send at least one message"))?;
    let mut messages = Vec::new();
    if let Some(system) = raw.system.filter(|system| !system.is_null()) {
        messages.push(json!({"role": "system", "content": texts("system", system)?}));
    }
    for (index, message) in given.into_iter().enumerate() {
        turn(&format!("messages[{index}]"), message, &mut messages)?;
    }
    let mut chat = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            chat.insert(name.to_owned(), value);
        }
    };
    set("model", json!(raw.model));
    set("messages", Value::Array(messages));
    set("max_completion_tokens", json!(max_tokens));
    set("stop", json!(raw.stop_sequences));
    set("stream", json!(raw.stream));
    set("temperature", json!(raw.temperature));
    set("top_p", json!(raw.top_p));
    set("top_k", json!(raw.top_k.map(|Int(top_k)| top_k)));
    if let Some(tools) = raw.tools.filter(|tools| !tools.is_empty()) {
        let tools = tools.into_iter().enumerate().map(|(index, it)| tool(&format!("tools[{index}]"), it));
        set("tools", Value::Array(tools.collect::<Result<_, _>>()?));
    }
    if let Some(choice) = raw.tool_choice {
        let (choice, parallel) = tool_choice(&choice)?;
        set("tool_choice", choice);
        set("parallel_tool_calls", json!(parallel));
    }
    let mut kwargs = raw.chat_template_kwargs.unwrap_or_default();
    if let Some(thinking) = raw.thinking {
        kwargs.insert("enable_thinking".into(), json!(thinks(&thinking)?));
    }
    set("chat_template_kwargs", Value::Object(kwargs));
    let (effort, format) = output(raw.output_config.unwrap_or_default())?;
    set("reasoning_effort", effort);
    set("response_format", format);
    serde_json::from_value(Value::Object(chat)).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// A text, or text blocks put together.
fn texts(path: &str, value: Value) -> Result<String, ApiError> {
    let blocks = match value {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => {
            return Err(ApiError::field(path, format!("expected a string or text blocks, got {}", shorten(&other))));
        }
    };
    let mut all = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (block["type"].as_str(), block["text"].as_str()) {
            (Some("text"), Some(text)) => all.push(text.to_owned()),
            (Some("text"), None) => return Err(ApiError::field(format!("{path}.text"), "expected a string")),
            (Some(kind), _) => return Err(unsupported(&path, kind)),
            (None, _) => return Err(ApiError::field(format!("{path}.type"), "is missing")),
        }
    }
    Ok(all.join("\n"))
}

fn unsupported(path: &str, kind: &str) -> ApiError {
    let kind: String = kind.chars().take(60).collect();
    let message = format!(
        "blocks of type {kind} are not supported here; this server reads text, tool_use, tool_result and thinking"
    );
    ApiError::field(format!("{path}.type"), message)
}

/// One message becomes one or more: tool results are messages of their own in the chat API.
fn turn(path: &str, mut message: Map<String, Value>, out: &mut Vec<Value>) -> Result<(), ApiError> {
    let role = match message.remove("role") {
        Some(Value::String(role)) if role == "user" || role == "assistant" => role,
        other => {
            let shown = shorten(&other.unwrap_or_default());
            return Err(ApiError::field(format!("{path}.role"), format!("expected user or assistant, got {shown}")));
        }
    };
    let content = message.remove("content").unwrap_or_default();
    if let Some((name, _)) = message.into_iter().next() {
        return Err(ApiError::field(format!("{path}.{name}"), "is an unknown field; a message has role and content"));
    }
    let blocks = match content {
        Value::Array(blocks) => blocks,
        text => {
            out.push(json!({"role": role, "content": texts(&format!("{path}.content"), text)?}));
            return Ok(());
        }
    };
    let (mut said, mut thought, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (index, mut block) in blocks.into_iter().enumerate() {
        let path = format!("{path}.content[{index}]");
        let string = |block: &Value, name: &str| {
            let text = block[name].as_str().map(str::to_owned);
            text.ok_or_else(|| ApiError::field(format!("{path}.{name}"), "expected a string"))
        };
        match (block["type"].as_str().unwrap_or_default(), role.as_str()) {
            ("text", _) => said.push(string(&block, "text")?),
            ("thinking", "assistant") => thought.push(string(&block, "thinking")?),
            ("tool_use", "assistant") => {
                let (id, name) = (string(&block, "id")?, string(&block, "name")?);
                let input = block["input"].take();
                let input = if input.is_null() { json!({}) } else { input };
                calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}));
            }
            ("tool_result", "user") => {
                let id = string(&block, "tool_use_id")?;
                let content = match block["content"].take() {
                    Value::Null => String::new(),
                    content => texts(&format!("{path}.content"), content)?,
                };
                out.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            (kind, _) => return Err(unsupported(&path, kind)),
        }
    }
    if said.is_empty() && thought.is_empty() && calls.is_empty() {
        return Ok(());
    }
    let mut message = json!({"role": role, "content": said.join("\n")});
    if !thought.is_empty() {
        message["reasoning"] = json!(thought.join("\n"));
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    out.push(message);
    Ok(())
}

fn tool(path: &str, tool: Value) -> Result<Value, ApiError> {
    let Value::Object(mut tool) = tool else {
        return Err(ApiError::field(path, format!("expected a tool, got {}", shorten(&tool))));
    };
    match tool.remove("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "custom" => {}
        Some(other) => {
            let message = format!("{} is not supported by this server; it has custom tools", shorten(&other));
            return Err(ApiError::field(format!("{path}.type"), message));
        }
    }
    let mut function = Map::new();
    for (name, value) in tool {
        match name.as_str() {
            "input_schema" => function.insert("parameters".into(), value),
            // A hint: prompts are cached without it.
            "cache_control" => None,
            _ => function.insert(name, value),
        };
    }
    Ok(json!({"type": "function", "function": function}))
}

/// The chat API's `tool_choice` and `parallel_tool_calls`.
fn tool_choice(choice: &Map<String, Value>) -> Result<(Value, Option<bool>), ApiError> {
    let name = choice.get("name").and_then(Value::as_str);
    let chosen = match (choice.get("type").and_then(Value::as_str), name) {
        (Some("auto"), None) => json!("auto"),
        (Some("any"), None) => json!("required"),
        (Some("none"), None) => json!("none"),
        (Some("tool"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        _ => {
            let message = "expected {\"type\": \"auto\"}, any, none, or {\"type\": \"tool\", \"name\": \"…\"}";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    let disabled = choice.get("disable_parallel_tool_use").and_then(Value::as_bool);
    Ok((chosen, disabled.map(|disabled| !disabled)))
}

/// Errors of the chat request in this API's names.
pub(super) fn renamed(error: ApiError) -> ApiError {
    let name = |param: &str| match param {
        "max_completion_tokens" => Some("max_tokens"),
        "stop" => Some("stop_sequences"),
        "reasoning_effort" => Some("output_config.effort"),
        "response_format" => Some("output_config.format"),
        _ => None,
    };
    match error.param.as_deref().and_then(|param| Some((param.to_owned(), name(param)?))) {
        Some((old, new)) => ApiError { message: error.message.replace(&old, new), param: Some(new.into()), ..error },
        None => error,
    }
}

/// `output_config`: the chat API's `reasoning_effort` and `response_format`.
fn output(mut config: Map<String, Value>) -> Result<(Value, Value), ApiError> {
    let effort = match config.remove("effort").unwrap_or_default() {
        effort @ (Value::Null | Value::String(_)) => effort,
        other => {
            let message = format!("expected low, medium, high, xhigh or max, got {}", shorten(&other));
            return Err(ApiError::field("output_config.effort", message));
        }
    };
    let format = match config.remove("format").unwrap_or_default() {
        Value::Null => Value::Null,
        Value::Object(mut format) if format.get("type").and_then(Value::as_str) == Some("json_schema") => {
            let schema = format.remove("schema").unwrap_or_default();
            if !schema.is_object() {
                return Err(ApiError::field("output_config.format.schema", "expected a JSON schema"));
            }
            json!({"type": "json_schema", "json_schema": {"name": "output", "schema": schema}})
        }
        other => {
            let message = format!("expected {{\"type\": \"json_schema\", \"schema\": …}}, got {}", shorten(&other));
            return Err(ApiError::field("output_config.format", message));
        }
    };
    match config.into_iter().next() {
        None => Ok((effort, format)),
        Some((name, _)) => {
            Err(ApiError::field(format!("output_config.{name}"), "is an unknown field; it has effort and format"))
        }
    }
}

fn thinks(thinking: &Map<String, Value>) -> Result<bool, ApiError> {
    match thinking.get("type").and_then(Value::as_str) {
        Some("disabled") => Ok(false),
        Some("adaptive") => Ok(true),
        Some("enabled") => {
            let message = "enabled is not supported by this server, since it cannot keep to budget_tokens; use adaptive, or \
                           leave it out";
            Err(ApiError::field("thinking.type", message))
        }
        _ => Err(ApiError::field("thinking.type", "expected adaptive or disabled")),
    }
}
