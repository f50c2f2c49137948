//! Brings every value into one form: tokens first, no dimensions of size 1, axes not moved around. Graphs that were traced
//! from code with a batch dimension and heads before tokens become what a plugin would have written.
//!
//! Reshapes, permutes and broadcasts are not executed but remembered: for every value of the old graph a [`View`] says
//! which axes of which value of the new graph it consists of. An op is then written for the values as they lie, and
//! shape ops are written only where an op needs another arrangement. Values with two symbolic dimensions (scores) keep
//! the order in which they were written.
//!
//! `view` is the bookkeeping, `rules` has what each op does with views, `products` matrix products.

mod products;
mod rules;
mod view;

use plugin_api::spec::SpecError;
use plugin_api::{Dim, Graph, Op, Value};

use self::view::View;

pub(super) fn run(graph: &Graph) -> Result<Graph, SpecError> {
    let mut layout = Layout { out: Graph::default(), views: Vec::with_capacity(graph.nodes.len()) };
    for node in &graph.nodes {
        let inputs: Vec<View> = node.inputs.iter().map(|v| layout.views[v.index()].clone()).collect();
        let mut at = Writer { out: &mut layout.out, name: &node.name };
        let view = at.node(&node.op, &inputs)?;
        debug_assert_eq!(at.dims(&view), node.ty.shape.0, "layout of {} of {:?}", node.op.name(), inputs);
        layout.views.push(view);
    }
    for (name, v) in &graph.outputs {
        let view = layout.views[v.index()].clone();
        let value = Writer { out: &mut layout.out, name: &graph.node(*v).name }.full(&view)?;
        layout.out.outputs.push((name.clone(), value));
    }
    Ok(layout.out)
}

struct Layout {
    out: Graph,
    /// By node of the old graph.
    views: Vec<View>,
}

/// Writes nodes of one name.
struct Writer<'a> {
    out: &'a mut Graph,
    name: &'a str,
}

type Result_<T> = Result<T, SpecError>;

impl Writer<'_> {
    fn push(&mut self, op: Op, inputs: Vec<Value>) -> Result_<Value> {
        self.out.push(op, inputs, self.name)
    }

    fn shape(&self, v: Value) -> &[Dim] {
        &self.out.ty(v).shape.0
    }

    fn node(&mut self, op: &Op, inputs: &[View]) -> Result_<View> {
        use Op::*;
        match op {
            Reshape { shape } => self.reshape(&inputs[0], shape),
            Permute { axes } => Ok(inputs[0].permuted(axes)),
            Broadcast { shape } => Ok(self.broadcast(&inputs[0], shape)),
            Slice { axis, start, end, step } => self.slice(&inputs[0], *axis, (start, end, *step)),
            Concat { axis } => self.concat(*axis, inputs),
            Matmul => self.matmul(&inputs[0], &inputs[1]),
            Linear => self.linear(inputs),
            Embedding => self.embedding(inputs),
            Take { axis } => self.take(*axis, inputs),
            Gather { axis } | Scatter { axis } | ScatterAdd { axis } => self.along(op, *axis, inputs),
            Sum { axis, keep } => self.reduce(&inputs[0], *axis, *keep, |axis| Sum { axis, keep: false }),
            ReduceMax { axis, keep } => self.reduce(&inputs[0], *axis, *keep, |axis| ReduceMax { axis, keep: false }),
            ReduceMin { axis, keep } => self.reduce(&inputs[0], *axis, *keep, |axis| ReduceMin { axis, keep: false }),
            Argmax { axis, keep } => self.reduce(&inputs[0], *axis, *keep, |axis| Argmax { axis, keep: false }),
            Cumsum { axis } => self.cumsum(&inputs[0], *axis),
            Softmax | RmsNorm { .. } | LayerNorm { .. } | TopK { .. } | Argsort { .. } => self.by_last_axis(op, inputs),
            Neg
            | Abs
            | Sign
            | Exp
            | Log
            | Sqrt
            | Rsqrt
            | Sin
            | Cos
            | Tanh
            | Sigmoid
            | Erf
            | Floor
            | Ceil
            | Round
            | Not
            | Cast { .. }
            | Activation { .. } => {
                let value = self.push(op.clone(), vec![inputs[0].value])?;
                Ok(View { value, axes: inputs[0].axes.clone() })
            }
            Add | Sub | Mul | Div | Pow | Max | Min | Rem | And | Or | Eq | Ne | Lt | Le | Gt | Ge | Select => {
                self.elementwise(op, inputs)
            }
            Gated { .. } => self.exact(op, None, inputs),
            SelectOutputs => self.select_outputs(&inputs[0]),
            _ => self.as_written(op, inputs),
        }
    }

    /// An op on values exactly as the old graph has them.
    fn as_written(&mut self, op: &Op, inputs: &[View]) -> Result_<View> {
        let inputs = inputs.iter().map(|v| self.full(v)).collect::<Result_<Vec<Value>>>()?;
        let value = self.push(op.clone(), inputs)?;
        self.settled(value)
    }
}
