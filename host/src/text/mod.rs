//! Between text and token ids: tokenizer, streaming detokeniser, chat templates, generation defaults.
//!
//! Everything is read from the model's folder (`tokenizer.json`, `tokenizer_config.json`, `chat_template*`,
//! `generation_config.json`). Nothing here knows requests, sampling or HTTP, and nothing touches the network. The callers
//! are `llm` (which streams tokens through a [`Detokenizer`]) and, through it, the server.

mod chat;
mod detok;
mod generation_config;
mod pyjson;
mod strftime;
mod tokenizer;
mod tokenizer_config;

#[cfg(test)]
mod chat_tests;
#[cfg(test)]
mod test_tokenizers;

pub use chat::ChatTemplate;
pub use detok::Detokenizer;
pub use generation_config::GenerationConfig;
pub use tokenizer::Tokenizer;

use std::path::{Path, PathBuf};

/// What can go wrong with a model's text files, or with the text given to them.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file could not be read.
    #[error("{}: {message}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        message: String,
    },
    /// A file does not hold what it must.
    #[error("{file}: {message}")]
    Invalid {
        /// The file's name.
        file: String,
        /// What is wrong, with the field's name.
        message: String,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is wrong, or does not cope with the messages.
    #[error("chat template \"{template}\"{}: {message}", line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Template {
        /// The template's name: `default` unless the model has several.
        template: String,
        /// The line in the template.
        line: Option<usize>,
        /// What happened.
        message: String,
    },
    /// The chat template itself refuses the messages (it called `raise_exception`).
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The model has several chat templates, and none that fits.
    #[error("the model has no default chat template, only: {0}; give one of its own with --chat-template")]
    NoDefaultTemplate(String),
}

impl TextError {
    fn invalid(file: &str, message: impl Into<String>) -> Self {
        Self::Invalid { file: file.into(), message: message.into() }
    }
}

/// The file's bytes; `None` if there is no such file.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TextError::Io { path: path.into(), message: e.to_string() }),
    }
}

/// The file as text; `None` if there is no such file.
fn read_optional_text(path: &Path) -> Result<Option<String>, TextError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| TextError::Io { path: path.into(), message: "is not UTF-8 text".into() })
}
