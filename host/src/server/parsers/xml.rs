//! Calls written with tags around bare values: Qwen3-Coder's `<function=…><parameter=…>` and GLM-4.5's `<arg_key>` and
//! `<arg_value>`. The tools' schemas tell what kind of value a bare text is. Arguments leave as JSON, one member when
//! its value is complete. Pure.

use serde_json::Value;

use super::json_calls::Space;
use super::scan::{Found, Scanner};
use super::{Events, Format, Schemas};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The call under way, in both formats.
#[derive(Debug, Default)]
struct Members {
    tool: String,
    key: String,
    count: usize,
}

impl Members {
    fn begin(&mut self, tool: &str, out: &mut Events) {
        *self = Self { tool: tool.to_owned(), ..Self::default() };
        out.call(tool);
        out.arguments("{");
    }

    fn member(&mut self, text: &str, schemas: &Schemas, out: &mut Events) {
        let comma = if self.count > 0 { ", " } else { "" };
        let value = schemas.value(&self.tool, &self.key, text);
        out.arguments(&format!("{comma}{}: {value}", Value::String(self.key.clone())));
        self.count += 1;
    }
}

/// One line break at each end belongs to the tags.
fn inner(text: &str) -> &str {
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text)
}

#[derive(Debug, Default)]
enum QwenState {
    #[default]
    Text,
    /// Behind `<tool_call>`, and between functions.
    Call,
    /// In `<function=`.
    Name,
    /// Between parameters.
    Parameters,
    /// In `<parameter=`.
    Key,
    Value,
}

/// Qwen3-Coder's calls.
#[derive(Debug)]
pub(super) struct Qwen3 {
    scanner: Scanner,
    state: QwenState,
    schemas: Schemas,
    members: Members,
    space: Space,
    text: String,
}

impl Qwen3 {
    pub(super) fn new(schemas: Schemas) -> Self {
        let (scanner, space) = (Scanner::default(), Space::default());
        Self { scanner, state: QwenState::Text, schemas, members: Members::default(), space, text: String::new() }
    }

    fn step(&mut self, out: &mut Events) -> Option<()> {
        match self.state {
            QwenState::Text => match self.scanner.until(&[OPEN, "<function="]) {
                Found::Mark(before, which) => {
                    self.space.say(&before, out);
                    self.space.drop();
                    // Models forget the outer tag.
                    self.state = if which == 0 { QwenState::Call } else { QwenState::Name };
                }
                Found::Text(text) => {
                    self.space.say(&text, out);
                    return None;
                }
            },
            QwenState::Call => {
                let (_, which) = collect(&mut self.scanner, &mut self.text, &["<function=", CLOSE])?;
                self.state = if which == 0 { QwenState::Name } else { QwenState::Text };
            }
            QwenState::Name => {
                let (name, _) = collect(&mut self.scanner, &mut self.text, &[">"])?;
                self.members.begin(name.trim(), out);
                self.state = QwenState::Parameters;
            }
            QwenState::Parameters => {
                let (_, which) = collect(&mut self.scanner, &mut self.text, &["<parameter=", "</function>", CLOSE])?;
                if which == 0 {
                    self.state = QwenState::Key;
                } else {
                    out.arguments("}");
                    self.state = if which == 1 { QwenState::Call } else { QwenState::Text };
                }
            }
            QwenState::Key => {
                let (key, _) = collect(&mut self.scanner, &mut self.text, &[">"])?;
                self.members.key = key.trim().to_owned();
                self.state = QwenState::Value;
            }
            QwenState::Value => {
                let (value, which) = collect(&mut self.scanner, &mut self.text, &["</parameter>", "</function>"])?;
                self.members.member(inner(&value), &self.schemas, out);
                if which == 1 {
                    out.arguments("}");
                }
                self.state = if which == 0 { QwenState::Parameters } else { QwenState::Call };
            }
        }
        Some(())
    }
}

impl Format for Qwen3 {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        while self.step(out).is_some() {}
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        while self.step(out).is_some() {}
        self.space.flush(out);
    }
}

#[derive(Debug, Default)]
enum GlmState {
    #[default]
    Text,
    Name,
    /// Between keys.
    Keys,
    Key,
    /// Between a key and its value.
    Between,
    Value,
}

/// Collects into `text` up to one of `marks`: what came before it, and which it is.
fn collect(scanner: &mut Scanner, text: &mut String, marks: &[&str]) -> Option<(String, usize)> {
    match scanner.until(marks) {
        Found::Mark(rest, which) => {
            *text += &rest;
            Some((std::mem::take(text), which))
        }
        Found::Text(rest) => {
            *text += &rest;
            None
        }
    }
}

/// GLM-4.5's calls.
#[derive(Debug)]
pub(super) struct Glm4 {
    scanner: Scanner,
    state: GlmState,
    schemas: Schemas,
    members: Members,
    space: Space,
    text: String,
}

impl Glm4 {
    pub(super) fn new(schemas: Schemas) -> Self {
        let (scanner, space) = (Scanner::default(), Space::default());
        Self { scanner, state: GlmState::Text, schemas, members: Members::default(), space, text: String::new() }
    }

    fn step(&mut self, out: &mut Events) -> Option<()> {
        match self.state {
            GlmState::Text => match self.scanner.until(&[OPEN]) {
                Found::Mark(before, _) => {
                    self.space.say(&before, out);
                    self.space.drop();
                    self.state = GlmState::Name;
                }
                Found::Text(text) => {
                    self.space.say(&text, out);
                    return None;
                }
            },
            GlmState::Name => {
                let (name, which) = collect(&mut self.scanner, &mut self.text, &["<arg_key>", CLOSE])?;
                self.members.begin(name.trim(), out);
                self.state = GlmState::Key;
                if which == 1 {
                    out.arguments("}");
                    self.state = GlmState::Text;
                }
            }
            GlmState::Keys => {
                let (_, which) = collect(&mut self.scanner, &mut self.text, &["<arg_key>", CLOSE])?;
                self.state = GlmState::Key;
                if which == 1 {
                    out.arguments("}");
                    self.state = GlmState::Text;
                }
            }
            GlmState::Key => {
                let (key, _) = collect(&mut self.scanner, &mut self.text, &["</arg_key>"])?;
                self.members.key = key.trim().to_owned();
                self.state = GlmState::Between;
            }
            GlmState::Between => {
                collect(&mut self.scanner, &mut self.text, &["<arg_value>"])?;
                self.state = GlmState::Value;
            }
            GlmState::Value => {
                let (value, _) = collect(&mut self.scanner, &mut self.text, &["</arg_value>"])?;
                self.members.member(&value, &self.schemas, out);
                self.state = GlmState::Keys;
            }
        }
        Some(())
    }
}

impl Format for Glm4 {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        while self.step(out).is_some() {}
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        while self.step(out).is_some() {}
        self.space.flush(out);
    }
}
