//! DeepSeek's calls: V3 writes `function`, a separator, the name and a block of JSON; V3.1 the name, the separator and
//! the JSON. Pure.

use super::call::{At, Value};
use super::json_calls::Space;
use super::scan::{Found, Scanner};
use super::{Events, Format};

/// Begins the calls.
pub(super) const BEGIN: &str = "<\u{ff5c}tool\u{2581}calls\u{2581}begin\u{ff5c}>";
const END: &str = "<\u{ff5c}tool\u{2581}calls\u{2581}end\u{ff5c}>";
const CALL: &str = "<\u{ff5c}tool\u{2581}call\u{2581}begin\u{ff5c}>";
const CALL_END: &str = "<\u{ff5c}tool\u{2581}call\u{2581}end\u{ff5c}>";
const SEPARATOR: &str = "<\u{ff5c}tool\u{2581}sep\u{ff5c}>";

#[derive(Debug, Default)]
pub(super) struct Deepseek {
    scanner: Scanner,
    state: State,
    space: Space,
    /// What came before the separator.
    head: String,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// Between calls.
    Calls,
    /// Before the separator.
    Head,
    /// V3: the name, up to the line's end.
    Name,
    /// Before `{`.
    Fence,
    Arguments(Value),
    /// Behind `}`.
    Tail,
    /// Behind all calls.
    Done,
}

impl Deepseek {
    fn step(&mut self, out: &mut Events) -> bool {
        match &mut self.state {
            State::Text => match self.scanner.until(&[BEGIN]) {
                Found::Mark(before, _) => {
                    self.space.say(&before, out);
                    self.space.drop();
                    self.state = State::Calls;
                    true
                }
                Found::Text(text) => {
                    self.space.say(&text, out);
                    false
                }
            },
            State::Calls => match self.scanner.until(&[CALL, END]) {
                Found::Mark(_, 0) => {
                    (self.state, self.head) = (State::Head, String::new());
                    true
                }
                Found::Mark(..) => {
                    self.state = State::Done;
                    true
                }
                Found::Text(_) => false,
            },
            State::Head => match self.scanner.until(&[SEPARATOR]) {
                Found::Mark(text, _) => {
                    self.head += &text;
                    if self.head.trim() == "function" {
                        (self.state, self.head) = (State::Name, String::new());
                    } else {
                        out.call(self.head.trim());
                        self.state = State::Fence;
                    }
                    true
                }
                Found::Text(text) => {
                    self.head += &text;
                    false
                }
            },
            State::Name => match self.scanner.until(&["\n"]) {
                Found::Mark(text, _) => {
                    self.head += &text;
                    out.call(self.head.trim());
                    self.state = State::Fence;
                    true
                }
                Found::Text(text) => {
                    self.head += &text;
                    false
                }
            },
            State::Fence => match self.scanner.until(&["{", CALL_END]) {
                Found::Mark(_, 0) => {
                    let mut value = Value::default();
                    value.next('{');
                    out.arguments("{");
                    self.state = State::Arguments(value);
                    true
                }
                // Without arguments the call's end comes first.
                Found::Mark(..) => {
                    out.arguments("{}");
                    self.state = State::Calls;
                    true
                }
                Found::Text(_) => false,
            },
            State::Arguments(value) => {
                let text = self.scanner.take_all();
                let last = text.char_indices().find(|&(_, c)| value.next(c) == At::Last).map(|(at, _)| at + 1);
                out.arguments(&text[..last.unwrap_or(text.len())]);
                let Some(end) = last else { return false };
                self.scanner.push(&text[end..]);
                self.state = State::Tail;
                true
            }
            State::Tail => match self.scanner.until(&[CALL_END, END]) {
                Found::Mark(_, which) => {
                    self.state = if which == 0 { State::Calls } else { State::Done };
                    true
                }
                Found::Text(_) => false,
            },
            State::Done => {
                let text = self.scanner.take_all();
                self.space.say(&text, out);
                false
            }
        }
    }
}

impl Format for Deepseek {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        while self.step(out) {}
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        while self.step(out) {}
        if matches!(self.state, State::Text) {
            self.space.flush(out);
        }
    }
}
