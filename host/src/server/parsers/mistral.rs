//! Mistral's calls: `[TOOL_CALLS]` and a JSON list of calls (older models), or `[TOOL_CALLS]name{…}`, also with
//! `[ARGS]` in between, repeated for each call (newer ones). Pure.

use super::call::{At, Call, Value};
use super::json_calls::Space;
use super::scan::{Found, Scanner};
use super::{Events, Format};

#[derive(Debug, Default)]
pub(super) struct Mistral {
    scanner: Scanner,
    state: State,
    space: Space,
}

#[derive(Debug, Default)]
enum State {
    /// Before a mark.
    #[default]
    Text,
    /// Behind a mark.
    Open,
    /// In a list, maybe in a call.
    List(Option<Call>),
    /// In arguments.
    Arguments(Value),
    /// Behind the calls of a list.
    Behind,
}

const MARK: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";

impl Mistral {
    /// One step; false if more text is needed.
    fn step(&mut self, out: &mut Events) -> bool {
        match &mut self.state {
            State::Text | State::Behind => match self.scanner.until(&[MARK]) {
                Found::Mark(before, _) => {
                    if matches!(self.state, State::Text) {
                        self.space.say(&before, out);
                    }
                    self.space.drop();
                    self.state = State::Open;
                    true
                }
                Found::Text(text) => {
                    if matches!(self.state, State::Text) {
                        self.space.say(&text, out);
                    }
                    false
                }
            },
            State::Open => {
                if !self.scanner.skip_space() {
                    return false;
                }
                if self.scanner.rest().starts_with('[') {
                    self.scanner.take(1);
                    self.state = State::List(None);
                    return true;
                }
                let Some(brace) = self.scanner.rest().find('{') else {
                    return false;
                };
                let head = self.scanner.take(brace);
                let name = head.split(ARGS).next().unwrap_or_default();
                // `[CALL_ID]…` may follow the name.
                out.call(name.split('[').next().unwrap_or_default().trim());
                self.state = State::Arguments(Value::default());
                true
            }
            State::List(call) => {
                let text = self.scanner.take_all();
                for (at, c) in text.char_indices() {
                    if let Some(inner) = call {
                        if inner.next(c, out) {
                            continue;
                        }
                        *call = None;
                    }
                    match c {
                        '{' => {
                            let mut inner = Call::default();
                            inner.next(c, out);
                            *call = Some(inner);
                        }
                        ']' => {
                            self.scanner.push(&text[at + 1..]);
                            self.state = State::Behind;
                            return true;
                        }
                        _ => {}
                    }
                }
                false
            }
            State::Arguments(value) => {
                let text = self.scanner.take_all();
                for (at, c) in text.char_indices() {
                    if value.next(c) == At::Last {
                        let end = at + c.len_utf8();
                        out.arguments(&text[..end]);
                        self.scanner.push(&text[end..]);
                        self.state = State::Behind;
                        return true;
                    }
                }
                out.arguments(&text);
                false
            }
        }
    }
}

impl Format for Mistral {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        while self.step(out) {}
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        while self.step(out) {}
        self.space.flush(out);
    }
}
