//! Values that do not depend on the step: weights as they are mapped, and expressions over weights and
//! literals, computed once at load by the reference executor.

use half::{bf16, f16};
use kernels::cpu::{WeightDtype, WeightRef};
use plugin_api::{ConstData, Graph, Op, Value};

use super::plan::{Elem, Static, StaticForm};
use crate::exec::reference::{self, Tensor};
use crate::exec::{Dtype, ExecError};
use crate::hub::{Dtype as Stored, Weights};

/// The data of one static value.
pub(super) enum StaticData {
    /// As stored in the checkpoint.
    Mapped { weights: Weights, index: usize, dtype: WeightDtype },
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl StaticData {
    pub(super) fn elem(&self) -> Elem {
        match self {
            StaticData::I64(_) => Elem::I64,
            StaticData::Bool(_) => Elem::Bool,
            _ => Elem::F32,
        }
    }

    /// As a weight matrix.
    pub(super) fn matrix(&self) -> Result<WeightRef<'_>, ExecError> {
        match self {
            StaticData::Mapped { weights, index, dtype } => {
                WeightRef::from_bytes(*dtype, weights.at(*index).data).map_err(|e| ExecError::Failed(e.to_string()))
            }
            StaticData::F32(v) => Ok(WeightRef::F32(v)),
            StaticData::Bf16(v) => Ok(WeightRef::Bf16(v)),
            StaticData::F16(v) => Ok(WeightRef::F16(v)),
            StaticData::I64(_) | StaticData::Bool(_) => Err(ExecError::Failed("a weight matrix must be floats".into())),
        }
    }

    /// As plain floats.
    pub(super) fn values(&self) -> Result<&[f32], ExecError> {
        match self {
            StaticData::F32(v) => Ok(v),
            _ => Err(ExecError::Failed("the plan reads a static value as f32 that is not".into())),
        }
    }

    /// Bytes that it takes beside the mapped file.
    pub(super) fn bytes(&self) -> usize {
        match self {
            StaticData::Mapped { .. } => 0,
            StaticData::F32(v) => v.len() * 4,
            StaticData::Bf16(v) => v.len() * 2,
            StaticData::F16(v) => v.len() * 2,
            StaticData::I64(v) => v.len() * 8,
            StaticData::Bool(v) => v.len(),
        }
    }
}

/// The type in which a matrix is held. Weights stay as they are stored where the arithmetic permits it:
/// f32 arithmetic reads any type exactly; bf16 and f16 arithmetic want their own.
pub(super) fn held_as(graph: &Graph, value: Value, weights: &Weights, dtype: Dtype) -> WeightDtype {
    let stored = match &graph.node(value).op {
        Op::Weight { name, .. } => weights.get(name).and_then(|w| float_type(w.dtype)),
        _ => None,
    };
    match (dtype, stored) {
        (Dtype::Float32, Some(stored)) => stored,
        (Dtype::Float32, None) => WeightDtype::F32,
        (Dtype::Bfloat16, _) => WeightDtype::Bf16,
        (Dtype::Float16, _) => WeightDtype::F16,
    }
}

/// Computes or maps every static of a plan.
pub(super) fn load(
    graph: &Graph,
    statics: &[Static],
    weights: &Weights,
    dtype: Dtype,
) -> Result<Vec<StaticData>, ExecError> {
    statics.iter().map(|s| load_one(graph, s, weights, dtype)).collect()
}

fn load_one(graph: &Graph, s: &Static, weights: &Weights, dtype: Dtype) -> Result<StaticData, ExecError> {
    let held = held_as(graph, s.value, weights, dtype);
    if let (StaticForm::Matrix, Op::Weight { name, .. }) = (s.form, &graph.node(s.value).op)
        && let Some(index) = weights.index_of(name)
        && float_type(weights.at(index).dtype) == Some(held)
    {
        return Ok(StaticData::Mapped { weights: weights.clone(), index, dtype: held });
    }
    let tensor = match &graph.node(s.value).op {
        Op::Weight { name, .. } => {
            read_f32(weights, name).map_err(|m| ExecError::Failed(format!("weight `{name}` {m}")))?
        }
        _ => evaluate(graph, s.value, weights)?,
    };
    Ok(match (tensor.data, s.form) {
        (ConstData::I64(v), _) => StaticData::I64(v),
        (ConstData::Bool(v), _) => StaticData::Bool(v),
        (ConstData::F32(v), StaticForm::Values) => StaticData::F32(v),
        (ConstData::F32(v), StaticForm::Matrix) => match held {
            WeightDtype::F32 => StaticData::F32(v),
            WeightDtype::Bf16 => StaticData::Bf16(v.into_iter().map(bf16::from_f32).collect()),
            WeightDtype::F16 => StaticData::F16(to_f16(graph, s, v)?),
        },
    })
}

fn to_f16(graph: &Graph, s: &Static, values: Vec<f32>) -> Result<Vec<f16>, ExecError> {
    let out: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    match out.iter().zip(&values).find(|(y, x)| y.is_infinite() && x.is_finite()) {
        Some((_, x)) => Err(ExecError::Failed(format!(
            "weight `{}` ({}) holds {x}, which float16 cannot represent; use --dtype bfloat16 or float32",
            s.text,
            graph.ty(s.value)
        ))),
        None => Ok(out),
    }
}

/// The value of a static node, by the reference executor.
fn evaluate(graph: &Graph, value: Value, weights: &Weights) -> Result<Tensor, ExecError> {
    let source = |name: &str| read_f32(weights, name);
    let inputs = reference::Inputs::prompt(&[], &[]);
    // Only what the value depends on, so that nothing else of a large graph is looked at.
    let cut = Graph { nodes: graph.nodes[..=value.index()].to_vec(), outputs: vec![("value".into(), value)] };
    let mut out = reference::eval(&cut, &inputs, &source)?;
    out.pop().map(|(_, t)| t).ok_or_else(|| ExecError::Failed("a static value was not computed".into()))
}

/// A tensor of the checkpoint as f32.
pub fn read_f32(weights: &Weights, name: &str) -> Result<Tensor, String> {
    let view = weights.get(name).ok_or("is not in the checkpoint")?;
    let bytes = view.data;
    let data = match view.dtype {
        Stored::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Stored::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Stored::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        other => return Err(format!("is stored as {other:?}; weights of F32, F16 and BF16 are read")),
    };
    Ok(Tensor { shape: view.shape.to_vec(), data: ConstData::F32(data) })
}

fn float_type(stored: Stored) -> Option<WeightDtype> {
    match stored {
        Stored::F32 => Some(WeightDtype::F32),
        Stored::BF16 => Some(WeightDtype::Bf16),
        Stored::F16 => Some(WeightDtype::F16),
        _ => None,
    }
}
