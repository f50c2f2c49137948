//! Reads JSON character by character as it comes: where a value ends, and what a call `{"name": …, "arguments": …}`
//! says. Arguments are passed on as they are written, so that they stream; a name is needed first, and arguments that
//! come before it wait. Pure.

use super::Events;

/// Follows one JSON value to its end. Takes anything for JSON that balances: models err, and the text is theirs.
#[derive(Debug, Clone, Default)]
pub(super) struct Value {
    depth: usize,
    string: bool,
    escaped: bool,
    /// Something of it has come.
    begun: bool,
    /// A number or a word, which ends at what follows it.
    bare: bool,
}

/// Where a value is after one character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Before it: the character was white space.
    Before,
    /// The character belongs to it.
    Inside,
    /// The character was its last.
    Last,
    /// The character does not belong to it any more.
    After,
}

impl Value {
    pub(super) fn next(&mut self, c: char) -> At {
        if self.string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.string = false;
                    return if self.depth == 0 { At::Last } else { At::Inside };
                }
                _ => {}
            }
            return At::Inside;
        }
        if !self.begun && c.is_whitespace() {
            return At::Before;
        }
        if self.bare && (c.is_whitespace() || matches!(c, ',' | '}' | ']' | ';')) {
            return At::After;
        }
        match c {
            '"' if !self.bare => self.string = true,
            '{' | '[' if !self.bare => self.depth += 1,
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 {
                    return At::Last;
                }
            }
            // No value at all.
            '}' | ']' | ',' | ';' if self.depth == 0 => return At::After,
            _ => self.bare |= self.depth == 0,
        }
        self.begun = true;
        At::Inside
    }
}

/// Where the reader of a call is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    /// Before `{`.
    #[default]
    Start,
    /// Between the members.
    Members,
    /// In the name of a member.
    Key,
    /// Before the colon.
    Colon,
    /// In the value of a member.
    Value,
    /// Behind `}`.
    Done,
}

/// Reads one object with a name and arguments.
#[derive(Debug, Clone, Default)]
pub(super) struct Call {
    part: Part,
    key: String,
    value: Value,
    /// The member's value so far, where it does not stream.
    text: String,
    name: Option<String>,
    /// Arguments that wait for the name.
    waiting: String,
    /// Arguments have been passed on.
    said: bool,
    /// All that was read, in case that it is no call.
    source: String,
}

/// Members that hold the arguments.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

impl Call {
    /// Takes a character; false once it does not belong to the call any more.
    pub(super) fn next(&mut self, c: char, out: &mut Events) -> bool {
        if self.part == Part::Done {
            return false;
        }
        if self.name.is_none() {
            self.source.push(c);
        }
        self.step(c, out);
        true
    }

    fn step(&mut self, c: char, out: &mut Events) {
        match self.part {
            Part::Start if c == '{' => self.part = Part::Members,
            Part::Start | Part::Done => {}
            Part::Members => match c {
                '"' => {
                    (self.part, self.key) = (Part::Key, String::from('"'));
                    self.value = Value::default();
                    self.value.next(c);
                }
                '}' => self.end(out),
                _ => {}
            },
            Part::Key => {
                self.key.push(c);
                if self.value.next(c) == At::Last {
                    self.key = serde_json::from_str(&self.key).unwrap_or_default();
                    self.part = Part::Colon;
                }
            }
            Part::Colon if c == ':' => {
                (self.part, self.value) = (Part::Value, Value::default());
                self.text.clear();
            }
            Part::Colon => {}
            Part::Value => self.member(c, out),
        }
    }

    fn member(&mut self, c: char, out: &mut Events) {
        let at = self.value.next(c);
        if matches!(at, At::Inside | At::Last) {
            self.text.push(c);
            // An object is passed on as it comes; a string may be JSON in quotes, and waits for its end.
            if ARGUMENTS.contains(&self.key.as_str()) && self.text.starts_with('{') {
                let piece = std::mem::replace(&mut self.text, "{".into());
                // After the first character, `text` is only there to say what it is.
                let piece = if self.said || !self.waiting.is_empty() { &piece[1..] } else { &piece[..] };
                self.argue(piece, out);
            }
        }
        match at {
            At::Before | At::Inside => {}
            At::Last => {
                self.finish_member(out);
                self.part = Part::Members;
            }
            At::After => {
                self.finish_member(out);
                self.part = Part::Members;
                self.step(c, out);
            }
        }
    }

    fn finish_member(&mut self, out: &mut Events) {
        let text = std::mem::take(&mut self.text);
        if ARGUMENTS.contains(&self.key.as_str()) {
            if !text.starts_with('{') {
                let inner: Option<String> = serde_json::from_str(&text).ok();
                let arguments = inner.unwrap_or(text);
                let arguments = if arguments.trim() == "null" { "{}".to_owned() } else { arguments };
                self.argue(&arguments, out);
            }
        } else if self.key == "name"
            && self.name.is_none()
            && let Ok(name) = serde_json::from_str::<String>(&text)
        {
            out.call(&name);
            self.name = Some(name);
            self.source.clear();
            let waiting = std::mem::take(&mut self.waiting);
            self.argue(&waiting, out);
        }
    }

    fn argue(&mut self, text: &str, out: &mut Events) {
        if self.name.is_some() {
            out.arguments(text);
            self.said |= !text.is_empty();
        } else {
            self.waiting.push_str(text);
        }
    }

    fn end(&mut self, out: &mut Events) {
        self.part = Part::Done;
        if self.name.is_some() && !self.said {
            out.arguments("{}");
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.part == Part::Done
    }

    /// What was read, if it turned out to be no call: it has no name.
    pub(super) fn no_call(&mut self) -> Option<String> {
        self.name.is_none().then(|| std::mem::take(&mut self.source))
    }
}
