//! Temporary stand-in until branch `hubtext` lands: the names that `llm` uses, with no behaviour of their own.

use std::sync::Arc;

/// Why text could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TextError(pub String);

/// Temporary: one byte, one token.
#[derive(Debug, Default)]
pub struct Tokenizer;

impl Tokenizer {
    /// Bytes as ids.
    pub fn encode(&self, text: &str, _add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    /// Ids as text.
    pub fn decode(&self, ids: &[u32], _skip_special_tokens: bool) -> Result<String, TextError> {
        Ok(ids.iter().map(|&id| char::from(id as u8)).collect())
    }
}

/// Temporary.
#[derive(Debug)]
pub struct Detokenizer(Arc<Tokenizer>);

impl Detokenizer {
    /// Starts after `prompt_tail`.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        _skip_special_tokens: bool,
        _prompt_tail: &[u32],
    ) -> Self {
        Self(Arc::clone(tokenizer))
    }

    /// Text completed by `id`.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        self.0.decode(&[id], true)
    }

    /// What was held back.
    pub fn finish(&mut self) -> Result<String, TextError> {
        Ok(String::new())
    }
}

/// Defaults that a model ships.
#[derive(Debug, Clone, Default)]
pub struct GenerationConfig {
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Default temperature.
    pub temperature: Option<f32>,
    /// Default top_p.
    pub top_p: Option<f32>,
    /// Default top_k.
    pub top_k: Option<usize>,
    /// Default min_p.
    pub min_p: Option<f32>,
    /// Default repetition penalty.
    pub repetition_penalty: Option<f32>,
    /// Default max_tokens.
    pub max_new_tokens: Option<usize>,
}
