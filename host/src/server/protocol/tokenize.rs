//! `/tokenize` and `/detokenize`: requests and answers, with vLLM's fields.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::common::TokenId;
use super::describe::described;
use super::fields::{RawRequest, Unsupported};
use super::sampling::is_empty;

described! {
    /// A text or a chat to be turned into token ids: exactly one of `prompt` and `messages` is given.
    #[derive(Debug, Deserialize)]
    pub(crate) struct TokenizeRequest {
        pub(crate) model: Option<String>,
        pub(crate) prompt: Option<String>,
        pub(crate) messages: Option<Vec<Map<String, Value>>>,
        pub(crate) add_special_tokens: Option<bool>,
        pub(crate) return_token_strs: Option<bool>,
        pub(crate) add_generation_prompt: Option<bool>,
        pub(crate) continue_final_message: Option<bool>,
        pub(crate) chat_template: Option<String>,
        pub(crate) tools: Option<Vec<Value>>,
        pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    }
}

impl RawRequest for TokenizeRequest {
    const UNSUPPORTED: &'static [Unsupported] =
        &[Unsupported::unless("mm_processor_kwargs", is_empty), Unsupported::unless("media_io_kwargs", is_empty)];
}

/// The ids of a text.
#[derive(Debug, Serialize)]
pub(crate) struct TokenizeResponse {
    pub(crate) count: usize,
    pub(crate) max_model_len: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) token_strs: Option<Vec<String>>,
}

described! {
    /// Token ids to be turned into text.
    #[derive(Debug, Deserialize)]
    pub(crate) struct DetokenizeRequest {
        pub(crate) model: Option<String>,
        pub(crate) tokens: Vec<TokenId>,
    }
}

impl RawRequest for DetokenizeRequest {
    const UNSUPPORTED: &'static [Unsupported] = &[];
}

/// The text of token ids.
#[derive(Debug, Serialize)]
pub(crate) struct DetokenizeResponse {
    pub(crate) prompt: String,
}
