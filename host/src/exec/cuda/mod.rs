//! The CUDA executor: runs the same [`Plan`] as the CPU executor on a device, real or emulated.
//!
//! It decides nothing about requests and knows no architecture; it plans nothing either, the plan is that of `exec::cpu`.
//! `weights` copies what does not depend on the step to the device, `primitives` and `general` make calls without a kernel of their
//! own ready, `calls` launches, this file keeps the rest: buffers, the KV pool, running states, the step. A plan with a call
//! that the device cannot run is refused when it is prepared, with the op's name. Called by the engine through
//! [`Executor`], and by `llm`.
//!
//! Architecture invariant: as for the CPU executor, a sequence's logits depend on nothing but the sequence, bit for bit;
//! the kernels keep one order of summation per output. Nor do its tokens, which are chosen on the device where the engine
//! asks for that: as the engine's sampler would, from the same logits.

mod calls;
mod general;
mod primitives;
mod weights;

use std::ops::Range;

use kernels::cuda::{
    Batch, BatchSeq, Cuda, CudaError, Faults, MAX_VOCAB, Memory, View as DeviceView, query_rows, sample,
};
use plugin_api::Graph;

use self::primitives::Prepared;
use self::weights::DeviceStatic;
use super::cpu::slots::Slots;
use super::cpu::{Buffer, Call, Plan, RowKind, View, block_bytes, kv_shape, window_of_all};
use super::{
    BLOCK_SIZE, Draw, Dtype, ExecError, ExecSpec, Executor, Gives, KvCacheDtype, LogitRows, MAX_PROMPT_ROWS,
    PrefixCaching, Step, StepRows, StepSeq,
};
use crate::hub::Weights;

/// Room for the sums of parts of long contexts, in bytes: 64 queries of 32 heads of 128 over 8192 positions.
const PARTS_BYTES: usize = 64 << 20;

/// Why a cache of int8 is refused.
pub const NO_INT8_CACHE: &str = "the CUDA executor has no kernels for a KV cache of int8";

/// Settings of the executor.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Arithmetic of matrix products.
    pub dtype: Dtype,
    /// What the KV cache holds; `Float32` or `Bfloat16`.
    pub kv_cache_dtype: KvCacheDtype,
    /// The most tokens of a step.
    pub max_tokens: usize,
    /// The most sequences of a step.
    pub max_seqs: usize,
}

/// Runs plans on a CUDA device.
pub struct CudaExecutor {
    plan: Plan,
    cuda: Cuda,
    options: CudaOptions,
    spec: ExecSpec,
    statics: Vec<DeviceStatic>,
    /// By index of the call.
    prepared: Vec<Prepared>,
    buffers: Vec<Memory>,
    /// By state of the plan: keys and values.
    cache: Vec<(Memory, Memory)>,
    /// By running state of the plan.
    states: Vec<Memory>,
    slots: Slots,
    batch: Batch,
    faults: Faults,
    parts: Memory,
    /// Tokens of the step, and rows whose logits are wanted.
    rows: [usize; 2],
    logits: Vec<f32>,
}

impl From<CudaError> for ExecError {
    fn from(e: CudaError) -> ExecError {
        ExecError::Failed(e.to_string())
    }
}

/// Why the device cannot run this plan: the first call that it cannot compute.
pub fn unsupported(plan: &Plan) -> Option<String> {
    plan.calls.iter().find_map(|call| match call {
        Call::Reference { op, inputs, .. } => general::unsupported(op, inputs),
        Call::Attention { state, .. } if plan.states[*state].value_dim > 512 => {
            let wide = plan.states[*state].value_dim;
            Some(format!("the CUDA executor's attention takes values of at most 512 elements, not {wide}"))
        }
        _ => None,
    })
}

impl CudaExecutor {
    /// Prepares what `exec::cpu::plan` returned.
    pub fn new(
        cuda: &Cuda,
        graph: &Graph,
        plan: Plan,
        weights: &Weights,
        options: &CudaOptions,
    ) -> Result<CudaExecutor, ExecError> {
        if let Some(why) = unsupported(&plan) {
            return Err(ExecError::Failed(why));
        }
        if options.kv_cache_dtype == KvCacheDtype::Int8 {
            return Err(ExecError::Failed(NO_INT8_CACHE.into()));
        }
        let [_, max_rows] = row_limits(&plan, options);
        let buffers = buffers(cuda, &plan.buffers, options.max_tokens, max_rows)?;
        let statics = weights::load(cuda, graph, &plan.statics, weights, options.dtype)?;
        let prepared = primitives::prepare_all(cuda, &plan, &statics)?;
        let tile_rows: Vec<usize> = plan.calls.iter().filter_map(|call| tile_rows(&plan, call)).collect();
        let spec = spec(graph, &plan, options);
        Ok(CudaExecutor {
            batch: Batch::new(cuda, &tile_rows)?,
            faults: Faults::new(cuda)?,
            parts: cuda.allocate(if tile_rows.is_empty() { 0 } else { PARTS_BYTES })?,
            cuda: cuda.clone(),
            options: options.clone(),
            slots: Slots::new(options.max_seqs),
            spec,
            statics,
            prepared,
            buffers,
            cache: vec![],
            states: vec![],
            rows: [0, 0],
            logits: vec![],
            plan,
        })
    }

    /// Rows that a view has in this step.
    fn rows_of(&self, view: &View) -> usize {
        self.rows[usize::from(view.rows == RowKind::Selected)]
    }

    /// A view of the plan in the device's memory. `E` is the type of its elements.
    fn view<E: kernels::cuda::Element>(&self, view: &View) -> DeviceView<'_, E> {
        DeviceView::strided(&self.buffers[view.buffer], view.offset, self.rows_of(view), view.cols, view.stride)
    }

    /// Copies the step's inputs to the device.
    fn begin(&mut self, step: &Step<'_>) -> Result<(), ExecError> {
        let (mut selected, mut first_row) = (vec![], 0usize);
        for seq in step.seqs {
            let (computed, len) = (seq.computed, seq.tokens.len());
            if computed >= len {
                return Err(ExecError::BadStep(format!("sequence {} has nothing to compute", seq.id)));
            }
            selected.extend((len - logit_rows(seq)..len).map(|p| (first_row + p - computed) as u32));
            first_row += len - computed;
        }
        let limits = [self.options.max_tokens, row_limits(&self.plan, &self.options)[1]];
        self.rows = [first_row, selected.len()];
        if first_row > limits[0] || selected.len() > limits[1] {
            return Err(ExecError::BadStep(format!(
                "{first_row} tokens and {} rows of logits; the limits are {} and {}",
                selected.len(),
                limits[0],
                limits[1]
            )));
        }
        let inputs = self.plan.inputs;
        let fill = |view: Option<View>, value: &dyn Fn(&StepSeq<'_>, usize) -> i64| {
            let Some(view) = view else { return Ok(()) };
            let of_seq = |seq: &StepSeq<'_>| -> Vec<[u8; 8]> {
                (seq.computed..seq.tokens.len()).map(|p| value(seq, p).to_ne_bytes()).collect()
            };
            let bytes: Vec<[u8; 8]> = step.seqs.iter().flat_map(of_seq).collect();
            self.buffers[view.buffer].write(view.offset * 8, bytes.as_flattened())
        };
        fill(inputs.token_ids, &|seq, p| seq.tokens[p].into())?;
        fill(inputs.positions, &|_, p| p as i64)?;
        fill(inputs.context_length, &|seq, _| seq.context_len as i64)?;
        let states = self.slots.begin(step)?;
        let seqs: Vec<BatchSeq<'_>> = step
            .seqs
            .iter()
            .map(|s| BatchSeq { rows: s.tokens.len() - s.computed, first_position: s.computed, blocks: s.blocks })
            .collect();
        // Plans without attention know no blocks.
        let blocks: Vec<Vec<u32>> = match self.plan.states.is_empty() {
            true => step.seqs.iter().map(|s| vec![0; s.tokens.len().div_ceil(BLOCK_SIZE)]).collect(),
            false => vec![],
        };
        let without: Vec<BatchSeq<'_>> =
            seqs.iter().zip(&blocks).map(|(s, blocks)| BatchSeq { blocks, ..*s }).collect();
        let seqs = if blocks.is_empty() { &seqs } else { &without };
        Ok(self.batch.fill(seqs, &selected, &states)?)
    }

    /// Runs a step up to its rows, which stay on the device.
    fn compute(&mut self, step: &Step<'_>) -> Result<(), ExecError> {
        if self.cache.len() != self.plan.states.len() || self.states.len() != self.plan.slots.len() {
            return Err(ExecError::BadStep("allocate_cache comes before the first step".into()));
        }
        self.begin(step)?;
        for index in 0..self.plan.calls.len() {
            self.call(index)?;
        }
        self.logits.clear();
        Ok(())
    }

    /// Waits for the device, and copies these rows behind those that were copied before.
    fn fetch(&mut self, rows: Range<usize>) -> Result<(), ExecError> {
        let view = self.plan.rows;
        if rows.is_empty() {
            return Ok(());
        }
        let mut bytes = vec![0u8; ((rows.len() - 1) * view.stride + view.cols) * 4];
        self.buffers[view.buffer].read((view.offset + rows.start * view.stride) * 4, &mut bytes)?;
        for row in 0..rows.len() {
            let from = &bytes[row * view.stride * 4..][..view.cols * 4];
            self.logits.extend(from.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)));
        }
        Ok(())
    }
}

/// Rows with their draws, in order; and the rows that are to come back.
type Places<'a> = (Vec<(usize, &'a Draw)>, Vec<Range<usize>>);

/// Where the rows of each sequence of a step are, and what becomes of them.
fn places<'a>(step: &Step<'_>, draws: &'a [Option<Draw>]) -> Result<Places<'a>, ExecError> {
    if draws.len() != step.seqs.len() {
        return Err(ExecError::BadStep(format!("{} draws for {} sequences", draws.len(), step.seqs.len())));
    }
    let (mut here, mut rest, mut row) = (vec![], Vec::<Range<usize>>::new(), 0);
    for (seq, draw) in step.seqs.iter().zip(draws) {
        let rows = row..row + logit_rows(seq);
        row = rows.end;
        match draw {
            Some(draw) if seq.logits == LogitRows::Last => here.push((rows.start, draw)),
            Some(_) => return Err(ExecError::BadStep(format!("a draw for sequence {} without a last row", seq.id))),
            None => match rest.last_mut() {
                Some(before) if before.end == rows.start => before.end = rows.end,
                _ => rest.push(rows),
            },
        }
    }
    Ok((here, rest))
}

/// Rows that a sequence wants.
fn logit_rows(seq: &StepSeq<'_>) -> usize {
    let len = seq.tokens.len();
    match seq.logits {
        LogitRows::None => 0,
        LogitRows::Last => 1,
        LogitRows::From(position) => len.saturating_sub(position.max(seq.computed)),
    }
}

/// The most rows of a step in excess of one a sequence, and the most of all.
fn row_limits(plan: &Plan, options: &CudaOptions) -> [usize; 2] {
    match plan.gives {
        Gives::Logits => [MAX_PROMPT_ROWS, options.max_seqs + MAX_PROMPT_ROWS],
        Gives::HiddenStates => [options.max_tokens, options.max_tokens],
    }
}

/// The rows that attention takes together for this call.
fn tile_rows(plan: &Plan, call: &Call) -> Option<usize> {
    match call {
        Call::Attention { state, attention, .. } => Some(query_rows(attention.heads, plan.states[*state].heads)),
        _ => None,
    }
}

fn spec(graph: &Graph, plan: &Plan, options: &CudaOptions) -> ExecSpec {
    let block = |s| block_bytes(s, options.kv_cache_dtype);
    ExecSpec {
        gives: plan.gives,
        row_width: plan.rows.cols,
        input_vocab_size: plan.gives.input_vocab_size(graph, plan.rows.cols),
        extra_rows: row_limits(plan, options)[0],
        kv_bytes_per_block: plan.states.iter().map(block).fold(0, usize::saturating_add),
        window: window_of_all(plan),
        prefix_cache: if plan.slots.is_empty() { PrefixCaching::Shared } else { PrefixCaching::Unsupported },
        state_bytes_per_seq: plan.slots.iter().fold(0usize, |sum, n| sum.saturating_add(n.saturating_mul(4))),
        by_length: graph.length_dependence(),
        max_tokens: options.max_tokens,
        max_seqs: options.max_seqs,
    }
}

/// The plan's buffers, for the largest step.
fn buffers(cuda: &Cuda, wanted: &[Buffer], tokens: usize, selected: usize) -> Result<Vec<Memory>, ExecError> {
    let bytes = |b: &Buffer| {
        let elements = b.per_token.saturating_mul(tokens).max(b.per_selected.saturating_mul(selected));
        elements.saturating_mul(b.elem.size())
    };
    let all = wanted.iter().map(bytes).fold(0, usize::saturating_add);
    let allocate = |b| cuda.allocate(bytes(b));
    wanted.iter().map(allocate).collect::<Result<_, _>>().map_err(|e| {
        ExecError::Failed(format!(
            "the values of a step of {tokens} tokens take {all} bytes: {e}; lower --max-num-batched-tokens"
        ))
    })
}

impl Executor for CudaExecutor {
    fn spec(&self) -> &ExecSpec {
        &self.spec
    }

    fn allocate_cache(&mut self, blocks: usize) -> Result<(), ExecError> {
        let cache = |s: &plugin_api::KvState| -> Result<(Memory, Memory), CudaError> {
            let bytes = |elements: usize| blocks.saturating_mul(self.options.kv_cache_dtype.bytes(elements));
            let shape = kv_shape(s);
            Ok((self.cuda.allocate(bytes(shape.k_block()))?, self.cuda.allocate(bytes(shape.v_block()))?))
        };
        self.cache = self.plan.states.iter().map(cache).collect::<Result<_, _>>().map_err(|e| ExecError::Cache {
            blocks,
            bytes: blocks.saturating_mul(self.spec.kv_bytes_per_block),
            reason: e.to_string(),
        })?;
        let state = |&n: &usize| self.cuda.allocate(n.saturating_mul(4).saturating_mul(self.options.max_seqs));
        self.states = self.plan.slots.iter().map(state).collect::<Result<_, _>>().map_err(|e| {
            ExecError::Failed(format!(
                "cannot allocate {} bytes of recurrent state for each of {} sequences: {e}; lower --max-num-seqs",
                self.spec.state_bytes_per_seq, self.options.max_seqs
            ))
        })?;
        // Which sequence has which slot is kept there, the states are here.
        self.slots.allocate(&vec![0; self.plan.slots.len()])
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        self.compute(step)?;
        self.faults.take()?;
        self.fetch(0..self.rows[1])?;
        Ok(&self.logits)
    }

    fn draws(&self) -> bool {
        self.plan.gives == Gives::Logits && self.plan.rows.cols <= MAX_VOCAB
    }

    fn execute_and_draw(&mut self, step: &Step<'_>, draws: &[Option<Draw>]) -> Result<StepRows<'_>, ExecError> {
        let (here, rest) = places(step, draws)?;
        self.compute(step)?;
        let drawn = sample(&self.cuda, self.view(&self.plan.rows), &here)?;
        // What comes of a faulty step is thrown away.
        self.faults.take()?;
        rest.into_iter().try_for_each(|rows| self.fetch(rows))?;
        Ok(StepRows { rows: &self.logits, drawn })
    }

    fn forget(&mut self, id: u64) {
        self.slots.forget(id);
    }
}
