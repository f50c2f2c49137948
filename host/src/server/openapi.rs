//! `GET /openapi.json`: what the server answers to. Paths come from the table here, which a test compares with the router;
//! the fields of requests from the types that read them. Made once.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::anthropic::{CountRequest, MessagesRequest};
use super::protocol::chat::ChatRequest;
use super::protocol::completion::CompletionRequest;
use super::protocol::describe::Describe;
use super::protocol::pooling::{EmbeddingRequest, RerankRequest, ScoreRequest};
use super::protocol::tokenize::{DetokenizeRequest, TokenizeRequest};
use super::responses::ResponsesRequest;

/// What is answered when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// A JSON object.
    Object,
    /// A JSON list.
    List,
    /// A JSON object, or events if the request asks for a stream.
    ObjectOrEvents,
    /// Text of this kind.
    Text(&'static str),
}

/// A request body's name and schema.
type Body = (&'static str, fn() -> Value);

/// Method, path, summary, body, answer.
type Route = (&'static str, &'static str, &'static str, Option<Body>, Answers);

const COMPLETION: Option<Body> = Some(("CompletionRequest", CompletionRequest::schema));
const SCORE: Option<Body> = Some(("ScoreRequest", ScoreRequest::schema));
const RERANK: Option<Body> = Some(("RerankRequest", RerankRequest::schema));
const CHAT: Option<Body> = Some(("ChatRequest", ChatRequest::schema));

const ROUTES: &[Route] = &[
    ("post", "/v1/completions", "Completes prompts", COMPLETION, Answers::ObjectOrEvents),
    ("post", "/v1/completions/render", "What a completion request would run", COMPLETION, Answers::List),
    ("post", "/v1/chat/completions", "Answers a chat", CHAT, Answers::ObjectOrEvents),
    ("post", "/v1/chat/completions/render", "What a chat request would run", CHAT, Answers::Object),
    (
        "post",
        "/v1/messages",
        "Answers a chat, in Anthropic's form",
        Some(("MessagesRequest", MessagesRequest::schema)),
        Answers::ObjectOrEvents,
    ),
    (
        "post",
        "/v1/messages/count_tokens",
        "Counts a chat's tokens",
        Some(("CountRequest", CountRequest::schema)),
        Answers::Object,
    ),
    (
        "post",
        "/v1/responses",
        "Answers a conversation of items",
        Some(("ResponsesRequest", ResponsesRequest::schema)),
        Answers::ObjectOrEvents,
    ),
    (
        "post",
        "/v1/embeddings",
        "Vectors of texts, for models served with --runner pooling",
        Some(("EmbeddingRequest", EmbeddingRequest::schema)),
        Answers::Object,
    ),
    ("post", "/v1/score", "How alike texts are", SCORE, Answers::Object),
    ("post", "/score", "How alike texts are", SCORE, Answers::Object),
    ("post", "/v1/rerank", "Texts in the order of their likeness to a query", RERANK, Answers::Object),
    ("post", "/v2/rerank", "Texts in the order of their likeness to a query", RERANK, Answers::Object),
    ("post", "/rerank", "Texts in the order of their likeness to a query", RERANK, Answers::Object),
    ("get", "/v1/models", "The models served", None, Answers::Object),
    ("get", "/v1/models/{name}", "One of them", None, Answers::Object),
    (
        "post",
        "/tokenize",
        "Token ids of a text or chat",
        Some(("TokenizeRequest", TokenizeRequest::schema)),
        Answers::Object,
    ),
    (
        "post",
        "/detokenize",
        "The text of token ids",
        Some(("DetokenizeRequest", DetokenizeRequest::schema)),
        Answers::Object,
    ),
    ("get", "/", "The playground", None, Answers::Text("text/html")),
    ("get", "/health", "Whether the engine moves", None, Answers::Object),
    ("get", "/health/ready", "Whether it takes requests", None, Answers::Object),
    ("get", "/ping", "Whether the engine moves", None, Answers::Object),
    ("post", "/ping", "Whether the engine moves", None, Answers::Object),
    ("get", "/load", "How many requests there are", None, Answers::Object),
    ("get", "/version", "The server's version", None, Answers::Object),
    ("get", "/metrics", "Metrics for Prometheus", None, Answers::Text("text/plain")),
    ("get", "/openapi.json", "This description", None, Answers::Object),
];

/// `GET /openapi.json`.
pub(crate) async fn handle() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| description().to_string());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

fn description() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let mut schemas: Map<String, Value> = Map::new();
    for (method, path, summary, body, answers) in ROUTES {
        if let Some((name, schema)) = body {
            schemas.insert((*name).to_owned(), schema());
        }
        let entry = paths.entry(*path).or_insert_with(|| json!({}));
        entry[*method] = operation(path, summary, *body, *answers);
    }
    schemas.insert("Error".into(), error_schema());
    json!({
        "openapi": "3.1.0",
        "info": {"title": "host", "version": env!("CARGO_PKG_VERSION"),
                 "description": "Serves language models over the APIs of OpenAI, vLLM and Anthropic. Fields that are not \
                                 listed are refused by name."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    })
}

fn operation(path: &str, summary: &str, body: Option<Body>, answers: Answers) -> Value {
    let object = json!({"schema": {"type": "object"}});
    let content = match answers {
        Answers::Object => json!({"application/json": object}),
        Answers::List => json!({"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}}),
        Answers::ObjectOrEvents => {
            json!({"application/json": object, "text/event-stream": {"schema": {"type": "string"}}})
        }
        Answers::Text(kind) => json!({kind: {"schema": {"type": "string"}}}),
    };
    let mut responses = json!({"200": {"description": "All is well", "content": content}});
    let errors: &[(&str, &str)] = match body {
        Some(_) => &[
            ("400", "The request cannot be served; the message names the field"),
            ("401", "No key, or a wrong one"),
            ("404", "There is no such model"),
            ("405", "The path takes another method"),
            ("408", "The request did not arrive in time"),
            ("413", "The request is too large"),
            ("415", "The request is not JSON"),
            ("429", "Too much is queued; Retry-After says when to come again"),
            ("500", "The server failed; its log says why"),
            ("503", "The queue is full, or the server is shutting down"),
        ],
        None => &[
            ("401", "No key, or a wrong one"),
            ("404", "There is no such thing"),
            ("405", "The path takes another method"),
            ("500", "The server failed; its log says why"),
            ("503", "The server is not ready, or is shutting down"),
        ],
    };
    for (status, description) in errors {
        let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
        responses[*status] = json!({"description": description, "content": content});
    }
    let mut operation = json!({"summary": summary, "responses": responses});
    if let Some((name, _)) = body {
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    if path.contains("{name}") {
        operation["parameters"] =
            json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

/// All forms of an error: OpenAI's, Anthropic's, and the health probes' status.
fn error_schema() -> Value {
    let error = json!({"type": "object", "required": ["message", "type"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
        "code": {"type": ["integer", "null"]},
    }});
    json!({"type": "object", "properties": {"error": error, "type": {"const": "error"}, "status": {"type": "string"}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::protocol::fields::names_of;

    #[test]
    fn every_route_of_the_router_is_described_and_no_other() {
        let source = include_str!("mod.rs");
        let mut routed: Vec<(String, String)> = Vec::new();
        for part in source.split(".route(").skip(1) {
            let (path, rest) = part.trim_start().strip_prefix('"').unwrap().split_once('"').unwrap();
            let method = rest.trim_start_matches([',', ' ', '\n']);
            let end = method.find("\n").unwrap_or(method.len());
            for name in ["get", "post"].into_iter().filter(|name| method[..end].contains(&format!("{name}("))) {
                routed.push((name.to_owned(), path.replace("{*name}", "{name}")));
            }
        }
        let mut described: Vec<(String, String)> =
            ROUTES.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned())).collect();
        routed.sort();
        described.sort();
        assert_eq!(described, routed);
    }

    #[test]
    fn schemas_have_the_fields_that_are_read() {
        let description = description();
        let fields = |name: &str| -> Vec<String> {
            let schema = &description["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], false);
            let mut names: Vec<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        let read = |names: &'static [&'static str]| {
            let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(fields("ChatRequest"), read(names_of::<ChatRequest>()));
        assert_eq!(fields("CompletionRequest"), read(names_of::<CompletionRequest>()));
        assert_eq!(fields("MessagesRequest"), read(names_of::<MessagesRequest>()));
        assert_eq!(fields("CountRequest"), read(names_of::<CountRequest>()));
        assert_eq!(fields("ResponsesRequest"), read(names_of::<ResponsesRequest>()));
        assert_eq!(fields("EmbeddingRequest"), read(names_of::<EmbeddingRequest>()));
        assert_eq!(fields("ScoreRequest"), read(names_of::<ScoreRequest>()));
        assert_eq!(fields("RerankRequest"), read(names_of::<RerankRequest>()));
        assert_eq!(fields("TokenizeRequest"), read(names_of::<TokenizeRequest>()));
        let schemas = &description["components"]["schemas"];
        assert_eq!(schemas["ChatRequest"]["required"], json!(["messages"]));
        assert_eq!(schemas["ChatRequest"]["properties"]["n"], json!({"type": ["integer", "null"]}));
    }

    #[test]
    fn references_lead_somewhere() {
        fn check(value: &Value, root: &Value) {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                assert!(root.pointer(&reference[1..]).is_some(), "{reference}");
            }
            match value {
                Value::Object(fields) => fields.values().for_each(|value| check(value, root)),
                Value::Array(items) => items.iter().for_each(|value| check(value, root)),
                _ => {}
            }
        }
        let description = description();
        check(&description, &description);
    }
}
