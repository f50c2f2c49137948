//! Values that do not depend on the step: weights as they are mapped, and expressions over weights and
//! literals, computed once at load by the reference executor.

use std::collections::HashMap;

use half::{bf16, f16};
use kernels::cpu::{CodeRow, Cpu, QuantFormat, Quantised, WeightDtype, WeightRef};
use plugin_api::{ConstData, DType, Graph, Op, Value};

use super::plan::{Elem, Static, StaticForm};
use super::precision::{Held, Precision, float_type, sizes};
use crate::exec::ExecError;
use crate::exec::reference::{self, Tensor};
use crate::hub::{Dtype as Stored, PackedFormat, PackedView, WeightView, Weights};

/// The data of one static value.
pub(in crate::exec) enum StaticData {
    /// As stored in the checkpoint.
    Mapped {
        weights: Weights,
        index: usize,
        dtype: WeightDtype,
    },
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    Quantised(Quantised),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl StaticData {
    pub(in crate::exec) fn elem(&self) -> Elem {
        match self {
            StaticData::I64(_) => Elem::I64,
            StaticData::Bool(_) => Elem::Bool,
            _ => Elem::F32,
        }
    }

    /// As a weight matrix.
    pub(in crate::exec) fn matrix(&self) -> Result<WeightRef<'_>, ExecError> {
        match self {
            StaticData::Mapped { weights, index, dtype } => {
                WeightRef::from_bytes(*dtype, weights.at(*index).data).map_err(|e| ExecError::Failed(e.to_string()))
            }
            StaticData::F32(v) => Ok(WeightRef::F32(v)),
            StaticData::Bf16(v) => Ok(WeightRef::Bf16(v)),
            StaticData::F16(v) => Ok(WeightRef::F16(v)),
            StaticData::Quantised(v) => Ok(WeightRef::Quantised(v.view())),
            StaticData::I64(_) | StaticData::Bool(_) => Err(ExecError::Failed("a weight matrix must be floats".into())),
        }
    }

    /// As plain floats.
    pub(in crate::exec) fn values(&self) -> Result<&[f32], ExecError> {
        match self {
            StaticData::F32(v) => Ok(v),
            _ => Err(ExecError::Failed("the plan reads a static value as f32 that is not".into())),
        }
    }

    /// Bytes that it takes beside the mapped file.
    pub(in crate::exec) fn bytes(&self) -> usize {
        match self {
            StaticData::Mapped { .. } => 0,
            StaticData::F32(v) => v.len() * 4,
            StaticData::Bf16(v) => v.len() * 2,
            StaticData::F16(v) => v.len() * 2,
            StaticData::Quantised(v) => v.bytes(),
            StaticData::I64(v) => v.len() * 8,
            StaticData::Bool(v) => v.len(),
        }
    }
}

/// Computes or maps every static of a plan.
pub(in crate::exec) fn load(
    graph: &Graph,
    statics: &[Static],
    precision: &Precision<'_>,
    cpu: &Cpu,
) -> Result<Vec<StaticData>, ExecError> {
    let weights = precision.weights;
    let stored = |s: &Static| as_stored(graph, s, precision, cpu);
    let mut out: Vec<Option<StaticData>> = statics.iter().map(stored).collect::<Result<_, _>>()?;
    // The others by the node that computes them: one node may be wanted in two forms.
    let mut wanted: HashMap<usize, Vec<usize>> = HashMap::new();
    for (id, s) in statics.iter().enumerate().filter(|(id, _)| out[*id].is_none()) {
        wanted.entry(s.value.index()).or_default().push(id);
    }
    let mut fold = Fold::new(graph, weights, wanted.keys().copied());
    for i in 0..graph.nodes.len() {
        let ids = wanted.get(&i).map_or(&[][..], Vec::as_slice);
        let Some(value) = fold.compute(i, !ids.is_empty())? else { continue };
        for &id in ids {
            out[id] = Some(converted(graph, &statics[id], &value, precision, cpu)?);
            fold.live += value.data.len(); // for good
        }
        fold.keep(i, value);
    }
    out.into_iter().collect::<Option<_>>().ok_or_else(|| ExecError::Failed("a static value was not computed".into()))
}

/// A matrix that is used as it is stored, or quantised from what is stored, row by row.
fn as_stored(graph: &Graph, s: &Static, precision: &Precision<'_>, cpu: &Cpu) -> Result<Option<StaticData>, ExecError> {
    let weights = precision.weights;
    let Op::Weight { name, .. } = &graph.node(s.value).op else { return Ok(None) };
    if let (Some(packed), Some(Held::Quantised(format))) = (weights.packed(name), held(graph, s, precision)) {
        let data = of_packed(&packed, format, cpu)?;
        packed.release();
        return Ok(Some(StaticData::Quantised(data)));
    }
    if weights.get(name).is_none() {
        return Ok(None);
    }
    let Some(index) = weights.index_of(name) else { return Ok(None) };
    let view = weights.at(index);
    match held(graph, s, precision) {
        Some(Held::Plain(dtype)) if float_type(view.dtype) == Some(dtype) => {
            Ok(Some(StaticData::Mapped { weights: weights.clone(), index, dtype }))
        }
        Some(Held::Quantised(format)) if float_type(view.dtype).is_some() => {
            let k = sizes(graph, s.value).map_or(1, |(_, k)| k);
            let fill = |first: usize, to: &mut [f32]| widen(&view, first * k, to);
            let data = quantised(graph, s, format, cpu, &fill)?;
            // It is not needed in memory any more, unless as something else too.
            weights.release(index);
            Ok(Some(data))
        }
        _ => Ok(None),
    }
}

/// A matrix that is stored quantised: its codes as they are, or its values in other codes.
fn of_packed(packed: &PackedView<'_>, format: QuantFormat, cpu: &Cpu) -> Result<Quantised, ExecError> {
    let [n, k] = packed.shape();
    if matches!(packed.format(), PackedFormat::Other | PackedFormat::Floats) {
        let fill = |first: usize, to: &mut [f32]| {
            to.chunks_exact_mut(k.max(1)).enumerate().for_each(|(i, to)| packed.floats(first + i, to));
        };
        return Ok(Quantised::from_rows(cpu, n, k, format, &fill)?);
    }
    let fill = |first: usize, rows: &mut [CodeRow<'_>]| {
        for (i, to) in rows.iter_mut().enumerate() {
            packed.codes(first + i, to.codes, to.scales, to.zeros);
        }
    };
    Ok(Quantised::from_codes(cpu, n, k, format, &fill)?)
}

/// The type that a static is held in if it is a matrix.
fn held(graph: &Graph, s: &Static, precision: &Precision<'_>) -> Option<Held> {
    match s.form {
        StaticForm::Matrix => Some(precision.matrix(graph, s.value)),
        StaticForm::Table => Some(Held::Plain(precision.plain(graph, s.value))),
        StaticForm::Values => None,
    }
}

fn converted(
    graph: &Graph,
    s: &Static,
    tensor: &Tensor,
    precision: &Precision<'_>,
    cpu: &Cpu,
) -> Result<StaticData, ExecError> {
    let v = match &tensor.data {
        ConstData::I64(v) => return Ok(StaticData::I64(v.clone())),
        ConstData::Bool(v) => return Ok(StaticData::Bool(v.clone())),
        ConstData::F32(v) => v,
    };
    Ok(match held(graph, s, precision) {
        None | Some(Held::Plain(WeightDtype::F32)) => StaticData::F32(v.clone()),
        Some(Held::Plain(WeightDtype::F16)) => StaticData::F16(to_f16(graph, s, v)?),
        Some(Held::Plain(_)) => StaticData::Bf16(v.iter().map(|&x| bf16::from_f32(x)).collect()),
        Some(Held::Quantised(format)) => {
            let k = sizes(graph, s.value).map_or(1, |(_, k)| k);
            let fill = |first: usize, to: &mut [f32]| to.copy_from_slice(&v[first * k..][..to.len()]);
            quantised(graph, s, format, cpu, &fill)?
        }
    })
}

/// The rows that `fill` writes, from the given one on, quantised.
fn quantised(
    graph: &Graph,
    s: &Static,
    format: QuantFormat,
    cpu: &Cpu,
    fill: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<StaticData, ExecError> {
    let (n, k) = sizes(graph, s.value).unwrap_or_default();
    Ok(StaticData::Quantised(Quantised::from_rows(cpu, n, k, format, fill)?))
}

/// Elements `from ..` of a tensor of floats.
fn widen(view: &WeightView<'_>, from: usize, to: &mut [f32]) {
    let bytes = &view.data[from * view.dtype.size()..][..to.len() * view.dtype.size()];
    match view.dtype {
        Stored::F32 => to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, b)| *to = f32::from_le_bytes(*b)),
        Stored::BF16 => {
            to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, b)| *to = bf16::from_le_bytes(*b).to_f32())
        }
        // The caller has floats of three types.
        _ => to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, b)| *to = f16::from_le_bytes(*b).to_f32()),
    }
}

fn to_f16(graph: &Graph, s: &Static, values: &[f32]) -> Result<Vec<f16>, ExecError> {
    let out: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    match out.iter().zip(values).find(|(y, x)| y.is_infinite() && x.is_finite()) {
        Some((_, x)) => Err(ExecError::Failed(format!(
            "weight `{}` ({}) holds {x}, which float16 cannot represent; use --dtype bfloat16 or float32",
            s.text,
            graph.ty(s.value)
        ))),
        None => Ok(out),
    }
}

/// Computes the static nodes that are needed, each once, in order. Weights are read where they are used and
/// dropped again; other values live until their last reader: little more than the results is in memory.
struct Fold<'a> {
    graph: &'a Graph,
    weights: &'a Weights,
    needed: Vec<bool>,
    /// By node: readers still to come.
    readers: Vec<usize>,
    values: HashMap<usize, Tensor>,
    /// Elements of `values` and results, and elements computed so far.
    live: usize,
    work: usize,
    max_live: usize,
    max_work: usize,
}

impl<'a> Fold<'a> {
    fn new(graph: &'a Graph, weights: &'a Weights, wanted: impl Iterator<Item = usize>) -> Fold<'a> {
        let mut needed = vec![false; graph.nodes.len()];
        let mut readers = vec![0; graph.nodes.len()];
        wanted.for_each(|i| needed[i] = true);
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if needed[i] {
                for v in &node.inputs {
                    needed[v.index()] = true;
                    readers[v.index()] += 1;
                }
            }
        }
        let bytes = usize::try_from(weights.total_bytes()).unwrap_or(usize::MAX);
        Fold {
            graph,
            weights,
            needed,
            readers,
            values: HashMap::new(),
            live: 0,
            work: 0,
            // Two f32 copies of a bf16 checkpoint and room for tables; some tens of passes over all that.
            max_live: bytes.saturating_add(1 << 26),
            max_work: bytes.saturating_mul(64).saturating_add(1 << 32),
        }
    }

    /// The value of node i, if it is needed. Weights are given only if they are `wanted` themselves.
    fn compute(&mut self, i: usize, wanted: bool) -> Result<Option<Tensor>, ExecError> {
        let node = &self.graph.nodes[i];
        match &node.op {
            _ if !self.needed[i] => return Ok(None),
            Op::Weight { name, dtype, .. } if wanted => return self.weight(name, *dtype).map(Some),
            Op::Weight { .. } => return Ok(None),
            _ => {}
        }
        let shape = node.ty.shape.as_consts().ok_or_else(|| self.failed(i, "its shape is not constant"))?;
        self.admit(i, &shape)?;
        let weight = |v: &Value| match &self.graph.node(*v).op {
            Op::Weight { name, dtype, .. } => self.weight(name, *dtype).map(Some),
            _ => Ok(None),
        };
        let read: Vec<Option<Tensor>> = node.inputs.iter().map(weight).collect::<Result<_, _>>()?;
        let inputs: Option<Vec<&Tensor>> =
            node.inputs.iter().zip(&read).map(|(v, w)| w.as_ref().or_else(|| self.values.get(&v.index()))).collect();
        let inputs = inputs.ok_or_else(|| self.failed(i, "it reads a value that was not computed"))?;
        let value = reference::apply(&node.op, &inputs, &shape, 0, &[]).map_err(|e| self.failed(i, &e.to_string()))?;
        Ok(Some(value))
    }

    /// Refuses what would take more memory or time than any model needs, before it does.
    fn admit(&mut self, i: usize, shape: &[usize]) -> Result<(), ExecError> {
        let node = &self.graph.nodes[i];
        let size = |v: &Value| -> usize {
            let dims = self.graph.ty(*v).shape.as_consts().unwrap_or_default();
            dims.iter().fold(1, |n, &d| n.saturating_mul(d))
        };
        let elements = shape.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let inner = match &node.op {
            Op::Matmul => self.graph.ty(node.inputs[0]).shape.as_consts().and_then(|d| d.last().copied()).unwrap_or(1),
            _ => 1,
        };
        let read = node.inputs.iter().map(size).fold(0, usize::saturating_add);
        self.work = self.work.saturating_add(elements.saturating_mul(inner)).saturating_add(read);
        let live = self.live.saturating_add(elements);
        for (what, value, limit) in
            [("be in memory at once", live, self.max_live), ("have to be computed", self.work, self.max_work)]
        {
            if value > limit {
                let reason = format!(
                    "{value} elements of constants would {what} for it, the limit is {limit} for this checkpoint"
                );
                return Err(self.failed(i, &reason));
            }
        }
        Ok(())
    }

    /// Stores a value for its readers, and drops what has none left.
    fn keep(&mut self, i: usize, value: Tensor) {
        for v in &self.graph.nodes[i].inputs {
            let j = v.index();
            self.readers[j] -= 1;
            if self.readers[j] == 0
                && let Some(dropped) = self.values.remove(&j)
            {
                self.live -= dropped.data.len();
            }
        }
        if self.readers[i] > 0 && !matches!(self.graph.nodes[i].op, Op::Weight { .. }) {
            self.live += value.data.len();
            self.values.insert(i, value);
        }
    }

    fn weight(&self, name: &str, dtype: DType) -> Result<Tensor, ExecError> {
        let read = if dtype == DType::I64 { read_i64 } else { read_f32 };
        read(self.weights, name).map_err(|m| ExecError::Failed(format!("weight `{name}` {m}")))
    }

    fn failed(&self, i: usize, reason: &str) -> ExecError {
        let node = &self.graph.nodes[i];
        ExecError::Failed(format!("node %{i} ({}) = {} {}: {reason}", node.name, node.op.name(), node.ty))
    }
}

/// A tensor of the checkpoint as f32.
pub fn read_f32(weights: &Weights, name: &str) -> Result<Tensor, String> {
    if let Some(packed) = weights.packed(name) {
        return Ok(reference::read_packed(&packed));
    }
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

/// A tensor of the checkpoint that is stored as integers.
fn read_i64(weights: &Weights, name: &str) -> Result<Tensor, String> {
    let view = weights.get(name).ok_or("is not in the checkpoint")?;
    match reference::read_tensor(&view)? {
        tensor @ Tensor { data: ConstData::I64(_), .. } => Ok(tensor),
        _ => Err(format!("is stored as {:?}, the graph reads integers", view.dtype)),
    }
}
