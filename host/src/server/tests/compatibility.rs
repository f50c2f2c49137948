//! Every field of vLLM 0.33's requests (`testdata/vllm-fields.json`), sent to the handlers one at a time: with a value that asks
//! for something, with one that asks for nothing, and with nonsense. What they answer is the table in `docs/compatibility.md`;
//! `UPDATE_GOLDEN=1` writes it. A field that takes nonsense would be ignored, and fails the test.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::pooling::pooler;
use super::{Server, Setup};
use crate::engine::Pooling;
use crate::server::config::ServerConfig;
use crate::test_pages;

const POOLING: [&str; 3] = ["/v1/embeddings", "/v1/score", "/v1/rerank"];

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has an effect, and a wrong value is refused.
    Supported,
    /// It is taken and has no effect: labels for the client's own bookkeeping, and what concerns images only.
    Label,
    /// Refused by name, unless its value asks for nothing.
    Default,
    /// Refused by name whatever its value, but null.
    Refused,
}

/// Taken without an effect on the answer; all others that are taken have one, or the table above would be wrong.
const LABELS: [&str; 5] = ["user", "session_id", "metadata", "prompt_cache_key", "return_mm_kwargs"];

async fn server(pools: bool) -> Server {
    let config = ServerConfig { trust_request_chat_template: true, ..Setup::default().config };
    Setup { config, pooler: pools.then(|| pooler(Pooling::Last)), ..Setup::default() }.start().await
}

/// The status, and whether a refusal names the field as one that is known.
async fn ask(server: &Server, path: &str, base: &Value, with: &Value, field: &str, value: &Value) -> (u16, bool) {
    let mut body: Map<String, Value> = base.as_object().unwrap().clone();
    for (name, value) in with.as_object().into_iter().flatten().chain([(&field.to_owned(), value)]) {
        body.insert(name.clone(), value.clone());
    }
    body.retain(|name, value| !value.is_null() || name == field);
    let reply = server.post(path, Value::Object(body)).await;
    if reply.status == 200 {
        return (200, false);
    }
    let error = &reply.json()["error"];
    let (param, message) = (error["param"].as_str().unwrap_or_default(), error["message"].as_str().unwrap_or_default());
    let named = param.starts_with(field) || message.contains(field);
    (reply.status, named && !message.contains("unknown field"))
}

async fn kind(server: &Server, path: &str, endpoint: &Value, all: &Value, field: &str) -> Result<Kind, String> {
    let (base, with) = (&endpoint["base"], &endpoint["with"][field]);
    let own = &endpoint["values"][field];
    let value = if own.is_null() { &all["values"][field] } else { own };
    assert!(!value.is_null(), "{path}: no value for {field}");
    let (status, named) = ask(server, path, base, with, field, &json!([[{}]])).await;
    if status != 400 || !named {
        return Err(format!("{path}: {field} takes nonsense, or its refusal ({status}) does not name it"));
    }
    let (status, named) = ask(server, path, base, with, field, value).await;
    if status == 200 {
        return Ok(if LABELS.contains(&field) { Kind::Label } else { Kind::Supported });
    }
    if status != 400 || !named {
        return Err(format!("{path}: {field} = {value} is refused with {status} and not named"));
    }
    let nothing = &all["nothing"][field];
    match ask(server, path, base, with, field, nothing).await.0 {
        200 if nothing.is_null() => Ok(Kind::Refused),
        200 => Ok(Kind::Default),
        status => Err(format!("{path}: {field} = {nothing}, which asks for nothing, is refused with {status}")),
    }
}

#[tokio::test]
async fn the_table_of_fields_is_what_the_handlers_do() {
    let all: Value = serde_json::from_str(include_str!("../testdata/vllm-fields.json")).unwrap();
    let (generates, pools) = (server(false).await, server(true).await);
    let mut table = String::from(
        "| endpoint | supported | taken without effect | refused, unless | refused |\n|---|---|---|---|---|\n",
    );
    let mut mistakes = Vec::new();
    for (path, endpoint) in all.as_object().unwrap().iter().filter(|(path, _)| path.starts_with('/')) {
        let server = if POOLING.contains(&path.as_str()) { &pools } else { &generates };
        let mut columns = [const { Vec::<String>::new() }; 4];
        for field in endpoint["fields"][0].as_str().unwrap().split_whitespace() {
            let (column, text) = match kind(server, path, endpoint, &all, field).await {
                Err(mistake) => {
                    mistakes.push(mistake);
                    continue;
                }
                Ok(Kind::Supported) => (0, format!("`{field}`")),
                Ok(Kind::Label) => (1, format!("`{field}`")),
                Ok(Kind::Default) => (2, format!("`{field}: {}`", all["nothing"][field])),
                Ok(Kind::Refused) => (3, format!("`{field}`")),
            };
            columns[column].push(text);
        }
        let [supported, labels, defaults, refused] = columns.map(|names| names.join(", "));
        writeln!(table, "| `{path}` | {supported} | {labels} | {defaults} | {refused} |").unwrap();
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    test_pages::holds("docs/compatibility.md", "fields", &table);
}
