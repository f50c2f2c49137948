//! From an optimised graph to a [`Plan`]: chooses kernels, fuses what a kernel can do in one pass, and
//! says where every value lives.
//!
//! Fusions: projections that read the same input become one call (merged QKV, gate and up); a linear
//! whose only reader is an activation or a residual add takes it as epilogue; rotary embeddings are
//! applied in place; reshapes, slices of columns and casts between floats cost nothing.
//!
//! Architecture invariant: every value of the step has the tokens (or selected rows) as its first and
//! only symbolic dimension, and every call computes rows from the same rows of its inputs, attention
//! aside. That is what makes batching sequences end to end right. A graph that breaks it is refused.

use std::collections::HashMap;

use kernels::cpu::{
    Activation as KernelActivation, CausalConv, LinearAttention, MAX_CONV_WIDTH, RopeStyle, WeightDtype,
};
use plugin_api::{Activation, DType, Dim, Graph, InputKind, Node, Op, SpecError, Type, Value, define};

use super::expressions::expressions;
use super::facts::{Facts, constant, is_view, row_dims, static_nodes};
use super::memory::{self, buffer_for};
use super::plan::*;
use crate::exec::Gives;

/// Most weights in one linear call. The kernel compares every pair of them.
const MAX_SEGMENTS: usize = 16;

/// Why a graph has no plan.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LowerError {
    /// A value whose rows are not tokens.
    #[error(
        "node %{node} ({name}) = {op}: the CPU executor batches sequences and cannot, since this value ({ty}) mixes tokens"
    )]
    NotBatchable {
        /// Index of the node.
        node: usize,
        /// Its name.
        name: String,
        /// Its op.
        op: String,
        /// Its type.
        ty: String,
    },
    /// The rewritten graph broke a rule: a defect of a pass.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The graph has no output that the engine could use.
    #[error("the graph has no output `logits` or `hidden` that depends on the step")]
    NoOutput,
}

/// Makes the plan. `dtype_of` gives the type in which the executor will hold a matrix, by its node.
/// Returns the graph that the plan's statics refer to (composites without a kernel are expanded in it).
pub fn lower(graph: &Graph, dtype_of: &dyn Fn(&Graph, Value) -> WeightDtype) -> Result<(Graph, Plan), LowerError> {
    let graph = expand_unsupported(graph)?;
    let facts = Facts::of(&graph);
    facts.check_rows(&graph)?;
    let mut lowering = Lowering {
        graph: &graph,
        expressions: expressions(&graph, &facts.is_static),
        facts,
        dtype_of,
        places: vec![None; graph.nodes.len()],
        values: vec![],
        copies: HashMap::new(),
        statics: vec![],
        static_ids: HashMap::new(),
        calls: vec![],
        states: vec![],
        shared: HashMap::new(),
        slots: vec![],
        inputs: Inputs::default(),
    };
    for i in 0..graph.nodes.len() {
        if !lowering.facts.is_static[i] {
            lowering.node(i);
        }
    }
    let (gives, rows) = Gives::of(&graph).ok_or(LowerError::NoOutput)?;
    let rows = lowering.places[rows.index()].ok_or(LowerError::NoOutput)?;
    let plan = lowering.finish(gives, rows);
    Ok((graph, plan))
}

/// Replaces composites that have no kernel for their operands by their definitions.
fn expand_unsupported(graph: &Graph) -> Result<Graph, SpecError> {
    let is_static = static_nodes(graph);
    let mut b = plugin_api::Builder::new();
    let mut map: Vec<Value> = Vec::with_capacity(graph.nodes.len());
    for (i, node) in graph.nodes.iter().enumerate() {
        define::check_size(&b)?;
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let keep = !node.op.is_composite() || (!is_static[i] && has_kernel(graph, node, &is_static));
        let value = b.scope(node.name.clone(), |b| {
            let defined = if keep { None } else { define::define(b, &node.op, &inputs) };
            defined.unwrap_or_else(|| b.op(node.op.clone(), &inputs))
        });
        map.push(value);
    }
    graph.outputs.iter().for_each(|(name, v)| b.output(name, map[v.index()]));
    b.finish()
}

fn has_kernel(graph: &Graph, node: &Node, is_static: &[bool]) -> bool {
    let fixed = |k: usize| node.inputs.get(k).is_none_or(|v| is_static[v.index()]);
    let filled = |ty: &Type| ty.shape.0.iter().all(|d| d.as_const() != Some(0));
    let rank = |k: usize| graph.ty(node.inputs[k]).shape.rank();
    match &node.op {
        Op::Linear => {
            let filled = rank(0) == 2 || (filled(&node.ty) && filled(graph.ty(node.inputs[0])));
            !fixed(0) && rank(0) >= 2 && filled && fixed(1) && fixed(2)
        }
        Op::Embedding => !fixed(0) && rank(0) == 1 && fixed(1) && filled(&node.ty),
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            !fixed(0) && rank(0) >= 2 && filled(&node.ty) && fixed(1) && fixed(2)
        }
        Op::Softmax => !fixed(0) && rank(0) >= 2 && filled(&node.ty),
        Op::Rope { .. } => node.inputs.iter().all(|v| !is_static[v.index()]),
        Op::GroupedLinear => !fixed(0) && !fixed(1) && fixed(2) && fixed(3) && filled(graph.ty(node.inputs[2])),
        Op::CausalConv1d { .. } => {
            let width = graph.ty(node.inputs[1]).shape.0[1].as_const();
            !fixed(0) && fixed(1) && fixed(2) && width.is_some_and(|w| w <= MAX_CONV_WIDTH as i64)
        }
        Op::LinearAttention { .. } => (0..node.inputs.len()).all(|k| !fixed(k)),
        Op::Attention { masked: false, .. } => (0..3).all(|k| !fixed(k)) && fixed(3) && fixed(4),
        Op::Activation { .. } => true,
        Op::Gated { .. } => !fixed(0) && !fixed(1),
        _ => false,
    }
}

pub(super) struct Lowering<'a> {
    pub(super) graph: &'a Graph,
    facts: Facts,
    /// By node, for statics.
    expressions: Vec<String>,
    pub(super) dtype_of: &'a dyn Fn(&Graph, Value) -> WeightDtype,
    /// Where values are, once computed. Buffers are numbered one a value until `finish`.
    places: Vec<Option<View>>,
    values: Vec<Buffer>,
    /// Dense copies of values that are views; see `dense`.
    copies: HashMap<Value, View>,
    statics: Vec<Static>,
    static_ids: HashMap<(String, StaticForm), StaticId>,
    calls: Vec<Call>,
    states: Vec<plugin_api::KvState>,
    /// States by the keys and values that are written to them.
    shared: HashMap<(Value, Value), usize>,
    slots: Vec<usize>,
    inputs: Inputs,
}

impl Lowering<'_> {
    fn node(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        if self.facts.fused_into[i].is_some() {
            return; // computed by its reader's call
        }
        let place = match &node.op {
            Op::Input { .. } | Op::ContextLength { .. } => self.input(i),
            _ if is_view(self.graph, node) => self.view(node),
            Op::Embedding => {
                let quantised = (self.dtype_of)(self.graph, node.inputs[1]).is_quantised();
                let form = if quantised { StaticForm::Table } else { StaticForm::Matrix };
                let (ids, table) = (self.dense(node.inputs[0]), self.statics(node.inputs[1], form));
                self.call(i, |out| Call::Embed { table, ids, out })
            }
            Op::Linear if node.ty.shape.rank() == 2 => return self.linear_group(node.inputs[0]),
            Op::Linear => self.linear_parts(i),
            Op::Activation { kind } if self.fused_conv(node).is_some() => {
                let conv = self.fused_conv(node).expect("just seen");
                self.conv(conv.index(), i, Some(*kind))
            }
            Op::Add | Op::Activation { .. } if self.fused_linear(node).is_some() => self.linear_with_epilogue(i),
            Op::Add if self.same_views(node) => {
                let (a, b) = (self.at(node.inputs[0]), self.at(node.inputs[1]));
                self.call(i, |out| Call::Add { a, b, out })
            }
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => self.norm(i),
            Op::Rope { interleaved } => self.rope(i, *interleaved),
            Op::Attention { .. } => self.attention(i),
            Op::GroupedLinear => self.grouped_linear(i),
            Op::CausalConv1d { .. } => self.conv(i, i, None),
            Op::LinearAttention { .. } => self.linear_attention(i),
            Op::Activation { kind } => {
                let (x, kind) = (self.at(node.inputs[0]), kernel_activation(*kind));
                self.call(i, |out| Call::Activate { kind, x, out })
            }
            Op::Gated { kind } => {
                let (gate, up) = (self.at(node.inputs[0]), self.at(node.inputs[1]));
                let kind = kernel_activation(*kind);
                self.call(i, |out| Call::Gated { kind, gate, up, out })
            }
            Op::Exp | Op::Sigmoid | Op::Tanh => {
                let kind = match node.op {
                    Op::Exp => KernelActivation::Exp,
                    Op::Sigmoid => KernelActivation::Sigmoid,
                    _ => KernelActivation::Tanh,
                };
                let x = self.at(node.inputs[0]);
                self.call(i, |out| Call::Activate { kind, x, out })
            }
            Op::Softmax => {
                let (x, width) = (self.at(node.inputs[0]), *row_dims(&node.ty).last().unwrap_or(&1));
                self.call(i, |out| Call::Softmax { width, x, out })
            }
            Op::SelectOutputs => {
                let x = self.at(node.inputs[0]);
                self.call(i, |out| Call::SelectRows { x, out })
            }
            _ => self.primitive(i),
        };
        self.places[i] = Some(place);
    }

    /// Where a value of the step is; its node came before.
    fn at(&self, v: Value) -> View {
        self.places[v.index()].expect("inputs are lowered before their readers")
    }

    /// Where a value is, its rows one after the other: kernels that take no stride get a copy of a view.
    pub(super) fn dense(&mut self, v: Value) -> View {
        let x = self.at(v);
        if x.is_whole() {
            return x;
        }
        if let Some(&copy) = self.copies.get(&v) {
            return copy;
        }
        let out = self.new_view(x.elem, x.rows, x.cols);
        self.calls.push(Call::Copy { x, out });
        self.copies.insert(v, out);
        out
    }

    /// A new value of this node's type, and the call that writes it.
    pub(super) fn call(&mut self, i: usize, make: impl FnOnce(View) -> Call) -> View {
        let out = self.new_value(&self.graph.nodes[i].ty);
        self.calls.push(make(out));
        out
    }

    fn new_value(&mut self, ty: &Type) -> View {
        let rows = if ty.shape.0.first() == Some(&Dim::R()) { RowKind::Selected } else { RowKind::Tokens };
        self.new_view(elem(ty.dtype), rows, row_dims(ty).iter().product())
    }

    fn new_view(&mut self, elem: Elem, rows: RowKind, cols: usize) -> View {
        self.values.push(buffer_for(elem, rows, cols));
        View { buffer: self.values.len() - 1, elem, rows, cols, offset: 0, stride: cols }
    }

    pub(super) fn statics(&mut self, value: Value, form: StaticForm) -> StaticId {
        let text = self.expressions[value.index()].clone();
        *self.static_ids.entry((text.clone(), form)).or_insert_with(|| {
            self.statics.push(Static { value, form, text });
            self.statics.len() - 1
        })
    }

    fn input(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let view = self.new_value(&node.ty);
        let place = match &node.op {
            Op::Input { kind: InputKind::TokenIds } => &mut self.inputs.token_ids,
            Op::Input { kind: InputKind::Positions } => &mut self.inputs.positions,
            _ => &mut self.inputs.context_length,
        };
        // Equal inputs that a pass did not join are one.
        *place.get_or_insert(view)
    }

    fn view(&self, node: &Node) -> View {
        let x = self.at(node.inputs[0]);
        match &node.op {
            Op::Slice { axis, start, .. } => {
                let inner: usize = row_dims(&node.ty)[*axis..].iter().product();
                x.columns(constant(start) * inner, row_dims(&node.ty).iter().product())
            }
            _ => x,
        }
    }

    /// The linear that is computed in the call of this add or activation.
    fn fused_linear(&self, node: &Node) -> Option<Value> {
        let here =
            |v: &&Value| self.facts.fused_into[v.index()].is_some_and(|i| std::ptr::eq(&self.graph.nodes[i], node));
        node.inputs.iter().find(here).copied()
    }

    /// The convolution that is computed in the call of this activation.
    fn fused_conv(&self, node: &Node) -> Option<Value> {
        let conv = |v: &Value| matches!(self.graph.node(*v).op, Op::CausalConv1d { .. });
        self.fused_linear(node).filter(conv)
    }

    /// The convolution of node `conv`, activated by node `out` if that is another.
    fn conv(&mut self, conv: usize, out: usize, activation: Option<Activation>) -> View {
        let node = &self.graph.nodes[conv];
        let (x, sizes) = (self.at(node.inputs[0]), self.graph.ty(node.inputs[1]).shape.as_consts().unwrap_or_default());
        let conv = Conv {
            weight: self.statics(node.inputs[1], StaticForm::Values),
            bias: node.inputs.get(2).map(|&b| self.statics(b, StaticForm::Values)),
            width: sizes[1],
            activation: activation.map(kernel_activation),
        };
        self.slots.push(CausalConv::state_elements(conv.width, x.cols));
        let state = self.slots.len() - 1;
        self.call(out, |out| Call::CausalConv { state, x, conv, out })
    }

    fn linear_attention(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let at = |k: usize| node.inputs.get(k).map(|&v| self.at(v));
        let views = [0, 1, 2, 3].map(|k| at(k).expect("there are four inputs"));
        let ([q, k, v, decay], beta) = (views, at(4));
        let dims = |k: usize| row_dims(self.graph.ty(node.inputs[k]));
        let (key, value) = (dims(0), dims(2));
        let shape = LinearAttention {
            key_heads: key[0],
            heads: value[0],
            key_dim: key[1],
            value_dim: value[1],
            per_channel: dims(3).len() == 2,
        };
        self.slots.push(shape.state_elements());
        let state = self.slots.len() - 1;
        self.call(i, |out| Call::LinearAttention { state, q, k, v, decay, beta, shape, out })
    }

    fn segment(&mut self, linear: &Node, column: usize, activation: Option<Activation>) -> Segment {
        Segment {
            weight: self.statics(linear.inputs[1], StaticForm::Matrix),
            bias: linear.inputs.get(2).map(|&b| self.statics(b, StaticForm::Values)),
            n: row_dims(&linear.ty)[0],
            column,
            activation: activation.map(kernel_activation),
        }
    }

    /// One call for all linears of this input, except for those whose weights are held in another type.
    fn linear_group(&mut self, input: Value) {
        let Some(mut members) = self.facts.groups.remove(&input) else { return };
        while let Some(&first) = members.first() {
            let dtype = |i: usize| (self.dtype_of)(self.graph, self.graph.nodes[i].inputs[1]);
            let want = dtype(first);
            let (mut now, mut later): (Vec<usize>, Vec<usize>) = members.iter().partition(|&&i| dtype(i) == want);
            if now.len() > MAX_SEGMENTS {
                later.splice(0..0, now.split_off(MAX_SEGMENTS));
            }
            let x = self.at(input);
            let width = |i: &usize| row_dims(&self.graph.nodes[*i].ty)[0];
            let out = self.new_view(Elem::F32, x.rows, now.iter().map(width).sum());
            let (mut segments, mut column) = (vec![], 0);
            for &i in &now {
                let segment = self.segment(&self.graph.nodes[i], column, None);
                self.places[i] = Some(out.columns(column, segment.n));
                column += segment.n;
                segments.push(segment);
            }
            self.calls.push(Call::Linear { x, segments, epilogue: Epilogue::None, out });
            members = later;
        }
    }

    /// The linear of a value with dimensions between the rows and the last.
    fn linear_parts(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let x = self.dense(node.inputs[0]);
        let (dims, weight) = (row_dims(&node.ty), self.statics(node.inputs[1], StaticForm::Matrix));
        let (n, parts) = (dims[dims.len() - 1], dims[..dims.len() - 1].iter().product());
        let bias = node.inputs.get(2).map(|&b| self.statics(b, StaticForm::Values));
        let segment = Segment { weight, bias, n, column: 0, activation: None };
        self.call(i, |out| Call::LinearParts { x, parts, segment, out })
    }

    /// activation(linear(x)), or y + linear(x).
    fn linear_with_epilogue(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let linear = self.fused_linear(node).expect("checked by the caller");
        let x = self.at(self.graph.node(linear).inputs[0]);
        if let Op::Activation { kind } = node.op {
            let segments = vec![self.segment(self.graph.node(linear), 0, Some(kind))];
            return self.call(i, |out| Call::Linear { x, segments, epilogue: Epilogue::None, out });
        }
        let segments = vec![self.segment(self.graph.node(linear), 0, None)];
        let other = if node.inputs[0] == linear { node.inputs[1] } else { node.inputs[0] };
        let y = self.at(other);
        if self.dies_at(other, i) && y.is_whole() && y.buffer != x.buffer {
            self.calls.push(Call::Linear { x, segments, epilogue: Epilogue::Accumulate, out: y });
            return y;
        }
        self.call(i, |out| Call::Linear { x, segments, epilogue: Epilogue::Add(y), out })
    }

    /// Whether nothing reads the memory of `v` after node i.
    fn dies_at(&self, v: Value, i: usize) -> bool {
        let class = self.facts.class[v.index()];
        self.facts.last_use[class] == i
            && !matches!(self.graph.nodes[class].op, Op::Input { .. } | Op::ContextLength { .. })
    }

    fn same_views(&self, node: &Node) -> bool {
        let is_dynamic = |v: &Value| !self.facts.is_static[v.index()];
        node.inputs.iter().all(|v| is_dynamic(v) && *self.graph.ty(*v) == node.ty) && node.ty.dtype.is_float()
    }

    fn norm(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let mut fixed = |k: usize| node.inputs.get(k).map(|&v| self.statics(v, StaticForm::Values));
        let norm = match node.op {
            Op::RmsNorm { eps, unit_offset } => Norm::Rms { weight: fixed(1), unit_offset, eps },
            Op::LayerNorm { eps } => Norm::Layer { weight: fixed(1), bias: fixed(2), eps },
            _ => unreachable!("called for norms"),
        };
        let (x, width) = (self.at(node.inputs[0]), *row_dims(&node.ty).last().unwrap_or(&1));
        self.call(i, |out| Call::Norm { norm, width, x, out })
    }

    fn rope(&mut self, i: usize, interleaved: bool) -> View {
        let node = &self.graph.nodes[i];
        let (x, cos, sin) = (self.at(node.inputs[0]), self.dense(node.inputs[1]), self.dense(node.inputs[2]));
        let head_dim = row_dims(&node.ty)[1];
        let style = if interleaved { RopeStyle::Interleaved } else { RopeStyle::Half };
        if self.dies_at(node.inputs[0], i) && ![cos.buffer, sin.buffer].contains(&x.buffer) {
            self.calls.push(Call::Rope { x, head_dim, cos, sin, style, out: x });
            return x;
        }
        self.call(i, |out| Call::Rope { x, head_dim, cos, sin, style, out })
    }

    fn attention(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let Op::Attention { state: state_id, scale, window, chunk, softcap, sinks, alibi, .. } = node.op else {
            unreachable!("called for attention")
        };
        let (q, k, v) = (self.at(node.inputs[0]), self.at(node.inputs[1]), self.at(node.inputs[2]));
        let (key, value) = (row_dims(self.graph.ty(node.inputs[1])), row_dims(self.graph.ty(node.inputs[2])));
        // Layers that read the keys and values of another layer share its cache.
        let written = self.shared.get(&(node.inputs[1], node.inputs[2])).copied();
        let state = written.unwrap_or(self.states.len());
        match written {
            Some(state) => {
                let kept = &mut self.states[state].window;
                *kept = kept.zip(window).map(|(a, b)| a.max(b));
            }
            None => {
                let (heads, key_dim, value_dim) = (key[0], key[1], value[1]);
                self.states.push(plugin_api::KvState { id: state_id, heads, key_dim, value_dim, window });
                self.shared.insert((node.inputs[1], node.inputs[2]), state);
            }
        }
        let mut extra = node.inputs[3..].iter();
        let mut fixed = |wanted: bool| {
            let v = if wanted { extra.next() } else { None };
            v.map(|&v| self.statics(v, StaticForm::Values))
        };
        let attention = Attention {
            heads: row_dims(&node.ty)[0],
            scale,
            window: window.map(|w| w as usize),
            chunk: chunk.map(|c| c as usize),
            softcap,
            sinks: fixed(sinks),
            alibi: fixed(alibi),
        };
        if written.is_none() {
            self.calls.push(Call::WriteKv { state, k, v });
        }
        self.call(i, |out| Call::Attention { state, q, attention, out })
    }

    fn primitive(&mut self, i: usize) -> View {
        let node = &self.graph.nodes[i];
        let operand = |this: &mut Self, v: &Value| {
            let ty = this.graph.ty(*v);
            if this.facts.is_static[v.index()] {
                let dims = ty.shape.as_consts().unwrap_or_default();
                Operand::Static(this.statics(*v, StaticForm::Values), dims)
            } else {
                Operand::View(this.at(*v), row_dims(ty))
            }
        };
        let inputs: Vec<Operand> = node.inputs.iter().map(|v| operand(self, v)).collect();
        let (op, dims) = (node.op.clone(), row_dims(&node.ty));
        let native = super::elementwise::is_native(&op, elem(self.graph.ty(node.inputs[0]).dtype), elem(node.ty.dtype));
        self.call(i, |out| match native {
            true => Call::Elementwise { op, inputs, out, dims },
            false if super::rows::is_native(&op, &inputs, &out) => Call::Rows { op, inputs, out, dims },
            false => Call::Reference { op, inputs, out, dims },
        })
    }

    fn finish(mut self, gives: Gives, mut rows: View) -> Plan {
        let Inputs { token_ids, positions, context_length } = &mut self.inputs;
        let mut pinned: Vec<&mut View> = [token_ids, positions, context_length].into_iter().flatten().collect();
        pinned.push(&mut rows);
        let buffers = memory::assign(&mut self.calls, &self.values, &mut pinned);
        Plan {
            buffers,
            statics: self.statics,
            states: self.states,
            slots: self.slots,
            calls: self.calls,
            inputs: self.inputs,
            gives,
            rows,
        }
    }
}

fn elem(dtype: DType) -> Elem {
    match dtype {
        DType::Float | DType::F32 => Elem::F32,
        DType::I64 => Elem::I64,
        DType::Bool => Elem::Bool,
    }
}

fn kernel_activation(kind: Activation) -> KernelActivation {
    match kind {
        Activation::Silu => KernelActivation::Silu,
        Activation::Gelu => KernelActivation::GeluErf,
        Activation::GeluTanh => KernelActivation::GeluTanh,
        Activation::QuickGelu => KernelActivation::QuickGelu,
        Activation::Relu => KernelActivation::Relu,
        Activation::ReluSquared => KernelActivation::Relu2,
        Activation::Softplus => KernelActivation::Softplus,
        Activation::Sigmoid => KernelActivation::Sigmoid,
        Activation::Tanh => KernelActivation::Tanh,
    }
}
