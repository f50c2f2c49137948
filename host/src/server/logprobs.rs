//! Log-probabilities as the two APIs show them: the completions API's parallel lists, the chat API's list of
//! objects, and vLLM's `prompt_logprobs`. Tokens are shown as text, or as `token_id:N` where there is no
//! tokenizer or the request asks for that. Pure functions over what `llm` returns.

use std::collections::HashSet;

use super::protocol::chat::{ChatLogprob, ChatTopLogprob};
use super::protocol::common::{Pairs, PromptLogprob, PromptLogprobs};
use super::protocol::completion::CompletionLogprobs;
use crate::engine::TokenLogprobs;
use crate::text::Tokenizer;

/// JSON has no infinities; this is what vLLM writes for a probability of 0.
const FLOOR: f32 = -9999.0;

/// How tokens are shown.
#[derive(Clone, Copy)]
pub(crate) struct TokenNames<'a> {
    tokenizer: Option<&'a Tokenizer>,
}

impl<'a> TokenNames<'a> {
    pub(crate) fn new(tokenizer: Option<&'a Tokenizer>, as_ids: bool) -> Self {
        Self { tokenizer: tokenizer.filter(|_| !as_ids) }
    }

    pub(crate) fn name(&self, id: u32) -> String {
        match self.tokenizer {
            Some(tokenizer) => tokenizer.token_text(id),
            None => format!("token_id:{id}"),
        }
    }

    /// A token's bytes, which may be part of a character only.
    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.tokenizer?.token_bytes(id)
    }
}

fn floor(logprob: f32) -> f32 {
    // `max` also turns a NaN into the floor.
    logprob.max(FLOOR)
}

/// Appends one token to the completions API's lists. `offset` is where its text begins and is moved on.
/// Without `entry` (the first prompt token) the log-probability is null.
pub(crate) fn push_completion(
    out: &mut CompletionLogprobs,
    names: TokenNames<'_>,
    token: u32,
    entry: Option<&TokenLogprobs>,
    offset: &mut usize,
) {
    let name = names.name(token);
    out.text_offset.push(*offset);
    *offset += name.chars().count();
    out.token_logprobs.push(entry.map(|entry| floor(entry.logprob)));
    out.top_logprobs.push(entry.map(|entry| {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(entry.top.len() + 1);
        let mut seen = HashSet::new();
        // The chosen token is always among them, as with vLLM.
        for (id, logprob) in entry.top.iter().copied().chain([(entry.token, entry.logprob)]) {
            let name = names.name(id);
            // Two tokens can have the same text; the likelier one, which comes first, stands for both.
            if seen.insert(name.clone()) {
                top.push((name, floor(logprob)));
            }
        }
        Pairs(top)
    }));
    out.tokens.push(name);
}

/// One token of the chat API's list, with its `top` most likely alternatives.
pub(crate) fn chat(names: TokenNames<'_>, entry: &TokenLogprobs, top: usize) -> ChatLogprob {
    let alternatives = entry.top.iter().take(top).map(|&(id, logprob)| ChatTopLogprob {
        token: names.name(id),
        logprob: floor(logprob),
        bytes: names.bytes(id),
    });
    ChatLogprob {
        token: names.name(entry.token),
        logprob: floor(entry.logprob),
        bytes: names.bytes(entry.token),
        top_logprobs: alternatives.collect(),
    }
}

/// vLLM's `prompt_logprobs`.
pub(crate) fn prompt(tokenizer: Option<&Tokenizer>, entries: &[Option<TokenLogprobs>]) -> PromptLogprobs {
    let one = |id: u32, logprob: f32, rank: u32| {
        let decoded_token = tokenizer.map(|tokenizer| tokenizer.token_text(id));
        (id.to_string(), PromptLogprob { logprob: floor(logprob), rank, decoded_token })
    };
    let entry = |entry: &TokenLogprobs| {
        let others = (1..).zip(&entry.top).filter(|(_, (id, _))| *id != entry.token);
        let others = others.map(|(rank, &(id, logprob))| one(id, logprob, rank));
        Pairs([one(entry.token, entry.logprob, entry.rank)].into_iter().chain(others).collect())
    };
    entries.iter().map(|e| e.as_ref().map(entry)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn entry() -> TokenLogprobs {
        TokenLogprobs { token: 7, logprob: -2.0, rank: 3, top: vec![(1, -0.5), (2, -1.0)] }
    }

    #[test]
    fn completion_lists_keep_the_chosen_token() {
        let names = TokenNames::new(None, false);
        let (mut out, mut offset) = (CompletionLogprobs::default(), 3);
        push_completion(&mut out, names, 5, None, &mut offset);
        push_completion(&mut out, names, 7, Some(&entry()), &mut offset);
        assert_eq!(out.tokens, ["token_id:5", "token_id:7"]);
        assert_eq!(out.text_offset, [3, 13]);
        assert_eq!(out.token_logprobs, [None, Some(-2.0)]);
        let top = serde_json::to_value(&out.top_logprobs).unwrap();
        assert_eq!(top, json!([null, {"token_id:1": -0.5, "token_id:2": -1.0, "token_id:7": -2.0}]));
    }

    #[test]
    fn chat_and_prompt_forms() {
        let got = chat(TokenNames::new(None, false), &entry(), 1);
        assert_eq!((got.top_logprobs.len(), got.logprob), (1, -2.0));
        let mut hopeless = entry();
        hopeless.logprob = f32::NEG_INFINITY;
        let got = json!(prompt(None, &[None, Some(hopeless)]));
        assert_eq!(got[0], Value::Null);
        assert_eq!(got[1]["7"], json!({"logprob": -9999.0, "rank": 3, "decoded_token": null}));
        assert_eq!(got[1]["2"]["rank"], 2);
    }
}
