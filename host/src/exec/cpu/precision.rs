//! In which type each matrix is held: as stored, in the type of the arithmetic, or quantised.
//!
//! Knows the graph and the checkpoint's types, reads no data. Called by lowering, which joins only matrices of one type
//! in a call, and by `statics`, which makes them.
//!
//! What `--quantization` leaves as it is: embeddings, matrices that decide which experts a token gets, and those with so
//! few rows or columns that nothing is won. The head, on which every probability depends, gets int8 at least.

use std::cell::OnceCell;
use std::collections::HashSet;

use kernels::cpu::{QuantFormat, WeightDtype};
use plugin_api::{Graph, Op, Value};

use super::plan::{Plan, StaticForm};
use crate::exec::{Dtype, Quantization};
use crate::hub::{Dtype as Stored, PackedFormat, Weights};

/// Elements of a group of int4 weights.
const INT4_GROUP: usize = 32;

/// Elements of a group of int8 weights that come in codes which no kernel computes with.
const OTHER_GROUP: usize = 32;

/// Matrices with fewer rows, or columns, are not quantised.
const MIN_ROWS: usize = 64;
const MIN_COLUMNS: usize = 32;

/// The type of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Plain(WeightDtype),
    Quantised(QuantFormat),
}

impl Held {
    pub(super) fn dtype(self) -> WeightDtype {
        match self {
            Held::Plain(dtype) => dtype,
            Held::Quantised(format) => format.dtype(),
        }
    }
}

/// What `--dtype` and `--quantization` mean for a checkpoint.
pub(in crate::exec) struct Precision<'a> {
    pub(super) weights: &'a Weights,
    pub(super) dtype: Dtype,
    pub(super) quantization: Option<Quantization>,
    special: OnceCell<Special>,
}

/// Matrices that are treated differently.
#[derive(Default)]
struct Special {
    routers: HashSet<Value>,
    heads: HashSet<Value>,
}

/// What quantised matrices take, and would take as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuantSummary {
    /// How many there are.
    pub matrices: usize,
    /// Bytes that they would take.
    pub plain_bytes: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

impl<'a> Precision<'a> {
    pub(in crate::exec) fn new(weights: &'a Weights, dtype: Dtype, quantization: Option<Quantization>) -> Self {
        Precision { weights, dtype, quantization, special: OnceCell::new() }
    }

    /// How a matrix that linear layers read is held. All calls are about one graph.
    pub(super) fn matrix(&self, graph: &Graph, value: Value) -> Held {
        match self.quantized(graph, value) {
            Some(format) => Held::Quantised(format),
            None => Held::Plain(self.plain(graph, value)),
        }
    }

    fn quantized(&self, graph: &Graph, value: Value) -> Option<QuantFormat> {
        let (rows, columns) = sizes(graph, value)?;
        if let Some(format) = self.stored_as(graph, value) {
            return Some(format);
        }
        let wanted = self.quantization.filter(|_| rows >= MIN_ROWS && columns >= MIN_COLUMNS)?;
        let Special { routers, heads } = self.special.get_or_init(|| Special::of(graph));
        match wanted {
            _ if routers.contains(&value) => None,
            Quantization::Int4 if !heads.contains(&value) => Some(QuantFormat::int4(INT4_GROUP, false)),
            _ => Some(QuantFormat::INT8),
        }
    }

    /// The format of a matrix that the checkpoint stores quantised; `None` also for those whose values are taken.
    fn stored_as(&self, graph: &Graph, value: Value) -> Option<QuantFormat> {
        let Op::Weight { name, .. } = &graph.node(value).op else { return None };
        match self.weights.packed(name)?.format() {
            PackedFormat::Int8Rows => Some(QuantFormat::INT8),
            PackedFormat::Int8Groups(group) => Some(QuantFormat::int8(group)),
            PackedFormat::Int4 { group, zeros } => Some(QuantFormat::int4(group, zeros)),
            // Eight bits for six at most: the step of the new codes is far below that of the old ones.
            PackedFormat::Other => Some(QuantFormat::int8(OTHER_GROUP)),
            PackedFormat::Floats => None,
        }
    }

    /// How a matrix is held that is not quantised. Weights stay as they are stored where the arithmetic permits it: f32
    /// arithmetic reads any type exactly; bf16 and f16 arithmetic want their own.
    pub(super) fn plain(&self, graph: &Graph, value: Value) -> WeightDtype {
        let stored = match &graph.node(value).op {
            Op::Weight { name, .. } => self.weights.get(name).and_then(|w| float_type(w.dtype)),
            _ => None,
        };
        match (self.dtype, stored) {
            (Dtype::Float32, Some(stored)) => stored,
            (Dtype::Float32, None) => WeightDtype::F32,
            (Dtype::Bfloat16, _) => WeightDtype::Bf16,
            (Dtype::Float16, _) => WeightDtype::F16,
        }
    }

    /// What is quantised in a plan.
    pub(super) fn summary(&self, graph: &Graph, plan: &Plan) -> QuantSummary {
        let mut sum = QuantSummary::default();
        for s in plan.statics.iter().filter(|s| s.form == StaticForm::Matrix) {
            if let (Held::Quantised(format), Some((n, k))) = (self.matrix(graph, s.value), sizes(graph, s.value)) {
                let element = if self.plain(graph, s.value) == WeightDtype::F32 { 4 } else { 2 };
                sum.matrices += 1;
                sum.plain_bytes += (n * k * element) as u64;
                sum.bytes += format.bytes(n, k) as u64;
            }
        }
        sum
    }
}

/// Rows and columns of a value seen as a matrix.
pub(super) fn sizes(graph: &Graph, value: Value) -> Option<(usize, usize)> {
    let dims = graph.ty(value).shape.as_consts()?;
    let (columns, rows) = dims.split_last()?;
    Some((rows.iter().product(), *columns))
}

impl Special {
    fn of(graph: &Graph) -> Special {
        let mut special = Special::default();
        for node in graph.nodes.iter().filter(|n| matches!(n.op, Op::TopK { .. })) {
            node.inputs.iter().for_each(|v| linears_before(graph, *v, &mut special.routers));
        }
        if let Some(logits) = graph.output("logits") {
            linears_before(graph, logits, &mut special.heads);
        }
        special
    }
}

/// The weights of the linear layers from which a value comes by primitives, softmax and activations alone.
fn linears_before(graph: &Graph, value: Value, found: &mut HashSet<Value>) {
    let (mut seen, mut next) = (HashSet::new(), vec![value]);
    while let Some(value) = next.pop() {
        let node = graph.node(value);
        if !seen.insert(value) {
            continue;
        }
        match node.op {
            Op::Linear => drop(found.insert(node.inputs[1])),
            Op::Softmax | Op::Activation { .. } => next.extend(&node.inputs),
            _ if node.op.is_composite() => {}
            _ => next.extend(&node.inputs),
        }
    }
}

pub(super) fn float_type(stored: Stored) -> Option<WeightDtype> {
    match stored {
        Stored::F32 => Some(WeightDtype::F32),
        Stored::BF16 => Some(WeightDtype::Bf16),
        Stored::F16 => Some(WeightDtype::F16),
        _ => None,
    }
}
