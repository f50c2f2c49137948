//! What a choice's text amounts to as it comes: [`Reader`] puts a parser between outputs and answers, and [`Message`]
//! adds its events up. Shared by the chat, messages and responses handlers; knows none of their shapes.

use super::middleware::RequestId;
use super::parsers::{Event, Parser, Plan, ToolFormat, Tools};
use super::validate::chat::Meaning;
use crate::llm::Output;

/// Reads one choice.
#[derive(Debug)]
pub(crate) struct Reader {
    /// None: all text is content.
    parser: Option<Parser>,
    reasoning: bool,
    single: bool,
    calls: usize,
}

impl Reader {
    pub(crate) fn new(meaning: &Meaning) -> Self {
        let Meaning { plan, reasoning, single } = meaning;
        let parser = (!plan.is_plain()).then(|| Parser::new(plan));
        Self { parser, reasoning: *reasoning, single: *single, calls: 0 }
    }

    /// What an output says.
    pub(crate) fn read(&mut self, output: &Output) -> Vec<Event> {
        let Some(parser) = &mut self.parser else {
            return if output.text.is_empty() { Vec::new() } else { vec![Event::Content(output.text.clone())] };
        };
        let mut events = parser.push(&output.text);
        if output.finish.is_some() {
            events.extend(parser.finish());
        }
        events.retain(|event| match event {
            Event::Content(_) => true,
            Event::Reasoning(_) => self.reasoning,
            Event::Call(_) => {
                self.calls += 1;
                !self.single || self.calls == 1
            }
            Event::Arguments(_) => !self.single || self.calls == 1,
        });
        events
    }

    /// Whether a tool has been called.
    pub(crate) fn has_called(&self) -> bool {
        self.calls > 0
    }
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// A whole message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Called>,
}

impl Message {
    /// Adds events up; `id` names the calls.
    pub(crate) fn add(&mut self, events: Vec<Event>, id: impl Fn() -> String) {
        for event in events {
            match event {
                Event::Content(text) => self.content += &text,
                Event::Reasoning(text) => self.reasoning += &text,
                Event::Call(name) => self.calls.push(Called { id: id(), name, arguments: String::new() }),
                Event::Arguments(text) => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments += &text;
                    }
                }
            }
        }
    }
}

/// A fresh id for a call. Mistral's templates take nine letters and digits, and no more.
pub(crate) fn call_id(plan: &Plan) -> String {
    let fresh = RequestId::fresh().text;
    match plan.tools {
        Tools::Auto(ToolFormat::Mistral) => fresh[..9].to_owned(),
        _ => format!("chatcmpl-tool-{fresh}"),
    }
}
