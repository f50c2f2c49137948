//! gpt-oss's messages: each has a channel, maybe a recipient, and a text. `analysis` is reasoning, a message to
//! `functions.NAME` a call, everything else what the model says. Pure.

use super::scan::{Found, Scanner};
use super::{Events, Format};

const MESSAGE: &str = "<|message|>";
/// What ends a message; `<|return|>` and `<|call|>` are also eos tokens as a rule, and then do not come.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Nothing has come: a header, or text of a model that writes none.
    #[default]
    Start,
    /// In a header, between `<|start|>` or `<|channel|>` and `<|message|>`.
    Header,
    Reasoning,
    Call,
    Content,
}

#[derive(Debug, Default)]
pub(super) struct Harmony {
    scanner: Scanner,
    state: State,
    header: String,
    /// Arguments of the call have come.
    argued: bool,
}

impl Harmony {
    fn step(&mut self, out: &mut Events) -> bool {
        match self.state {
            State::Start => {
                self.scanner.skip_space();
                let marks = ["<|channel|>", "<|start|>"];
                if marks.iter().any(|mark| self.scanner.starts_with(mark) == Some(true)) {
                    self.state = State::Header;
                } else if marks.iter().any(|mark| self.scanner.starts_with(mark).is_none()) {
                    return false;
                } else {
                    self.state = State::Content;
                }
                true
            }
            State::Header => match self.scanner.until(&[MESSAGE]) {
                Found::Mark(text, _) => {
                    self.header += &text;
                    self.open(out);
                    true
                }
                Found::Text(text) => {
                    self.header += &text;
                    false
                }
            },
            State::Reasoning | State::Call | State::Content => match self.scanner.until(&ENDS) {
                Found::Mark(text, which) => {
                    self.body(&text, out);
                    if self.state == State::Call && !self.argued {
                        out.arguments("{}");
                    }
                    self.state = State::Header;
                    self.header = if which >= 3 { ENDS[which].to_owned() } else { String::new() };
                    true
                }
                Found::Text(text) => {
                    self.body(&text, out);
                    false
                }
            },
        }
    }

    /// A message begins.
    fn open(&mut self, out: &mut Events) {
        let header = std::mem::take(&mut self.header);
        let recipient = header.split("to=").nth(1).map(|rest| {
            let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
            &rest[..end]
        });
        let channel = header.split("<|channel|>").nth(1).unwrap_or_default().trim_start();
        self.argued = false;
        self.state = if let Some(name) = recipient {
            out.call(name.strip_prefix("functions.").unwrap_or(name));
            State::Call
        } else if channel.starts_with("analysis") {
            State::Reasoning
        } else {
            State::Content
        };
    }

    fn body(&mut self, text: &str, out: &mut Events) {
        match self.state {
            State::Reasoning => out.reasoning(text),
            State::Call => {
                self.argued |= !text.is_empty();
                out.arguments(text);
            }
            _ => out.content(text),
        }
    }
}

impl Format for Harmony {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        while self.step(out) {}
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        while self.step(out) {}
        if self.state == State::Call && !self.argued {
            out.arguments("{}");
        }
    }
}
