//! Token ids to text, one at a time: a stream never shows half a character or a wrong space.
//!
//! The text of a token depends on its neighbours (spaces, bytes of one character, what the decoder strips at the start),
//! so a short window of tokens is decoded with and without the new one, and the difference is new. This is the method of
//! TGI and vLLM. The window moves on with each emission and what is held back is bounded, so a token costs the same
//! however long the text is.
//!
//! The pieces put together equal `decode` of all ids, with one exception that concerns invalid UTF-8 only. Byte-level
//! tokenizers are exact there too: every invalid sequence becomes U+FFFD, as in `decode`. Where single bytes are tokens
//! (`<0xE4>`), `decode` replaces every byte of a run of such tokens by U+FFFD if the run as a whole is invalid; here the
//! characters that were complete before the fault have been sent already, and stay.

use std::borrow::Borrow;

use super::{TextError, Tokenizer};

/// So many tokens are held back at most while the text ends in an incomplete character. Longer is not incomplete but
/// invalid: a character has four bytes.
const MAX_HELD: usize = 16;
/// So many tokens of the prompt are context for the first new one.
const PROMPT_TAIL: usize = 8;
/// A window that decodes to nothing is no context; it is kept up to this length.
const MAX_WINDOW: usize = 32;

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Turns a stream of ids into a stream of text.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The window: `ids[..sent]` is context whose text was sent, the rest is held back.
    ids: Vec<u32>,
    sent: usize,
    /// The text of `ids[..sent]`.
    context: String,
    /// Whether the tokenizer's spaces between special tokens are kept.
    spaces: bool,
    /// The last id was an added token.
    after_added: bool,
}

impl Detokenizer {
    /// A detokeniser for text that follows `prompt_tail`: the prompt, or its last few ids. Takes a tokenizer or an `Arc` of
    /// one.
    pub fn new(tokenizer: &impl Borrow<Tokenizer>, skip_special_tokens: bool, prompt_tail: &[u32]) -> Self {
        let tokenizer: &Tokenizer = tokenizer.borrow();
        let mut detokenizer = Self {
            tokenizer: tokenizer.clone(),
            skip_special_tokens,
            ids: Vec::new(),
            sent: 0,
            context: String::new(),
            spaces: true,
            after_added: false,
        };
        let mut start = prompt_tail.len().saturating_sub(PROMPT_TAIL);
        // A window that began within a character would be an invalid run.
        for _ in 0..3 {
            if start > 0 && detokenizer.continues_character(prompt_tail[start]) {
                start -= 1;
            }
        }
        let tail = prompt_tail[start..].iter().copied();
        detokenizer.ids = tail.filter(|id| detokenizer.has_text(*id)).collect();
        detokenizer.sent = detokenizer.ids.len();
        let text = |detokenizer: &Self| {
            let sent = &detokenizer.ids[..detokenizer.sent];
            detokenizer.decode(sent).unwrap_or_default()
        };
        let mut context = text(&detokenizer);
        // A prompt that ends within a character: the rest of it, when it comes, is new.
        if !tokenizer.decoding().byte_fallback {
            if context.ends_with(REPLACEMENT) {
                context.pop();
            }
        } else {
            for _ in 0..3 {
                if detokenizer.sent > 0 && context.ends_with(REPLACEMENT) {
                    detokenizer.sent -= 1;
                    context = text(&detokenizer);
                }
            }
        }
        detokenizer.context = context;
        detokenizer
    }

    /// vLLM's `spaces_between_special_tokens`. It matters for tokenizers that join words by spaces, where special tokens
    /// are shown: without it, an added token directly follows another.
    pub fn with_spaces_between_special_tokens(mut self, spaces: bool) -> Self {
        self.spaces = spaces || self.skip_special_tokens;
        self
    }

    /// Takes the next id; returns the text that is complete with it, often one word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        if !self.has_text(id) {
            return Ok(String::new());
        }
        let added = !self.spaces && self.tokenizer.is_added(id);
        if std::mem::replace(&mut self.after_added, added) && added {
            let before = self.finish()?;
            self.ids = vec![id];
            self.sent = 1;
            self.context = self.decode(&self.ids)?;
            return Ok(before + &self.context);
        }
        self.ids.push(id);
        let text = self.decode(&self.ids)?;
        if !text.ends_with(REPLACEMENT) {
            return self.send(text, false);
        }
        if self.ids.len() - self.sent < MAX_HELD {
            return Ok(String::new());
        }
        // The last character may still be completed. Among byte tokens, what follows is lost in any case.
        self.send(text, !self.tokenizer.decoding().byte_fallback)
    }

    /// What was held back: the text ends here.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.decode(&self.ids)?;
        self.send(text, false)
    }

    /// The part of the window's `text` that is new; the window moves on. `hold` keeps the last character for later.
    fn send(&mut self, mut text: String, hold: bool) -> Result<String, TextError> {
        if hold {
            text.pop();
        }
        let new = match text.strip_prefix(&self.context) {
            Some(new) => new.to_owned(),
            None => self.after_a_fault()?,
        };
        // Context for what comes: the tokens just sent, if they have text.
        let context = self.decode(&self.ids[self.sent..])?;
        if context.is_empty() && self.ids.len() < MAX_WINDOW {
            self.context = text;
        } else {
            self.ids.drain(..self.sent);
            self.context = context;
            if hold {
                self.context.pop();
            }
        }
        self.sent = self.ids.len();
        Ok(new)
    }

    /// Byte tokens that were a character turned out to belong to an invalid run, so the window's text has changed behind
    /// us. Each of them is one character now: what comes after the last one sent is new.
    fn after_a_fault(&self) -> Result<String, TextError> {
        let Some(last) = self.sent.checked_sub(1) else {
            return self.decode(&self.ids);
        };
        let known = match self.fallback_byte(self.ids[last]) {
            Some(_) => 1,
            None => self.decode(&self.ids[last..self.sent])?.chars().count(),
        };
        Ok(self.decode(&self.ids[last..])?.chars().skip(known).collect())
    }

    /// The byte of a token such as `<0xE4>`.
    fn fallback_byte(&self, id: u32) -> Option<u8> {
        if self.tokenizer.decoding().byte_fallback { self.tokenizer.fallback_byte(id) } else { None }
    }

    /// Whether the id is a byte that is not the first of its character.
    fn continues_character(&self, id: u32) -> bool {
        self.fallback_byte(id).is_some_and(|byte| byte & 0xC0 == 0x80)
    }

    /// Whether the id contributes to the text at all.
    fn has_text(&self, id: u32) -> bool {
        self.tokenizer.has_token(id) && !(self.skip_special_tokens && self.tokenizer.is_special(id))
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.tokenizer.decode(ids, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::test_tokenizers::{all, byte_fallback, byte_level};
    use proptest::prelude::*;

    fn stream(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer, skip, &[]);
        let mut parts: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
        parts.push(detokenizer.finish().unwrap());
        assert_eq!(detokenizer.finish().unwrap(), "", "nothing is sent twice");
        parts
    }

    /// What the module promises for byte tokens: the run's valid start, then U+FFFD for every other byte.
    fn promised(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut kept: Vec<u32> = Vec::new();
        let mut at = 0;
        let replacement = tokenizer.token_id("\u{FFFD}").unwrap();
        while at < ids.len() {
            let run: Vec<u8> = ids[at..].iter().map_while(|id| tokenizer.fallback_byte(*id)).collect();
            let valid = match std::str::from_utf8(&run) {
                Ok(text) => text.len(),
                Err(error) => error.valid_up_to(),
            };
            // A space at the very start is stripped: nothing of the run was sent.
            let valid = if at == 0 && valid == 1 && run.len() > 1 && run[0] == b' ' { 0 } else { valid };
            kept.extend(&ids[at..at + valid]);
            kept.extend(std::iter::repeat_n(replacement, run.len() - valid));
            at += run.len();
            if let Some(id) = ids.get(at) {
                kept.push(*id);
                at += 1;
            }
        }
        tokenizer.decode(&kept, false).unwrap()
    }

    fn longest_byte_run(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
        let runs = ids.split(|id| tokenizer.fallback_byte(*id).is_none());
        runs.map(<[u32]>::len).max().unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn pieces_make_the_whole(
            // Beyond the vocabularies, so that ids without a token occur; small ids are bytes in all of them.
            ids in prop::collection::vec(prop_oneof![0u32..700, 3u32..259], 0..60),
            skip: bool,
        ) {
            for (name, tokenizer) in all() {
                let whole = tokenizer.decode(&ids, skip).unwrap();
                let pieces = stream(&tokenizer, &ids, skip).concat();
                if !tokenizer.decoding().byte_fallback || !whole.contains(REPLACEMENT) {
                    prop_assert_eq!(pieces, whole, "{}", name);
                } else {
                    let shown: Vec<u32> =
                        ids.iter().copied().filter(|id| tokenizer.has_token(*id) && !(skip && tokenizer.is_special(*id))).collect();
                    if longest_byte_run(&tokenizer, &shown) < MAX_HELD {
                        prop_assert_eq!(pieces, promised(&tokenizer, &shown), "{}", name);
                    }
                }
            }
        }

        #[test]
        fn texts_come_through(text in "[a-z \u{e4}\u{4f60}\u{1f600}\n]{0,40}", skip: bool) {
            for (name, tokenizer) in all() {
                let ids = tokenizer.encode(&text, true).unwrap();
                let pieces = stream(&tokenizer, &ids, skip);
                prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip).unwrap(), "{}", name);
                // No piece but the last holds a part of a character.
                for piece in &pieces[..pieces.len() - 1] {
                    prop_assert!(name == "word level" || !piece.contains(REPLACEMENT), "{}: {:?}", name, pieces);
                }
            }
        }

        #[test]
        fn a_prompt_is_context(text in "[a-z \u{e4}\u{4f60}\u{1f600}]{1,40}", cut in 0usize..40) {
            for (name, tokenizer) in all().into_iter().filter(|(name, _)| *name != "word level") {
                let ids = tokenizer.encode(&text, false).unwrap();
                let (prompt, rest) = ids.split_at(cut.min(ids.len()));
                let mut detokenizer = Detokenizer::new(&tokenizer, true, prompt);
                let mut generated = String::new();
                for id in rest {
                    generated.push_str(&detokenizer.push(*id).unwrap());
                }
                generated.push_str(&detokenizer.finish().unwrap());
                // The prompt's text without a character that it only begins.
                let mut complete = prompt;
                while name == "byte fallback" && tokenizer.decode(complete, true).unwrap().ends_with(REPLACEMENT) {
                    complete = &complete[..complete.len() - 1];
                }
                let before = tokenizer.decode(complete, true).unwrap();
                let before = before.trim_end_matches(REPLACEMENT);
                prop_assert_eq!(format!("{before}{generated}"), tokenizer.decode(&ids, true).unwrap(), "{}", name);
            }
        }
    }

    #[test]
    fn characters_arrive_whole() {
        let tokenizer = byte_fallback();
        let ids: Vec<u32> = "<0xF0> <0x9F> <0x98> <0x80> \u{2581}the <0xE4> \u{2581}the"
            .split(' ')
            .map(|token| tokenizer.token_id(token).unwrap())
            .collect();
        assert_eq!(stream(&tokenizer, &ids, true), ["", "", "", "\u{1f600}", " the", "", "\u{fffd} the", ""]);
    }

    #[test]
    fn special_tokens_may_follow_each_other_without_a_space() {
        let tokenizer = crate::text::test_tokenizers::word_level();
        let ids: Vec<u32> =
            ["[BOS]", "[BOS]", "the", "[BOS]", "[UNK]", "fox"].map(|token| tokenizer.token_id(token).unwrap()).to_vec();
        let run = |skip, spaces| {
            let mut detokenizer = Detokenizer::new(&tokenizer, skip, &[]).with_spaces_between_special_tokens(spaces);
            let mut text: String = ids.iter().map(|id| detokenizer.push(*id).unwrap()).collect();
            text += &detokenizer.finish().unwrap();
            text
        };
        assert_eq!(run(false, true), "[BOS] [BOS] the [BOS] [UNK] fox");
        assert_eq!(run(false, false), "[BOS][BOS] the [BOS][UNK] fox");
        assert_eq!(run(true, false), "the fox");
    }

    #[test]
    fn a_leading_space_is_kept_after_a_prompt_only() {
        let tokenizer = byte_fallback();
        let the = tokenizer.token_id("\u{2581}the").unwrap();
        assert_eq!(stream(&tokenizer, &[the, the], true), ["the", " the", ""]);
        let mut detokenizer = Detokenizer::new(&tokenizer, true, &[the]);
        assert_eq!(detokenizer.push(the).unwrap(), " the");
    }

    #[test]
    fn endless_invalid_bytes_are_sent_and_do_not_pile_up() {
        let byte = byte_level();
        let fallback = byte_fallback();
        for (tokenizer, token) in [(&byte, "\u{ff}"), (&fallback, "<0xFF>")] {
            let id = tokenizer.token_id(token).unwrap();
            let ids = vec![id; 1000];
            let mut detokenizer = Detokenizer::new(tokenizer, true, &[]);
            let mut sent = 0;
            for (at, id) in ids.iter().enumerate() {
                sent += detokenizer.push(*id).unwrap().chars().count();
                assert!(at + 1 - sent <= MAX_HELD + 1, "{sent} of {at}");
                assert!(detokenizer.ids.len() <= 2 * MAX_HELD + 1);
            }
            sent += detokenizer.finish().unwrap().chars().count();
            assert_eq!(sent, 1000);
        }
    }
}
