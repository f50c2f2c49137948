//! What can be chosen about a model, and why it may not load. Plain data; `load` and `checkpoint` act on it.

use plugin_api::SpecError;

use super::pooling::PoolerConfig;
use crate::engine::EngineError;
use crate::exec::{Dtype, ExecError, KvCacheDtype, Quantization};
use crate::graph::EmbedError;
use crate::hub::{HubError, HubOptions};
use crate::registry::{ModelImpl, PluginError, RegistryError, RegistryOptions, SelectError};
use crate::text::TextError;

/// Which model to load.
#[derive(Debug, Clone, Default)]
pub enum ModelSource {
    /// The small chat model inside the program.
    #[default]
    Demo,
    /// A folder, or a name on the hub.
    Named(String),
}

/// `--dtype`: `Auto` is what the configuration says, or else what most of the weights are stored in.
pub type DtypeChoice = OrAuto<Dtype>;

/// `--kv-cache-dtype`: `Auto` is f32 with `--dtype float32`, else bf16.
pub type KvCacheDtypeChoice = OrAuto<KvCacheDtype>;

/// A setting that can be left open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OrAuto<T> {
    /// Found out when the model is known.
    #[default]
    Auto,
    /// This one.
    Is(T),
}

/// `--executor`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecutorKind {
    /// Kernels on the device, or the reference for a graph that they cannot batch.
    #[default]
    Auto,
    /// Kernels on the CPU.
    Cpu,
    /// Op by op, slow: the oracle.
    Reference,
}

/// `--runner`: what the model is served for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunnerChoice {
    /// Vectors, if the folder is an embedding model's (it has `modules.json`); else generation.
    #[default]
    Auto,
    /// Text.
    Generate,
    /// Vectors.
    Pooling,
}

/// `--device`: what kernels run on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if there is one that can run the model, or else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// CUDA kernels on an emulated device: slow, for tests.
    Emulated,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |n: &str| n.parse().map(DeviceChoice::Cuda).ok();
        let choice = match text {
            "auto" => Some(DeviceChoice::Auto),
            "cpu" => Some(DeviceChoice::Cpu),
            "cuda" => Some(DeviceChoice::Cuda(0)),
            "emulated" => Some(DeviceChoice::Emulated),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        choice.ok_or_else(|| "expected auto, cpu, cuda, cuda:N (such as cuda:1) or emulated".into())
    }
}

/// Everything that can be chosen about a model. `Default` serves the demo model.
#[derive(Debug, Clone)]
pub struct LlmOptions {
    /// The model.
    pub model: ModelSource,
    /// Names that it answers to; none: its own.
    pub served_names: Vec<String>,
    /// Where models are looked for.
    pub hub: HubOptions,
    /// Where plugins are looked for, and their limits.
    pub registry: RegistryOptions,
    /// Which plugin.
    pub model_impl: ModelImpl,
    /// Hand the model's own Python code to plugins that read it.
    pub trust_remote_code: bool,
    /// Arithmetic of matrix products.
    pub dtype: DtypeChoice,
    /// Hold the matrices of linear layers as small integers; `None`: only where the checkpoint does.
    pub quantization: Option<Quantization>,
    /// What the KV cache holds.
    pub kv_cache_dtype: KvCacheDtypeChoice,
    /// What runs the graph.
    pub executor: ExecutorKind,
    /// What its kernels run on.
    pub device: DeviceChoice,
    /// Where compiled CUDA kernels are kept; `None`: nowhere.
    pub kernel_cache: Option<std::path::PathBuf>,
    /// Threads of the CPU executor; `None`: one a core.
    pub threads: Option<usize>,
    /// Bind them to processors.
    pub pin_threads: bool,
    /// The most tokens of prompt and output; `None`: what the model was made for.
    pub max_model_len: Option<usize>,
    /// The most sequences in a step.
    pub max_num_seqs: usize,
    /// The most tokens in a step.
    pub max_num_batched_tokens: usize,
    /// The most requests that wait.
    pub max_waiting: usize,
    /// The most prompt tokens that wait; `None`: as many as those requests have.
    pub max_waiting_tokens: Option<usize>,
    /// Reuse the keys and values of common beginnings.
    pub enable_prefix_caching: bool,
    /// Bytes of the KV cache; `None`: from free memory.
    pub kv_cache_memory: Option<u64>,
    /// The number of KV blocks, whatever memory they take; `None`: as many as fit. To see a model preempted, where its
    /// recurrent states or the lack of a cache make memory a poor measure (vLLM's `num_gpu_blocks_override`).
    pub kv_blocks: Option<usize>,
    /// Upper bound of weights and KV cache together, as a share of the memory; `None`: no other than what is free.
    pub memory_share: Option<f64>,
    /// Seed of requests that bring none; `None`: a new one for each.
    pub seed: Option<u64>,
    /// Where defaults of sampling parameters come from.
    pub generation: GenerationDefaults,
    /// Load no tokenizer: prompts are token ids.
    pub skip_tokenizer_init: bool,
    /// Chat template to use instead of the model's own.
    pub chat_template: Option<String>,
    /// The most logprobs that a request may ask for; -1: no limit.
    pub max_logprobs: i64,
    /// What the model is served for.
    pub runner: RunnerChoice,
    /// How it pools.
    pub pooler: PoolerConfig,
}

/// Where defaults of sampling parameters come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// The file.
    pub source: GenerationSource,
    /// Fields that win over the file's.
    pub overrides: serde_json::Map<String, serde_json::Value>,
}

/// Which `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GenerationSource {
    /// The model's.
    #[default]
    Model,
    /// None: vLLM's defaults.
    None,
    /// That of another folder.
    Folder(std::path::PathBuf),
}

impl Default for LlmOptions {
    fn default() -> Self {
        Self {
            model: ModelSource::Demo,
            served_names: vec![],
            hub: HubOptions::from_env(),
            registry: RegistryOptions::default(),
            model_impl: ModelImpl::Auto,
            trust_remote_code: false,
            dtype: DtypeChoice::Auto,
            quantization: None,
            kv_cache_dtype: KvCacheDtypeChoice::Auto,
            executor: ExecutorKind::Auto,
            device: DeviceChoice::Auto,
            kernel_cache: super::kernel_cache(),
            threads: None,
            pin_threads: false,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_waiting: 1024,
            max_waiting_tokens: None,
            enable_prefix_caching: true,
            kv_cache_memory: None,
            kv_blocks: None,
            memory_share: None,
            seed: None,
            generation: GenerationDefaults::default(),
            skip_tokenizer_init: false,
            chat_template: None,
            max_logprobs: 20,
            runner: RunnerChoice::Auto,
            pooler: PoolerConfig::default(),
        }
    }
}

impl LlmOptions {
    /// This model, a folder or a name on the hub, with the defaults for everything else.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: ModelSource::Named(model.into()), ..Self::default() }
    }
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Its tokenizer, template or generation settings.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The plugin folders.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No plugin for it.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// More than one plugin was tried, and each failed; several lines.
    #[error("no plugin can build the model {name}; tried:{}", errors.iter().map(|e| format!("\n  {e}")).collect::<String>())]
    Tried {
        /// The model as the user named it.
        name: String,
        /// Why each failed, in order.
        errors: Vec<LoadError>,
    },
    /// A pass broke the graph: a defect of `host`.
    #[error("optimising the graph of {architecture} failed: {error}")]
    Pass {
        /// The model's class.
        architecture: String,
        /// What is wrong.
        error: Box<SpecError>,
    },
    /// It has no vectors to give.
    #[error("--runner pooling: {0}")]
    Embed(#[from] EmbedError),
    /// The executor.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A setting does not fit the model.
    #[error("{0}")]
    Setting(String),
    /// One of the above whose message does not say which model it is about.
    #[error("model {name}: {error}")]
    Model {
        /// The model as the user named it.
        name: String,
        /// What is wrong.
        error: Box<LoadError>,
    },
}
