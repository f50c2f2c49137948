//! The CPU executor: runs a [`Plan`] over the kernels of the `kernels` crate, with a paged KV cache.
//!
//! It decides nothing about requests and knows no architecture. `lower` plans, `memory` shares buffers,
//! `statics` holds weights, `slots` the running states of sequences, this file and `stateful` execute. Called by the engine through [`Executor`], and by `llm`
//! and `host inspect` to plan.
//!
//! Architecture invariant: a sequence's logits do not depend on what else is in the step, on how its
//! tokens are cut into steps, or on which blocks it has, bit for bit. The kernels keep one order of
//! summation per output; nothing here depends on the number of rows.

mod arena;
pub(in crate::exec) mod elementwise;
mod experts;
mod expressions;
mod facts;
mod lower;
mod memory;
mod plan;
pub(in crate::exec) mod precision;
pub(in crate::exec) mod rows;
pub(in crate::exec) mod slots;
mod stateful;
pub(in crate::exec) mod statics;
mod zeroed;

use std::sync::Arc;

use half::bf16;
use kernels::cpu::{
    self, Compute, Cpu, Groups, KernelError, KvCache, KvCacheMut, KvMut, KvRef, KvShape, Scratch, SeqSpan, StateSpan,
    WeightDtype,
};
use plugin_api::{Graph, Value};

use self::arena::{Arena, Data};
use self::precision::Precision;
use self::slots::Slots;
use self::statics::StaticData;
use self::zeroed::Zeroed;
use super::{
    Dtype, ExecError, ExecSpec, Executor, Gives, KvCacheDtype, LogitRows, MAX_PROMPT_ROWS, PrefixCaching, Quantization,
    Step,
};
use crate::hub::Weights;

pub use lower::{LowerError, lower};
pub use plan::*;
pub use precision::QuantSummary;
pub use statics::read_f32;

/// Settings of the executor.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads of the pool; `None`: the cores that this process may use.
    pub threads: Option<usize>,
    /// Bind each worker of the pool to a processor.
    pub pin_threads: bool,
    /// Arithmetic of matrix products.
    pub dtype: Dtype,
    /// Quantise the matrices of linear layers; `None`: those that are stored so only.
    pub quantization: Option<Quantization>,
    /// What the KV cache holds.
    pub kv_cache_dtype: KvCacheDtype,
    /// The most tokens of a step.
    pub max_tokens: usize,
    /// The most sequences of a step.
    pub max_seqs: usize,
}

/// Runs plans on the CPU.
pub struct CpuExecutor {
    plan: Arc<Plan>,
    /// Primitives made ready, by index of the call.
    prepared: Vec<Prepared>,
    statics: Vec<StaticData>,
    cpu: Cpu,
    scratch: Scratch,
    compute: Dtype,
    arena: Arena,
    cache: Vec<LayerCache>,
    slots: Slots,
    groups: Groups,
    kv_cache_dtype: KvCacheDtype,
    spec: ExecSpec,
    /// Rows of the step whose logits are wanted.
    rows: Vec<u32>,
    /// Ids for embedding calls, checked to be non-negative.
    ids: Vec<u32>,
    logits: Vec<f32>,
}

/// Keys and values of one attention state.
struct LayerCache {
    shape: KvShape,
    k: CacheData,
    v: CacheData,
}

enum CacheData {
    F32(Zeroed<f32>),
    Bf16(Zeroed<bf16>),
    Int8 { codes: Zeroed<i8>, scales: Zeroed<f32> },
}

/// The plan of a graph for these weights and this arithmetic, with the graph that its statics refer to.
pub fn plan(
    graph: &Graph,
    weights: &Weights,
    dtype: Dtype,
    quantization: Option<Quantization>,
) -> Result<(Graph, Plan), LowerError> {
    let precision = Precision::new(weights, dtype, quantization);
    lower(graph, &|graph: &Graph, value: Value| precision.matrix(graph, value).dtype())
}

/// What is quantised in a plan that [`plan`] returned.
pub fn quantised(
    graph: &Graph,
    plan: &Plan,
    weights: &Weights,
    dtype: Dtype,
    quantization: Option<Quantization>,
) -> QuantSummary {
    Precision::new(weights, dtype, quantization).summary(graph, plan)
}

impl CpuExecutor {
    /// Plans the (verified, optimised) graph and prepares its weights.
    pub fn new(graph: &Graph, weights: &Weights, options: &CpuOptions) -> Result<CpuExecutor, ExecError> {
        let (graph, plan) =
            plan(graph, weights, options.dtype, options.quantization).map_err(|e| ExecError::Failed(e.to_string()))?;
        CpuExecutor::of_plan(&graph, plan, weights, options)
    }

    /// Prepares the weights of what [`plan`] returned.
    pub fn of_plan(
        graph: &Graph,
        plan: Plan,
        weights: &Weights,
        options: &CpuOptions,
    ) -> Result<CpuExecutor, ExecError> {
        let failed = |e: &dyn std::fmt::Display| ExecError::Failed(e.to_string());
        let by_length = graph.length_dependence();
        // First what is refused if it is too large.
        let (extra_rows, max_rows) = match plan.gives {
            Gives::Logits => (MAX_PROMPT_ROWS, options.max_seqs + MAX_PROMPT_ROWS),
            Gives::HiddenStates => (options.max_tokens, options.max_tokens),
        };
        let arena = Arena::new(&plan.buffers, options.max_tokens, max_rows)?;
        let threads = options.threads.unwrap_or_else(cpu::default_threads);
        let cpu = Cpu::with_options(cpu::CpuOptions { threads, isa: None, pin: options.pin_threads });
        let cpu = cpu.map_err(|e| failed(&e))?;
        let precision = Precision::new(weights, options.dtype, options.quantization);
        let statics = statics::load(graph, &plan.statics, &precision, &cpu)?;
        let copied: usize = statics.iter().map(StaticData::bytes).sum();
        tracing::debug!(calls = plan.calls.len(), buffers = plan.buffers.len(), copied_bytes = copied, "planned");
        let mut maps = elementwise::Maps::default();
        let prepared = plan.calls.iter().map(|c| prepare(c, &statics, &mut maps)).collect::<Result<_, _>>()?;
        let spec = ExecSpec {
            gives: plan.gives,
            row_width: plan.rows.cols,
            input_vocab_size: plan.gives.input_vocab_size(graph, plan.rows.cols),
            extra_rows,
            kv_bytes_per_block: plan
                .states
                .iter()
                .map(|s| block_bytes(s, options.kv_cache_dtype))
                .fold(0, usize::saturating_add),
            window: window_of_all(&plan),
            // What a running state has seen cannot be cut in two.
            prefix_cache: if plan.slots.is_empty() { PrefixCaching::Shared } else { PrefixCaching::Unsupported },
            state_bytes_per_seq: plan.slots.iter().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(4))),
            by_length,
            max_tokens: options.max_tokens,
            max_seqs: options.max_seqs,
        };
        let rows = options.max_tokens.max(max_rows);
        let (scratch, groups) = stateful::room(&plan, rows);
        Ok(CpuExecutor {
            prepared,
            scratch,
            groups,
            slots: Slots::new(options.max_seqs),
            arena,
            compute: options.dtype,
            kv_cache_dtype: options.kv_cache_dtype,
            cache: vec![],
            rows: Vec::with_capacity(max_rows),
            ids: Vec::with_capacity(options.max_tokens),
            logits: vec![],
            plan: Arc::new(plan),
            statics,
            cpu,
            spec,
        })
    }

    /// The plan, for `host inspect`.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes the step's inputs into the arena and collects the rows whose logits are wanted.
    fn begin(&mut self, step: &Step<'_>) -> Result<(), ExecError> {
        self.rows.clear();
        let mut first_row = 0usize;
        for seq in step.seqs {
            let (computed, len) = (seq.computed, seq.tokens.len());
            if computed >= len {
                return Err(ExecError::BadStep(format!("sequence {} has nothing to compute", seq.id)));
            }
            let from = match seq.logits {
                LogitRows::None => len,
                LogitRows::Last => len - 1,
                LogitRows::From(position) => position.max(computed),
            };
            self.rows.extend((from..len).map(|p| (first_row + p - computed) as u32));
            first_row += len - computed;
        }
        self.arena.begin(first_row, self.rows.len())?;
        let inputs = self.plan.inputs;
        let mut fill = |view: Option<View>, value: &dyn Fn(&super::StepSeq<'_>, usize) -> i64| {
            let Some(view) = view else { return Ok(()) };
            let mut slots = self.arena.i64_mut(&view)?.iter_mut();
            for seq in step.seqs {
                (seq.computed..seq.tokens.len()).zip(&mut slots).for_each(|(p, slot)| *slot = value(seq, p));
            }
            Ok::<(), ExecError>(())
        };
        fill(inputs.token_ids, &|seq, p| seq.tokens[p].into())?;
        fill(inputs.positions, &|_, p| p as i64)?;
        fill(inputs.context_length, &|seq, _| seq.context_len as i64)
    }

    fn run(&mut self, call: &Call, index: usize, spans: &Spans<'_>, step: &Step<'_>) -> Result<(), ExecError> {
        let cpu = &self.cpu;
        match call {
            Call::Embed { table, ids, out } => {
                let table = self.statics[*table].matrix()?;
                self.ids.clear();
                for &id in self.arena.i64(ids)? {
                    self.ids
                        .push(u32::try_from(id).map_err(|_| ExecError::Failed(format!("embedding of index {id}")))?);
                }
                let ids = &self.ids;
                self.arena.with_f32(out, |_, out| Ok(cpu::embed(cpu, table, ids, out)?))
            }
            Call::Norm { norm, width, x, out } => {
                let statics = &self.statics;
                self.arena.with_f32(out, |arena, out| run_norm(cpu, norm, arena.f32(x)?, *width, out, statics))
            }
            Call::Softmax { width, x, out } => {
                self.arena.with_f32(out, |arena, out| Ok(cpu::softmax_to(cpu, arena.f32(x)?, *width, out)?))
            }
            Call::Linear { .. } => self.linear(call),
            Call::Rope { x, head_dim, cos, sin, style, out } => self.arena.with_f32(out, |arena, rows| {
                let (cos, sin) = (arena.f32(cos)?, arena.f32(sin)?);
                let rope = cpu::Rope {
                    head_dim: *head_dim,
                    rotary_dims: 2 * cos.cols,
                    style: *style,
                    cos: dense(&cos),
                    sin: dense(&sin),
                };
                if x == out {
                    cpu::rope(cpu, rows, &rope)?
                } else {
                    cpu::rope_to(cpu, arena.f32(x)?, &rope, rows)?
                }
                Ok(())
            }),
            Call::WriteKv { state, k, v } => {
                let layer = &mut self.cache[*state];
                let cache = KvCacheMut { shape: layer.shape, k: layer.k.as_mut(), v: layer.v.as_mut() };
                Ok(cpu::write_kv(cpu, self.arena.f32(k)?, self.arena.f32(v)?, spans.seqs, cache)?)
            }
            Call::Attention { state, q, attention, out } => {
                let layer = &self.cache[*state];
                let cache = KvCache { shape: layer.shape, k: layer.k.as_ref(), v: layer.v.as_ref() };
                let optional = |id: Option<usize>| id.map(|id| self.statics[id].values()).transpose();
                let params = cpu::AttentionParams {
                    heads: attention.heads,
                    scale: attention.scale,
                    window: attention.window,
                    chunk: attention.chunk,
                    softcap: attention.softcap,
                    sinks: optional(attention.sinks)?,
                    alibi_slopes: optional(attention.alibi)?,
                };
                self.arena.with_f32(out, |arena, out| {
                    Ok(cpu::attention(cpu, &params, arena.f32(q)?, cache, spans.seqs, out)?)
                })
            }
            Call::GroupedLinear { .. } => self.grouped_linear(call),
            Call::LinearParts { .. } => self.linear_parts(call),
            Call::CausalConv { .. } | Call::LinearAttention { .. } => self.recurrent(call, spans.states),
            Call::Activate { kind, x, out } => {
                self.arena.with_f32(out, |arena, out| Ok(cpu::activate_to(cpu, *kind, arena.f32(x)?, out)?))
            }
            Call::Gated { kind, gate, up, out } => self
                .arena
                .with_f32(out, |arena, out| Ok(cpu::gated(cpu, *kind, arena.f32(gate)?, arena.f32(up)?, out)?)),
            Call::Add { a, b, out } => {
                self.arena.with_f32(out, |arena, out| Ok(cpu::add(cpu, arena.f32(a)?, arena.f32(b)?, out)?))
            }
            Call::Copy { x, out } => copy(&mut self.arena, x, out),
            Call::SelectRows { x, out } if x.elem != Elem::F32 => select_rows(&mut self.arena, &self.rows, x, out),
            Call::SelectRows { x, out } => {
                let rows = &self.rows;
                self.arena.with_f32(out, |arena, out| Ok(cpu::gather_rows(cpu, arena.f32(x)?, rows, out)?))
            }
            Call::Elementwise { inputs, out, .. } | Call::Rows { inputs, out, .. } => match &self.prepared[index] {
                Prepared::Elementwise(kernel) => kernel.run(cpu, inputs, out, &mut self.arena, &self.statics),
                Prepared::Rows(kernel) => kernel.run(inputs, out, &mut self.arena, &self.statics),
                Prepared::None => Err(ExecError::Failed("a primitive was not prepared".into())),
            },
            Call::Reference { .. } => self.reference(call, step),
        }
    }

    fn linear(&mut self, call: &Call) -> Result<(), ExecError> {
        let Call::Linear { x, segments, epilogue, out } = call else {
            return Err(ExecError::Failed("not a linear".into()));
        };
        let (cpu, statics, scratch, dtype) = (&self.cpu, &self.statics, &mut self.scratch, self.compute);
        let ready = |s: &plan::Segment| -> Result<cpu::Segment<'_>, ExecError> {
            Ok(cpu::Segment {
                weight: statics[s.weight].matrix()?,
                bias: s.bias.map(|b| statics[b].values()).transpose()?,
                n: s.n,
                out_offset: s.column,
                activation: s.activation,
            })
        };
        // At most a handful of weights share an input.
        let segments: Vec<cpu::Segment<'_>> = segments.iter().map(ready).collect::<Result<_, _>>()?;
        self.arena.with_f32(out, |arena, rows| {
            let epilogue = match epilogue {
                Epilogue::None => cpu::Epilogue::None,
                Epilogue::Accumulate => cpu::Epilogue::Accumulate,
                Epilogue::Add(y) => cpu::Epilogue::Add(arena.f32(y)?),
            };
            let compute = products(dtype, segments.first());
            Ok(cpu::linear(cpu, scratch, arena.f32(x)?, &segments, compute, epilogue, rows)?)
        })
    }

    /// A primitive without a kernel: right, and slow.
    fn reference(&mut self, call: &Call, step: &Step<'_>) -> Result<(), ExecError> {
        let Call::Reference { op, inputs, out, dims } = call else {
            return Err(ExecError::Failed("not a reference call".into()));
        };
        let tensors: Vec<_> =
            inputs.iter().map(|o| operand_tensor(o, &self.arena, &self.statics)).collect::<Result<_, _>>()?;
        let tokens: usize = step.seqs.iter().map(|s| s.tokens.len() - s.computed).sum();
        let rows: Vec<usize> = self.rows.iter().map(|&r| r as usize).collect();
        let mut shape = vec![self.arena.rows(out)];
        shape.extend(dims);
        let result = super::reference::apply(op, &tensors.iter().collect::<Vec<_>>(), &shape, tokens, &rows)?;
        self.arena.with_out(out, |_, data| {
            use plugin_api::ConstData;
            match (data, result.data) {
                (Data::F32(to), ConstData::F32(from)) => to[..from.len()].copy_from_slice(&from),
                (Data::I64(to), ConstData::I64(from)) => to[..from.len()].copy_from_slice(&from),
                (Data::Bool(to), ConstData::Bool(from)) => to[..from.len()].copy_from_slice(&from),
                _ => return Err(ExecError::Failed(format!("`{op}` gave another type than planned"))),
            }
            Ok(())
        })
    }
}

impl Executor for CpuExecutor {
    fn threads(&self) -> Option<Arc<cpu::Pool>> {
        Some(Arc::clone(self.cpu.pool()))
    }

    fn spec(&self) -> &ExecSpec {
        &self.spec
    }

    fn allocate_cache(&mut self, blocks: usize) -> Result<(), ExecError> {
        let allocate = |per_block: usize, scales_per_block: usize| -> Result<CacheData, ExecError> {
            let failed = |reason: String| ExecError::Cache {
                blocks,
                bytes: blocks.saturating_mul(self.spec.kv_bytes_per_block),
                reason,
            };
            let of = |per_block| blocks.checked_mul(per_block).ok_or_else(|| failed("the size overflows".into()));
            let n = of(per_block)?;
            Ok(match self.kv_cache_dtype {
                KvCacheDtype::Float32 => CacheData::F32(Zeroed::new(n).map_err(failed)?),
                KvCacheDtype::Bfloat16 => CacheData::Bf16(Zeroed::new(n).map_err(failed)?),
                KvCacheDtype::Int8 => CacheData::Int8 {
                    codes: Zeroed::new(n).map_err(failed)?,
                    scales: Zeroed::new(of(scales_per_block)?).map_err(failed)?,
                },
            })
        };
        let layer = |s: &plugin_api::KvState| -> Result<LayerCache, ExecError> {
            let shape = kv_shape(s);
            let scales = shape.scales_block();
            Ok(LayerCache { shape, k: allocate(shape.k_block(), scales)?, v: allocate(shape.v_block(), scales)? })
        };
        self.cache = self.plan.states.iter().map(layer).collect::<Result<_, _>>()?;
        self.slots.allocate(&self.plan.slots)
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        if self.cache.len() != self.plan.states.len() {
            return Err(ExecError::BadStep("allocate_cache comes before the first step".into()));
        }
        self.begin(step)?;
        let mut first_row = 0;
        let span = |seq: &super::StepSeq<'_>| (seq.tokens.len() - seq.computed, seq.computed);
        let spans: Vec<SeqSpan<'_>> = step
            .seqs
            .iter()
            .map(|seq| {
                let (rows, first_position) = span(seq);
                first_row += rows;
                SeqSpan { first_row: first_row - rows, rows, first_position, blocks: seq.blocks }
            })
            .collect();
        let states = self.slots.begin(step)?;
        let spans = Spans { seqs: &spans, states: &states };
        let plan = Arc::clone(&self.plan);
        for (index, call) in plan.calls.iter().enumerate() {
            self.run(call, index, &spans, step)?;
        }
        let logits = self.arena.f32(&plan.rows)?;
        if plan.rows.is_whole() {
            return Ok(&self.arena.f32(&plan.rows)?.data[..self.rows.len() * plan.rows.cols]);
        }
        self.logits.clear();
        for r in 0..logits.rows {
            self.logits.extend_from_slice(&logits.data[r * logits.stride..][..logits.cols]);
        }
        Ok(&self.logits)
    }

    fn forget(&mut self, id: u64) {
        self.slots.forget(id);
    }
}

/// Where the sequences of a step are: in its rows, in the KV cache, and among the slots of running states.
struct Spans<'a> {
    seqs: &'a [SeqSpan<'a>],
    /// None if the plan has no running state.
    states: &'a [StateSpan],
}

impl CacheData {
    fn as_ref(&self) -> KvRef<'_> {
        match self {
            CacheData::F32(v) => KvRef::F32(v),
            CacheData::Bf16(v) => KvRef::Bf16(v),
            CacheData::Int8 { codes, scales } => KvRef::Int8 { codes, scales },
        }
    }

    fn as_mut(&mut self) -> KvMut<'_> {
        match self {
            CacheData::F32(v) => KvMut::F32(v),
            CacheData::Bf16(v) => KvMut::Bf16(v),
            CacheData::Int8 { codes, scales } => KvMut::Int8 { codes, scales },
        }
    }
}

/// How matrix products are formed. Where the processor's bf16 products are no faster than f32's, these are taken: they
/// are more exact.
fn products(dtype: Dtype, segment: Option<&cpu::Segment<'_>>) -> Compute {
    match dtype {
        _ if segment.is_some_and(|s| s.weight.dtype().is_quantised()) => Compute::Int8,
        Dtype::Bfloat16 => Compute::best_for(WeightDtype::Bf16),
        Dtype::Float32 | Dtype::Float16 => Compute::F32,
    }
}

impl From<KernelError> for ExecError {
    fn from(e: KernelError) -> ExecError {
        ExecError::Failed(e.to_string())
    }
}

pub(in crate::exec) fn kv_shape(s: &plugin_api::KvState) -> KvShape {
    KvShape { kv_heads: s.heads, head_dim: s.key_dim, value_dim: s.value_dim }
}

/// Bytes of a block of one state.
pub(in crate::exec) fn block_bytes(s: &plugin_api::KvState, dtype: KvCacheDtype) -> usize {
    dtype.bytes_per_token(s).saturating_mul(cpu::BLOCK)
}

/// The largest window, if every attention has one.
pub(in crate::exec) fn window_of_all(plan: &Plan) -> Option<usize> {
    let windows: Option<Vec<usize>> = plan.states.iter().map(|s| s.window.map(|w| w as usize)).collect();
    windows?.into_iter().max()
}

/// The elements of an operand that is known to be dense.
fn dense<'a>(rows: &cpu::Rows<'a>) -> &'a [f32] {
    &rows.data[..rows.rows * rows.cols]
}

/// A primitive made ready before the first step.
enum Prepared {
    None,
    Elementwise(elementwise::Kernel),
    Rows(rows::Kernel),
}

fn prepare(call: &Call, statics: &[StaticData], maps: &mut elementwise::Maps) -> Result<Prepared, ExecError> {
    match call {
        Call::Elementwise { op, inputs, out, dims } => {
            elementwise::Kernel::new(op, inputs, out, dims, statics, maps).map(Prepared::Elementwise)
        }
        Call::Rows { op, inputs, dims, .. } => rows::Kernel::new(op, inputs, dims).map(Prepared::Rows),
        _ => Ok(Prepared::None),
    }
}

/// Gathers the rows of a view.
fn copy(arena: &mut Arena, x: &View, out: &View) -> Result<(), ExecError> {
    let rows = arena.rows(x);
    take_rows(arena, 0..rows, x, out)
}

/// Gathers some rows of a view.
fn select_rows(arena: &mut Arena, rows: &[u32], x: &View, out: &View) -> Result<(), ExecError> {
    take_rows(arena, rows.iter().map(|&r| r as usize), x, out)
}

fn take_rows(arena: &mut Arena, rows: impl Iterator<Item = usize>, x: &View, out: &View) -> Result<(), ExecError> {
    fn take<E: Copy>(from: &[E], to: &mut [E], x: &View, rows: impl Iterator<Item = usize>) {
        for (i, r) in rows.enumerate() {
            to[i * x.cols..][..x.cols].copy_from_slice(&from[x.offset + r * x.stride..][..x.cols]);
        }
    }
    arena.with_out(out, |arena, to| {
        match (arena.data(x), to) {
            (Data::F32(from), Data::F32(to)) => take(from, to, x, rows),
            (Data::I64(from), Data::I64(to)) => take(from, to, x, rows),
            (Data::Bool(from), Data::Bool(to)) => take(from, to, x, rows),
            _ => return Err(ExecError::Failed(format!("the plan copies {x} to {out}, which is of another type"))),
        }
        Ok(())
    })
}

fn run_norm(
    cpu: &Cpu,
    norm: &Norm,
    x: cpu::Rows<'_>,
    width: usize,
    out: cpu::RowsMut<'_>,
    statics: &[StaticData],
) -> Result<(), ExecError> {
    let optional = |id: Option<usize>| id.map(|id| statics[id].values()).transpose();
    match *norm {
        Norm::Rms { weight, unit_offset, eps } => {
            let weight_offset = if unit_offset { 1.0 } else { 0.0 };
            let norm = cpu::RmsNorm { weight: optional(weight)?, weight_offset, eps };
            Ok(cpu::rms_norm_parts(cpu, x, width, &norm, out)?)
        }
        Norm::Layer { weight, bias, eps } => {
            let norm = cpu::LayerNorm { weight: optional(weight)?, bias: optional(bias)?, eps };
            Ok(cpu::layer_norm_parts(cpu, x, width, &norm, out)?)
        }
    }
}

/// Copies an operand out of the plan's memory.
fn operand_tensor(o: &Operand, arena: &Arena, statics: &[StaticData]) -> Result<super::reference::Tensor, ExecError> {
    use plugin_api::ConstData;
    fn gather<E: Copy>(data: &[E], v: &View, rows: usize) -> Vec<E> {
        (0..rows).flat_map(|r| data[v.offset + r * v.stride..][..v.cols].iter().copied()).collect()
    }
    let (shape, data) = match o {
        Operand::View(v, dims) => {
            let rows = arena.rows(v);
            let data = match arena.data(v) {
                Data::F32(d) => ConstData::F32(gather(d, v, rows)),
                Data::I64(d) => ConstData::I64(gather(d, v, rows)),
                Data::Bool(d) => ConstData::Bool(gather(d, v, rows)),
            };
            (std::iter::once(rows).chain(dims.iter().copied()).collect(), data)
        }
        Operand::Static(id, dims) => {
            let data = match &statics[*id] {
                StaticData::I64(d) => ConstData::I64(d.clone()),
                StaticData::Bool(d) => ConstData::Bool(d.clone()),
                other => ConstData::F32(other.values()?.to_vec()),
            };
            (dims.clone(), data)
        }
    };
    Ok(super::reference::Tensor { shape, data })
}
