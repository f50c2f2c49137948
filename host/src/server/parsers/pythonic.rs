//! Calls written as Python: `[name(key=value, …), …]`, with Llama 4's tags around or not. A call is passed on when its
//! parenthesis closes; values become JSON. A text that is no such list stays text. Pure.

use serde_json::{Map, Value};

use super::scan::Scanner;
use super::{Events, Format};

const START: &str = "<|python_start|>";

#[derive(Debug, Default)]
pub(super) struct Pythonic {
    scanner: Scanner,
    state: State,
    /// Passed over, in case that it is text.
    before: String,
    /// A call of the list has been passed on.
    called: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Behind `[` or a call.
    Calls,
    Text,
    Done,
}

impl Pythonic {
    fn run(&mut self, out: &mut Events) {
        loop {
            match self.state {
                State::Start => {
                    let rest = self.scanner.rest();
                    let space = rest.len() - rest.trim_start().len();
                    self.before += &self.scanner.take(space);
                    match self.scanner.starts_with(START) {
                        None => return,
                        Some(true) => {
                            self.before += &self.scanner.take(START.len());
                            continue;
                        }
                        Some(false) => {}
                    }
                    if self.scanner.rest().starts_with('[') {
                        self.before += &self.scanner.take(1);
                        self.state = State::Calls;
                    } else if self.scanner.rest().is_empty() {
                        return;
                    } else {
                        self.state = State::Text;
                    }
                }
                State::Calls => match self.next_call() {
                    Next::More if !self.scanner.ended() => return,
                    Next::Call(name, arguments) => {
                        self.called = true;
                        self.before.clear();
                        out.call(&name);
                        out.arguments(&Value::Object(arguments).to_string());
                    }
                    Next::End => self.state = State::Done,
                    Next::More | Next::None => self.state = if self.called { State::Done } else { State::Text },
                },
                State::Text => {
                    out.content(&std::mem::take(&mut self.before));
                    out.content(&self.scanner.take_all());
                    return;
                }
                State::Done => {
                    self.scanner.take_all();
                    return;
                }
            }
        }
    }

    /// Reads a call from the beginning of the rest.
    fn next_call(&mut self) -> Next {
        let text = self.scanner.rest();
        let mut reader = Reader { text, at: 0 };
        reader.skip(|c| c.is_whitespace() || c == ',');
        if self.called && reader.peek() == Some(']') {
            return Next::End;
        }
        let name = reader.word();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return if reader.peek().is_none() { Next::More } else { Next::None };
        }
        match reader.peek() {
            None => return Next::More,
            Some('(') => reader.at += 1,
            Some(_) => return Next::None,
        }
        let name = name.to_owned();
        let Some(end) = reader.closes() else {
            return Next::More;
        };
        // No further than the parenthesis, whatever has come behind it by now.
        let mut reader = Reader { text: &text[..end], at: reader.at };
        let arguments = match reader.arguments() {
            Some(arguments) if reader.at == end => arguments,
            _ => return Next::None,
        };
        let taken = self.scanner.take(end);
        self.before += &taken;
        Next::Call(name, arguments)
    }
}

enum Next {
    Call(String, Map<String, Value>),
    End,
    /// More text is needed.
    More,
    /// This is no call.
    None,
}

impl Format for Pythonic {
    fn push(&mut self, text: &str, out: &mut Events) {
        self.scanner.push(text);
        self.run(out);
    }

    fn finish(&mut self, out: &mut Events) {
        self.scanner.end();
        self.run(out);
        if self.state == State::Start {
            out.content(&std::mem::take(&mut self.before));
            out.content(&self.scanner.take_all());
        }
    }
}

/// The deepest nesting of a value.
const MAX_DEPTH: usize = 64;

/// Reads Python literals.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip(&mut self, what: impl Fn(char) -> bool) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(what).len();
    }

    /// Takes `c`, behind white space.
    fn take(&mut self, c: char) -> Option<()> {
        self.skip(char::is_whitespace);
        (self.peek() == Some(c)).then(|| self.at += c.len_utf8())
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// Behind the parenthesis that closes the one just opened, if that has come.
    fn closes(&self) -> Option<usize> {
        let mut depth = 1usize;
        let mut quote = None;
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (Some(_), '\\') => {
                    chars.next();
                }
                (Some(open), _) => quote = if c == open { None } else { quote },
                (None, '"' | '\'') => quote = Some(c),
                (None, '(' | '[' | '{') => depth += 1,
                (None, ')' | ']' | '}') => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(self.at + at + 1);
            }
        }
        None
    }

    fn arguments(&mut self) -> Option<Map<String, Value>> {
        let mut out = Map::new();
        loop {
            if self.take(')').is_some() {
                return Some(out);
            }
            self.skip(char::is_whitespace);
            let key = self.word().to_owned();
            self.take('=')?;
            out.insert(key, self.value(0)?);
            if self.take(',').is_none() {
                self.take(')')?;
                return Some(out);
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.skip(char::is_whitespace);
        match self.peek()? {
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            open @ ('[' | '(') => {
                self.at += 1;
                let close = if open == '[' { ']' } else { ')' };
                let mut items = Vec::new();
                while self.take(close).is_none() {
                    items.push(self.value(depth + 1)?);
                    if self.take(',').is_none() {
                        self.take(close)?;
                        break;
                    }
                }
                Some(Value::Array(items))
            }
            '{' => {
                self.at += 1;
                let mut members = Map::new();
                while self.take('}').is_none() {
                    let key = match self.value(depth + 1)? {
                        Value::String(key) => key,
                        other => other.to_string(),
                    };
                    self.take(':')?;
                    members.insert(key, self.value(depth + 1)?);
                    if self.take(',').is_none() {
                        self.take('}')?;
                        break;
                    }
                }
                Some(Value::Object(members))
            }
            '+' => {
                self.at += 1;
                self.value(depth + 1)
            }
            _ => match self.word() {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                // Exponents with a sign are cut by `word`; models do not write them.
                number => serde_json::from_str(number).ok().filter(Value::is_number),
            },
        }
    }

    fn string(&mut self, quote: char) -> Option<String> {
        self.at += 1;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.at += at + 1;
                return Some(out);
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                '\n' => {}
                escape @ ('u' | 'x') => {
                    let digits: String =
                        chars.by_ref().take(if escape == 'u' { 4 } else { 2 }).map(|(_, c)| c).collect();
                    out.push(
                        char::from_u32(u32::from_str_radix(&digits, 16).ok()?).unwrap_or(char::REPLACEMENT_CHARACTER),
                    );
                }
                other => {
                    if !matches!(other, '\\' | '"' | '\'') {
                        out.push('\\');
                    }
                    out.push(other);
                }
            }
        }
        None
    }
}
