//! `/v1/completions`: request and answers.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::common::{Int, Num, OneOrMany, Pairs, PromptLogprobs, StopCause, StreamOptions, TokenId};
use super::describe::Describe;
use super::fields::{RawRequest, Unsupported};
use super::sampling::{is_empty, raw_request, unsupported};

raw_request! {
    /// A completion request as sent.
    CompletionRequest {
        prompt: Option<Prompts>,
        logprobs: Option<Int>,
    }
}

const UNSUPPORTED: [Unsupported; 31] = unsupported([
    Unsupported::hint("suffix", is_empty, "put what precedes the gap into prompt"),
    Unsupported::hint("prompt_embeds", is_empty, "send prompt as text or token ids"),
]);

impl RawRequest for CompletionRequest {
    const UNSUPPORTED: &'static [Unsupported] = &UNSUPPORTED;
}

/// One prompt of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// `prompt`: a string, token ids, or a list of either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompts(pub(crate) Vec<RawPrompt>);

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptsVisitor;
        impl<'de> Visitor<'de> for PromptsVisitor {
            type Value = Prompts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, a list of token ids or a list of lists of token ids")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![RawPrompt::Text(v.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mut prompts = Vec::new();
                let mut ids = Vec::new();
                let mut first = None;
                while let Some(item) = seq.next_element::<Item>()? {
                    let kind = item.kind();
                    if *first.get_or_insert(kind) != kind {
                        return Err(de::Error::custom(format!(
                            "the list mixes {} and {kind}; all its items must be of one kind",
                            first.unwrap_or(kind)
                        )));
                    }
                    match item {
                        Item::Id(TokenId(id)) => ids.push(id),
                        Item::Text(text) => prompts.push(RawPrompt::Text(text)),
                        Item::Ids(list) => prompts.push(RawPrompt::Tokens(list)),
                    }
                }
                if !ids.is_empty() {
                    prompts.push(RawPrompt::Tokens(ids));
                }
                Ok(Prompts(prompts))
            }
        }
        deserializer.deserialize_any(PromptsVisitor)
    }
}

impl Describe for Prompts {
    fn schema() -> Value {
        let (text, ids) = (String::schema(), Vec::<TokenId>::schema());
        json!({"anyOf": [text, Vec::<String>::schema(), ids, {"type": "array", "items": ids}]})
    }
}

/// One item of a `prompt` list.
enum Item {
    Text(String),
    Id(TokenId),
    Ids(Vec<u32>),
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "strings",
            Self::Id(_) => "token ids",
            Self::Ids(_) => "lists of token ids",
        }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Item, E> {
                Ok(Item::Text(v.to_owned()))
            }
            fn visit_string<E: de::Error>(self, v: String) -> Result<Item, E> {
                Ok(Item::Text(v))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Item, E> {
                TokenId::deserialize(de::value::U64Deserializer::new(v)).map(Item::Id)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Item, E> {
                TokenId::deserialize(de::value::I64Deserializer::new(v)).map(Item::Id)
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Item, E> {
                TokenId::deserialize(de::value::F64Deserializer::new(v)).map(Item::Id)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(TokenId(id)) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Ids(ids))
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

/// Log-probabilities in the completions API's parallel lists.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct CompletionLogprobs {
    pub(crate) text_offset: Vec<usize>,
    pub(crate) token_logprobs: Vec<Option<f32>>,
    pub(crate) tokens: Vec<String>,
    /// Token text → log-probability, most likely first.
    pub(crate) top_logprobs: Vec<Option<Pairs<f32>>>,
}

/// One choice of an answer, whole or (in a stream) what is new of it.
#[derive(Debug, Serialize)]
pub(crate) struct CompletionChoice<'a> {
    pub(crate) index: usize,
    pub(crate) text: &'a str,
    pub(crate) logprobs: Option<&'a CompletionLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<&'a StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<&'a PromptLogprobs>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::body::parse;

    fn prompts(json: &str) -> Result<Vec<RawPrompt>, String> {
        let body = format!("{{\"prompt\": {json}}}");
        let request: CompletionRequest = parse(body.as_bytes()).map_err(|e| e.message)?;
        Ok(request.prompt.map(|p| p.0).unwrap_or_default())
    }

    #[test]
    fn prompts_in_all_forms() {
        let text = |s: &str| RawPrompt::Text(s.into());
        assert_eq!(prompts("\"a\""), Ok(vec![text("a")]));
        assert_eq!(prompts("[\"a\", \"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(prompts("[1, 2]"), Ok(vec![RawPrompt::Tokens(vec![1, 2])]));
        assert_eq!(prompts("[[1], [2, 3]]"), Ok(vec![RawPrompt::Tokens(vec![1]), RawPrompt::Tokens(vec![2, 3])]));
        assert_eq!(prompts("[]"), Ok(vec![]));
        assert_eq!(prompts("null"), Ok(vec![]));
    }

    #[test]
    fn bad_prompts_name_the_place() {
        assert!(prompts("[1, \"a\"]").unwrap_err().contains("mixes token ids and strings"));
        assert!(prompts("[[1], [-2]]").unwrap_err().starts_with("prompt[1][0]: -2 is not a token id"));
        assert!(prompts("[1.5]").unwrap_err().starts_with("prompt[0]"));
        assert!(prompts("{\"a\": 1}").unwrap_err().contains("expected a string, a list of strings"));
        assert!(prompts("true").unwrap_err().starts_with("prompt: "));
    }
}
