//! The fields that completions and chat completions share, declared once. [`raw_request!`] writes a request
//! struct that has them beside its own fields, all in one flat struct, so that serde reports every field's path
//! and the list of known fields comes from the type itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::common::{Int, Num, OneOrMany, StreamOptions, TokenId};
use super::fields::Unsupported;

// `$d` is a literal `$`: the inner macro's own metavariables have to pass through the outer one untouched.
macro_rules! shared_fields {
    ($d:tt $($name:ident: $type:ty,)*) => {
        /// The shared fields, apart from the request that they came in.
        #[derive(Debug, Default)]
        pub(crate) struct Shared {
            $(pub(crate) $name: Option<$type>,)*
        }

        /// Declares a raw request: the shared fields plus its own.
        macro_rules! raw_request {
            ($d(#[$d meta:meta])* $d name:ident { $d($d field:ident: $d kind:ty,)* }) => {
                $d(#[$d meta])*
                #[derive(Debug, serde::Deserialize)]
                pub(crate) struct $d name {
                    $d(pub(crate) $d field: $d kind,)*
                    $(pub(crate) $name: Option<$type>,)*
                }

                impl $crate::server::protocol::describe::Describe for $d name {
                    fn schema() -> serde_json::Value {
                        $crate::server::protocol::describe::object([
                            $d((
                                stringify!($d field),
                                <$d kind as $crate::server::protocol::describe::Describe>::schema(),
                                <$d kind as $crate::server::protocol::describe::Describe>::REQUIRED,
                            ),)*
                            $((
                                stringify!($name),
                                <Option<$type> as $crate::server::protocol::describe::Describe>::schema(),
                                false,
                            ),)*
                        ])
                    }
                }

                impl $d name {
                    /// Whether the output is to have a structure, which has to be compiled.
                    pub(crate) fn is_structured(&self) -> bool {
                        self.response_format.is_some() || self.structured_outputs.is_some()
                    }


                    /// Moves the shared fields in.
                    #[allow(dead_code, reason = "only APIs that become this one have shared fields of their own")]
                    pub(crate) fn put_shared(&mut self, shared: $crate::server::protocol::sampling::Shared) {
                        $(self.$name = shared.$name;)*
                    }

                    /// Moves the shared fields out.
                    pub(crate) fn take_shared(&mut self) -> $crate::server::protocol::sampling::Shared {
                        $crate::server::protocol::sampling::Shared {
                            $($name: self.$name.take(),)*
                        }
                    }
                }
            };
        }
    };
}

shared_fields! { $
    model: String,
    max_tokens: Int,
    n: Int,
    temperature: Num,
    top_p: Num,
    top_k: Int,
    min_p: Num,
    presence_penalty: Num,
    frequency_penalty: Num,
    repetition_penalty: Num,
    logit_bias: BTreeMap<String, Num>,
    seed: Int,
    stop: OneOrMany,
    stop_token_ids: Vec<TokenId>,
    include_stop_str_in_output: bool,
    ignore_eos: bool,
    min_tokens: Int,
    bad_words: Vec<String>,
    allowed_token_ids: Vec<TokenId>,
    skip_special_tokens: bool,
    spaces_between_special_tokens: bool,
    add_special_tokens: bool,
    prompt_logprobs: Int,
    logprob_token_ids: Vec<TokenId>,
    truncate_prompt_tokens: Int,
    truncation_side: String,
    priority: Int,
    request_id: String,
    return_tokens_as_token_ids: bool,
    return_token_ids: bool,
    stream: bool,
    stream_options: StreamOptions,
    echo: bool,
    response_format: Map<String, Value>,
    structured_outputs: Map<String, Value>,
}

pub(crate) use raw_request;

/// Whether a value is an empty string, list or object.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Documented by OpenAI as labels for their own bookkeeping; they never change an answer.
pub(crate) fn is_label(value: &Value) -> bool {
    value.is_string() || value.is_object()
}

const STRUCTURED: &str = "use structured_outputs, which takes its place";

/// What both APIs know and this server does not do, with the values that ask for nothing.
pub(crate) const SHARED_UNSUPPORTED: [Unsupported; 29] = [
    Unsupported::unless("best_of", |v| v.as_i64() == Some(1)),
    Unsupported::unless("use_beam_search", |v| v == &Value::Bool(false)),
    Unsupported::unless("length_penalty", |v| v.as_f64() == Some(1.0)),
    Unsupported::unless("early_stopping", |v| v == &Value::Bool(false)),
    Unsupported::hint("guided_json", is_empty, STRUCTURED),
    Unsupported::hint("guided_regex", is_empty, STRUCTURED),
    Unsupported::hint("guided_choice", is_empty, STRUCTURED),
    Unsupported::hint("guided_grammar", is_empty, STRUCTURED),
    Unsupported::unless("return_token_offsets", |v| v == &Value::Bool(false)),
    Unsupported::always("cache_salt"),
    Unsupported::unless("kv_transfer_params", is_empty),
    Unsupported::unless("ec_transfer_params", is_empty),
    Unsupported::unless("vllm_xargs", is_empty),
    Unsupported::always("repetition_detection"),
    Unsupported::unless("thinking_token_budget", |v| v.as_i64() == Some(-1)),
    Unsupported::unless("stream_interval", |v| v.as_i64() == Some(1)),
    Unsupported::unless("service_tier", |v| matches!(v.as_str(), Some("auto" | "default"))),
    Unsupported::unless("store", |v| v == &Value::Bool(false)),
    Unsupported::unless("user", is_label),
    Unsupported::unless("metadata", is_label),
    Unsupported::unless("safety_identifier", is_label),
    Unsupported::unless("prompt_cache_key", is_label),
    Unsupported::always("prompt_cache_retention"),
    Unsupported::unless("media_io_kwargs", is_empty),
    Unsupported::unless("watermarking", |v| v == &Value::Bool(false)),
    Unsupported::unless("session_id", Value::is_string),
    Unsupported::unless("routed_experts_prompt_start", |v| v.as_i64() == Some(0)),
    Unsupported::unless("mm_payload", is_empty),
    // About images in what /render answers.
    Unsupported::unless("return_mm_kwargs", Value::is_boolean),
];

/// The shared list with an API's own entries behind it.
pub(crate) const fn unsupported<const N: usize, const M: usize>(own: [Unsupported; N]) -> [Unsupported; M] {
    assert!(SHARED_UNSUPPORTED.len() + N == M, "M must be the length of both lists together");
    let mut all = [const { Unsupported::always("") }; M];
    let mut i = 0;
    while i < M {
        all[i] = if i < SHARED_UNSUPPORTED.len() { SHARED_UNSUPPORTED[i] } else { own[i - SHARED_UNSUPPORTED.len()] };
        i += 1;
    }
    all
}
