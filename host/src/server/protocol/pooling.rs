//! `/v1/embeddings`, `/v1/score` and `/v1/rerank`: requests and answers, with vLLM's fields. Plain data, no judgement.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::common::{Int, OneOrMany, Usage};
use super::completion::Prompts;
use super::describe::described;
use super::fields::{RawRequest, Unsupported};
use super::sampling::{is_empty, is_label};

described! {
    /// Texts, token ids or a chat to be turned into vectors: exactly one of `input` and `messages` is given.
    #[derive(Debug, Deserialize)]
    pub(crate) struct EmbeddingRequest {
        pub(crate) model: Option<String>,
        pub(crate) input: Option<Prompts>,
        pub(crate) messages: Option<Vec<Map<String, Value>>>,
        pub(crate) encoding_format: Option<String>,
        pub(crate) embed_dtype: Option<String>,
        pub(crate) endianness: Option<String>,
        pub(crate) dimensions: Option<Int>,
        pub(crate) use_activation: Option<bool>,
        pub(crate) truncate_prompt_tokens: Option<Int>,
        pub(crate) truncation_side: Option<String>,
        pub(crate) add_special_tokens: Option<bool>,
        pub(crate) add_generation_prompt: Option<bool>,
        pub(crate) continue_final_message: Option<bool>,
        pub(crate) chat_template: Option<String>,
        pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
        pub(crate) priority: Option<Int>,
        pub(crate) request_id: Option<String>,
    }
}

/// What these APIs know and this server does not do, with the values that ask for nothing.
const SHARED: [Unsupported; 9] = [
    Unsupported::unless("user", is_label),
    Unsupported::hint("normalize", |_| false, "use use_activation, which takes its place"),
    Unsupported::unless("mm_processor_kwargs", is_empty),
    Unsupported::unless("media_io_kwargs", is_empty),
    Unsupported::unless("padding", |v| v.as_str() == Some("do_not_pad")),
    Unsupported::unless("task", |v| v.as_str() == Some("embed")),
    Unsupported::always("cache_salt"),
    Unsupported::hint("softmax", |_| false, "scores are cosines"),
    Unsupported::hint("activation", |_| false, "scores are cosines"),
];

impl RawRequest for EmbeddingRequest {
    const UNSUPPORTED: &'static [Unsupported] = &SHARED;
}

described! {
    /// Pairs of texts to be compared: one pair of the fields below is given.
    #[derive(Debug, Deserialize)]
    pub(crate) struct ScoreRequest {
        pub(crate) model: Option<String>,
        pub(crate) queries: Option<OneOrMany>,
        pub(crate) documents: Option<OneOrMany>,
        pub(crate) items: Option<OneOrMany>,
        pub(crate) text_1: Option<OneOrMany>,
        pub(crate) text_2: Option<OneOrMany>,
        pub(crate) data_1: Option<OneOrMany>,
        pub(crate) data_2: Option<OneOrMany>,
        pub(crate) truncate_prompt_tokens: Option<Int>,
        pub(crate) truncation_side: Option<String>,
        pub(crate) priority: Option<Int>,
        pub(crate) request_id: Option<String>,
    }
}

const OF_SCORES: [Unsupported; 5] = [
    Unsupported::unless("use_activation", |v| v == &Value::Bool(true)),
    Unsupported::hint("max_tokens_per_query", |v| v.as_i64() == Some(0), "use truncate_prompt_tokens"),
    Unsupported::hint("max_tokens_per_doc", |v| v.as_i64() == Some(0), "use truncate_prompt_tokens"),
    Unsupported::hint("instruction", is_empty, "write it in front of the query"),
    Unsupported::unless("chat_template_kwargs", is_empty),
];

const SCORES: [Unsupported; 14] = joined(&SHARED, &OF_SCORES);

impl RawRequest for ScoreRequest {
    const UNSUPPORTED: &'static [Unsupported] = &SCORES;
}

described! {
    /// Texts to be put in the order of their likeness to a query.
    #[derive(Debug, Deserialize)]
    pub(crate) struct RerankRequest {
        pub(crate) model: Option<String>,
        pub(crate) query: String,
        pub(crate) documents: OneOrMany,
        pub(crate) top_n: Option<Int>,
        pub(crate) truncate_prompt_tokens: Option<Int>,
        pub(crate) truncation_side: Option<String>,
        pub(crate) priority: Option<Int>,
        pub(crate) request_id: Option<String>,
    }
}

/// With those of Cohere's and Jina's APIs.
const OF_RERANK: [Unsupported; 3] = [
    Unsupported::unless("return_documents", |v| v == &Value::Bool(true)),
    Unsupported::hint("max_chunks_per_doc", |_| false, "use truncate_prompt_tokens"),
    Unsupported::unless("rank_fields", is_empty),
];

const RERANK: [Unsupported; 17] = joined(&SCORES, &OF_RERANK);

impl RawRequest for RerankRequest {
    const UNSUPPORTED: &'static [Unsupported] = &RERANK;
}

/// One list behind the other.
const fn joined<const N: usize>(first: &[Unsupported], second: &[Unsupported]) -> [Unsupported; N] {
    assert!(first.len() + second.len() == N, "N must be the length of both lists together");
    let mut all = [const { Unsupported::always("") }; N];
    let mut i = 0;
    while i < N {
        all[i] = if i < first.len() { first[i] } else { second[i - first.len()] };
        i += 1;
    }
    all
}

/// An answer with a list.
#[derive(Debug, Serialize)]
pub(crate) struct ListAnswer<'a, T> {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) data: Vec<T>,
    pub(crate) usage: Usage,
}

/// One vector.
#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingData {
    pub(crate) index: usize,
    pub(crate) object: &'static str,
    pub(crate) embedding: Encoded,
}

/// A vector's numbers, or their bytes in base64.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Encoded {
    Numbers(Vec<f32>),
    Base64(String),
}

/// The score of one pair.
#[derive(Debug, Serialize)]
pub(crate) struct ScoreData {
    pub(crate) index: usize,
    pub(crate) object: &'static str,
    pub(crate) score: f64,
}

/// Documents, best first.
#[derive(Debug, Serialize)]
pub(crate) struct RerankAnswer<'a> {
    pub(crate) id: String,
    pub(crate) model: &'a str,
    pub(crate) usage: RerankUsage,
    pub(crate) results: Vec<RerankResult>,
}

/// Token counts of a reranking.
#[derive(Debug, Serialize)]
pub(crate) struct RerankUsage {
    pub(crate) prompt_tokens: usize,
    pub(crate) total_tokens: usize,
}

/// One document.
#[derive(Debug, Serialize)]
pub(crate) struct RerankResult {
    pub(crate) index: usize,
    pub(crate) document: RerankDocument,
    pub(crate) relevance_score: f64,
}

/// Its text.
#[derive(Debug, Serialize)]
pub(crate) struct RerankDocument {
    pub(crate) text: String,
}
