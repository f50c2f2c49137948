//! Structured output: what `response_format` (OpenAI) and `structured_outputs` (vLLM) ask for, and its compiled form.
//! Fields are checked by name here, since both are objects of many shapes. Called for completions and chat.

use serde_json::{Map, Value};

use crate::llm::{Grammar, LlmError, Structure};
use crate::server::error::ApiError;
use crate::server::protocol::fields::shorten;
use crate::server::protocol::sampling::Shared;
use crate::server::state::AppState;

/// A structure, and the field that asked for it.
pub(crate) struct Asked {
    pub(crate) structure: Structure,
    pub(crate) field: &'static str,
}

/// What the request wants its output to be, if anything.
pub(crate) fn asked(shared: &mut Shared) -> Result<Option<Asked>, ApiError> {
    let format = shared.response_format.take().map(response_format).transpose()?.flatten();
    let structured = shared.structured_outputs.take().filter(|fields| !fields.is_empty());
    match (format, structured) {
        (Some(_), Some(_)) => {
            let message = "cannot be used together with response_format; send one of them";
            Err(ApiError::field("structured_outputs", message))
        }
        (Some(structure), None) => Ok(Some(Asked { structure, field: "response_format" })),
        (None, Some(fields)) => Ok(Some(Asked { structure: structured_outputs(fields)?, field: "structured_outputs" })),
        (None, None) => Ok(None),
    }
}

/// The compiled form; what does not compile is the request's fault.
pub(crate) fn compile(state: &AppState, asked: &Asked) -> Result<Grammar, ApiError> {
    state.llm.grammar(&asked.structure).map_err(|error| match error {
        LlmError::Grammar(error) => ApiError::field(asked.field, format!("cannot be compiled: {error}")),
        other => ApiError::field(asked.field, other.to_string()),
    })
}

fn unknown(path: &str, name: &str, known: &str) -> ApiError {
    ApiError::field(format!("{path}.{name}"), format!("is an unknown field; known fields: {known}"))
}

/// OpenAI's `response_format`; text is no structure.
fn response_format(mut format: Map<String, Value>) -> Result<Option<Structure>, ApiError> {
    const FIELD: &str = "response_format";
    let kind = match format.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(other) => {
            return Err(ApiError::field("response_format.type", format!("expected a string, got {}", shorten(&other))));
        }
        None => {
            return Err(ApiError::field("response_format.type", "is missing; use text, json_object or json_schema"));
        }
    };
    let schema = format.remove("json_schema").filter(|schema| !schema.is_null());
    if let Some((name, _)) = format.iter().find(|(_, value)| !value.is_null()) {
        return Err(unknown(FIELD, name, "type, json_schema"));
    }
    match (kind.as_str(), schema) {
        ("json_schema", Some(Value::Object(schema))) => json_schema(schema).map(Some),
        ("json_schema", _) => {
            Err(ApiError::field("response_format.json_schema", "is missing; expected an object with name and schema"))
        }
        ("text" | "json_object", Some(_)) => {
            Err(ApiError::field("response_format.json_schema", "goes with type: json_schema only; leave it out"))
        }
        ("text", None) => Ok(None),
        ("json_object", None) => Ok(Some(Structure::JsonObject)),
        (other, _) => {
            let other: String = other.chars().take(80).collect();
            let message = format!("{other:?} is not supported by this server; use text, json_object or json_schema");
            Err(ApiError::field("response_format.type", message))
        }
    }
}

fn json_schema(fields: Map<String, Value>) -> Result<Structure, ApiError> {
    let mut found = None;
    for (name, value) in fields {
        match (name.as_str(), value) {
            (_, Value::Null) | ("name" | "description", Value::String(_)) | ("strict", Value::Bool(_)) => {}
            ("schema", schema @ (Value::Object(_) | Value::Bool(_))) => found = Some(schema),
            ("schema", other) => {
                let message = format!("expected a JSON schema, got {}", shorten(&other));
                return Err(ApiError::field("response_format.json_schema.schema", message));
            }
            ("name" | "description" | "strict", other) => {
                let path = format!("response_format.json_schema.{name}");
                return Err(ApiError::field(path, format!("is of the wrong type: {}", shorten(&other))));
            }
            _ => return Err(unknown("response_format.json_schema", &name, "name, description, schema, strict")),
        }
    }
    let missing = || ApiError::field("response_format.json_schema.schema", "is missing; expected a JSON schema");
    found.map(Structure::JsonSchema).ok_or_else(missing)
}

/// How JSON may be written (vLLM's options beside the schema).
#[derive(Default)]
struct JsonOptions {
    no_whitespace: bool,
    no_additional: bool,
    whitespace: Option<String>,
}

/// vLLM's `structured_outputs`: exactly one constraint, and options.
fn structured_outputs(fields: Map<String, Value>) -> Result<Structure, ApiError> {
    const KNOWN: &str = "json, json_object, regex, choice, grammar, disable_any_whitespace, \
                         disable_additional_properties, whitespace_pattern";
    let mut found: Option<(String, Structure)> = None;
    let mut options = JsonOptions::default();
    for (name, value) in fields {
        let path = format!("structured_outputs.{name}");
        let wrong = |expected: &str, value: &Value| {
            Err(ApiError::field(&path, format!("expected {expected}, got {}", shorten(value))))
        };
        let structure = match (name.as_str(), value) {
            (_, Value::Null) | ("json_object", Value::Bool(false)) => continue,
            ("json", schema @ (Value::Object(_) | Value::Bool(_))) => Structure::JsonSchema(schema),
            ("json", Value::String(text)) => match serde_json::from_str::<Value>(&text) {
                Ok(schema) => Structure::JsonSchema(schema),
                Err(error) => return Err(ApiError::field(path, format!("is not JSON: {error}"))),
            },
            ("json_object", Value::Bool(true)) => Structure::JsonObject,
            ("regex", Value::String(regex)) => Structure::Regex(regex),
            ("grammar", Value::String(grammar)) => lark(&path, grammar)?,
            ("choice", value) => match serde_json::from_value(value.clone()) {
                Ok(choices) => Structure::Choice(choices),
                Err(_) => return wrong("a list of strings", &value),
            },
            ("disable_any_whitespace", Value::Bool(flag)) => {
                options.no_whitespace = flag;
                continue;
            }
            ("disable_additional_properties", Value::Bool(flag)) => {
                options.no_additional = flag;
                continue;
            }
            ("whitespace_pattern", Value::String(pattern)) => {
                options.whitespace = Some(pattern);
                continue;
            }
            ("structural_tag", value) => {
                let message = format!("is not supported by this server (given: {}); use json", shorten(&value));
                return Err(ApiError::field(path, message));
            }
            ("json", value) => return wrong("a JSON schema", &value),
            ("regex" | "grammar" | "whitespace_pattern", value) => return wrong("a string", &value),
            ("json_object" | "disable_any_whitespace" | "disable_additional_properties", value) => {
                return wrong("true or false", &value);
            }
            _ => return Err(unknown("structured_outputs", &name, KNOWN)),
        };
        if let Some((other, _)) = found.replace((name.clone(), structure)) {
            let message = format!("cannot be used together with structured_outputs.{other}; send one of them");
            return Err(ApiError::field(path, message));
        }
    }
    match found {
        Some((_, Structure::JsonSchema(schema))) => Ok(Structure::JsonSchema(with_options(schema, options))),
        Some((_, Structure::JsonObject)) => {
            let schema = Value::Object(Map::from_iter([("type".to_owned(), "object".into())]));
            Ok(Structure::JsonSchema(with_options(schema, options)))
        }
        Some((_, structure)) => Ok(structure),
        None => Err(ApiError::field("structured_outputs", "needs one of json, json_object, regex, choice, grammar")),
    }
}

/// llguidance reads Lark; the form of llama.cpp and xgrammar is another language.
fn lark(path: &str, grammar: String) -> Result<Structure, ApiError> {
    if grammar.contains("::=") {
        let message = "is in EBNF (it has ::=), which is not supported by this server; write it in Lark's form, \
                       such as start: \"yes\" | \"no\"";
        return Err(ApiError::field(path, message));
    }
    Ok(Structure::Lark(grammar))
}

/// Puts the options where llguidance looks for them.
fn with_options(mut schema: Value, options: JsonOptions) -> Value {
    let JsonOptions { no_whitespace, no_additional, whitespace } = options;
    if no_additional {
        close(&mut schema);
    }
    if let Value::Object(fields) = &mut schema
        && (no_whitespace || whitespace.is_some())
    {
        let mut own = match fields.remove("x-guidance") {
            Some(Value::Object(own)) => own,
            _ => Map::new(),
        };
        if no_whitespace {
            own.insert("whitespace_flexible".into(), Value::Bool(false));
        }
        if let Some(pattern) = whitespace {
            own.insert("whitespace_pattern".into(), Value::String(pattern));
        }
        fields.insert("x-guidance".into(), Value::Object(own));
    }
    schema
}

/// Objects with properties get no others, unless they say so. Depth is bounded by the JSON reader's.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".into(), Value::Bool(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(request: Value) -> Result<Option<Structure>, String> {
        let field = |name: &str| request.get(name).and_then(Value::as_object).cloned();
        let mut shared = Shared {
            response_format: field("response_format"),
            structured_outputs: field("structured_outputs"),
            ..Shared::default()
        };
        asked(&mut shared).map(|asked| asked.map(|asked| asked.structure)).map_err(|error| error.message)
    }

    #[test]
    fn both_fields_in_all_forms() {
        let schema = json!({"type": "object"});
        let format = |format: Value| run(json!({"response_format": format}));
        let structured = |fields: Value| run(json!({"structured_outputs": fields}));
        assert_eq!(format(json!({"type": "text"})), Ok(None));
        assert_eq!(format(json!({"type": "json_object"})), Ok(Some(Structure::JsonObject)));
        let full = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
        assert_eq!(format(full), Ok(Some(Structure::JsonSchema(schema.clone()))));
        assert_eq!(structured(json!({})), Ok(None));
        assert_eq!(structured(json!({"json": schema})), Ok(Some(Structure::JsonSchema(schema.clone()))));
        assert_eq!(structured(json!({"json": "{\"type\": \"object\"}"})), Ok(Some(Structure::JsonSchema(schema))));
        assert_eq!(structured(json!({"regex": "a", "json": null})), Ok(Some(Structure::Regex("a".into()))));
        assert_eq!(structured(json!({"choice": ["a"]})), Ok(Some(Structure::Choice(vec!["a".into()]))));
        assert_eq!(structured(json!({"grammar": "start: \"a\""})), Ok(Some(Structure::Lark("start: \"a\"".into()))));
    }

    #[test]
    fn options_go_into_the_schema() {
        let fields = json!({"json": {"properties": {"a": {"properties": {}}}}, "disable_any_whitespace": true,
                            "disable_additional_properties": true, "whitespace_pattern": " ?"});
        let expected = json!({
            "properties": {"a": {"properties": {}, "additionalProperties": false}}, "additionalProperties": false,
            "x-guidance": {"whitespace_flexible": false, "whitespace_pattern": " ?"},
        });
        assert_eq!(run(json!({"structured_outputs": fields})), Ok(Some(Structure::JsonSchema(expected))));
    }

    #[test]
    fn errors_name_the_field() {
        let fails = |request: Value, start: &str| {
            let message = run(request).unwrap_err();
            assert!(message.starts_with(start), "{message}");
        };
        fails(json!({"response_format": {"type": "xml"}}), "response_format.type: \"xml\" is not supported");
        fails(json!({"response_format": {}}), "response_format.type: is missing");
        fails(json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema: is missing");
        fails(
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
            "response_format.json_schema.schema: is missing",
        );
        fails(json!({"response_format": {"type": "text", "foo": 1}}), "response_format.foo: is an unknown field");
        fails(json!({"structured_outputs": {"regexp": "a"}}), "structured_outputs.regexp: is an unknown field");
        fails(json!({"structured_outputs": {"regex": 5}}), "structured_outputs.regex: expected a string, got 5");
        fails(json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs.");
        fails(json!({"structured_outputs": {"whitespace_pattern": " "}}), "structured_outputs: needs one of");
        fails(json!({"structured_outputs": {"grammar": "root ::= \"a\""}}), "structured_outputs.grammar: is in EBNF");
        fails(json!({"structured_outputs": {"structural_tag": "{}"}}), "structured_outputs.structural_tag: is not");
        let both = json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}});
        fails(both, "structured_outputs: cannot be used together");
    }
}
