//! Text that arrives in pieces, read as if it had come whole: a reader asks for the text up to a mark and gets as much
//! as can be told, while what could be the beginning of the mark waits. Pure.

/// Text that has come and was not read.
#[derive(Debug, Clone, Default)]
pub(super) struct Scanner {
    text: String,
    /// No more will come.
    ended: bool,
}

/// What [`Scanner::until`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The text before the mark, and the mark's place in the list; both are read.
    Mark(String, usize),
    /// No mark yet; this text is certainly before it, and read.
    Text(String),
}

impl Scanner {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn rest(&self) -> &str {
        &self.text
    }

    /// Reads `bytes` of the rest.
    pub(super) fn take(&mut self, bytes: usize) -> String {
        let rest = self.text.split_off(bytes.min(self.text.len()));
        std::mem::replace(&mut self.text, rest)
    }

    pub(super) fn take_all(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Passes over white space; true if something else follows.
    pub(super) fn skip_space(&mut self) -> bool {
        let space = self.text.len() - self.text.trim_start().len();
        self.text.drain(..space);
        !self.text.is_empty()
    }

    /// Whether the rest begins with `mark`; None if that cannot be told yet.
    pub(super) fn starts_with(&self, mark: &str) -> Option<bool> {
        if self.text.starts_with(mark) {
            Some(true)
        } else if !self.ended && mark.starts_with(self.text.as_str()) {
            None
        } else {
            Some(false)
        }
    }

    /// Reads up to the first of `marks` (of several at one place, the first in the list), or as far as none can begin.
    pub(super) fn until(&mut self, marks: &[&str]) -> Found {
        let places = marks.iter().enumerate().filter_map(|(which, mark)| Some((self.text.find(mark)?, which)));
        // What might be the beginning of another mark before the one found cannot become one: text follows it.
        if let Some((at, which)) = places.min() {
            let before = self.take(at);
            self.take(marks[which].len());
            return Found::Mark(before, which);
        }
        if self.ended {
            return Found::Text(self.take_all());
        }
        let text = self.text.as_bytes();
        let held = marks.iter().filter_map(|mark| {
            let longest = (mark.len() - 1).min(text.len());
            (1..=longest).rev().find(|&length| text.ends_with(&mark.as_bytes()[..length]))
        });
        let held = held.max().unwrap_or(0);
        Found::Text(self.take(self.text.len() - held))
    }
}
