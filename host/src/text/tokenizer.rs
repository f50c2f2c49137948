//! The tokenizer of `tokenizer.json`, with what `tokenizer_config.json` adds to it.
//!
//! The `tokenizers` crate does the work. Added here: tokens that only the configuration declares, special tokens by role,
//! the bytes behind a token, and the chat template. Padding and truncation that the file may ask for are switched off: a
//! server never wants them. A model without `tokenizer.json` has no tokenizer here; sentencepiece files are not read.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::tokenizer_config::Surroundings;
use super::{ChatTemplate, TextError, read_optional};

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    decoding: Decoding,
    special_tokens: BTreeMap<String, String>,
    template: Option<ChatTemplate>,
}

/// How the decoder turns tokens into bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Decoding {
    /// Characters of a token stand for bytes, as in GPT-2.
    pub(super) byte_level: bool,
    /// Tokens like `<0x0A>` are bytes.
    pub(super) byte_fallback: bool,
    /// This character stands for a space.
    pub(super) space: Option<char>,
}

impl Tokenizer {
    /// The folder's tokenizer; `None` if it has no `tokenizer.json`.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TextError> {
        let Some(json) = read_optional(&dir.join("tokenizer.json"))? else {
            return Ok(None);
        };
        Self::build(&json, Surroundings::from_dir(dir)?).map(Some)
    }

    /// A tokenizer from the files' contents; `chat_template` wins over the one in `tokenizer_config_json`.
    pub fn from_bytes(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        chat_template: Option<&str>,
    ) -> Result<Self, TextError> {
        let mut surroundings = Surroundings::default();
        if let Some(config) = tokenizer_config_json {
            surroundings.add_config(config)?;
        }
        if let Some(template) = chat_template {
            surroundings.templates.insert("default".into(), template.into());
        }
        Self::build(tokenizer_json, surroundings)
    }

    /// The same tokenizer with another chat template.
    pub fn with_chat_template(&self, source: &str) -> Self {
        let Inner { tokenizer, decoding, special_tokens, .. } = &*self.inner;
        let template = Some(ChatTemplate::new(source, special_tokens.clone()));
        let (tokenizer, special_tokens) = (tokenizer.clone(), special_tokens.clone());
        Self { inner: Arc::new(Inner { tokenizer, decoding: *decoding, special_tokens, template }) }
    }

    fn build(json: &[u8], surroundings: Surroundings) -> Result<Self, TextError> {
        let wrong = |message: String| TextError::invalid("tokenizer.json", message);
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(|e| wrong(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| wrong(e.to_string()))?;
        let known = tokenizer.get_added_tokens_decoder();
        // Ids are given out in order, as transformers does.
        for (id, token) in surroundings.added {
            if known.get(&id) == Some(&token) {
                continue;
            }
            let (content, special) = (token.content.clone(), token.special);
            let added = if special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) };
            added.map_err(|e| wrong(e.to_string()))?;
            let given = tokenizer.token_to_id(&content);
            if given != Some(id) {
                let given = given.map_or("none".into(), |id| id.to_string());
                let message =
                    format!("\"added_tokens_decoder\" gives \"{content}\" the id {id}, tokenizer.json {given}");
                return Err(TextError::invalid("tokenizer_config.json", message));
            }
        }
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|e| wrong(e.to_string()))?;
        let mut decoding = Decoding::default();
        decoding.note(&decoder);
        let Surroundings { special_tokens, templates, .. } = surroundings;
        let template = (!templates.is_empty()).then(|| ChatTemplate::with_names(templates, special_tokens.clone()));
        Ok(Self { inner: Arc::new(Inner { tokenizer, decoding, special_tokens, template }) })
    }

    /// Token ids of the text. Texts of special tokens in it become these tokens. `add_special_tokens` adds what the
    /// tokenizer puts around a text, such as a beginning-of-text token.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.tokenizer.encode_fast(text, add_special_tokens).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of the ids; ids that do not exist are passed over.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        self.inner.tokenizer.decode(ids, skip_special_tokens).map_err(failed)
    }

    /// The bytes that the token stands for, possibly a part of a character; `None` if there is no such id.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.inner.tokenizer.id_to_token(id)?;
        let decoding = self.inner.decoding;
        if decoding.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of_char().get(&c).copied()).collect();
            return Some(bytes.unwrap_or_else(|| token.into_bytes()));
        }
        if decoding.byte_fallback
            && let Some(byte) = fallback_byte(&token)
        {
            return Some(vec![byte]);
        }
        let space = decoding.space.filter(|_| !self.is_special(id));
        Some(space.map_or(token.clone(), |mark| token.replace(mark, " ")).into_bytes())
    }

    /// The token as text: U+FFFD where it is a part of a character, empty if there is no such id.
    pub fn token_text(&self, id: u32) -> String {
        self.token_bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The id of a token, by its text in `tokenizer.json`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// How many tokens there are, added ones included. A model may have more rows than that.
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// The beginning-of-text token.
    pub fn bos_token(&self) -> Option<(&str, u32)> {
        self.special("bos_token")
    }

    /// The end-of-text token.
    pub fn eos_token(&self) -> Option<(&str, u32)> {
        self.special("eos_token")
    }

    /// Whether the id is a special token, which `skip_special_tokens` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.tokenizer.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// Whether the id is an added token, special or not.
    pub(super) fn is_added(&self, id: u32) -> bool {
        self.inner.tokenizer.get_added_vocabulary().simple_id_to_token(id).is_some()
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.inner.template.as_ref()
    }

    /// Special tokens by role (`bos_token`, ...), for a chat template of the user's own.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.inner.special_tokens
    }

    /// Whether the id exists.
    pub fn has_token(&self, id: u32) -> bool {
        self.inner.tokenizer.id_to_token(id).is_some()
    }

    pub(super) fn decoding(&self) -> Decoding {
        self.inner.decoding
    }

    /// The byte of a token like `<0x0A>`.
    pub(super) fn fallback_byte(&self, id: u32) -> Option<u8> {
        fallback_byte(&self.inner.tokenizer.id_to_token(id)?)
    }

    fn special(&self, role: &str) -> Option<(&str, u32)> {
        let text = self.inner.special_tokens.get(role)?;
        Some((text, self.token_id(text)?))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Decoding {
    /// Reads the decoder's JSON form, which may nest decoders in sequences.
    fn note(&mut self, decoder: &Value) {
        match decoder.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Metaspace") => {
                self.space = decoder.get("replacement").and_then(Value::as_str).and_then(|s| s.chars().next());
            }
            Some("Replace") if decoder.get("content").and_then(Value::as_str) == Some(" ") => {
                let pattern = decoder.pointer("/pattern/String").and_then(Value::as_str);
                self.space = pattern.and_then(|s| s.chars().next()).or(self.space);
            }
            Some("Sequence") => {
                for inner in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.note(inner);
                }
            }
            _ => {}
        }
    }
}

/// The byte of a token like `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on.
fn byte_of_char() -> &'static HashMap<char, u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut next = 0x100;
        (0..=255u8)
            .map(|byte| {
                if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
                    return (char::from(byte), byte);
                }
                let c = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
                next += 1;
                (c, byte)
            })
            .collect()
    })
}

fn failed(error: impl std::fmt::Display) -> TextError {
    TextError::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::test_tokenizers::{all, byte_fallback, byte_level, byte_level_json, metaspace};
    use serde_json::json;
    use std::fs;

    #[test]
    fn bytes_of_tokens_make_the_text() {
        let text = "the quick br\u{f6}wn \u{1f600} fox\u{4f60}";
        for tokenizer in [byte_level(), byte_fallback(), metaspace()] {
            let ids = tokenizer.encode(text, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
            let whole = String::from_utf8(bytes).unwrap();
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(whole.trim_start(), decoded.trim_start());
        }
        assert_eq!(byte_level().token_text(byte_level().token_id("\u{120}").unwrap()), " ");
        let part = byte_fallback().token_id("<0xE4>").unwrap();
        assert_eq!(
            (byte_fallback().token_bytes(part), byte_fallback().token_text(part)),
            (Some(vec![0xE4]), "\u{fffd}".into())
        );
        for (_, tokenizer) in all() {
            assert_eq!((tokenizer.token_bytes(1_000_000), tokenizer.token_text(1_000_000)), (None, String::new()));
        }
    }

    #[test]
    fn decoders_are_recognised() {
        let expected = |byte_level, byte_fallback, space| Decoding { byte_level, byte_fallback, space };
        assert_eq!(byte_level().decoding(), expected(true, false, None));
        assert_eq!(byte_fallback().decoding(), expected(false, true, Some('\u{2581}')));
        assert_eq!(metaspace().decoding(), expected(false, false, Some('\u{2581}')));
    }

    #[test]
    fn special_tokens() {
        let config = json!({
            "bos_token": {"content": "<s>", "__type": "AddedToken"},
            "eos_token": "<|end|>",
            "pad_token": null,
            "added_tokens_decoder": {
                byte_level().vocab_size().to_string(): {"content": "<|end|>", "special": true},
                (byte_level().vocab_size() + 1).to_string(): {"content": "<tool>", "special": false},
            },
        });
        let config = config.to_string();
        let tokenizer = Tokenizer::from_bytes(&byte_level_json(), Some(config.as_bytes()), None).unwrap();
        let (text, end) = tokenizer.eos_token().unwrap();
        assert_eq!((text, end as usize), ("<|end|>", byte_level().vocab_size()));
        assert_eq!(tokenizer.bos_token(), Some(("<s>", tokenizer.token_id("<s>").unwrap())));
        assert!(tokenizer.is_special(end) && !tokenizer.is_special(end + 1) && !tokenizer.is_special(5));
        let ids = tokenizer.encode("a<tool>b<|end|>", false).unwrap();
        assert_eq!((ids[1], ids[3]), (end + 1, end));
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<tool>b");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a<tool>b<|end|>");
        assert_eq!(tokenizer.vocab_size(), byte_level().vocab_size() + 2);
        assert!(tokenizer.chat_template().is_none());
    }

    #[test]
    fn wrong_files_name_file_and_field() {
        let json = byte_level_json();
        let fails = |tokenizer: &[u8], config: Value, part: &str| {
            let config = config.to_string();
            let error = Tokenizer::from_bytes(tokenizer, Some(config.as_bytes()), None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        fails(b"{", json!({}), "tokenizer.json:");
        fails(b"{}", json!({}), "tokenizer.json:");
        fails(&json, json!([]), "tokenizer_config.json: not a JSON object");
        fails(&json, json!({"eos_token": 7}), "tokenizer_config.json: \"eos_token\" must be a token, not 7");
        fails(&json, json!({"chat_template": 7}), "tokenizer_config.json: \"chat_template\"");
        fails(&json, json!({"chat_template": [{"name": "x"}]}), "\"chat_template\"");
        fails(&json, json!({"added_tokens_decoder": []}), "\"added_tokens_decoder\" must be an object");
        fails(&json, json!({"added_tokens_decoder": {"x": {"content": "y"}}}), "entry \"x\"");
        fails(&json, json!({"added_tokens_decoder": {"3": {}}}), "entry \"3\"");
        fails(
            &json,
            json!({"added_tokens_decoder": {"90000": {"content": "far", "special": true}}}),
            "gives \"far\" the id 90000",
        );
    }

    #[test]
    fn padding_and_truncation_are_off() {
        let mut json: Value = serde_json::from_slice(&byte_level_json()).unwrap();
        json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap();
        assert_eq!(tokenizer.encode("xyzxyz", false).unwrap(), byte_level().encode("xyzxyz", false).unwrap());
    }

    #[test]
    fn a_folder_with_templates_in_every_place() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let render = || {
            let tokenizer = Tokenizer::from_dir(dir.path()).unwrap().unwrap();
            let template = tokenizer.chat_template().unwrap();
            let tools = json!([{}]);
            let extra = serde_json::Map::new();
            let plain = template.render(&[], false, None, &extra).unwrap();
            (plain, template.render(&[], false, Some(&tools), &extra).unwrap())
        };
        assert!(Tokenizer::from_dir(dir.path()).unwrap().is_none());
        fs::write(dir.path().join("tokenizer.json"), byte_level_json()).unwrap();
        assert!(Tokenizer::from_dir(dir.path()).unwrap().unwrap().chat_template().is_none());
        write("special_tokens_map.json", r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#);
        write(
            "tokenizer_config.json",
            r#"{"eos_token": "<eos>", "chat_template": "one {{ bos_token }}{{ eos_token }}"}"#,
        );
        assert_eq!(render(), ("one <s><eos>".into(), "one <s><eos>".into()));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three {{ tools|length }}"}]}"#,
        );
        assert_eq!(render(), ("two".into(), "three 1".into()));
        write("chat_template.json", r#"{"chat_template": "four {{ eos_token }}"}"#);
        assert_eq!(render(), ("four </s>".into(), "three 1".into()));
        write("chat_template.jinja", "five");
        fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
        write("additional_chat_templates/tool_use.jinja", "six");
        assert_eq!(render(), ("five".into(), "six".into()));
        fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja: is not UTF-8"), "{error}");
    }
}
