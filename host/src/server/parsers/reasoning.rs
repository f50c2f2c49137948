//! Separates reasoning between two tags from what follows it. Pure.

use super::scan::{Found, Scanner};
use super::{Events, ReasoningFormat};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// Between the tags.
    Inside,
    /// Right behind them: line breaks belong to neither side.
    Behind,
    /// What the model says.
    After,
}

/// Looks for reasoning at the beginning of a text.
#[derive(Debug, Clone)]
pub(crate) struct Reasoning {
    scanner: Scanner,
    state: State,
    start: String,
    end: String,
    /// White space before the reasoning's end is not part of it, so it waits.
    space: String,
    said: bool,
}

impl Reasoning {
    /// `begun`: the prompt ends with the start tag.
    pub(crate) fn new(format: &ReasoningFormat, begun: bool) -> Self {
        let (start, end) = format.tags();
        let (start, end) = (start.to_owned(), end.to_owned());
        let state = if begun || format.is_from_the_start() { State::Inside } else { State::Start };
        Self { scanner: Scanner::default(), state, start, end, space: String::new(), said: false }
    }

    /// Takes more text and gives what is not reasoning.
    pub(super) fn push(&mut self, text: &str, out: &mut Events) -> String {
        if self.state == State::After {
            return text.to_owned();
        }
        self.scanner.push(text);
        self.run(out)
    }

    /// The text has ended.
    pub(super) fn finish(&mut self, out: &mut Events) -> String {
        self.scanner.end();
        self.run(out)
    }

    fn run(&mut self, out: &mut Events) -> String {
        loop {
            match self.state {
                State::Start => {
                    let trimmed = self.scanner.rest().trim_start();
                    let space = self.scanner.rest().len() - trimmed.len();
                    if trimmed.starts_with(&self.start) {
                        self.scanner.take(space + self.start.len());
                        self.state = State::Inside;
                    } else if self.start.starts_with(trimmed) && !self.scanner.ended() {
                        return String::new();
                    } else {
                        self.state = State::After;
                    }
                }
                State::Inside => {
                    // Some models write the start tag though the prompt has it.
                    if !self.said && self.space.trim().is_empty() {
                        self.scanner.skip_space();
                        match self.scanner.starts_with(&self.start) {
                            None => return String::new(),
                            Some(true) if !self.start.is_empty() => {
                                self.scanner.take(self.start.len());
                                continue;
                            }
                            Some(_) => {}
                        }
                    }
                    match self.scanner.until(&[&self.end]) {
                        Found::Mark(before, _) => {
                            self.think(&before, out);
                            self.state = State::Behind;
                        }
                        Found::Text(text) => {
                            self.think(&text, out);
                            return String::new();
                        }
                    }
                }
                State::Behind => {
                    if !self.scanner.skip_space() {
                        return String::new();
                    }
                    self.state = State::After;
                }
                State::After => return self.scanner.take_all(),
            }
        }
    }

    /// Passes reasoning on, without white space at its ends.
    fn think(&mut self, text: &str, out: &mut Events) {
        self.space.push_str(text);
        let kept = self.space.trim_end().len();
        let rest = self.space.split_off(kept);
        let words = std::mem::replace(&mut self.space, rest);
        self.said |= !words.is_empty();
        out.reasoning(&words);
    }
}
