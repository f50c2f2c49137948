//! Chat templates against the outputs of Python's Jinja (`testdata/chat`, made by its `make_golden.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{ChatTemplate, TextError};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/testdata/chat")
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join(name)).unwrap()).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    ChatTemplate::new(source, tokens.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn render(source: &str, messages: Value) -> Result<String, TextError> {
    template(source).render(messages.as_array().unwrap(), true, None, &Map::new())
}

/// The two texts from a little before the place where they part.
fn difference(python: &str, here: &str) -> String {
    let same = python.chars().zip(here.chars()).take_while(|(a, b)| a == b).count();
    let part = |text: &str| text.chars().skip(same.saturating_sub(40)).take(120).collect::<String>();
    format!("\n  python: ...{}\n  here:   ...{}", part(python), part(here))
}

#[test]
fn as_python_renders() {
    let (cases, golden) = (read("cases.json"), read("golden.json"));
    let now = UNIX_EPOCH + Duration::from_secs(cases["now"].as_u64().unwrap());
    let mut wrong = Vec::new();
    let (mut texts, mut compiled) = (0, BTreeMap::new());
    for (id, expected) in golden.as_object().unwrap() {
        let [name, conversation, variant] = id.split('/').collect::<Vec<_>>()[..] else { panic!("{id}") };
        let template = compiled
            .entry(name)
            .or_insert_with(|| template(&std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap()));
        let messages = cases["conversations"][conversation].as_array().unwrap();
        let variant = &cases["variants"][variant.parse::<usize>().unwrap()];
        let tools = variant["tools"].as_bool().unwrap().then_some(&cases["tools"]);
        let generate = variant["add_generation_prompt"].as_bool().unwrap();
        let found = template.render_at(now, messages, generate, tools, variant["extra"].as_object().unwrap());
        let found = match found {
            Ok(text) => json!({"text": text}),
            Err(TextError::Refused(message)) => json!({"refused": message}),
            Err(error) => json!({"error": error.to_string()}),
        };
        texts += usize::from(expected.get("text").is_some());
        // Which error it is differs; that it is one must not. The exception is a loop over none: see `chat`.
        let lax = name == "hermes" && tools.is_none() && expected["error"] == "TypeError";
        let error_here = found.get("error").is_some();
        let same = found == *expected || lax || (error_here && expected.get("error").is_some());
        if !same {
            wrong.push(format!("{id}: {}", difference(&expected.to_string(), &found.to_string())));
        }
    }
    assert!(texts > 100, "{texts}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn errors_name_the_line() {
    let error = render("one\ntwo {{ messages[0].a.b }}", json!([{}])).unwrap_err();
    assert!(matches!(&error, TextError::Template { line: Some(2), .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.starts_with("chat template \"default\", line 2: "), "{error}");
    // A broken template is an error when it is used, with the line in the model's own file.
    let error = render("{% generation %}\n{% endgeneration %}\n{% if %}", json!([])).unwrap_err().to_string();
    assert!(error.contains("line 3: syntax error"), "{error}");
    let error = render("{{ messages|nope }}", json!([])).unwrap_err().to_string();
    assert!(error.contains("nope"), "{error}");
    let error = render("{% include 'x' %}", json!([])).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn a_template_may_refuse() {
    let source = "{% if not messages %}{{ raise_exception('no ' ~ 'messages') }}{% endif %}ok";
    let error = render(source, json!([])).unwrap_err();
    assert!(matches!(&error, TextError::Refused(message) if message == "no messages"), "{error:?}");
    assert_eq!(render(source, json!([1])).unwrap(), "ok");
    // From within a macro too.
    let nested = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(nested, json!([])), Err(TextError::Refused(message)) if message == "deep"));
}

#[test]
fn named_templates() {
    let sources = |names: &[&str]| names.iter().map(|n| (n.to_string(), format!("{n} {{{{ x }}}}"))).collect();
    let (extra, tools) = (json!({"x": 1}), json!([]));
    let extra = extra.as_object().unwrap();
    let both = ChatTemplate::with_names(sources(&["default", "tool_use", "rag.html"]), BTreeMap::new());
    assert_eq!(both.render(&[], false, None, extra).unwrap(), "default 1");
    assert_eq!(both.render(&[], false, Some(&tools), extra).unwrap(), "tool_use 1");
    assert_eq!(both.render(&[], false, Some(&Value::Null), extra).unwrap(), "default 1");
    assert_eq!(both.source(true).unwrap(), "tool_use {{ x }}");
    let none = ChatTemplate::with_names(sources(&["rag", "other"]), BTreeMap::new());
    let error = none.render(&[], false, None, extra).unwrap_err().to_string();
    assert!(error.contains("other, rag") && error.contains("--chat-template"), "{error}");
}

#[test]
fn extra_variables_win_over_special_tokens_only() {
    let source = "{{ bos_token }}{{ messages|length }}{{ add_generation_prompt }}{{ documents }}{{ custom }}";
    let extra =
        json!({"bos_token": "B", "messages": [], "add_generation_prompt": false, "documents": "D", "custom": [1]});
    let text = template(source).render(&[json!({})], true, None, extra.as_object().unwrap()).unwrap();
    assert_eq!(text, "B1TrueD[1]");
}

#[test]
fn endless_recursion_ends() {
    let source = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
    let run = || render(source, json!([])).unwrap_err().to_string();
    // The stack of a worker thread of the async runtime.
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap();
    let error = thread.join().unwrap();
    assert!(error.contains("recursion"), "{error}");
    let mut deep = json!([]);
    for _ in 0..120 {
        deep = json!([deep]);
    }
    assert!(render("{{ messages|tojson }}", json!([deep])).unwrap().len() > 240);
}
