//! Chat messages: what a request may contain, in the form that chat templates read. Text parts are joined with
//! line breaks (vLLM's "string" content format); tool calls' arguments become objects, since templates print them
//! with `tojson`. It renders nothing. Called by `validate::chat` and by `/tokenize`.

use serde_json::{Map, Value};

use crate::server::error::ApiError;
use crate::server::protocol::fields::{nearest, shorten};

const KNOWN: [&str; 6] = ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning"];
/// Part types of the OpenAI and vLLM APIs that carry plain text.
const TEXT_PARTS: [&str; 3] = ["text", "input_text", "output_text"];

/// Checks `messages` and returns them as a template's `messages`.
pub(crate) fn normalise(messages: Vec<Map<String, Value>>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty; send at least one message"));
    }
    messages.into_iter().enumerate().map(|(i, message)| one(&format!("messages[{i}]"), message)).collect()
}

fn one(path: &str, message: Map<String, Value>) -> Result<Value, ApiError> {
    let mut out = Map::new();
    let role = match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role.clone(),
        Some(other) => return Err(wrong(path, "role", "a string such as \"user\"", other)),
        None => {
            let advice = "is missing; use system, developer, user, assistant or tool";
            return Err(ApiError::field(format!("{path}.role"), advice));
        }
    };
    out.insert("role".into(), Value::String(role.clone()));
    // Templates test `message.content`; an absent one is empty text.
    out.insert("content".into(), Value::String(String::new()));
    for (name, value) in message {
        match (name.as_str(), value) {
            ("role", _) | (_, Value::Null) => {}
            ("content", value) => {
                out.insert(name, Value::String(content(&format!("{path}.content"), value)?));
            }
            // Some clients still use the older name for the same thing.
            ("reasoning" | "reasoning_content", Value::String(text)) => {
                out.insert("reasoning_content".into(), Value::String(text.clone()));
                out.insert("reasoning".into(), Value::String(text));
            }
            ("name" | "tool_call_id", Value::String(text)) => {
                out.insert(name, Value::String(text));
            }
            ("tool_calls", Value::Array(calls)) if calls.is_empty() => {}
            ("tool_calls", Value::Array(calls)) => {
                let path = format!("{path}.tool_calls");
                let calls = calls.into_iter().enumerate().map(|(i, call)| tool_call(&format!("{path}[{i}]"), call));
                out.insert(name, Value::Array(calls.collect::<Result<_, _>>()?));
            }
            ("name" | "tool_call_id" | "reasoning" | "reasoning_content", other) => {
                return Err(wrong(path, &name, "a string", &other));
            }
            ("tool_calls", other) => {
                return Err(wrong(path, &name, "a list of tool calls", &other));
            }
            // What clients copy back from an answer without meaning anything by it.
            ("annotations", Value::Array(list)) if list.is_empty() => {}
            ("refusal" | "annotations" | "audio" | "function_call" | "weight" | "prefix", other) => {
                let shown = shorten(&other);
                let message = format!("is not supported by this server (given: {shown}); leave it out");
                return Err(ApiError::field(format!("{path}.{name}"), message));
            }
            (_, _) => {
                let advice = match nearest(&name, KNOWN.into_iter()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("known fields: {}", KNOWN.join(", ")),
                };
                return Err(ApiError::field(format!("{path}.{name}"), format!("unknown field; {advice}")));
            }
        }
    }
    Ok(Value::Object(out))
}

fn wrong(path: &str, name: &str, expected: &str, given: &Value) -> ApiError {
    ApiError::field(format!("{path}.{name}"), format!("expected {expected}, got {}", shorten(given)))
}

fn content(path: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            let message = format!("expected a string or a list of text parts, got {}", shorten(&other));
            return Err(ApiError::field(path, message));
        }
    };
    let texts = parts.into_iter().enumerate().map(|(i, part)| text_part(&format!("{path}[{i}]"), part));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn text_part(path: &str, part: Value) -> Result<String, ApiError> {
    let mut part = match part {
        Value::String(text) => return Ok(text),
        Value::Object(part) => part,
        other => {
            let message =
                format!("expected a part such as {{\"type\": \"text\", \"text\": \"…\"}}, got {}", shorten(&other));
            return Err(ApiError::field(path, message));
        }
    };
    let kind = match part.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(wrong(path, "type", "a string", &other)),
        None if part.contains_key("text") => "text".into(),
        None => {
            return Err(ApiError::field(format!("{path}.type"), "is missing; this server reads parts of type text"));
        }
    };
    if !TEXT_PARTS.contains(&kind.as_str()) {
        let message = format!("content parts of type {kind} are not supported by this server; it reads text only");
        return Err(ApiError::field(format!("{path}.type"), message));
    }
    let text = match part.remove("text") {
        Some(Value::String(text)) => text,
        Some(other) => return Err(wrong(path, "text", "a string", &other)),
        None => return Err(ApiError::field(format!("{path}.text"), "is missing")),
    };
    match part.into_iter().find(|(_, value)| !value.is_null()) {
        Some((name, _)) => {
            Err(ApiError::field(format!("{path}.{name}"), "unknown field; a text part has type and text"))
        }
        None => Ok(text),
    }
}

/// Checks a tool call that the assistant made earlier; its arguments become an object.
fn tool_call(path: &str, call: Value) -> Result<Value, ApiError> {
    let Value::Object(mut call) = call else {
        return Err(ApiError::field(path, format!("expected a tool call object, got {}", shorten(&call))));
    };
    let Some(Value::Object(function)) = call.get_mut("function") else {
        return Err(ApiError::field(format!("{path}.function"), "expected an object with name and arguments"));
    };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(ApiError::field(format!("{path}.function.name"), "expected a string"));
    }
    let path = format!("{path}.function.arguments");
    let arguments = match function.remove("arguments") {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(Value::String(text)) if text.is_empty() => Value::Object(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map_err(|e| ApiError::field(&path, format!("is not valid JSON: {e}; send what the model produced")))?,
        Some(object @ Value::Object(_)) => object,
        Some(other) => {
            return Err(ApiError::field(path, format!("expected a string of JSON, got {}", shorten(&other))));
        }
    };
    function.insert("arguments".into(), arguments);
    Ok(Value::Object(call))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(messages: Value) -> Result<Value, ApiError> {
        let messages: Vec<Map<String, Value>> = serde_json::from_value(messages).unwrap();
        normalise(messages).map(Value::Array)
    }

    #[test]
    fn parts_are_joined_and_tool_calls_parsed() {
        let got = run(json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": null, "refusal": null,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ]))
        .unwrap();
        assert_eq!(got[0], json!({"role": "user", "content": "a\nb", "name": "Ann"}));
        assert_eq!(got[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(got[1]["content"], "");
        assert_eq!(got[2]["tool_call_id"], "1");
    }

    #[test]
    fn errors_name_the_place() {
        let param = |messages: Value| {
            let error = run(messages).unwrap_err();
            assert!(error.message.contains(error.param.as_deref().unwrap()), "{error}");
            error.param.unwrap()
        };
        assert_eq!(param(json!([])), "messages");
        assert_eq!(param(json!([{"content": "a"}])), "messages[0].role");
        assert_eq!(param(json!([{"role": 1}])), "messages[0].role");
        assert_eq!(param(json!([{"role": "user", "contents": "a"}])), "messages[0].contents");
        assert_eq!(param(json!([{"role": "user", "content": 5}])), "messages[0].content");
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        assert_eq!(param(image), "messages[0].content[0].type");
        let call = json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]);
        assert_eq!(param(call), "messages[0].tool_calls[0].function.arguments");
    }
}
