//! A model in one GGUF file: what its metadata and tensors are as `config.json`, tokenizer, and the names of a Hugging Face
//! checkpoint. The plugins see no difference.
//!
//! Knows the families of architectures that it translates, and refuses what a translation would lose. Called by
//! `checkpoint`. The file itself is read by `hub`.

mod config;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::path::Path;

use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::settings::{LlmOptions, LoadError};
use crate::hub::{GgufFile, GgufMetadata, GgufValue};
use crate::text::{GenerationConfig, Tokenizer};

/// Whether the user named such a file.
pub(super) fn is_gguf(name: &str) -> bool {
    let path = Path::new(name);
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) && path.is_file()
}

/// Opens it.
pub(super) fn open(name: &str, options: &LlmOptions) -> Result<Checkpoint, LoadError> {
    let path = Path::new(name);
    let file = GgufFile::open(path)?;
    let meta = Meta { of: file.metadata() };
    let fault = |message: String| LoadError::Setting(format!("{name}: {message}"));
    let model = config::translate(&meta, &file).map_err(fault)?;
    if let Some((name, _)) = file.tensors().find(|(name, _)| model.place(name).is_none() && !model.is_redundant(name)) {
        let family = &model.config["architectures"][0];
        return Err(fault(format!(
            "tensor \"{name}\" has no place in a {family}: a model of another kind is not read right"
        )));
    }
    let tokenizer = match options.skip_tokenizer_init {
        true => None,
        false => {
            let (tokenizer, config) = tokenizer::translate(&meta).map_err(fault)?;
            Some(Tokenizer::from_bytes(tokenizer.to_string().as_bytes(), Some(config.to_string().as_bytes()), None)?)
        }
    };
    let generation = generation(&meta).map_err(fault)?;
    let stem = path.file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Checkpoint {
        name: stem,
        generation_config: GenerationConfig::from_values(Some(&generation), Some(&model.config))?,
        weights: file.into_weights(&|name| model.place(name))?,
        config: model.config,
        tokenizer,
        dir: None,
        python_files: vec![],
    })
}

/// What ends a text.
fn generation(meta: &Meta<'_>) -> Result<Value, String> {
    let mut ends = vec![];
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(meta.size(key)?);
    }
    ends.dedup();
    let mut config = json!({ "eos_token_id": ends });
    if let Some(bos) = meta.size("tokenizer.ggml.bos_token_id")? {
        config["bos_token_id"] = bos.into();
    }
    Ok(config)
}

/// Metadata, read with errors that name the key.
struct Meta<'a> {
    of: &'a GgufMetadata,
}

impl<'a> Meta<'a> {
    fn wrong(&self, key: &str, wanted: &str) -> String {
        let shown = match self.of.get(key) {
            Some(GgufValue::List(all)) => format!("a list of {}", all.len()),
            Some(GgufValue::Text(text)) => format!("{:?}", text.chars().take(60).collect::<String>()),
            other => format!("{other:?}"),
        };
        format!("metadata \"{key}\" is {shown}; {wanted}")
    }

    fn size(&self, key: &str) -> Result<Option<usize>, String> {
        match self.of.get(key) {
            None => Ok(None),
            Some(GgufValue::Int(n)) if *n >= 0 => Ok(usize::try_from(*n).ok()),
            Some(_) => Err(self.wrong(key, "it must be a number that is not negative")),
        }
    }

    fn need(&self, key: &str) -> Result<usize, String> {
        self.size(key)?.ok_or_else(|| format!("metadata \"{key}\" is missing"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, String> {
        match self.of.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(x)) => Ok(Some(*x)),
            Some(_) => Err(self.wrong(key, "it must be a float")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.of.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "it must be a text")),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.of.get(key) {
            None => Ok(default),
            Some(GgufValue::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(key, "it must be true or false")),
        }
    }

    fn list(&self, key: &str) -> Result<Option<&'a [GgufValue]>, String> {
        match self.of.get(key) {
            None => Ok(None),
            Some(GgufValue::List(all)) => Ok(Some(all)),
            Some(_) => Err(self.wrong(key, "it must be a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, String> {
        let all = self.list(key)?.ok_or_else(|| format!("metadata \"{key}\" is missing"))?;
        let text = |value: &'a GgufValue| match value {
            GgufValue::Text(text) => Ok(text.as_str()),
            _ => Err(self.wrong(key, "it must be a list of texts")),
        };
        all.iter().map(text).collect()
    }
}
