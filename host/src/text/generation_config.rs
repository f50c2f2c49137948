//! Defaults for generation, as the model's author set them.
//!
//! `generation_config.json` wins; ids that it lacks come from `config.json`. Values are checked for their type only: the
//! ranges are the business of whoever uses them as sampling parameters.

use std::path::Path;

use serde_json::Value;

use super::{TextError, read_optional};

/// What the model's author recommends. `None`: nothing was said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Id that starts a text.
    pub bos_token_id: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Only the most likely tokens; 0 is off.
    pub top_k: Option<usize>,
    /// Tokens below this share of the best one's probability are dropped.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate.
    pub max_new_tokens: Option<usize>,
    /// `Some(false)`: the author means greedy decoding.
    pub do_sample: Option<bool>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` and `config.json` of the folder; either may be missing.
    pub fn load(dir: &Path) -> Result<Self, TextError> {
        let read = |name: &str| -> Result<Option<Value>, TextError> {
            let Some(bytes) = read_optional(&dir.join(name))? else {
                return Ok(None);
            };
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|e| TextError::invalid(name, format!("not valid JSON: {e}")))
        };
        // A config.json that is no plain JSON (Python's Infinity) is the hub module's to read; callers that resolved the
        // model pass it to `from_values` instead.
        let generation = read("generation_config.json")?;
        let config = read("config.json")?;
        Self::from_values(generation.as_ref(), config.as_ref())
    }

    /// The same from parsed files.
    pub fn from_values(generation: Option<&Value>, config: Option<&Value>) -> Result<Self, TextError> {
        let mut merged = match config {
            Some(value) => {
                let fields = Fields { file: "config.json", value };
                // Multimodal models keep the language model's ids one level down.
                let text = value.get("text_config").map(|value| Fields { file: "config.json", value });
                let mut eos = fields.ids("eos_token_id")?;
                let mut bos = fields.ids("bos_token_id")?;
                if let Some(text) = text {
                    eos = if eos.is_empty() { text.ids("eos_token_id")? } else { eos };
                    bos = if bos.is_empty() { text.ids("bos_token_id")? } else { bos };
                }
                Self { eos_token_ids: eos, bos_token_id: bos.first().copied(), ..Self::default() }
            }
            None => Self::default(),
        };
        let Some(value) = generation else {
            return Ok(merged);
        };
        let fields = Fields { file: "generation_config.json", value };
        if !value.is_object() {
            return Err(TextError::invalid(fields.file, "must hold an object"));
        }
        let eos = fields.ids("eos_token_id")?;
        if !eos.is_empty() {
            merged.eos_token_ids = eos;
        }
        merged.bos_token_id = fields.ids("bos_token_id")?.first().copied().or(merged.bos_token_id);
        merged.temperature = fields.float("temperature")?;
        merged.top_p = fields.float("top_p")?;
        merged.top_k = fields.count("top_k")?;
        merged.min_p = fields.float("min_p")?;
        merged.repetition_penalty = fields.float("repetition_penalty")?;
        merged.max_new_tokens = fields.count("max_new_tokens")?;
        merged.do_sample = match fields.get("do_sample") {
            None => None,
            Some(Value::Bool(flag)) => Some(*flag),
            Some(other) => return Err(fields.wrong("do_sample", "true or false", other)),
        };
        Ok(merged)
    }
}

impl GenerationConfig {
    /// Only what identifies the beginning and the end of a text.
    pub fn without_defaults(&self) -> Self {
        Self { eos_token_ids: self.eos_token_ids.clone(), bos_token_id: self.bos_token_id, ..Self::default() }
    }

    /// With these fields in place of its own. Fields of other names are refused: they would have no effect.
    pub fn with_overrides(&self, overrides: &serde_json::Map<String, Value>) -> Result<Self, TextError> {
        const KNOWN: [&str; 8] = [
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "max_new_tokens",
            "do_sample",
            "eos_token_id",
        ];
        let source = "--override-generation-config";
        if let Some(key) = overrides.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            return Err(TextError::invalid(source, format!("\"{key}\" has no effect; known are {}", KNOWN.join(", "))));
        }
        let value = Value::Object(overrides.clone());
        let fields = Fields { file: source, value: &value };
        let eos = fields.ids("eos_token_id")?;
        let over = Self::from_values(Some(&value), None)?;
        Ok(Self {
            eos_token_ids: if eos.is_empty() { self.eos_token_ids.clone() } else { eos },
            bos_token_id: self.bos_token_id,
            temperature: over.temperature.or(self.temperature),
            top_p: over.top_p.or(self.top_p),
            top_k: over.top_k.or(self.top_k),
            min_p: over.min_p.or(self.min_p),
            repetition_penalty: over.repetition_penalty.or(self.repetition_penalty),
            max_new_tokens: over.max_new_tokens.or(self.max_new_tokens),
            do_sample: over.do_sample.or(self.do_sample),
        })
    }
}

/// Fields of one file, with errors that name both.
struct Fields<'a> {
    file: &'static str,
    value: &'a Value,
}

impl<'a> Fields<'a> {
    /// The field; null counts as absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> TextError {
        TextError::invalid(self.file, format!("\"{name}\" must be {expected}, not {found}"))
    }

    /// One id or a list of ids.
    fn ids(&self, name: &str) -> Result<Vec<u32>, TextError> {
        let Some(value) = self.get(name) else {
            return Ok(Vec::new());
        };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            // Old files say -1 for "there is none".
            value if value.as_i64() == Some(-1) => Some(Vec::new()),
            value => one(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(name, "a token id or a list of token ids", value))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, TextError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|n| n as f32).filter(|n| n.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(name, "a number", value))
    }

    fn count(&self, name: &str) -> Result<Option<usize>, TextError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.wrong(name, "a non-negative integer", value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn load(generation: Value, config: Value) -> Result<GenerationConfig, TextError> {
        GenerationConfig::from_values(Some(&generation), Some(&config))
    }

    #[test]
    fn both_files() {
        let config = json!({"eos_token_id": 2, "bos_token_id": 1});
        let found =
            load(json!({"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 50, "do_sample": true}), config.clone());
        let expected = GenerationConfig {
            eos_token_ids: vec![5, 6],
            bos_token_id: Some(1),
            temperature: Some(0.6),
            top_k: Some(50),
            do_sample: Some(true),
            ..GenerationConfig::default()
        };
        assert_eq!(found.unwrap(), expected);
        let found =
            load(json!({"top_p": 0.9, "min_p": 0, "repetition_penalty": 1.1, "max_new_tokens": 7}), config).unwrap();
        assert_eq!((found.eos_token_ids, found.min_p, found.max_new_tokens), (vec![2], Some(0.0), Some(7)));
        let nested = json!({"eos_token_id": null, "text_config": {"eos_token_id": [9]}});
        assert_eq!(load(json!({}), nested).unwrap().eos_token_ids, [9]);
        assert_eq!(load(json!({"bos_token_id": -1}), json!({})).unwrap().bos_token_id, None);
    }

    #[test]
    fn overrides_win_field_by_field() {
        let own =
            load(json!({"eos_token_id": 2, "temperature": 0.6, "top_k": 50}), json!({"bos_token_id": 1})).unwrap();
        let overrides = json!({"temperature": 0.1, "max_new_tokens": 9});
        let found = own.with_overrides(overrides.as_object().unwrap()).unwrap();
        let expected = GenerationConfig { temperature: Some(0.1), max_new_tokens: Some(9), ..own.clone() };
        assert_eq!(found, expected);
        let plain = own.without_defaults();
        assert_eq!((plain.temperature, plain.eos_token_ids, plain.bos_token_id), (None, vec![2], Some(1)));
        let message = own.with_overrides(json!({"temprature": 1}).as_object().unwrap()).unwrap_err().to_string();
        assert!(message.contains("--override-generation-config") && message.contains("temprature"), "{message}");
    }

    #[test]
    fn wrong_types_name_the_file_and_the_field() {
        for (field, value) in [
            ("eos_token_id", json!("2")),
            ("eos_token_id", json!([1, "2"])),
            ("eos_token_id", json!(-2)),
            ("eos_token_id", json!(1.5)),
            ("bos_token_id", json!({})),
            ("temperature", json!("hot")),
            ("temperature", json!(1e300)),
            ("top_k", json!(-1)),
            ("top_k", json!(0.5)),
            ("max_new_tokens", json!([])),
            ("do_sample", json!(1)),
        ] {
            let error = load(json!({field: value}), json!({})).unwrap_err().to_string();
            assert!(error.starts_with(&format!("generation_config.json: \"{field}\" must be")), "{error}");
        }
        let error = load(json!({}), json!({"eos_token_id": true})).unwrap_err().to_string();
        assert!(error.starts_with("config.json: \"eos_token_id\" must be"), "{error}");
    }

    #[test]
    fn from_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::load(dir.path()).unwrap(), GenerationConfig::default());
        std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 3}"#).unwrap();
        assert_eq!(GenerationConfig::load(dir.path()).unwrap().eos_token_ids, [3]);
        std::fs::write(dir.path().join("generation_config.json"), "[]").unwrap();
        assert!(GenerationConfig::load(dir.path()).unwrap_err().to_string().contains("must hold an object"));
        std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
        assert!(GenerationConfig::load(dir.path()).unwrap_err().to_string().contains("not valid JSON"));
    }
}
