//! Models that make vectors: what is known of how to pool (`--pooler-config`, the folder's sentence-transformers files, the
//! configuration), and the vectors themselves. The engine sums; here it is settled what, and the sum becomes the embedding
//! that was asked for. Knows no HTTP. Called by `load`, and by `server` through [`Llm::submit_embedding`].

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::settings::{LlmOptions, LoadError, RunnerChoice};
use super::{Llm, LlmError};
use crate::engine::{self, EngineEvent, EngineRequest, EventStream, Pooling, SubmitError, Timings};

/// How a model's hidden states become an embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooler {
    /// Which states.
    pub pooling: Pooling,
    /// Vectors get the length 1, unless a request says otherwise.
    pub normalize: bool,
    /// Shorter vectors that the model was trained for.
    pub matryoshka: Matryoshka,
    /// Numbers in a vector.
    pub width: usize,
}

/// To which beginnings a vector may be cut (Kusupati et al., arXiv:2205.13147).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Matryoshka {
    /// None.
    #[default]
    No,
    /// Any.
    Any,
    /// Those of these lengths.
    Lengths(Vec<usize>),
}

/// vLLM's `PoolerConfig`, as far as it exists here; what is not given, the model decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolerConfig {
    /// Which states.
    pub pooling: Option<Pooling>,
    /// Whether vectors get the length 1.
    pub normalize: Option<bool>,
}

impl PoolerConfig {
    /// From vLLM's JSON, such as `{"pooling_type": "MEAN"}`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))?;
        let mut config = Self::default();
        for (name, value) in &fields {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("pooling_type" | "seq_pooling_type", Value::String(kind)) => config.pooling = Some(by_name(kind)?),
                ("use_activation" | "normalize", Value::Bool(normalize)) => config.normalize = Some(*normalize),
                ("task", Value::String(task)) if task == "embed" => {}
                ("enable_chunked_processing", Value::Bool(false)) => {}
                ("pooling_type" | "seq_pooling_type" | "use_activation" | "normalize", value) => {
                    return Err(format!("`{name}` is {value}; pooling_type is a string, use_activation true or false"));
                }
                (name, _) => {
                    return Err(format!("`{name}` is not supported; there are pooling_type and use_activation"));
                }
            }
        }
        Ok(config)
    }
}

fn by_name(kind: &str) -> Result<Pooling, String> {
    match kind.to_ascii_uppercase().as_str() {
        "LAST" => Ok(Pooling::Last),
        "MEAN" => Ok(Pooling::Mean),
        "CLS" => {
            Err("pooling_type CLS takes the first token, which in a decoder has seen no other; LAST or MEAN".into())
        }
        _ => Err(format!("pooling_type is \"{kind}\"; LAST and MEAN are supported")),
    }
}

/// What `modules.json` and the files that it names say: how sentence-transformers stores an embedding model.
#[derive(Debug, Default)]
struct Modules {
    pooling: Option<Pooling>,
    normalize: bool,
}

impl Modules {
    /// None: the folder has no such file.
    fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join("modules.json");
        if !path.is_file() {
            return Ok(None);
        }
        let list = json(&path)?;
        let mut modules = Self::default();
        for module in list.as_array().ok_or_else(|| format!("{}: expected a list", path.display()))? {
            let kind = module["type"].as_str().unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => modules.normalize = true,
                "Pooling" => modules.pooling = Some(pooling_module(dir, module["path"].as_str().unwrap_or_default())?),
                _ => return Err(format!("{}: the module {kind} is not supported", path.display())),
            }
        }
        Ok(Some(modules))
    }
}

fn pooling_module(dir: &Path, name: &str) -> Result<Pooling, String> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !plain {
        return Err(format!("modules.json: \"{name}\" is not the name of a folder"));
    }
    let path = dir.join(name).join("config.json");
    let config = json(&path)?;
    let modes = config.as_object().into_iter().flatten();
    let on: Vec<&str> = modes
        .filter(|(name, value)| name.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(name, _)| name.as_str())
        .collect();
    match (on.as_slice(), config["pooling_mode"].as_str()) {
        (["pooling_mode_mean_tokens"], _) | ([], Some("mean")) => Ok(Pooling::Mean),
        (["pooling_mode_lasttoken"], _) | ([], Some("lasttoken")) => Ok(Pooling::Last),
        (on, name) => Err(format!(
            "{}: pooling is {}; of a decoder, the last token or the mean can be pooled: choose with --pooler-config",
            path.display(),
            name.map_or_else(|| on.join(" and "), str::to_owned)
        )),
    }
}

fn json(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Whether the model is to pool (`--runner`): asked for, or by default if its folder is an embedding model's.
pub(super) fn pools(options: &LlmOptions, dir: Option<&Path>) -> bool {
    match options.runner {
        RunnerChoice::Pooling => true,
        RunnerChoice::Generate => false,
        RunnerChoice::Auto => dir.is_some_and(|dir| dir.join("modules.json").is_file()),
    }
}

impl Pooler {
    /// What the options say, else the model's folder, else vLLM's defaults: the last token, normalised.
    pub(super) fn new(
        options: &LlmOptions,
        dir: Option<&Path>,
        config: &Value,
        width: usize,
    ) -> Result<Self, LoadError> {
        let given = &options.pooler;
        let modules = match (dir, given.pooling) {
            // What the user says about pooling makes up for a file that cannot be followed.
            (Some(dir), Some(_)) => Modules::read(dir).unwrap_or_default(),
            (Some(dir), None) => Modules::read(dir).map_err(LoadError::Setting)?,
            (None, _) => None,
        };
        let own = modules.as_ref().and_then(|modules| modules.pooling);
        let lengths = config["matryoshka_dimensions"].as_array().map(|all| {
            all.iter().filter_map(Value::as_u64).filter_map(|n| usize::try_from(n).ok()).collect::<Vec<_>>()
        });
        Ok(Self {
            pooling: given.pooling.or(own).unwrap_or(Pooling::Last),
            normalize: given.normalize.unwrap_or_else(|| modules.is_none_or(|modules| modules.normalize)),
            matryoshka: match lengths {
                Some(lengths) => Matryoshka::Lengths(lengths),
                None if config["is_matryoshka"] == true => Matryoshka::Any,
                None => Matryoshka::No,
            },
            width,
        })
    }

    /// Whether vectors of this many numbers may be asked for, or why not.
    pub fn check_dimensions(&self, dimensions: usize) -> Result<(), String> {
        let width = self.width;
        match &self.matryoshka {
            _ if dimensions == 0 || dimensions > width => {
                Err(format!("must be from 1 to the {width} numbers of this model's vectors, got {dimensions}"))
            }
            Matryoshka::No => Err(format!(
                "this model's vectors have {width} numbers and were not trained to be cut (no is_matryoshka or \
                 matryoshka_dimensions in config.json); leave it out"
            )),
            Matryoshka::Lengths(lengths) if !lengths.contains(&dimensions) => {
                let list: Vec<String> = lengths.iter().map(usize::to_string).collect();
                Err(format!("the model was trained for {}, got {dimensions}", list.join(", ")))
            }
            Matryoshka::Any | Matryoshka::Lengths(_) => Ok(()),
        }
    }

    /// The embedding: cut, then normalised.
    pub fn shape(&self, mut vector: Vec<f32>, dimensions: Option<usize>, normalize: Option<bool>) -> Vec<f32> {
        vector.truncate(dimensions.unwrap_or(usize::MAX));
        if normalize.unwrap_or(self.normalize) {
            let length = norm(&vector);
            if length > 0.0 {
                vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
            }
        }
        vector
    }
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// The cosine of the angle between two vectors; 0 if one of them has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    let lengths = norm(a) * norm(b);
    if lengths > 0.0 { product / lengths } else { 0.0 }
}

/// A pooled prompt.
#[derive(Debug, Clone)]
pub struct Pooled {
    /// As the engine pooled it: neither cut nor normalised.
    pub vector: Vec<f32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, found in the prefix cache.
    pub cached_tokens: usize,
    /// When things happened.
    pub timings: Timings,
}

/// A prompt that is being pooled. Dropping it ends the work.
#[derive(Debug)]
pub struct Embedding {
    events: EventStream,
    prompt_tokens: usize,
}

impl Embedding {
    /// Waits for the vector.
    pub async fn finish(mut self) -> Result<Pooled, LlmError> {
        let mut vector = Vec::new();
        while let Some(event) = self.events.next().await {
            match event {
                EngineEvent::Pooled(pooled) => vector = pooled,
                EngineEvent::Finished { reason: engine::FinishReason::Abort, .. } => {
                    return Err(LlmError::Submit(SubmitError::Draining));
                }
                EngineEvent::Finished { cached_tokens, timings, .. } => {
                    return Ok(Pooled { vector, prompt_tokens: self.prompt_tokens, cached_tokens, timings });
                }
                EngineEvent::Failed(message) => return Err(LlmError::Failed(message)),
                EngineEvent::Started { .. } | EngineEvent::PromptLogprobs(_) | EngineEvent::Token { .. } => {}
            }
        }
        Err(LlmError::Failed("the engine ended the request without a reason".into()))
    }
}

impl Llm {
    /// Queues a prompt to be pooled, as the model's [`Pooler`] says. Never blocks.
    pub fn submit_embedding(&self, prompt: Vec<u32>, priority: i32, arrival: Instant) -> Result<Embedding, LlmError> {
        let pooler = self.info().pooler.as_ref().ok_or(LlmError::Submit(SubmitError::OnlyGenerates))?;
        let prompt_tokens = prompt.len();
        let params = engine::SamplingParams::default();
        let pooling = Some(pooler.pooling);
        let request = EngineRequest { prompt, params, pooling, restriction: None, priority, arrival };
        Ok(Embedding { events: self.engine().submit(request)?, prompt_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooler(config: Value) -> Pooler {
        Pooler::new(&LlmOptions::default(), None, &config, 4).unwrap()
    }

    #[test]
    fn vllms_pooler_config_is_read_and_the_rest_refused() {
        let parse = PoolerConfig::parse;
        assert_eq!(parse("{}"), Ok(PoolerConfig::default()));
        let mean = PoolerConfig { pooling: Some(Pooling::Mean), normalize: Some(false) };
        assert_eq!(parse(r#"{"pooling_type": "MEAN", "use_activation": false}"#), Ok(mean));
        for (text, expected) in [
            (r#"{"pooling_type": "CLS"}"#, "seen no other"),
            (r#"{"pooling_type": "STEP"}"#, "LAST and MEAN"),
            (r#"{"pooling_type": 1}"#, "is a string"),
            (r#"{"dimensions": 3}"#, "`dimensions` is not supported"),
            ("[]", "expected a JSON object"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn sentence_transformers_files_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            std::fs::create_dir_all(dir.path().join("1_Pooling")).unwrap();
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        };
        let options = LlmOptions::default();
        let read = || Pooler::new(&options, Some(dir.path()), &Value::Null, 4);
        assert!(!pools(&options, Some(dir.path())));
        assert_eq!(read().unwrap().pooling, Pooling::Last);
        let transformer = serde_json::json!({"path": "", "type": "sentence_transformers.models.Transformer"});
        let pooling = serde_json::json!({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"});
        write("modules.json", serde_json::json!([transformer, pooling]));
        assert!(read().unwrap_err().to_string().contains("1_Pooling/config.json"), "a file is missing");
        write(
            "1_Pooling/config.json",
            serde_json::json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}),
        );
        assert!(pools(&options, Some(dir.path())));
        let mean = read().unwrap();
        assert_eq!((mean.pooling, mean.normalize), (Pooling::Mean, false));
        write("1_Pooling/config.json", serde_json::json!({"pooling_mode_cls_token": true}));
        let error = read().unwrap_err().to_string();
        assert!(error.contains("pooling_mode_cls_token") && error.contains("--pooler-config"), "{error}");
        let given = PoolerConfig { pooling: Some(Pooling::Last), normalize: None };
        let given = LlmOptions { pooler: given, ..LlmOptions::default() };
        assert_eq!(Pooler::new(&given, Some(dir.path()), &Value::Null, 4).unwrap().pooling, Pooling::Last);
        write("1_Pooling/config.json", serde_json::json!({"pooling_mode_lasttoken": true}));
        let dense = serde_json::json!({"path": "2_Dense", "type": "sentence_transformers.models.Dense"});
        write("modules.json", serde_json::json!([transformer, pooling, dense]));
        let error = read().unwrap_err().to_string();
        assert!(error.contains("models.Dense is not supported"), "{error}");
    }

    #[test]
    fn vectors_are_cut_where_the_model_allows_it_and_then_normalised() {
        let plain = pooler(Value::Null);
        assert!(plain.check_dimensions(2).unwrap_err().contains("not trained to be cut"));
        let any = pooler(serde_json::json!({"is_matryoshka": true}));
        assert_eq!(any.check_dimensions(2), Ok(()));
        assert!(any.check_dimensions(5).unwrap_err().contains("from 1 to the 4"));
        let some = pooler(serde_json::json!({"matryoshka_dimensions": [1, 2]}));
        assert_eq!(some.check_dimensions(2), Ok(()));
        assert!(some.check_dimensions(3).unwrap_err().contains("trained for 1, 2"));
        assert_eq!(any.shape(vec![3.0, 4.0, 9.0, 9.0], Some(2), None), [0.6, 0.8]);
        assert_eq!(any.shape(vec![3.0, 4.0, 9.0, 9.0], Some(2), Some(false)), [3.0, 4.0]);
        assert_eq!(plain.shape(vec![0.0; 4], None, None), [0.0; 4]);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
