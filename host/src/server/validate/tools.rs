//! Tools: what a chat request offers, what it demands, and what that means for the prompt (the template's `tools`), the
//! output (a grammar, where a call is forced) and the answer (how calls are found in the text). Called for chats.

use serde_json::{Map, Value, json};

use crate::llm::Structure;
use crate::server::error::ApiError;
use crate::server::parsers::{Schemas, ToolFormat, Tools};
use crate::server::protocol::fields::shorten;

/// What the request says about tools.
pub(crate) struct Offer {
    /// For the template.
    pub(crate) tools: Option<Value>,
    /// How calls are found.
    pub(crate) calls: Tools,
    pub(crate) schemas: Schemas,
    /// What the output must be, where a call is forced.
    pub(crate) structure: Option<Structure>,
    /// Only the first call counts.
    pub(crate) single: bool,
}

/// Checks `tools`, `tool_choice` and `parallel_tool_calls`. `format` is how the model writes calls, if that is known;
/// `structured`: the output is to be something else already.
pub(crate) fn offer(
    tools: Option<Vec<Value>>,
    choice: Option<Value>,
    parallel: Option<bool>,
    format: Option<ToolFormat>,
    structured: bool,
) -> Result<Offer, ApiError> {
    let tools = tools.unwrap_or_default();
    check_all(&tools)?;
    let single = parallel == Some(false);
    let choice = Choice::new(choice, &tools)?;
    if structured && matches!(choice, Choice::Required | Choice::Named(_)) {
        let message =
            "cannot be used together with response_format or structured_outputs when it forces a call; leave one out";
        return Err(ApiError::field("tool_choice", message));
    }
    if format == Some(ToolFormat::Harmony) && matches!(choice, Choice::Required | Choice::Named(_)) {
        let message = "can only be auto or none with this model's format (gpt_oss)";
        return Err(ApiError::field("tool_choice", message));
    }
    let schemas = Schemas::new(&tools);
    let (calls, structure) = match choice {
        Choice::None => (Tools::None, None),
        // What a grammar forces is no call.
        Choice::Auto if structured => (Tools::None, None),
        Choice::Auto => {
            let Some(format) = format else {
                let message = "auto is not available: this server does not know how the model writes tool calls; start it \
                               with --tool-call-parser, or set tool_choice to none, required or one tool";
                return Err(ApiError::field("tool_choice", message));
            };
            (Tools::Auto(format), None)
        }
        Choice::Required => (Tools::Required, Some(Structure::JsonSchema(any_call(&tools, single)?))),
        Choice::Named(name) => {
            let mut schema = tools.iter().find(|tool| name_of(tool) == Some(&name)).map(parameters).unwrap_or_default();
            if schema.get("x-guidance").is_none() {
                schema["x-guidance"] = spaces();
            }
            (Tools::Named(name), Some(Structure::JsonSchema(schema)))
        }
    };
    let tools = (!tools.is_empty()).then_some(Value::Array(tools));
    Ok(Offer { tools, calls, schemas, structure, single })
}

/// Checks that each is a tool, for the template.
pub(crate) fn check_all(tools: &[Value]) -> Result<(), ApiError> {
    tools.iter().enumerate().try_for_each(|(index, tool)| check(&format!("tools[{index}]"), tool))
}

#[derive(Debug, PartialEq)]
enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

impl Choice {
    fn new(choice: Option<Value>, tools: &[Value]) -> Result<Self, ApiError> {
        let wrong = |value: &Value| {
            let shown = shorten(value);
            let message = format!(
                "expected none, auto, required or {{\"type\": \"function\", \"function\": {{\"name\": \"…\"}}}}, got {shown}"
            );
            ApiError::field("tool_choice", message)
        };
        let choice = match choice {
            None | Some(Value::Null) if tools.is_empty() => return Ok(Self::None),
            None | Some(Value::Null) => return Ok(Self::Auto),
            Some(Value::String(text)) => match text.as_str() {
                "none" => return Ok(Self::None),
                "auto" => Self::Auto,
                "required" => Self::Required,
                _ => return Err(wrong(&Value::String(text))),
            },
            Some(Value::Object(object)) => {
                let name = object.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
                match (object.get("type").and_then(Value::as_str), name) {
                    (Some("function") | None, Some(name)) => Self::Named(name.to_owned()),
                    _ => return Err(wrong(&Value::Object(object))),
                }
            }
            Some(other) => return Err(wrong(&other)),
        };
        if tools.is_empty() {
            return Err(ApiError::field("tool_choice", "needs tools; send tools, or leave it out"));
        }
        if let Self::Named(name) = &choice
            && !tools.iter().any(|tool| name_of(tool) == Some(name))
        {
            let names: Vec<&str> = tools.iter().filter_map(name_of).collect();
            let message = format!("names {name:?}, which is not among the tools: {}", names.join(", "));
            return Err(ApiError::field("tool_choice", message));
        }
        Ok(choice)
    }
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.pointer("/function/name")?.as_str()
}

fn parameters(tool: &Value) -> Value {
    let given = tool.pointer("/function/parameters").filter(|value| value.is_object());
    given
        .filter(|value| value.as_object().is_some_and(|map| !map.is_empty()))
        .cloned()
        .unwrap_or(json!({"type": "object"}))
}

fn check(path: &str, tool: &Value) -> Result<(), ApiError> {
    let Some(object) = tool.as_object() else {
        return Err(ApiError::field(path, format!("expected a tool object, got {}", shorten(tool))));
    };
    match object.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        None => {
            return Err(ApiError::field(format!("{path}.type"), "is missing; this server has tools of type function"));
        }
        Some(other) => {
            let message = format!("{} is not supported by this server; it has tools of type function", shorten(other));
            return Err(ApiError::field(format!("{path}.type"), message));
        }
    }
    let Some(function) = object.get("function").and_then(Value::as_object) else {
        return Err(ApiError::field(format!("{path}.function"), "expected an object with name and parameters"));
    };
    match function.get("name") {
        Some(Value::String(name)) if !name.is_empty() && name.len() <= 128 => {}
        _ => return Err(ApiError::field(format!("{path}.function.name"), "expected a string of 1 to 128 bytes")),
    }
    for (name, value) in function {
        let fine = match name.as_str() {
            "name" => true,
            "description" => value.is_string() || value.is_null(),
            "parameters" => value.is_object() || value.is_null(),
            "strict" => value.is_boolean() || value.is_null(),
            _ => {
                let message = "is an unknown field; known fields: name, description, parameters, strict";
                return Err(ApiError::field(format!("{path}.function.{name}"), message));
            }
        };
        if !fine {
            let message = format!("is of the wrong type: {}", shorten(value));
            return Err(ApiError::field(format!("{path}.function.{name}"), message));
        }
    }
    Ok(())
}

/// Where a call is forced its spaces are too, as Python writes them: a small model could go on with them forever.
fn spaces() -> Value {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "})
}

/// A schema of lists of calls. Definitions move to its root, where references look for them.
fn any_call(tools: &[Value], single: bool) -> Result<Value, ApiError> {
    let mut definitions: Map<String, Value> = Map::new();
    let mut calls = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let mut parameters = parameters(tool);
        if let Value::Object(parameters) = &mut parameters {
            parameters.remove("x-guidance");
        }
        for key in ["$defs", "definitions"] {
            let Some(Value::Object(own)) = parameters.as_object_mut().and_then(|map| map.remove(key)) else {
                continue;
            };
            let Value::Object(shared) = definitions.entry(key).or_insert_with(|| json!({})) else {
                continue;
            };
            for (name, schema) in own {
                if shared.get(&name).is_some_and(|other| *other != schema) {
                    let path = format!("tools[{index}].function.parameters.{key}.{name}");
                    return Err(ApiError::field(path, "is defined differently by another tool; rename one of them"));
                }
                shared.insert(name, schema);
            }
        }
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": name_of(tool)}, "parameters": parameters},
            "required": ["name", "parameters"],
            "additionalProperties": false,
        }));
    }
    let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}, "x-guidance": spaces()});
    if let Value::Object(fields) = &mut schema {
        if single {
            fields.insert("maxItems".into(), json!(1));
        }
        fields.extend(definitions);
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object",
               "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "integer"}}}}})
    }

    fn run(tools: Value, choice: Value) -> Result<Offer, String> {
        let tools = serde_json::from_value(tools).unwrap();
        offer(tools, serde_json::from_value(choice).unwrap(), None, Some(ToolFormat::Hermes), false)
            .map_err(|e| e.message)
    }

    #[test]
    fn choices() {
        let calls = |tools: Value, choice: Value| run(tools, choice).map(|offer| offer.calls);
        let tools = json!([tool("f"), tool("g")]);
        assert_eq!(calls(json!(null), json!(null)), Ok(Tools::None));
        assert_eq!(calls(tools.clone(), json!(null)), Ok(Tools::Auto(ToolFormat::Hermes)));
        assert_eq!(calls(tools.clone(), json!("none")), Ok(Tools::None));
        assert_eq!(calls(tools.clone(), json!("required")), Ok(Tools::Required));
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        assert_eq!(calls(tools.clone(), named("g")), Ok(Tools::Named("g".into())));
        assert!(calls(tools.clone(), named("h")).unwrap_err().contains("f, g"));
        assert!(calls(json!([]), json!("required")).unwrap_err().contains("needs tools"));
        assert!(calls(tools, json!("sometimes")).unwrap_err().contains("sometimes"));
    }

    #[test]
    fn a_forced_call_has_a_schema_with_all_definitions_at_its_root() {
        let Some(Structure::JsonSchema(schema)) =
            run(json!([tool("f"), tool("g")]), json!("required")).unwrap().structure
        else {
            panic!("no schema")
        };
        assert_eq!(schema["$defs"], json!({"X": {"type": "integer"}}));
        assert_eq!(schema["items"]["anyOf"][1]["properties"]["name"], json!({"const": "g"}));
        let mut other = tool("g");
        other["function"]["parameters"]["$defs"]["X"] = json!({"type": "string"});
        assert!(run(json!([tool("f"), other]), json!("required")).err().unwrap().contains("defined differently"));
    }

    #[test]
    fn tools_that_are_none() {
        let fails = |tool: Value, field: &str| {
            let message = run(json!([tool]), json!(null)).err().unwrap();
            assert!(message.starts_with(field), "{message}");
        };
        fails(json!(5), "tools[0]: expected a tool object");
        fails(json!({"function": {"name": "f"}}), "tools[0].type");
        fails(json!({"type": "web_search"}), "tools[0].type");
        fails(json!({"type": "function"}), "tools[0].function");
        fails(json!({"type": "function", "function": {"name": ""}}), "tools[0].function.name");
        fails(json!({"type": "function", "function": {"name": "f", "parameters": []}}), "tools[0].function.parameters");
        fails(json!({"type": "function", "function": {"name": "f", "foo": 1}}), "tools[0].function.foo");
    }
}
