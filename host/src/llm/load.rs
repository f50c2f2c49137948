//! From a model's name to a running engine: find the files, choose and run the plugin, check the weights,
//! optimise, plan, size the KV cache, start. Each phase is logged with its duration.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use plugin_api::{Graph, Model, Sources, SpecError, Value};

use super::build::{Built, build};
use super::checkpoint::Checkpoint;
use super::device::{Placed, place};
use super::pooling::{self, Pooler};
use super::settings::{DeviceChoice, DtypeChoice, ExecutorKind, KvCacheDtypeChoice, LlmOptions, LoadError};
use super::{Llm, ModelInfo};
use crate::engine::{Engine, EngineConfig, Runner};
use crate::exec::cpu::{self, CpuExecutor, CpuOptions, LowerError, Plan, QuantSummary};
use crate::exec::reference::{Limits, ReferenceExecutor, checkpoint as f32_weights};
use crate::exec::{BLOCK_SIZE, Dtype, ExecError, ExecSpec, Executor, Gives, KvCacheDtype, PrefixCaching, Quantization};
use crate::graph;
use crate::hub::Weights;
use crate::registry::Selected;

/// A model that is found, built and checked, but not running: what `host inspect` shows.
pub struct Blueprint {
    /// Its files.
    pub checkpoint: Checkpoint,
    /// The plugin that built it.
    pub plugin: Selected,
    /// What the plugin read beside config.json and the names of the tensors.
    pub sources: Sources,
    /// What the plugin returned, verified.
    pub model: Model,
    /// The graph that runs, optimised: `decode`, or what [`graph::embed()`] made of it.
    pub graph: Graph,
    /// How the model pools; None: it generates.
    pub pooler: Option<Pooler>,
    /// The arithmetic chosen.
    pub dtype: Dtype,
    /// What matrices are quantised to, if that was asked for.
    pub quantization: Option<Quantization>,
    /// The type of the KV cache.
    pub kv_cache_dtype: KvCacheDtype,
}

impl Blueprint {
    /// Finds and builds the model.
    pub fn draw(options: &LlmOptions) -> Result<Blueprint, LoadError> {
        let mut phase = Phase::start();
        let checkpoint = Checkpoint::open(options)?;
        phase.done("model files");
        let architecture = checkpoint.architecture()?.to_owned();
        let Built { plugin, sources, model } = build(&checkpoint, options)?;
        phase.done("plugin");
        let failed = |error: SpecError| LoadError::Pass { architecture: architecture.clone(), error: Box::new(error) };
        // `build_model` verified that there is a `decode`.
        let decode = model.graphs.get("decode").cloned().unwrap_or_default();
        let mut graph = graph::optimise(&decode).map_err(failed)?;
        let mut pooler = None;
        if pooling::pools(options, checkpoint.dir.as_deref()) {
            graph = graph::embed(&graph).map_err(|e| about(&checkpoint, e))?;
            let width = graph.output(Gives::HiddenStates.name()).and_then(|v| width(&graph, v)).unwrap_or(0);
            pooler = Some(Pooler::new(options, checkpoint.dir.as_deref(), &checkpoint.config, width)?);
        }
        check_weights(&graph, &checkpoint.weights).map_err(|e| about(&checkpoint, e))?;
        let dtype = match options.dtype {
            DtypeChoice::Is(dtype) => dtype,
            DtypeChoice::Auto => checkpoint.dtype()?,
        };
        let kv_cache_dtype = match (options.kv_cache_dtype, dtype) {
            (KvCacheDtypeChoice::Is(dtype), _) => dtype,
            (KvCacheDtypeChoice::Auto, Dtype::Float32) => KvCacheDtype::Float32,
            (KvCacheDtypeChoice::Auto, _) => KvCacheDtype::Bfloat16,
        };
        phase.done("graph");
        tracing::info!(
            model = checkpoint.name,
            architecture,
            plugin = plugin.description.name,
            version = plugin.description.version,
            model_impl = plugin.kind(),
            transformers = sources.transformers_version,
            dtype = dtype.name(),
            "model found"
        );
        let quantization = options.quantization;
        Ok(Blueprint { checkpoint, plugin, sources, model, graph, pooler, dtype, quantization, kv_cache_dtype })
    }

    /// How many tokens the model knows: the width of its logits.
    pub fn vocab_size(&self) -> usize {
        let decode = self.model.graphs.get("decode");
        decode.and_then(|graph| width(graph, graph.output(Gives::Logits.name())?)).unwrap_or(0)
    }

    /// The plan of the CPU executor, with the graph that it refers to. Not every graph has one.
    pub fn plan(&self) -> Result<(Graph, Plan), LowerError> {
        cpu::plan(&self.graph, &self.checkpoint.weights, self.dtype, self.quantization)
    }

    /// What is quantised in what [`Blueprint::plan`] returned.
    pub fn quantised(&self, graph: &Graph, plan: &Plan) -> QuantSummary {
        cpu::quantised(graph, plan, &self.checkpoint.weights, self.dtype, self.quantization)
    }

    /// The executor that runs it.
    pub fn executor(&self, options: &LlmOptions) -> Result<Chosen, LoadError> {
        if options.executor == ExecutorKind::Reference {
            if let DeviceChoice::Cuda(_) | DeviceChoice::Emulated = options.device {
                let why = "--executor reference computes on the CPU: give --device auto or cpu with it";
                return Err(LoadError::Setting(why.into()));
            }
            return self.chosen_reference(options, None);
        }
        match self.plan() {
            Ok((graph, plan)) => self.planned(&graph, plan, options),
            Err(reason @ LowerError::NotBatchable { .. }) if options.executor == ExecutorKind::Auto => {
                self.chosen_reference(options, Some(reason))
            }
            Err(reason @ LowerError::NotBatchable { .. }) => {
                let hint = format!("{reason}; use --executor auto or reference");
                Err(about(&self.checkpoint, ExecError::Failed(hint)))
            }
            Err(reason) => Err(about(&self.checkpoint, ExecError::Failed(reason.to_string()))),
        }
    }

    fn chosen_reference(&self, options: &LlmOptions, unplanned: Option<LowerError>) -> Result<Chosen, LoadError> {
        let int8 = (self.kv_cache_dtype == KvCacheDtype::Int8).then_some(("--kv-cache-dtype", "int8"));
        if let Some((flag, value)) = self.quantization.map(|q| ("--quantization", q.name())).or(int8) {
            let why = unplanned.map_or("--executor is reference".to_owned(), |reason| reason.to_string());
            return Err(LoadError::Setting(format!(
                "{flag} is {value}, but the reference executor, which computes in float32 and caches nothing, would run \
                 the model ({why}): leave {flag} out"
            )));
        }
        let quantised = QuantSummary::default();
        Ok(Chosen { executor: self.reference(options)?, name: "reference", unplanned, quantised, memory: None })
    }

    /// The executor of a plan, on the device that is chosen.
    fn planned(&self, graph: &Graph, plan: Plan, options: &LlmOptions) -> Result<Chosen, LoadError> {
        let quantised = self.quantised(graph, &plan);
        if let Some(Placed { executor, name, memory }) = place(self, graph, &plan, options)? {
            return Ok(Chosen { executor, name, unplanned: None, quantised, memory });
        }
        let options = CpuOptions {
            threads: options.threads,
            pin_threads: options.pin_threads,
            dtype: self.dtype,
            quantization: self.quantization,
            kv_cache_dtype: self.kv_cache_dtype,
            max_tokens: options.max_num_batched_tokens,
            max_seqs: options.max_num_seqs,
        };
        let executor = CpuExecutor::of_plan(graph, plan, &self.checkpoint.weights, &options)
            .map_err(|e| about(&self.checkpoint, e))?;
        if quantised.matrices > 0 {
            tracing::info!(
                matrices = quantised.matrices,
                bytes = quantised.bytes,
                saved_bytes = quantised.plain_bytes.saturating_sub(quantised.bytes),
                "quantised weights of linear layers"
            );
        }
        Ok(Chosen { executor: Box::new(executor), name: "cpu", unplanned: None, quantised, memory: None })
    }

    fn reference(&self, options: &LlmOptions) -> Result<Box<dyn Executor>, LoadError> {
        let limits = Limits { max_tokens: options.max_num_batched_tokens, max_seqs: options.max_num_seqs };
        let weights = f32_weights(&self.checkpoint.weights);
        let executor = match self.pooler {
            None => ReferenceExecutor::new(&self.model, &weights, limits),
            Some(_) => ReferenceExecutor::of_graph(&self.graph, &weights, limits),
        };
        Ok(Box::new(executor.map_err(|e| about(&self.checkpoint, ExecError::from(e)))?))
    }
}

/// The executor of a model.
pub struct Chosen {
    /// It.
    pub executor: Box<dyn Executor>,
    /// `cpu`, `cuda`, `emulated` or `reference`.
    pub name: &'static str,
    /// Why it is the reference, if nobody asked for that.
    pub unplanned: Option<LowerError>,
    /// What it holds quantised.
    pub quantised: QuantSummary,
    /// Bytes of the device's memory that are free, and all, where it is not the machine's.
    pub memory: Option<(u64, u64)>,
}

impl Llm {
    /// Loads a model and starts its engine.
    pub fn load(options: &LlmOptions) -> Result<Llm, LoadError> {
        let blueprint = Blueprint::draw(options)?;
        let mut phase = Phase::start();
        let Chosen { executor, name: executor_name, unplanned, quantised, memory } = blueprint.executor(options)?;
        if let Some(reason) = unplanned {
            tracing::warn!(
                model = blueprint.checkpoint.name,
                "the model runs on the reference executor, which is right but slow: it computes every sequence from its \
                 first token at every step, in float32 and on one thread, and nothing of it is cached ({reason})"
            );
        }
        phase.done("plan and weights");
        let checkpoint = &blueprint.checkpoint;
        let spec = executor.spec().clone();
        let bytes = cache_memory(options, &blueprint, &quantised, memory);
        let max_num_seqs = fit_states(options, &spec, bytes)?;
        let options = &LlmOptions { max_num_seqs, ..options.clone() };
        let (max_model_len, kv_blocks) = size_cache(options, &spec, &blueprint, bytes)?;
        let info = ModelInfo {
            name: checkpoint.name.clone(),
            served_names: match options.served_names.is_empty() {
                true => vec![checkpoint.name.clone()],
                false => options.served_names.clone(),
            },
            max_model_len,
            vocab_size: blueprint.vocab_size(),
            input_vocab_size: spec.input_vocab_size,
            plugin: blueprint.plugin.description.name.clone(),
            plugin_version: blueprint.plugin.description.version.clone(),
            model_impl: blueprint.plugin.kind().to_owned(),
            transformers: blueprint.sources.transformers_version.clone(),
            architecture: blueprint.model.architecture.clone(),
            // The reference knows no other arithmetic.
            dtype: if executor_name == "reference" { Dtype::Float32 } else { blueprint.dtype }.name().to_owned(),
            executor: executor_name.to_owned(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            max_logprobs: options.max_logprobs,
            kv_cache_dtype: blueprint.kv_cache_dtype.name().to_owned(),
            pooler: blueprint.pooler.clone(),
        };
        check_vocabulary(checkpoint, &spec);
        let config = EngineConfig {
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            max_model_len,
            kv_blocks,
            enable_prefix_caching: options.enable_prefix_caching,
            max_waiting: options.max_waiting,
            max_waiting_tokens: options.max_waiting_tokens,
            seed: options.seed,
            runner: match blueprint.pooler {
                None => Runner::Generate,
                Some(_) => Runner::Pooling,
            },
        };
        let engine = Engine::start(executor, config)?;
        phase.done("engine");
        tracing::info!(
            max_model_len,
            kv_blocks,
            kv_cache_tokens = kv_blocks * BLOCK_SIZE,
            kv_cache_bytes = kv_blocks * spec.kv_bytes_per_block,
            kv_cache_dtype = blueprint.kv_cache_dtype.name(),
            "KV cache"
        );
        if spec.state_bytes_per_seq > 0 {
            tracing::info!(
                bytes_per_sequence = spec.state_bytes_per_seq,
                max_num_seqs,
                bytes = spec.state_bytes_per_seq.saturating_mul(max_num_seqs),
                "recurrent state"
            );
        }
        let tokenizer = checkpoint.tokenizer.clone().map(Arc::new);
        Ok(Llm::from_parts(engine, tokenizer, info, checkpoint.generation_config.clone()))
    }
}

/// The error with the model's name.
pub(super) fn about(checkpoint: &Checkpoint, error: impl Into<LoadError>) -> LoadError {
    LoadError::Model { name: checkpoint.name.clone(), error: Box::new(error.into()) }
}

/// Numbers in a row of a value `[R, n]`.
fn width(graph: &Graph, value: Value) -> Option<usize> {
    graph.ty(value).shape.0.get(1)?.as_const().and_then(|n| usize::try_from(n).ok())
}

/// Every weight that the graph reads is in the checkpoint with its shape; others are mentioned.
fn check_weights(graph: &Graph, weights: &Weights) -> Result<(), LoadError> {
    let expected: Vec<(String, Vec<usize>)> =
        graph.weights().into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    let unexpected = weights.check(&expected)?;
    if !unexpected.is_empty() {
        let some: Vec<&str> = unexpected.iter().take(10).map(String::as_str).collect();
        tracing::warn!(
            count = unexpected.len(),
            "tensors of the checkpoint that the graph does not read: {}",
            some.join(", ")
        );
    }
    Ok(())
}

fn check_vocabulary(checkpoint: &Checkpoint, spec: &ExecSpec) {
    let Some(tokenizer) = &checkpoint.tokenizer else { return };
    if tokenizer.vocab_size() > spec.input_vocab_size {
        tracing::warn!(
            "the tokenizer has {} tokens, the model {}: text that needs the others is refused",
            tokenizer.vocab_size(),
            spec.input_vocab_size
        );
    }
}

/// The share of a device's memory that is used, as in vLLM.
const DEVICE_SHARE: f64 = 0.9;

/// What may be used for the KV cache and recurrent states together.
fn cache_memory(
    options: &LlmOptions,
    blueprint: &Blueprint,
    quantised: &QuantSummary,
    device: Option<(u64, u64)>,
) -> usize {
    let bytes = options.kv_cache_memory.unwrap_or_else(|| {
        if let Some((free, total)) = device {
            // Weights and buffers are there already.
            let share = (total as f64 * options.memory_share.unwrap_or(DEVICE_SHARE)) as u64;
            return share.saturating_sub(total.saturating_sub(free));
        }
        // What is quantised takes its place in memory already; what it was made from need not be there any more.
        let weights = &blueprint.checkpoint.weights;
        let mapped = weights.total_bytes().saturating_sub(weights.released_bytes());
        let half = free_memory().saturating_sub(mapped) / 2;
        let weights = mapped.saturating_add(quantised.bytes);
        let bound = options.memory_share.map(|share| (all_memory() as f64 * share) as u64);
        bound.map_or(half, |bound| half.min(bound.saturating_sub(weights)))
    });
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// How many sequences may run at once: as many as asked for, or fewer if their recurrent states would take more than
/// half of the memory for caches.
fn fit_states(options: &LlmOptions, spec: &ExecSpec, memory: usize) -> Result<usize, LoadError> {
    let (each, wanted) = (spec.state_bytes_per_seq, options.max_num_seqs);
    if each == 0 {
        return Ok(wanted);
    }
    let fits = memory / 2 / each;
    if fits == 0 {
        return Err(LoadError::Setting(format!(
            "the recurrent state of one sequence takes {each} bytes, more than half of the {memory} bytes for caches: give \
             --kv-cache-memory at least {} bytes",
            each.saturating_mul(2)
        )));
    }
    if fits < wanted {
        tracing::warn!(
            "at most {fits} sequences run at once instead of {wanted}: the recurrent state of one takes {each} bytes, and \
             half of {memory} bytes are for these; raise --kv-cache-memory for more"
        );
    }
    Ok(fits.min(wanted))
}

/// The context length, and the number of KV blocks.
fn size_cache(
    options: &LlmOptions,
    spec: &ExecSpec,
    blueprint: &Blueprint,
    memory: usize,
) -> Result<(usize, usize), LoadError> {
    let made_for = usize::try_from(blueprint.model.context_length).unwrap_or(usize::MAX);
    let mut max_model_len = options.max_model_len.unwrap_or(made_for);
    if max_model_len > made_for {
        return Err(LoadError::Setting(format!(
            "--max-model-len is {max_model_len}, but the model was made for {made_for} tokens; give at most {made_for}"
        )));
    }
    let per_block = spec.kv_bytes_per_block.max(1);
    // What every sequence at its longest would take, plus one each for the block that is being filled.
    let useful = options.max_num_seqs.saturating_mul(max_model_len.div_ceil(BLOCK_SIZE) + 1);
    let states = spec.state_bytes_per_seq.saturating_mul(options.max_num_seqs);
    let blocks = memory.saturating_sub(states) / per_block;
    // More are of use for prefixes only; and blocks that take no memory are without number.
    let shared = spec.prefix_cache == PrefixCaching::Shared && spec.kv_bytes_per_block > 1;
    let blocks = if shared && options.kv_cache_memory.is_some() { blocks } else { blocks.min(useful) };
    let blocks = options.kv_blocks.unwrap_or(blocks).min(u32::MAX as usize - 1);
    let holds = match spec.window {
        // Only the window is kept; the engine refuses requests whose window does not fit.
        Some(window) if window < max_model_len => max_model_len,
        _ => blocks.saturating_mul(BLOCK_SIZE),
    };
    if blocks == 0 {
        let has = match options.kv_cache_memory {
            Some(bytes) => format!("--kv-cache-memory is {bytes} bytes"),
            None if options.memory_share.is_some() => {
                "--gpu-memory-utilization leaves too little for the KV cache, after the weights".to_owned()
            }
            None => "half of the free memory is too little for the KV cache".to_owned(),
        };
        return Err(LoadError::Setting(format!(
            "{has}, but one block of {BLOCK_SIZE} tokens takes {per_block} bytes: give --kv-cache-memory at least {} bytes \
             for the whole context of {max_model_len} tokens",
            max_model_len.div_ceil(BLOCK_SIZE).saturating_mul(per_block)
        )));
    }
    if holds < max_model_len {
        if options.max_model_len.is_some() {
            return Err(LoadError::Setting(format!(
                "--max-model-len is {max_model_len}, which takes {} bytes of KV cache, but it has {}: raise \
                 --kv-cache-memory or give at most {holds}",
                max_model_len.div_ceil(BLOCK_SIZE) * per_block,
                blocks * per_block
            )));
        }
        tracing::warn!(
            "the KV cache holds {holds} tokens, less than the {made_for} that the model was made for: the context length \
             is {holds}; raise --kv-cache-memory for more"
        );
        max_model_len = holds;
    }
    Ok((max_model_len, blocks))
}

/// Bytes that this process may still take, as far as the system and its control group tell.
fn free_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(group)
}

/// Bytes that the machine has, or that this process's control group may use.
fn all_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    system.total_memory().min(group)
}

/// Logs how long phases take.
struct Phase(Instant);

impl Phase {
    fn start() -> Phase {
        Phase(Instant::now())
    }

    fn done(&mut self, phase: &'static str) {
        let milliseconds = self.0.elapsed().as_millis() as u64;
        tracing::info!(phase, milliseconds, "loading");
        self.0 = Instant::now();
    }
}
