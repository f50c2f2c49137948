//! A graph made ready to run: verified, expanded to primitives, weights read, constants folded.

use std::collections::HashMap;

use candle_core::Tensor as Array;
use plugin_api::{ConstData, DType, Graph, Op, define, spec};

use super::ops::{self, Step};
use super::{EvalError, Inputs, Tensor, WeightSource};

/// The most elements of a value that is larger than what it is computed from: a graph that asks for more gets an
/// error, not an abort of the process. (Views and sums of large weights may be as large as these.)
pub const MAX_ELEMENTS: usize = 1 << 30;

/// A graph whose weights are read and of which everything that does not depend on the inputs is computed.
pub struct Prepared {
    graph: Graph,
    /// Values that do not depend on the inputs and are read by a node that does, or are outputs.
    fixed: HashMap<usize, Array>,
    /// The nodes computed in every run, in order, each with the values that nothing reads after it.
    schedule: Vec<(usize, Vec<usize>)>,
}

impl Prepared {
    /// Verifies and expands the graph, reads the weights it needs and folds what is constant.
    pub fn new(graph: &Graph, weights: WeightSource<'_>) -> Result<Prepared, EvalError> {
        spec::verify_graph("reference", graph)?;
        let graph = define::expand(graph)?;
        let live = live_nodes(&graph);
        let is_fixed = fixed_nodes(&graph);
        let mut fixed = HashMap::new();
        let mut loaded: HashMap<&str, Array> = HashMap::new();
        let none = Inputs::prompt(&[], &[]);
        let step = Step::new(&none)?;
        for i in (0..graph.nodes.len()).filter(|&i| live[i] && is_fixed[i]) {
            let value = match &graph.nodes[i].op {
                Op::Weight { name, shape, dtype } => match loaded.get(name.as_str()) {
                    Some(array) => array.clone(),
                    None => {
                        let array = load(name, shape, *dtype, weights)?;
                        loaded.insert(name, array.clone());
                        array
                    }
                },
                _ => compute(&graph, i, &fixed, &step)?,
            };
            fixed.insert(i, value);
        }
        drop(loaded);
        let (schedule, kept) = schedule(&graph, &live, &is_fixed);
        fixed.retain(|i, _| kept[*i]);
        Ok(Prepared { graph, fixed, schedule })
    }

    /// The outputs for one sequence, by name, in the order of the graph.
    pub fn run(&self, inputs: &Inputs) -> Result<Vec<(String, Tensor)>, EvalError> {
        let step = Step::new(inputs)?;
        let mut values: HashMap<usize, Array> = self.fixed.clone(); // copies handles, not elements
        for (i, dead) in &self.schedule {
            let value = compute(&self.graph, *i, &values, &step)?;
            values.insert(*i, value);
            for d in dead {
                values.remove(d);
            }
        }
        let result = |(name, v): &(String, plugin_api::Value)| {
            let i = v.index();
            let array = values.get(&i).ok_or_else(|| at_node(&self.graph, i, "was not computed".into()))?;
            let tensor = ops::to_tensor(array).map_err(|e| at_node(&self.graph, i, e.0))?;
            Ok((name.clone(), tensor))
        };
        self.graph.outputs.iter().map(result).collect()
    }
}

/// Computes node `i` from the values before it and checks that its type is the declared one.
fn compute(graph: &Graph, i: usize, values: &HashMap<usize, Array>, step: &Step<'_>) -> Result<Array, EvalError> {
    let node = &graph.nodes[i];
    let fail = |message: String| at_node(graph, i, message);
    let shape = node.ty.shape.eval(step.tokens(), step.rows()).map_err(|e| fail(e.to_string()))?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let read: usize =
        node.inputs.iter().filter_map(|v| values.get(&v.index())).fold(0, |n, x| n.saturating_add(x.elem_count()));
    if elements.is_none_or(|n| n > MAX_ELEMENTS.max(read)) {
        return Err(fail(format!("a value of shape {shape:?} exceeds the limit of {MAX_ELEMENTS} elements")));
    }
    let inputs: Option<Vec<&Array>> = node.inputs.iter().map(|v| values.get(&v.index())).collect();
    let inputs = inputs.ok_or_else(|| fail("reads a value that was not computed".into()))?;
    let value = ops::apply(&node.op, &inputs, &shape, step).map_err(|e| fail(e.0))?;
    if value.dims() != shape || value.dtype() != ops::storage_type(node.ty.dtype) {
        let (dtype, dims) = (value.dtype(), value.dims());
        return Err(fail(format!("computed {dtype:?} {dims:?}, declared is {} {shape:?}", node.ty.dtype)));
    }
    Ok(value)
}

fn at_node(graph: &Graph, i: usize, message: String) -> EvalError {
    let node = &graph.nodes[i];
    // Literals can be long; the name and the attributes' beginning say enough.
    let op: String = node.op.to_string().chars().take(200).collect();
    EvalError::Node { node: i, name: node.name.clone(), op, message }
}

fn load(name: &str, shape: &[usize], dtype: DType, weights: WeightSource<'_>) -> Result<Array, EvalError> {
    let fail = |message: String| EvalError::Weight { name: name.to_owned(), message };
    let tensor = weights(name).map_err(fail)?;
    if tensor.shape != shape {
        return Err(fail(format!("has shape {:?}, the graph expects {shape:?}", tensor.shape)));
    }
    let data = match (tensor.data, dtype) {
        // The graph may want stored integers as floats; never the reverse, which would hide a wrong name.
        (ConstData::I64(v), DType::Float) => ConstData::F32(v.into_iter().map(|x| x as f32).collect()),
        (data @ ConstData::I64(_), DType::I64) | (data @ ConstData::F32(_), DType::Float) => data,
        (ConstData::F32(_), _) => return Err(fail("is stored as floats, the graph reads integers".into())),
        (data, _) => data,
    };
    let array = ops::from_data(data, shape).map_err(|e| fail(e.0))?;
    if array.dtype() != ops::storage_type(dtype) {
        return Err(fail(format!("must be given as {dtype}")));
    }
    Ok(array)
}

/// Which nodes the outputs depend on.
fn live_nodes(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.nodes.len()];
    for (_, v) in &graph.outputs {
        live[v.index()] = true;
    }
    for i in (0..graph.nodes.len()).rev() {
        if live[i] {
            for v in &graph.nodes[i].inputs {
                live[v.index()] = true;
            }
        }
    }
    live
}

/// Which nodes depend neither on the inputs nor on `T` and `R`.
fn fixed_nodes(graph: &Graph) -> Vec<bool> {
    let mut fixed: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let bounds_fixed = match &node.op {
            Op::Slice { start, end, .. } => start.as_const().is_some() && end.as_const().is_some(),
            _ => true,
        };
        let leaf_fixed = !matches!(node.op, Op::Input { .. } | Op::ContextLength { .. });
        let shape_fixed = node.ty.shape.as_consts().is_some();
        fixed.push(leaf_fixed && bounds_fixed && shape_fixed && node.inputs.iter().all(|v| fixed[v.index()]));
    }
    fixed
}

/// The nodes to compute in a run with the values each of them reads last; and the fixed values to keep.
fn schedule(graph: &Graph, live: &[bool], fixed: &[bool]) -> (Vec<(usize, Vec<usize>)>, Vec<bool>) {
    let mut kept = vec![false; graph.nodes.len()];
    let mut used_later = vec![false; graph.nodes.len()];
    for (_, v) in &graph.outputs {
        used_later[v.index()] = true;
        kept[v.index()] = fixed[v.index()];
    }
    let mut schedule = Vec::new();
    for i in (0..graph.nodes.len()).rev().filter(|&i| live[i] && !fixed[i]) {
        let mut dead = Vec::new();
        for j in graph.nodes[i].inputs.iter().map(|v| v.index()) {
            if fixed[j] {
                kept[j] = true;
            } else if !used_later[j] {
                used_later[j] = true;
                dead.push(j);
            }
        }
        schedule.push((i, dead));
    }
    schedule.reverse();
    (schedule, kept)
}
