//! The Plan: a flat list of kernel calls over preassigned buffers. Plain data, printed by `host inspect`.
//!
//! `lower` makes it from an optimised graph, `run` executes it. Two graphs that mean the same, whoever
//! wrote them, should give equal plans; golden tests hold them to that.

use std::fmt;

use kernels::cpu::{Activation, LinearAttention, RopeStyle};
use plugin_api::{KvState, Op, Value};

use crate::exec::Gives;

/// Everything that is decided before the first step.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sizes of the buffers, by index.
    pub buffers: Vec<Buffer>,
    /// What is computed or mapped once at load, by index.
    pub statics: Vec<Static>,
    /// Attention states, in the order of their calls.
    pub states: Vec<KvState>,
    /// States of fixed size for each sequence, in the order of their calls: their elements.
    pub slots: Vec<usize>,
    /// The kernel calls of one step, in order.
    pub calls: Vec<Call>,
    /// Where the step's inputs are put.
    pub inputs: Inputs,
    /// What the rows are that it gives.
    pub gives: Gives,
    /// These: `[R, vocabulary]` for logits.
    pub rows: View,
}

/// Buffers of the step's inputs, where the graph reads them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inputs {
    /// Token ids.
    pub token_ids: Option<View>,
    /// Positions.
    pub positions: Option<View>,
    /// Context lengths.
    pub context_length: Option<View>,
}

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Every float of the graph.
    F32,
    /// Integers.
    I64,
    /// Truth values.
    Bool,
}

impl Elem {
    /// Bytes of one.
    pub(in crate::exec) fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::I64 => 8,
            Elem::Bool => 1,
        }
    }
}

/// What the rows of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// The tokens of the step, all sequences laid end to end.
    Tokens,
    /// The rows whose logits are wanted.
    Selected,
}

/// A piece of memory that values share over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Type of its elements.
    pub elem: Elem,
    /// Elements needed per token of the budget.
    pub per_token: usize,
    /// Elements needed per selected row of the budget. The buffer has room for either use.
    pub per_selected: usize,
}

/// A matrix inside a buffer: row r starts at `offset + r * stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Index of the buffer.
    pub buffer: usize,
    /// Type of its elements.
    pub elem: Elem,
    /// What the rows are.
    pub rows: RowKind,
    /// Elements in a row.
    pub cols: usize,
    /// Where row 0 starts.
    pub offset: usize,
    /// From one row to the next.
    pub stride: usize,
}

/// A value that does not depend on the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Static {
    /// The node of the graph that computes it.
    pub value: Value,
    /// How kernels want it.
    pub form: StaticForm,
    /// The expression, for people and for comparing plans.
    pub text: String,
}

/// How a kernel reads a static value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StaticForm {
    /// A weight matrix of linear layers, in its storage type or quantised.
    Matrix,
    /// A table of embeddings whose linear layers, if it has any, hold it quantised.
    Table,
    /// Plain values: f32, i64 or bool.
    Values,
}

/// Index into [`Plan::statics`].
pub type StaticId = usize;

/// One weight matrix of a [`Call::Linear`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// `[n, k]`.
    pub weight: StaticId,
    /// `[n]`.
    pub bias: Option<StaticId>,
    /// Output columns.
    pub n: usize,
    /// First output column.
    pub column: usize,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

/// The weights of a [`Call::GroupedLinear`]: those of each expert are one or more matrices, their rows together its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// Rows of each of an expert's matrices.
    pub widths: Vec<usize>,
    /// The matrices, by expert.
    pub parts: Vec<ExpertPart>,
    /// `[experts, n]`.
    pub bias: Option<StaticId>,
}

/// Some rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertPart {
    /// The matrix.
    pub weight: StaticId,
    /// Its first row that is meant.
    pub row: usize,
}

/// What a linear does with its result beside writing it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// Adds it to what is there.
    Accumulate,
    /// Adds this to it.
    Add(View),
}

/// Norm over the columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// Root mean square norm.
    Rms {
        /// `[width]`.
        weight: Option<StaticId>,
        /// Scale by 1 + weight.
        unit_offset: bool,
        /// Added to the mean square.
        eps: f32,
    },
    /// Layer norm.
    Layer {
        /// `[cols]`.
        weight: Option<StaticId>,
        /// `[cols]`.
        bias: Option<StaticId>,
        /// Added to the variance.
        eps: f32,
    },
}

/// An operand of a primitive: a value of the step with its dimensions beside the rows, or a static.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Rows of the step.
    View(View, Vec<usize>),
    /// The same for every row.
    Static(StaticId, Vec<usize>),
}

/// One kernel call. Fields are what the call reads and writes; see the kernel of that name.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // one line above each variant says it
pub enum Call {
    /// Rows of a table.
    Embed { table: StaticId, ids: View, out: View },
    /// Norm of every `width` columns of every row.
    Norm { norm: Norm, width: usize, x: View, out: View },
    /// Softmax over every `width` columns of every row.
    Softmax { width: usize, x: View, out: View },
    /// x W^T for one or more weights.
    Linear { x: View, segments: Vec<Segment>, epilogue: Epilogue, out: View },
    /// x W^T of every part of a row, such as a head, that is as long as the weight's rows.
    LinearParts { x: View, parts: usize, segment: Segment, out: View },
    /// Rotates heads; in place when `out` is `x`.
    Rope { x: View, head_dim: usize, cos: View, sin: View, style: RopeStyle, out: View },
    /// Appends keys and values to the cache of a state.
    WriteKv { state: usize, k: View, v: View },
    /// Attention over the cache of a state.
    Attention { state: usize, q: View, attention: Attention, out: View },
    /// x W^T with the weights that each choice names; x has a row for each token, or for each choice.
    GroupedLinear { x: View, ids: View, per_choice: bool, experts: Experts, out: View },
    /// Convolution along the sequence.
    CausalConv { state: usize, x: View, conv: Conv, out: View },
    /// Attention by a running state.
    LinearAttention {
        state: usize,
        q: View,
        k: View,
        v: View,
        decay: View,
        beta: Option<View>,
        shape: LinearAttention,
        out: View,
    },
    /// Activation function.
    Activate { kind: Activation, x: View, out: View },
    /// activation(gate) * up
    Gated { kind: Activation, gate: View, up: View, out: View },
    /// The same elements, rows one after the other.
    Copy { x: View, out: View },
    /// a + b
    Add { a: View, b: View, out: View },
    /// The rows whose logits are wanted.
    SelectRows { x: View, out: View },
    /// An elementwise primitive.
    Elementwise { op: Op, inputs: Vec<Operand>, out: View, dims: Vec<usize> },
    /// A primitive along an axis beside the rows, or one that moves elements of a row.
    Rows { op: Op, inputs: Vec<Operand>, out: View, dims: Vec<usize> },
    /// A primitive without a kernel, by the reference executor.
    Reference { op: Op, inputs: Vec<Operand>, out: View, dims: Vec<usize> },
}

/// Attributes of a convolution along the sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv {
    /// `[channels, width]`.
    pub weight: StaticId,
    /// `[channels]`.
    pub bias: Option<StaticId>,
    /// Rows that an output sees.
    pub width: usize,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

/// Attributes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Sliding window.
    pub window: Option<usize>,
    /// Queries see their own chunk.
    pub chunk: Option<usize>,
    /// Soft-cap of the scores.
    pub softcap: Option<f32>,
    /// `[heads]`.
    pub sinks: Option<StaticId>,
    /// `[heads]`.
    pub alibi: Option<StaticId>,
}

impl View {
    /// Whether rows follow each other without a gap from the buffer's start.
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.stride == self.cols
    }

    /// The columns `start .. start + cols` of this view.
    pub fn columns(self, start: usize, cols: usize) -> View {
        View { offset: self.offset + start, cols, ..self }
    }
}

impl Call {
    /// The views it reads and the one that it writes, if any.
    pub fn views(&mut self) -> Vec<&mut View> {
        fn of(operands: &mut [Operand]) -> Vec<&mut View> {
            operands.iter_mut().filter_map(|o| if let Operand::View(v, _) = o { Some(v) } else { None }).collect()
        }
        match self {
            Call::Embed { ids, out, .. } => vec![ids, out],
            Call::Norm { x, out, .. } | Call::Softmax { x, out, .. } | Call::Activate { x, out, .. } => vec![x, out],
            Call::SelectRows { x, out } | Call::Copy { x, out } | Call::LinearParts { x, out, .. } => vec![x, out],
            Call::Linear { x, epilogue: Epilogue::Add(y), out, .. } => vec![x, y, out],
            Call::Linear { x, out, .. } => vec![x, out],
            Call::Rope { x, cos, sin, out, .. } => vec![x, cos, sin, out],
            Call::WriteKv { k, v, .. } => vec![k, v],
            Call::Attention { q, out, .. } => vec![q, out],
            Call::GroupedLinear { x, ids, out, .. } => vec![x, ids, out],
            Call::CausalConv { x, out, .. } => vec![x, out],
            Call::LinearAttention { q, k, v, decay, beta, out, .. } => {
                let mut views = vec![q, k, v, decay];
                views.extend(beta);
                views.push(out);
                views
            }
            Call::Gated { gate: a, up: b, out, .. } | Call::Add { a, b, out } => vec![a, b, out],
            Call::Elementwise { inputs, out, .. }
            | Call::Rows { inputs, out, .. }
            | Call::Reference { inputs, out, .. } => {
                let mut views = of(inputs);
                views.push(out);
                views
            }
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = if self.rows == RowKind::Tokens { "T" } else { "R" };
        write!(f, "b{}[{rows},{}]", self.buffer, self.cols)?;
        if !self.is_whole() {
            write!(f, "@{}/{}", self.offset, self.stride)?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for call in &self.calls {
            writeln!(f, "{}", self.describe(call))?;
        }
        writeln!(f, "{} {}", self.gives.name(), self.rows)
    }
}

/// Says so if less than the whole row is taken together.
fn parts_of(x: &View, width: usize) -> String {
    if width == x.cols { String::new() } else { format!(" by {width}") }
}

impl Plan {
    /// One line for one call.
    fn describe(&self, call: &Call) -> String {
        let text = |id: StaticId| self.statics[id].text.as_str();
        let operands = |inputs: &[Operand]| {
            let one = |o: &Operand| match o {
                Operand::View(v, _) => v.to_string(),
                Operand::Static(id, _) => text(*id).to_owned(),
            };
            inputs.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        match call {
            Call::Embed { table, ids, out } => format!("embed {} {ids} -> {out}", text(*table)),
            Call::Norm { norm: Norm::Rms { weight, unit_offset, eps }, width, x, out } => {
                let offset = if *unit_offset { " unit_offset" } else { "" };
                let weight = weight.map_or("", text);
                format!("rms_norm {x}{} {weight} eps={eps:?}{offset} -> {out}", parts_of(x, *width))
            }
            Call::Norm { norm: Norm::Layer { weight, bias, eps }, width, x, out } => {
                let parts: Vec<&str> = [weight, bias].into_iter().flatten().map(|id| text(*id)).collect();
                format!("layer_norm {x}{} {} eps={eps:?} -> {out}", parts_of(x, *width), parts.join(" "))
            }
            Call::Softmax { width, x, out } => format!("softmax {x}{} -> {out}", parts_of(x, *width)),
            Call::Linear { x, segments, epilogue, out } => {
                let one = |s: &Segment| {
                    let bias = s.bias.map_or(String::new(), |b| format!(" + {}", text(b)));
                    let activation = s.activation.map_or(String::new(), |a| format!(" {a:?}"));
                    format!("{}{bias}{activation}", text(s.weight))
                };
                let weights = segments.iter().map(one).collect::<Vec<_>>().join(" | ");
                let epilogue = match epilogue {
                    Epilogue::None => String::new(),
                    Epilogue::Accumulate => " += ".into(),
                    Epilogue::Add(y) => format!(" + {y}"),
                };
                format!("linear {x} ({weights}){epilogue} -> {out}")
            }
            Call::LinearParts { x, parts, segment, out } => {
                let bias = segment.bias.map_or(String::new(), |b| format!(" + {}", text(b)));
                format!("linear {x} by {} ({}{bias}) -> {out}", x.cols / parts, text(segment.weight))
            }
            Call::Rope { x, head_dim, cos, style, out, .. } => {
                format!("rope {x} heads of {head_dim} {style:?} {} -> {out}", cos.cols * 2)
            }
            Call::WriteKv { state, k, v } => format!("write_kv {state} {k} {v}"),
            Call::Attention { state, q, attention: a, out } => {
                let mut options = String::new();
                for (name, set) in [
                    ("window", a.window.map(|w| w.to_string())),
                    ("chunk", a.chunk.map(|c| c.to_string())),
                    ("softcap", a.softcap.map(|c| c.to_string())),
                    ("sinks", a.sinks.map(|id| text(id).to_owned())),
                    ("alibi", a.alibi.map(|id| text(id).to_owned())),
                ] {
                    if let Some(value) = set {
                        options += &format!(" {name}={value}");
                    }
                }
                format!("attention {state} {q} heads={} scale={:?}{options} -> {out}", a.heads, a.scale)
            }
            Call::GroupedLinear { x, ids, experts, out, .. } => {
                let bias = experts.bias.map_or(String::new(), |b| format!(" + {}", text(b)));
                // The first expert's stand for all.
                let first = experts.parts.iter().take(experts.widths.len()).map(|p| text(p.weight));
                let weights = first.collect::<Vec<_>>().join(" | ");
                format!("grouped_linear {x} by {ids} ({} of {weights}){bias} -> {out}", experts.count)
            }
            Call::CausalConv { state, x, conv, out } => {
                let bias = conv.bias.map_or(String::new(), |b| format!(" + {}", text(b)));
                let activation = conv.activation.map_or(String::new(), |a| format!(" {a:?}"));
                format!(
                    "causal_conv {state} {x} ({}{bias}{activation}) width={} -> {out}",
                    text(conv.weight),
                    conv.width
                )
            }
            Call::LinearAttention { state, q, k, v, decay, beta, shape, out } => {
                let delta = beta.map_or(String::new(), |b| format!(" delta {b}"));
                let kernels::cpu::LinearAttention { key_heads, heads, key_dim, value_dim, .. } = shape;
                let sizes = format!("heads={key_heads}/{heads} state={key_dim}x{value_dim}");
                format!("linear_attention {state} {q} {k} {v} decay {decay}{delta} {sizes} -> {out}")
            }
            Call::Activate { kind, x, out } => format!("activate {kind:?} {x} -> {out}"),
            Call::Gated { kind, gate, up, out } => format!("gated {kind:?} {gate} {up} -> {out}"),
            Call::Add { a, b, out } => format!("add {a} {b} -> {out}"),
            Call::Copy { x, out } => format!("copy {x} -> {out}"),
            Call::SelectRows { x, out } => format!("select_rows {x} -> {out}"),
            Call::Elementwise { op, inputs, out, .. } => format!("elementwise {op} {} -> {out}", operands(inputs)),
            Call::Rows { op, inputs, out, .. } => format!("rows {op} {} -> {out}", operands(inputs)),
            Call::Reference { op, inputs, out, .. } => format!("reference {op} {} -> {out}", operands(inputs)),
        }
    }
}
