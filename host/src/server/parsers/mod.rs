//! What a model's text means: reasoning, tool calls, and the rest, which is what it says. Text arrives in pieces of any
//! length, and whatever the pieces, the events add up to the same: a piece of text is passed on when it is decided
//! what it is, never before. [`Parser`] puts a reasoning format in front of a tool format; each format is a small
//! state machine over [`scan::Scanner`]. Pure: no JSON answers, no requests. Used by the chat, messages and
//! responses handlers.

mod call;
mod deepseek;
mod formats;
mod harmony;
mod json_calls;
mod mistral;
mod pythonic;
mod reasoning;
mod scan;
#[cfg(test)]
mod tests;
mod xml;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

pub use formats::{ReasoningFormat, ToolFormat};
pub(crate) use reasoning::Reasoning;

/// Something that the model did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// More of what it says.
    Content(String),
    /// More of what it thinks.
    Reasoning(String),
    /// It calls a tool.
    Call(String),
    /// More of the arguments of the last call: pieces of one JSON object.
    Arguments(String),
}

/// Where events go; neighbours of one kind become one.
#[derive(Debug, Default)]
pub(crate) struct Events(pub(crate) Vec<Event>);

impl Events {
    fn content(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Content(last)) => last.push_str(text),
            _ => self.0.push(Event::Content(text.to_owned())),
        }
    }

    fn reasoning(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Reasoning(last)) => last.push_str(text),
            _ => self.0.push(Event::Reasoning(text.to_owned())),
        }
    }

    fn call(&mut self, name: &str) {
        self.0.push(Event::Call(name.to_owned()));
    }

    fn arguments(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Arguments(last)) => last.push_str(text),
            _ => self.0.push(Event::Arguments(text.to_owned())),
        }
    }
}

/// One way of writing tool calls.
trait Format: Send {
    /// Takes more text.
    fn push(&mut self, text: &str, out: &mut Events);
    /// The text has ended.
    fn finish(&mut self, out: &mut Events);
}

/// The types of tools' parameters, for formats that write values without quotes: by tool and parameter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schemas(BTreeMap<String, BTreeMap<String, Value>>);

impl Schemas {
    /// From the request's `tools`.
    pub(crate) fn new(tools: &[Value]) -> Self {
        let one = |tool: &Value| {
            let function = tool.get("function")?;
            let properties = function.pointer("/parameters/properties").and_then(Value::as_object);
            let properties = properties.into_iter().flatten().map(|(name, schema)| (name.clone(), schema.clone()));
            Some((function.get("name")?.as_str()?.to_owned(), properties.collect()))
        };
        Self(tools.iter().filter_map(one).collect())
    }

    /// A value that was written as bare text, as JSON.
    fn value(&self, tool: &str, parameter: &str, text: &str) -> Value {
        let schema = self.0.get(tool).and_then(|parameters| parameters.get(parameter));
        let kinds: Vec<&str> = match schema.and_then(|schema| schema.get("type")) {
            Some(Value::String(kind)) => vec![kind],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if kinds == ["string"] {
            return Value::String(text.to_owned());
        }
        let trimmed = text.trim();
        let literal = match trimmed {
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "None" => Some(Value::Null),
            _ => serde_json::from_str::<Value>(trimmed).ok(),
        };
        let fits = |value: &Value| {
            let kind = match value {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(number) if number.is_f64() => "number",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            kinds.is_empty() || kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"))
        };
        literal.filter(fits).unwrap_or_else(|| Value::String(text.to_owned()))
    }
}

/// What to look for in a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Reasoning, and whether the prompt has begun it.
    pub(crate) reasoning: Option<(ReasoningFormat, bool)>,
    pub(crate) tools: Tools,
    pub(crate) schemas: Schemas,
}

/// How the text behind the reasoning calls tools.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Tools {
    /// Not at all.
    #[default]
    None,
    /// In the model's own way, if it wants to.
    Auto(ToolFormat),
    /// The whole text is the arguments of this one (a grammar sees to it).
    Named(String),
    /// The whole text is a list of `{"name": …, "parameters": …}` (a grammar sees to it).
    Required,
}

impl Plan {
    /// Whether there is anything to look for.
    pub(crate) fn is_plain(&self) -> bool {
        self.reasoning.is_none() && self.tools == Tools::None
    }
}

/// Reads one choice's text.
pub(crate) struct Parser {
    reasoning: Option<Reasoning>,
    format: Option<Box<dyn Format>>,
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parser").field("reasoning", &self.reasoning).finish_non_exhaustive()
    }
}

impl Parser {
    pub(crate) fn new(plan: &Plan) -> Self {
        let harmony = matches!(plan.tools, Tools::Auto(ToolFormat::Harmony))
            || matches!(&plan.reasoning, Some((ReasoningFormat::Harmony, _)));
        let format: Option<Box<dyn Format>> = match &plan.tools {
            Tools::Named(name) => Some(Box::new(json_calls::Named::new(name))),
            Tools::Required => Some(Box::new(json_calls::List::default())),
            // Reasoning and calls are messages of one stream.
            _ if harmony => Some(Box::new(harmony::Harmony::default())),
            Tools::Auto(format) => Some(format.parser(plan.schemas.clone())),
            Tools::None => None,
        };
        let reasoning = plan.reasoning.as_ref().filter(|(format, _)| *format != ReasoningFormat::Harmony);
        Self { reasoning: reasoning.map(|(format, begun)| Reasoning::new(format, *begun)), format }
    }

    /// Takes more text; gives what is decided by it.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Event> {
        let mut out = Events::default();
        let rest = match &mut self.reasoning {
            Some(reasoning) => reasoning.push(text, &mut out),
            None => text.to_owned(),
        };
        self.say(&rest, &mut out);
        out.0
    }

    /// The text has ended.
    pub(crate) fn finish(&mut self) -> Vec<Event> {
        let mut out = Events::default();
        if let Some(reasoning) = &mut self.reasoning {
            let rest = reasoning.finish(&mut out);
            self.say(&rest, &mut out);
        }
        if let Some(format) = &mut self.format {
            format.finish(&mut out);
        }
        out.0
    }

    fn say(&mut self, text: &str, out: &mut Events) {
        match &mut self.format {
            _ if text.is_empty() => {}
            Some(format) => format.push(text, out),
            None => out.content(text),
        }
    }
}
