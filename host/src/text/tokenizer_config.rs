//! `tokenizer_config.json`, `special_tokens_map.json` and the files of chat templates: what surrounds `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{TextError, read_optional, read_optional_text};

/// The names of special tokens that templates may use as variables.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Everything besides `tokenizer.json`.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// `bos_token` and so on, with their text.
    pub(super) special_tokens: BTreeMap<String, String>,
    /// Tokens that are declared here and may be missing from `tokenizer.json`, by id.
    pub(super) added: BTreeMap<u32, AddedToken>,
    /// Chat templates by name.
    pub(super) templates: BTreeMap<String, String>,
}

impl Surroundings {
    /// All that the folder has.
    pub(super) fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let mut found = Self::default();
        if let Some(bytes) = read_optional(&dir.join("special_tokens_map.json"))? {
            found.special_tokens =
                special_tokens("special_tokens_map.json", &object("special_tokens_map.json", &bytes)?)?;
        }
        if let Some(bytes) = read_optional(&dir.join("tokenizer_config.json"))? {
            found.add_config(&bytes)?;
        }
        if let Some(bytes) = read_optional(&dir.join("chat_template.json"))? {
            let json = object("chat_template.json", &bytes)?;
            found.templates.extend(templates("chat_template.json", json.get("chat_template"))?);
        }
        // Newer than the other places, so it wins.
        if let Some(text) = read_optional_text(&dir.join("chat_template.jinja"))? {
            found.templates.insert("default".into(), text);
        }
        for entry in std::fs::read_dir(dir.join("additional_chat_templates")).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_stem().and_then(|s| s.to_str()).map(String::from);
            if let (Some(name), Some("jinja")) = (name, path.extension().and_then(|e| e.to_str())) {
                let text = read_optional_text(&path)?;
                found.templates.extend(text.map(|text| (name, text)));
            }
        }
        Ok(found)
    }

    /// Merges in `tokenizer_config.json`.
    pub(super) fn add_config(&mut self, bytes: &[u8]) -> Result<(), TextError> {
        const FILE: &str = "tokenizer_config.json";
        let config = object(FILE, bytes)?;
        self.special_tokens.extend(special_tokens(FILE, &config)?);
        self.templates.extend(templates(FILE, config.get("chat_template"))?);
        let added = match config.get("added_tokens_decoder") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(map)) => map,
            Some(_) => {
                return Err(TextError::invalid(FILE, "\"added_tokens_decoder\" must be an object"));
            }
        };
        for (id, token) in added {
            let wrong =
                || TextError::invalid(FILE, format!("\"added_tokens_decoder\": entry \"{id}\" must be a token"));
            let id: u32 = id.parse().map_err(|_| wrong())?;
            let content = token.get("content").and_then(Value::as_str).ok_or_else(wrong)?;
            let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
            let special = flag("special", false);
            let added = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            self.added.insert(id, added);
        }
        Ok(())
    }
}

fn object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, TextError> {
    serde_json::from_slice(bytes).map_err(|e| TextError::invalid(file, format!("not a JSON object: {e}")))
}

/// A token is written as its text, or as an object with its text in `content`.
fn special_tokens(file: &str, config: &Map<String, Value>) -> Result<BTreeMap<String, String>, TextError> {
    let mut found = BTreeMap::new();
    for role in ROLES {
        let value = match config.get(role) {
            None | Some(Value::Null) => continue,
            Some(value) => value,
        };
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        let text = text.ok_or_else(|| TextError::invalid(file, format!("\"{role}\" must be a token, not {value}")))?;
        found.insert(role.to_owned(), text.to_owned());
    }
    Ok(found)
}

/// One template, or a list of `{"name", "template"}`.
fn templates(file: &str, value: Option<&Value>) -> Result<BTreeMap<String, String>, TextError> {
    let wrong = || TextError::invalid(file, "\"chat_template\" must be a string or a list of {\"name\", \"template\"}");
    match value {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(text)) => Ok(BTreeMap::from([("default".to_owned(), text.clone())])),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| {
                let text = |field: &str| entry.get(field).and_then(Value::as_str).map(String::from).ok_or_else(wrong);
                Ok((text("name")?, text("template")?))
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}
