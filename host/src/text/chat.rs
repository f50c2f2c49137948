//! The model's chat template: messages in, prompt out, as `apply_chat_template` of transformers would.
//!
//! Templates are Jinja as Python runs it: blocks trimmed, `break` and `continue`, methods of Python's strings and
//! dictionaries, `raise_exception`, `strftime_now` (in UTC), and a `tojson` that writes what `json.dumps` does. Templates
//! come with the model: they see the messages and nothing else, and load no files. One thing is laxer than in Python: a
//! loop over `none` is empty, where Python raises an error (seen in templates that forget that there may be no tools). The tag `{% generation %}`, with which
//! training code marks the model's own words, has no meaning here and becomes `{% with %}`, which scopes and trims alike.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use serde_json::Map;

use super::TextError;
use super::pyjson::{float_repr, tojson};
use super::strftime::strftime;

/// The template that is used unless another is asked for.
const DEFAULT: &str = "default";
/// The template that is preferred when there are tools.
const TOOL_USE: &str = "tool_use";

/// A model's chat templates; most have one, named `default`.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Templates by name; a broken one is an error only when it is used.
    sources: BTreeMap<String, Result<String, TextError>>,
    /// `bos_token` and so on.
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A model with this one template. `special_tokens` become variables: `bos_token`, `eos_token`, ...
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Self {
        Self::with_names(BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]), special_tokens)
    }

    /// A model with several templates.
    pub fn with_names(sources: BTreeMap<String, String>, special_tokens: BTreeMap<String, String>) -> Self {
        let mut environment = environment();
        let sources = sources
            .into_iter()
            .map(|(name, source)| {
                let added = environment.add_template_owned(name.clone(), without_generation_tags(&source));
                let checked = added.map(|()| source).map_err(|e| template_error(&name, &e));
                if let Err(error) = &checked {
                    tracing::warn!(%error, "the model's chat template cannot be used");
                }
                (name, checked)
            })
            .collect();
        Self { environment, sources, special_tokens }
    }

    /// The names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// The text of the template that would be used, with or without tools.
    pub fn source(&self, with_tools: bool) -> Result<&str, TextError> {
        self.choose(with_tools).and_then(|(_, source)| source.as_deref().map_err(Clone::clone))
    }

    /// The prompt. `extra` are further variables, `documents` and the template's own switches among them; they win over
    /// special tokens, not over `messages`, `tools` and `add_generation_prompt`.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        tools: Option<&serde_json::Value>,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        self.render_at(SystemTime::now(), messages, add_generation_prompt, tools, extra)
    }

    /// [`Self::render`] at a given time, for templates that print the date.
    pub fn render_at(
        &self,
        now: SystemTime,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        tools: Option<&serde_json::Value>,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let (name, source) = self.choose(tools.is_some_and(|tools| !tools.is_null()))?;
        source.as_ref().map_err(Clone::clone)?;
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        // transformers passes both as None when they are not given; templates test for that.
        variables.insert("documents", Value::from(()));
        for (name, text) in &self.special_tokens {
            variables.insert(name, Value::from(text.as_str()));
        }
        for (name, value) in extra {
            variables.insert(name, json_value(value));
        }
        variables.insert("messages", messages.iter().map(json_value).collect());
        variables.insert("tools", tools.map_or(Value::from(()), json_value));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        variables.insert("strftime_now", Value::from_function(move |format: &str| strftime(format, now)));
        let template = self.environment.get_template(name).map_err(|e| template_error(name, &e))?;
        template.render(Value::from_pairs(variables)).map_err(|e| template_error(name, &e))
    }

    /// As transformers chooses.
    fn choose(&self, with_tools: bool) -> Result<(&str, &Result<String, TextError>), TextError> {
        let named = |name: &str| self.sources.get_key_value(name);
        let tool_use = if with_tools { named(TOOL_USE) } else { None };
        let found = tool_use.or_else(|| named(DEFAULT)).map(|(name, source)| (name.as_str(), source));
        found.ok_or_else(|| TextError::NoDefaultTemplate(self.names().collect::<Vec<_>>().join(", ")))
    }
}

/// Jinja as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    // These options cannot fail: the delimiters stay as they are.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    // Template names are the model's; none of them may turn on HTML escaping.
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.set_formatter(|out, state, value| {
        let is_float = value.kind() == ValueKind::Number && !value.is_integer();
        if is_float && let Ok(float) = f64::try_from(value.clone()) {
            return out.write_str(&float_repr(float)).map_err(Error::from);
        }
        minijinja::escape_formatter(out, state, value)
    });
    env.add_filter("tojson", tojson);
    // The engine's own says yes to none, as its loops do.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", raise_exception);
    env
}

/// The template engine's form of a JSON value; the order of keys is kept.
fn json_value(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(json_value).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (Value::from(key.as_str()), json_value(value))))
        }
    }
}

/// What `raise_exception` was called with, to tell it from other errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Python's methods: those of minijinja-contrib, and a few that templates use and it lacks.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    let separator = |at: usize| {
        let text = args.get(at).and_then(Value::as_str).filter(|s| !s.is_empty());
        text.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{method} needs a non-empty string")))
    };
    let tuple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(match method {
        "removeprefix" => Value::from(text.strip_prefix(separator(0)?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(separator(0)?).unwrap_or(text)),
        "partition" => match text.split_once(separator(0)?) {
            Some((before, after)) => tuple([before, separator(0)?, after]),
            None => tuple([text, "", ""]),
        },
        "rpartition" => match text.rsplit_once(separator(0)?) {
            Some((before, after)) => tuple([before, separator(0)?, after]),
            None => tuple(["", "", text]),
        },
        "rsplit" if !args.is_empty() => {
            let parts = match args.get(1).and_then(Value::as_usize) {
                Some(most) => text.rsplitn(most.saturating_add(1), separator(0)?).collect::<Vec<_>>(),
                None => text.rsplit(separator(0)?).collect(),
            };
            parts.into_iter().rev().map(Value::from).collect()
        }
        _ => {
            return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
        }
    })
}

/// The engine's error in our words.
fn template_error(template: &str, error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref::<Raised>() {
            return TextError::Refused(message.clone());
        }
        cause = error.source();
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TextError::Template { template: template.into(), line: error.line(), message }
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by `{% with %}` and `{% endwith %}`; trim marks and lines stay.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let inside = &rest[at + 2..];
        let Some(end) = inside.find("%}") else { break };
        let tag = &inside[..end];
        let name = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replaced = match name {
            "generation" => tag.replace("generation", "with"),
            "endgeneration" => tag.replace("endgeneration", "endwith"),
            _ => {
                // Not past the tag's opening: what follows may be the end of a string that holds "{%".
                out.push_str(&rest[..at + 2]);
                rest = inside;
                continue;
            }
        };
        out.push_str(&rest[..at + 2]);
        out.push_str(&replaced);
        rest = &inside[end..];
    }
    out.push_str(rest);
    out
}
