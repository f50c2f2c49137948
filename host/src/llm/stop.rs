//! Finds stop strings in text that arrives piece by piece. Text that could be the beginning of a stop
//! string is held back until that is decided, so what was handed out is never taken back. However the
//! text is cut into pieces, the result is the same. Pure; called by a generation for each token.

/// Looks for stop strings.
#[derive(Debug, Clone)]
pub(super) struct StopFinder {
    stops: Vec<String>,
    include: bool,
    /// Not handed out yet.
    pending: String,
    /// A stop string that ends within this many bytes of `pending` does not count (min_tokens).
    ignored: usize,
}

impl StopFinder {
    /// `include`: a stop string that was found is part of the text.
    pub(super) fn new(stops: Vec<String>, include: bool) -> Self {
        Self {
            stops,
            include,
            pending: String::new(),
            ignored: 0,
        }
    }

    /// Takes more text and gives what is certain. With a stop string found, that is the last; the second
    /// is its place in the list. Found is what ends first, of those that end together the first in the
    /// list. `counts`: a stop string may end in this text.
    pub(super) fn push(&mut self, text: &str, counts: bool) -> (String, Option<usize>) {
        self.pending.push_str(text);
        if !counts {
            self.ignored = self.pending.len();
        }
        let found = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(place, stop)| Some((self.end_of(stop)?, place)));
        if let Some((end, place)) = found.min() {
            self.pending.truncate(if self.include {
                end
            } else {
                end - self.stops[place].len()
            });
            return (std::mem::take(&mut self.pending), Some(place));
        }
        let rest = self
            .pending
            .split_off(self.pending.len() - self.held_back());
        let certain = std::mem::replace(&mut self.pending, rest);
        self.ignored = self.ignored.saturating_sub(certain.len());
        (certain, None)
    }

    /// The text has ended: gives what was held back.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.pending)
    }

    /// Where the first occurrence of `stop` that counts ends.
    fn end_of(&self, stop: &str) -> Option<usize> {
        let from = self
            .pending
            .ceil_char_boundary((self.ignored + 1).saturating_sub(stop.len()));
        Some(from + self.pending[from..].find(stop)? + stop.len())
    }

    /// Length of the longest end of `pending` with which a stop string begins.
    fn held_back(&self) -> usize {
        let text = self.pending.as_bytes();
        let overlap = |stop: &String| {
            let longest = (stop.len() - 1).min(text.len());
            (1..=longest)
                .rev()
                .find(|&length| text.ends_with(&stop.as_bytes()[..length]))
        };
        self.stops.iter().filter_map(overlap).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[String], include: bool, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut finder = StopFinder::new(stops.to_vec(), include);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, found) = finder.push(piece, true);
            out.push(text);
            if found.is_some() {
                return (out, found);
            }
        }
        out.push(finder.finish());
        (out, None)
    }

    /// What ends first, then the first in the list; by trying every position.
    fn naive(stops: &[String], include: bool, text: &str) -> (String, Option<usize>) {
        for end in 0..=text.len() {
            for (place, stop) in stops.iter().enumerate() {
                if text.as_bytes()[..end].ends_with(stop.as_bytes()) {
                    let cut = if include { end } else { end - stop.len() };
                    return (text[..cut].to_owned(), Some(place));
                }
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_split_gives_the_same(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
            include: bool,
        ) {
            let text = pieces.concat();
            let expected = naive(&stops, include, &text);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, found) = run(&stops, include, &pieces);
            prop_assert_eq!((out.concat(), found), expected.clone());
            // Nothing handed out is ever part of the stop string: the deltas add up to the final text.
            let (whole, found) = run(&stops, include, &[&text]);
            prop_assert_eq!((whole.concat(), found), expected);
        }
    }

    #[test]
    fn holds_back_no_more_than_needed() {
        let mut finder = StopFinder::new(vec!["</s>".into()], false);
        assert_eq!(finder.push("a <", true), ("a ".into(), None));
        assert_eq!(finder.push("b", true), ("<b".into(), None));
        assert_eq!(finder.push("</", true), (String::new(), None));
        assert_eq!(finder.push("s>c", true), (String::new(), Some(0)));
    }

    #[test]
    fn does_not_count_before_min_tokens_but_may_begin_there() {
        let mut finder = StopFinder::new(vec!["ab".into()], false);
        assert_eq!(finder.push("abxa", false), ("abx".into(), None));
        assert_eq!(finder.push("b", true), (String::new(), Some(0)));
        let mut finder = StopFinder::new(vec!["ab".into(), "é".into()], true);
        assert_eq!(finder.push("éab", false), ("éab".into(), None));
        assert_eq!(finder.push("é.", true), ("é".into(), Some(1)));
    }
}
