//! Flags that commands share, and the values they take.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use crate::exec::{Dtype, KvCacheDtype, Quantization};
use crate::llm::{
    DeviceChoice, DtypeChoice, ExecutorKind, GenerationDefaults, GenerationSource, KvCacheDtypeChoice, LlmOptions,
    ModelSource, PoolerConfig, RunnerChoice,
};
use crate::registry::ModelImpl;
use crate::transformers::PackageOptions;

/// Which model, and how it is run.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A folder with config.json and safetensors, a GGUF file, or a name on the hub such as org/model
    pub model: Option<String>,
    /// Branch, tag or commit on the hub
    #[arg(long, env = "HOST_REVISION")]
    pub revision: Option<String>,
    /// Where downloads are kept [default: the cache of Hugging Face's tools]
    #[arg(long, env = "HOST_DOWNLOAD_DIR", value_name = "DIR")]
    pub download_dir: Option<PathBuf>,
    /// Name that the API knows the model by; may be repeated [default: MODEL as given]
    #[arg(long, env = "HOST_SERVED_MODEL_NAME", value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// Let plugins read and run the model's own Python code, in their sandbox; see "Models with code" in docs/operations.md
    #[arg(long, env = "HOST_TRUST_REMOTE_CODE", value_parser = BoolishValueParser::new())]
    pub trust_remote_code: bool,
    /// What the model is served for: generate, pooling (embeddings, scores, reranking), or auto
    #[arg(long, env = "HOST_RUNNER", default_value = "auto")]
    pub(super) runner: RunnerArg,
    /// What a model that generates becomes with --runner pooling: auto or embed; none leaves it as it is
    #[arg(long, env = "HOST_CONVERT", default_value = "auto", value_parser = ["auto", "none", "embed"])]
    pub(super) convert: String,
    /// How a model pools, as JSON such as {"pooling_type": "MEAN", "use_activation": true} [default: what the model says,
    /// else its last token, normalised]
    #[arg(long, env = "HOST_POOLER_CONFIG", value_name = "JSON", alias = "override-pooler-config", value_parser = PoolerConfig::parse)]
    pub(super) pooler_config: Option<PoolerConfig>,
    /// Load no tokenizer: prompts are token ids
    #[arg(long, env = "HOST_SKIP_TOKENIZER_INIT", value_parser = BoolishValueParser::new())]
    pub skip_tokenizer_init: bool,
    /// Chat template to use instead of the model's: a file, or the template itself
    #[arg(long, env = "HOST_CHAT_TEMPLATE")]
    pub chat_template: Option<String>,
    /// Where sampling defaults come from: auto (the model), vllm (none), or a folder with generation_config.json
    #[arg(long, env = "HOST_GENERATION_CONFIG", default_value = "auto", value_name = "SOURCE")]
    pub generation_config: String,
    /// Sampling defaults that win over those, as JSON such as {"temperature": 0.5}
    #[arg(long, env = "HOST_OVERRIDE_GENERATION_CONFIG", value_name = "JSON")]
    pub override_generation_config: Option<String>,
    /// The most logprobs that a request may ask for; -1: no limit
    #[arg(long, env = "HOST_MAX_LOGPROBS", default_value_t = 20, allow_hyphen_values = true)]
    pub max_logprobs: i64,
    #[command(flatten)]
    pub(super) plugins: PluginArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// Where plugins come from.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Plugins")]
pub(super) struct PluginArgs {
    /// Which plugin builds the model: auto, native, transformers, or a plugin's name
    #[arg(long, env = "HOST_MODEL_IMPL", default_value = "auto", value_name = "IMPL")]
    pub(super) model_impl: ModelImpl,
    #[command(flatten)]
    pub(super) search: SearchArgs,
}

/// Where plugins are looked for, and what they may use.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Plugins")]
pub(super) struct SearchArgs {
    /// A folder with plugins, searched before all others; may be repeated
    #[arg(long, value_name = "DIR")]
    pub(super) plugins_dir: Vec<PathBuf>,
    /// Seconds that a plugin may take to build a model's graph
    #[arg(long, env = "HOST_PLUGIN_TIMEOUT", default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) plugin_timeout: u64,
    /// Memory that a plugin may use
    #[arg(long, env = "HOST_PLUGIN_MEMORY", default_value = "2GiB", value_name = "SIZE", value_parser = size)]
    pub(super) plugin_memory: u64,
    #[command(flatten)]
    pub(super) package: PackageArgs,
}

/// Where the package `transformers` comes from.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Plugins")]
pub(super) struct PackageArgs {
    /// Folder of the Python package transformers, or a site-packages folder that holds it [default: that of the active
    /// virtualenv, of the user, of the system, or else a copy that is fetched]
    #[arg(long, env = "HOST_TRANSFORMERS_PATH", value_name = "DIR")]
    pub(super) transformers_path: Option<PathBuf>,
    /// Package index that transformers is fetched from [default: PIP_INDEX_URL, or https://pypi.org/simple]
    #[arg(long, env = "HOST_TRANSFORMERS_INDEX", value_name = "URL", hide_env_values = true)]
    pub(super) transformers_index: Option<String>,
}

impl PackageArgs {
    pub(super) fn apply(&self, options: &mut PackageOptions) {
        options.path = self.transformers_path.clone();
        if let Some(index) = &self.transformers_index {
            options.index = index.clone();
        }
    }
}

/// How the engine runs.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// Arithmetic of matrix products: auto, float32, bfloat16 or float16
    #[arg(long, env = "HOST_DTYPE", default_value = "auto", value_parser = dtype)]
    pub(super) dtype: DtypeChoice,
    /// Hold the weights of linear layers as int8 or int4, quantised while they are loaded
    #[arg(long, env = "HOST_QUANTIZATION", value_name = "METHOD", value_parser = quantization)]
    pub(super) quantization: Option<Quantization>,
    /// What the KV cache holds: auto (float32 with --dtype float32, else bfloat16), float32, bfloat16, or int8 with a scale
    /// for each key and value of each head
    #[arg(long, env = "HOST_KV_CACHE_DTYPE", default_value = "auto", value_parser = kv_cache_dtype)]
    pub(super) kv_cache_dtype: KvCacheDtypeChoice,
    /// What runs the graph
    #[arg(long, env = "HOST_EXECUTOR", default_value = "auto")]
    pub(super) executor: ExecutorArg,
    /// What kernels run on: auto (the first CUDA device that can run the model, or else the CPU), cpu, cuda, cuda:N, or
    /// emulated (CUDA kernels on the CPU, slow, for tests)
    #[arg(long, env = "HOST_DEVICE", default_value = "auto", value_parser = device)]
    pub(super) device: DeviceChoice,
    /// Threads that compute [default: one a core]
    #[arg(long, env = "HOST_THREADS", value_parser = at_least_one)]
    pub(super) threads: Option<usize>,
    /// Bind each of these threads but the first to a processor of its own: for machines that do nothing else
    #[arg(long, env = "HOST_PIN_THREADS")]
    pub(super) pin_threads: bool,
    /// The most tokens of prompt and output [default: what the model was made for]
    #[arg(long, env = "HOST_MAX_MODEL_LEN", value_name = "TOKENS", value_parser = tokens)]
    pub(super) max_model_len: Option<usize>,
    /// The most sequences in a step
    #[arg(long, env = "HOST_MAX_NUM_SEQS", default_value_t = 256, value_name = "N", value_parser = at_least_one)]
    pub(super) max_num_seqs: usize,
    /// The most tokens in a step; longer prompts take several
    #[arg(long, env = "HOST_MAX_NUM_BATCHED_TOKENS", default_value_t = 2048, value_name = "TOKENS", value_parser = at_least_one)]
    pub(super) max_num_batched_tokens: usize,
    /// The most requests that wait; more are answered with 429
    #[arg(long, env = "HOST_MAX_NUM_QUEUED_REQS", default_value_t = 1024, value_name = "N", alias = "max-waiting", value_parser = at_least_one)]
    pub(super) max_num_queued_reqs: usize,
    /// The most prompt tokens that wait; more are answered with 429 [default: no limit of their own]
    #[arg(long, env = "HOST_MAX_NUM_QUEUED_TOKENS", value_name = "TOKENS", value_parser = tokens)]
    pub(super) max_num_queued_tokens: Option<usize>,
    /// Memory of the KV cache, e.g. 4GiB [default: what all sequences need, at most half of what is free]
    #[arg(long, env = "HOST_KV_CACHE_MEMORY", value_name = "SIZE", alias = "kv-cache-memory-bytes", value_parser = size)]
    pub(super) kv_cache_memory: Option<u64>,
    /// The number of KV blocks of 16 tokens, whatever memory they take; to see how a server does with too few
    #[arg(long, env = "HOST_NUM_GPU_BLOCKS_OVERRIDE", value_name = "N", value_parser = at_least_one)]
    pub(super) num_gpu_blocks_override: Option<usize>,
    /// Upper bound of weights and KV cache together, as a share of the memory, 0 to 1 [default: none]
    #[arg(long, env = "HOST_GPU_MEMORY_UTILIZATION", value_name = "SHARE", conflicts_with = "kv_cache_memory", value_parser = share)]
    pub(super) gpu_memory_utilization: Option<f64>,
    /// Reuse the keys and values of common beginnings (this is the default)
    #[arg(long, hide = true, conflicts_with = "no_enable_prefix_caching", value_parser = BoolishValueParser::new())]
    pub(super) enable_prefix_caching: bool,
    /// Compute every prompt anew instead of reusing common beginnings
    #[arg(long, env = "HOST_NO_ENABLE_PREFIX_CACHING", value_parser = BoolishValueParser::new())]
    pub(super) no_enable_prefix_caching: bool,
}

/// What is logged, and how.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Log")]
pub(super) struct LogArgs {
    /// error, warn, info, debug or trace; or a filter such as info,host::engine=debug [default: info for serve, else warn]
    #[arg(long, env = "HOST_LOG_LEVEL", value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// vLLM's name for the level: critical, error, warning, info, debug or trace
    #[arg(long, hide = true, value_name = "LEVEL", value_parser = ["critical", "error", "warning", "info", "debug", "trace"])]
    pub(super) uvicorn_log_level: Option<String>,
    /// Form of the log
    #[arg(long, env = "HOST_LOG_FORMAT", default_value = "text")]
    pub(super) log_format: LogFormat,
    /// Read settings from this file [default: host.toml here, or in the user's configuration folder]
    #[arg(long, env = "HOST_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunnerArg {
    /// Pooling for folders of embedding models (with modules.json), else generation
    Auto,
    /// Text
    Generate,
    /// Vectors
    Pooling,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecutorArg {
    /// Kernels, or the reference for a model that they cannot run
    Auto,
    /// Kernels on the CPU
    Cpu,
    /// Op by op, slow: the oracle
    Reference,
}

impl ModelArgs {
    /// What was typed as what is meant.
    pub fn options(&self) -> anyhow::Result<LlmOptions> {
        let Self { engine, plugins, .. } = self;
        let mut options = LlmOptions {
            model: self.model.clone().map_or(ModelSource::Demo, ModelSource::Named),
            served_names: self.served_model_name.clone(),
            model_impl: plugins.model_impl.clone(),
            trust_remote_code: self.trust_remote_code,
            dtype: engine.dtype,
            quantization: engine.quantization,
            kv_cache_dtype: engine.kv_cache_dtype,
            executor: match engine.executor {
                ExecutorArg::Auto => ExecutorKind::Auto,
                ExecutorArg::Cpu => ExecutorKind::Cpu,
                ExecutorArg::Reference => ExecutorKind::Reference,
            },
            device: engine.device,
            threads: engine.threads,
            pin_threads: engine.pin_threads,
            max_model_len: engine.max_model_len,
            // vLLM does the same: a small budget bounds the sequences too.
            max_num_seqs: engine.max_num_seqs.min(engine.max_num_batched_tokens),
            max_num_batched_tokens: engine.max_num_batched_tokens,
            max_waiting: engine.max_num_queued_reqs,
            max_waiting_tokens: engine.max_num_queued_tokens,
            enable_prefix_caching: !engine.no_enable_prefix_caching,
            kv_cache_memory: engine.kv_cache_memory,
            kv_blocks: engine.num_gpu_blocks_override,
            memory_share: engine.gpu_memory_utilization,
            generation: self.generation()?,
            skip_tokenizer_init: self.skip_tokenizer_init,
            chat_template: self.chat_template.as_deref().map(chat_template).transpose()?,
            max_logprobs: self.max_logprobs,
            runner: self.runner()?,
            pooler: self.pooler_config.clone().unwrap_or_default(),
            ..LlmOptions::default()
        };
        options.hub.revision = self.revision.clone();
        if let Some(dir) = &self.download_dir {
            options.hub.cache_dir = dir.clone();
        }
        plugins.search.apply(&mut options.registry);
        Ok(options)
    }
}

impl ModelArgs {
    fn runner(&self) -> anyhow::Result<RunnerChoice> {
        let runner = match (self.runner, self.convert.as_str()) {
            // vLLM takes --convert embed alone for both.
            (RunnerArg::Auto, "embed") => RunnerArg::Pooling,
            (RunnerArg::Auto, "none") => RunnerArg::Generate,
            (RunnerArg::Generate, "embed") => {
                anyhow::bail!("--convert embed makes a model pool, and --runner generate forbids it; leave one out")
            }
            (RunnerArg::Pooling, "none") => anyhow::bail!(
                "--runner pooling needs --convert embed: what there is are models that generate; leave --convert none out"
            ),
            (runner, _) => runner,
        };
        Ok(match runner {
            RunnerArg::Auto => RunnerChoice::Auto,
            RunnerArg::Generate => RunnerChoice::Generate,
            RunnerArg::Pooling => RunnerChoice::Pooling,
        })
    }

    fn generation(&self) -> anyhow::Result<GenerationDefaults> {
        let source = match self.generation_config.as_str() {
            "auto" => GenerationSource::Model,
            "vllm" => GenerationSource::None,
            folder => GenerationSource::Folder(PathBuf::from(folder)),
        };
        let parse = |text: &String| {
            serde_json::from_str(text).map_err(|e| {
                anyhow::anyhow!(
                    "--override-generation-config: expected a JSON object such as {{\"temperature\": 0.5}}: {e}"
                )
            })
        };
        let overrides = self.override_generation_config.as_ref().map(parse).transpose()?.unwrap_or_default();
        Ok(GenerationDefaults { source, overrides })
    }
}

impl SearchArgs {
    pub(super) fn apply(&self, options: &mut crate::registry::RegistryOptions) {
        options.dirs = self.plugins_dir.clone();
        options.deadline = Duration::from_secs(self.plugin_timeout);
        options.memory_limit = self.plugin_memory;
        self.package.apply(&mut options.transformers);
    }
}

/// A file's content, or the template itself when it looks like one.
fn chat_template(given: &str) -> anyhow::Result<String> {
    if given.contains("{%") || given.contains("{{") {
        return Ok(given.to_owned());
    }
    std::fs::read_to_string(given).map_err(|e| anyhow::anyhow!("--chat-template {given}: {e}"))
}

/// `4GiB`, `512MB`, `1.5G`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        other => return Err(format!("`{other}` is not a unit; use KiB, MiB, GiB, TiB, KB, MB, GB or TB")),
    };
    match number.parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok((n * factor as f64) as u64),
        _ => Err("expected a size above 0 such as 4GiB".into()),
    }
}

/// A number of tokens; vLLM's `32k` (1000s) and `32K` (1024s) are understood.
fn tokens(text: &str) -> Result<usize, String> {
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1000),
        Some(b'K') => (&text[..text.len() - 1], 1024),
        _ => (text, 1),
    };
    at_least_one(number)?.checked_mul(factor).ok_or_else(|| "the number is too large".into())
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a share above 0 and at most 1, such as 0.9".into()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 1 => Ok(n),
        Ok(_) => Err("it must be at least 1".into()),
        Err(e) => Err(format!("{e}")),
    }
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
}

fn dtype(text: &str) -> Result<DtypeChoice, String> {
    match text {
        "auto" => Ok(DtypeChoice::Auto),
        name => Dtype::from_name(name)
            .map(DtypeChoice::Is)
            .ok_or_else(|| "expected auto, float32 (float), bfloat16 or float16 (half)".into()),
    }
}

fn quantization(text: &str) -> Result<Quantization, String> {
    Quantization::from_name(text).ok_or_else(|| {
        "expected int8 or int4, for checkpoints that are not quantised; those of GPTQ, AWQ, compressed-tensors and FP8 are \
         known by their config.json"
            .into()
    })
}

fn kv_cache_dtype(text: &str) -> Result<KvCacheDtypeChoice, String> {
    match text {
        "auto" => Ok(KvCacheDtypeChoice::Auto),
        name => KvCacheDtype::from_name(name)
            .map(KvCacheDtypeChoice::Is)
            .ok_or_else(|| "expected auto, float32 (float), bfloat16 or int8 (int8_per_token_head)".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_quantization_is_refused_with_what_is_there() {
        assert_eq!(quantization("int8"), Ok(Quantization::Int8));
        assert_eq!(quantization("int4"), Ok(Quantization::Int4));
        for text in ["", "int3", "gptq", "INT8"] {
            let error = quantization(text).unwrap_err();
            assert!(error.contains("int8 or int4") && error.contains("GPTQ"), "{error}");
        }
    }

    #[test]
    fn types_of_the_cache() {
        let is = |dtype| Ok(KvCacheDtypeChoice::Is(dtype));
        assert_eq!(kv_cache_dtype("auto"), Ok(KvCacheDtypeChoice::Auto));
        assert_eq!(kv_cache_dtype("float"), is(KvCacheDtype::Float32));
        assert_eq!(kv_cache_dtype("bfloat16"), is(KvCacheDtype::Bfloat16));
        assert_eq!(kv_cache_dtype("int8"), is(KvCacheDtype::Int8));
        assert_eq!(kv_cache_dtype("int8_per_token_head"), is(KvCacheDtype::Int8));
        for text in ["", "float16", "fp8", "fp8_e4m3", "INT8"] {
            assert!(kv_cache_dtype(text).unwrap_err().contains("bfloat16 or int8"), "{text}");
        }
    }

    #[test]
    fn sizes_token_counts_and_devices() {
        for (text, bytes) in [("7", 7), ("4GiB", 4 << 30), ("1.5g", 3 << 29), ("2 kb", 2000), ("1T", 1 << 40)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "0", "4 gigs", "1e3", "NaN"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!((tokens("32k"), tokens("32K"), tokens("5")), (Ok(32_000), Ok(32_768), Ok(5)));
        assert_eq!((device("cuda"), device("cuda:3")), (Ok(DeviceChoice::Cuda(0)), Ok(DeviceChoice::Cuda(3))));
        for text in ["gpu", "cuda:", "cuda:-1", "CUDA"] {
            assert!(device(text).unwrap_err().contains("cuda:N"), "{text}");
        }
        assert!(tokens("0").is_err() && tokens("k").is_err() && tokens("18446744073709551615K").is_err());
    }
}
