//! Formats whose calls are JSON objects: Hermes' in tags, Llama 3's bare ones, and the two that a grammar forces
//! (one call's arguments, or a list of calls). Pure.

use super::call::{At, Call, Value};
use super::scan::{Found, Scanner};
use super::{Events, Format};

/// `<tool_call>{…}</tool_call>`, several of them, with text around.
#[derive(Debug, Default)]
pub(super) struct Hermes {
    scanner: Scanner,
    /// The call under way.
    call: Option<Call>,
    /// Behind `}`, before `</tool_call>`.
    closing: bool,
    /// Text between calls is white space as a rule, which nobody wants.
    space: Space,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Holds back white space before and between calls; what is followed by more text is text.
#[derive(Debug, Default)]
pub(super) struct Space {
    held: String,
    called: bool,
}

impl Space {
    pub(super) fn say(&mut self, text: &str, out: &mut Events) {
        self.held.push_str(text);
        let kept = self.held.trim_end().len();
        let rest = self.held.split_off(kept);
        out.content(&self.held);
        self.held = rest;
    }

    /// A call begins here.
    pub(super) fn drop(&mut self) {
        self.held.clear();
        self.called = true;
    }

    /// The text ends here. White space behind calls is no more wanted than between them.
    pub(super) fn flush(&mut self, out: &mut Events) {
        let rest = std::mem::take(&mut self.held);
        if !self.called {
            out.content(&rest);
        }
    }
}

impl Hermes {
    fn run(&mut self, out: &mut Events) {
        loop {
            if let Some(call) = &mut self.call {
                let text = self.scanner.take_all();
                let mut chars = text.char_indices();
                let rest = chars.find(|&(_, c)| !call.next(c, out)).map(|(at, _)| at);
                if !call.is_done() {
                    return;
                }
                if let Some(source) = call.no_call() {
                    out.content(&source);
                }
                self.call = None;
                self.closing = true;
                if let Some(at) = rest {
                    self.scanner.push(&text[at..]);
                }
            }
            if self.closing {
                // Between `}` and the closing tag, nothing is said. A model may forget the tag.
                match self.scanner.until(&[CLOSE, OPEN]) {
                    Found::Mark(_, 0) => self.closing = false,
                    Found::Mark(..) => self.open(),
                    Found::Text(_) => return,
                }
                continue;
            }
            match self.scanner.until(&[OPEN]) {
                Found::Mark(before, _) => {
                    self.space.say(&before, out);
                    self.open();
                }
                Found::Text(text) => {
                    self.space.say(&text, out);
                    return;
                }
            }
        }
    }

    fn open(&mut self) {
        self.space.drop();
        self.closing = false;
        self.call = Some(Call::default());
    }
}

impl Format for Hermes {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        self.run(out);
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        self.run(out);
        self.space.flush(out);
        if let Some(source) = self.call.as_mut().and_then(Call::no_call) {
            out.content(&source);
        }
    }
}

/// A text that consists of calls, one behind the other, or of none.
#[derive(Debug, Default)]
pub(super) struct Bare {
    scanner: Scanner,
    call: Option<Call>,
    /// It has turned out to be text.
    text: bool,
    /// Calls so far.
    calls: usize,
    /// White space at the start, in case that it is text.
    space: String,
}

const PYTHON_TAG: &str = "<|python_tag|>";

impl Bare {
    fn run(&mut self, out: &mut Events) {
        while !self.text {
            if let Some(call) = &mut self.call {
                let text = self.scanner.take_all();
                let rest = text.char_indices().find(|&(_, c)| !call.next(c, out)).map(|(at, _)| at);
                if !call.is_done() {
                    return;
                }
                match call.no_call() {
                    Some(source) => {
                        out.content(&std::mem::take(&mut self.space));
                        out.content(&source);
                        self.text = true;
                    }
                    None => self.calls += 1,
                }
                self.call = None;
                self.scanner.push(&text[rest.unwrap_or(text.len())..]);
                continue;
            }
            let rest = self.scanner.rest();
            let trimmed =
                rest.trim_start_matches(|c: char| c.is_whitespace() || (self.calls > 0 && matches!(c, ';' | ',')));
            let passed = rest.len() - trimmed.len();
            self.space += &self.scanner.take(passed);
            match self.scanner.starts_with(PYTHON_TAG) {
                None => return,
                Some(true) => {
                    self.scanner.take(PYTHON_TAG.len());
                }
                Some(false) if self.scanner.rest().starts_with('{') => self.call = Some(Call::default()),
                Some(false) if self.scanner.rest().is_empty() => return,
                Some(false) => {
                    out.content(&std::mem::take(&mut self.space));
                    self.text = true;
                }
            }
        }
        out.content(&self.scanner.take_all());
    }
}

impl Format for Bare {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        self.run(out);
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        self.run(out);
        if let Some(source) = self.call.as_mut().and_then(Call::no_call) {
            out.content(&std::mem::take(&mut self.space));
            out.content(&source);
        } else if self.calls == 0 {
            out.content(&std::mem::take(&mut self.space));
        }
    }
}

/// The arguments of one call whose name is known; what comes behind them is nothing.
#[derive(Debug)]
pub(super) struct Named {
    name: Option<String>,
    value: Value,
    done: bool,
}

impl Named {
    pub(super) fn new(name: &str) -> Self {
        Self { name: Some(name.to_owned()), value: Value::default(), done: false }
    }
}

impl Format for Named {
    fn push(&mut self, text: &str, out: &mut Events) {
        for (at, c) in text.char_indices() {
            if self.done {
                return;
            }
            let place = self.value.next(c);
            if matches!(place, At::Inside | At::Last) {
                if let Some(name) = self.name.take() {
                    out.call(&name);
                }
                out.arguments(&text[at..at + c.len_utf8()]);
            }
            self.done = matches!(place, At::Last | At::After);
        }
    }

    fn finish(&mut self, _: &mut Events) {}
}

/// `[{"name": …, "parameters": …}, …]`.
#[derive(Debug, Default)]
pub(super) struct List {
    call: Option<Call>,
}

impl Format for List {
    fn push(&mut self, text: &str, out: &mut Events) {
        for c in text.chars() {
            if let Some(call) = &mut self.call {
                if call.next(c, out) {
                    continue;
                }
                self.call = None;
            }
            if c == '{' {
                let mut call = Call::default();
                call.next(c, out);
                self.call = Some(call);
            }
        }
    }

    fn finish(&mut self, _: &mut Events) {}
}
