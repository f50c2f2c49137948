//! A model's files, opened: configuration, weights, tokenizer, generation settings. From a folder, from
//! the hub, or from inside the program.

use std::path::PathBuf;

use serde_json::Value;

use super::pooling;
use super::settings::{GenerationSource, LlmOptions, LoadError, ModelSource};
use crate::exec::Dtype;
use crate::hub::{self, HubOptions, Weights};
use crate::text::{GenerationConfig, Tokenizer};

/// The built-in demo model; its card is `host/demo/README.md`.
mod demo {
    pub(super) const NAME: &str = "host-demo";
    pub(super) const CONFIG: &[u8] = include_bytes!("../../demo/model/config.json");
    pub(super) const GENERATION_CONFIG: &[u8] = include_bytes!("../../demo/model/generation_config.json");
    pub(super) const TOKENIZER: &[u8] = include_bytes!("../../demo/model/tokenizer.json");
    pub(super) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../demo/model/tokenizer_config.json");
    pub(super) static WEIGHTS: &[u8] = &Aligned(*include_bytes!("../../demo/model/model.safetensors")).0;

    /// Bytes that the linker would put anywhere, where the tensors can be read in place.
    #[repr(align(64))]
    struct Aligned<T>(T);
}

/// The files of one model.
#[derive(Clone)]
pub struct Checkpoint {
    /// As the user named it.
    pub name: String,
    /// `config.json`.
    pub config: Value,
    /// The tensors.
    pub weights: Weights,
    /// Without: prompts are token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Its folder; `None`: it is inside the program.
    pub dir: Option<PathBuf>,
    /// Names of the Python files that it brings, of which nothing is run here.
    pub python_files: Vec<String>,
    /// End-of-sequence ids and sampling defaults.
    pub generation_config: GenerationConfig,
}

impl Checkpoint {
    /// Finds (downloads, if need be) and opens the model.
    pub fn open(options: &LlmOptions) -> Result<Checkpoint, LoadError> {
        let mut checkpoint = match &options.model {
            ModelSource::Demo => Checkpoint::demo(options)?,
            ModelSource::Named(name) if super::gguf::is_gguf(name) => super::gguf::open(name, options)?,
            ModelSource::Named(name) => Checkpoint::named(name, options)?,
        };
        if let (Some(template), Some(tokenizer)) = (&options.chat_template, &checkpoint.tokenizer) {
            checkpoint.tokenizer = Some(tokenizer.with_chat_template(template));
        }
        let defaults = &options.generation;
        let own = &checkpoint.generation_config;
        let config = match &defaults.source {
            GenerationSource::Model => own.clone(),
            // What ends a text is the model's, not a matter of taste.
            GenerationSource::None => own.without_defaults(),
            GenerationSource::Folder(dir) => {
                let other = GenerationConfig::load(dir)?;
                let keep = other.eos_token_ids.is_empty();
                GenerationConfig {
                    eos_token_ids: if keep { own.eos_token_ids.clone() } else { other.eos_token_ids.clone() },
                    ..other
                }
            }
        };
        checkpoint.generation_config = config.with_overrides(&defaults.overrides)?;
        Ok(checkpoint)
    }

    /// Embedding models are often stored without their head, as the class below: `XModel` with the names that its tensors
    /// have there. Plugins build whole models, so it gets the names that it has inside of one.
    fn complete(config: &mut Value, weights: Weights) -> Weights {
        if let Some(class) = config["architectures"][0].as_str().and_then(|name| name.strip_suffix("Model")) {
            config["architectures"][0] = format!("{class}ForCausalLM").into();
        }
        let is_bare = weights.index_of("embed_tokens.weight").is_some();
        let has_whole = weights.describe().any(|(name, ..)| name.starts_with("model."));
        if is_bare && !has_whole { weights.below("model.") } else { weights }
    }

    fn demo(options: &LlmOptions) -> Result<Checkpoint, LoadError> {
        let json = |bytes: &[u8]| -> Result<Value, LoadError> {
            serde_json::from_slice(bytes).map_err(|e| LoadError::Setting(format!("the built-in model is damaged: {e}")))
        };
        let config = json(demo::CONFIG)?;
        let tokenizer = match options.skip_tokenizer_init {
            true => None,
            false => Some(Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG), None)?),
        };
        Ok(Checkpoint {
            name: demo::NAME.into(),
            generation_config: GenerationConfig::from_values(Some(&json(demo::GENERATION_CONFIG)?), Some(&config))?,
            config,
            weights: Weights::from_static(demo::WEIGHTS)?,
            dir: None,
            python_files: vec![],
            tokenizer,
        })
    }

    fn named(name: &str, options: &LlmOptions) -> Result<Checkpoint, LoadError> {
        let hub = HubOptions { python_files: options.trust_remote_code, ..options.hub.clone() };
        let files = hub::resolve(name, &hub)?;
        let tokenizer = match options.skip_tokenizer_init {
            true => None,
            false => {
                let tokenizer = Tokenizer::from_dir(&files.dir)?;
                if tokenizer.is_none() {
                    tracing::warn!(
                        "{name} has no tokenizer.json: prompts are token ids, and answers are read with return_token_ids \
                         (--skip-tokenizer-init says that this is meant)"
                    );
                }
                tokenizer
            }
        };
        let (mut weights, mut config) = (Weights::open(&files.dir)?, files.config);
        if pooling::pools(options, Some(&files.dir)) {
            weights = Self::complete(&mut config, weights);
        }
        // How weights are stored is not the plugins' business: they see what is stored.
        for field in ["quantization_config", "compression_config"] {
            let found = config.as_object_mut().and_then(|config| config.remove(field)).filter(|found| !found.is_null());
            if let Some(found) = found {
                weights.unpack(&found, &files.dir.join("config.json"))?;
            }
        }
        Ok(Checkpoint {
            name: files.name.clone(),
            weights,
            generation_config: GenerationConfig::load(&files.dir)?,
            config,
            dir: Some(files.dir),
            python_files: files.python_files,
            tokenizer,
        })
    }

    /// `architectures[0]` of the configuration.
    pub fn architecture(&self) -> Result<&str, LoadError> {
        self.config["architectures"][0].as_str().ok_or_else(|| {
            LoadError::Setting(format!(
                "{}: config.json has no `architectures`: a list with the model's class, such as [\"LlamaForCausalLM\"]",
                self.name
            ))
        })
    }

    /// The type that the configuration names; else that of most stored bytes.
    pub fn dtype(&self) -> Result<Dtype, LoadError> {
        let named = ["dtype", "torch_dtype"].iter().find_map(|field| self.config[*field].as_str());
        if let Some(name) = named {
            return Dtype::from_name(name).ok_or_else(|| {
                LoadError::Setting(format!(
                    "{}: config.json says the type is `{name}`; supported are float32, bfloat16 and float16: choose one \
                     with --dtype",
                    self.name
                ))
            });
        }
        let mut bytes = [(hub::Dtype::F32, 0), (hub::Dtype::BF16, 0), (hub::Dtype::F16, 0)];
        for (_, dtype, shape) in self.weights.describe() {
            if let Some((_, sum)) = bytes.iter_mut().find(|(d, _)| *d == dtype) {
                *sum += shape.iter().product::<usize>() * dtype.size();
            }
        }
        Ok(match bytes.iter().max_by_key(|(_, sum)| *sum) {
            Some((hub::Dtype::BF16, _)) => Dtype::Bfloat16,
            Some((hub::Dtype::F16, _)) => Dtype::Float16,
            _ => Dtype::Float32,
        })
    }
}
