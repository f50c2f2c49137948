//! Patterns: expressions that a composite may be written as.
//!
//! Most are made of the composite's own definition ([`Pattern::defined`]), brought into the form that graphs have at this
//! point. Matching looks through casts between float types (nothing is lost, decision 4) and through the axis of size 1
//! that a reduction keeps; it tries both orders of commutative ops, and products of several factors in any order.

use plugin_api::spec::SpecError;
use plugin_api::{Builder, DType, Dim, Graph, Node, Op, Value, define};

use crate::graph::{canonicalise, fold, layout};

/// What an expression looks like.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Any value. The same number stands for the same value.
    Any(usize),
    /// A literal number; equal but for rounding.
    Number(f32),
    /// Any literal number, kept under this number.
    Free(usize),
    /// The size of the last axis of the value `Any(0)`.
    Size,
    /// An elementwise op.
    Is(Op, Vec<Pattern>),
    /// A reduction of the last axis.
    Reduced(Op, Box<Pattern>),
}

/// What a pattern's parts stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    values: [Option<Value>; 3],
    numbers: [Option<f32>; 2],
}

impl Found {
    /// What `Any(i)` stands for. Patterns name all that they are asked for.
    pub(super) fn value(&self, i: usize) -> Option<Value> {
        self.values[i]
    }

    pub(super) fn number(&self, i: usize) -> Option<f32> {
        self.numbers[i]
    }
}

/// A number that stands for a free one in definitions.
const FREE: f32 = 0.013_671_875;
/// A size of the last axis that no definition has as a number.
const SIZE: usize = 977;

/// The value without casts between float types.
pub(super) fn uncast(graph: &Graph, mut v: Value) -> Value {
    while let Op::Cast { dtype } = graph.node(v).op
        && dtype.is_float()
        && graph.ty(graph.node(v).inputs[0]).dtype.is_float()
    {
        v = graph.node(v).inputs[0];
    }
    v
}

/// The value without a last axis of size 1 that a reshape added, and without casts.
fn unkept(graph: &Graph, v: Value) -> Value {
    let v = uncast(graph, v);
    let node = graph.node(v);
    if let Op::Reshape { shape } = &node.op
        && let Some((last, lead)) = shape.split_last()
        && last.is_one()
        && graph.ty(node.inputs[0]).shape.0 == lead
    {
        return uncast(graph, node.inputs[0]);
    }
    v
}

impl Pattern {
    /// The definition of a composite with one input [T, n], whose `eps`, if any, is [`FREE`].
    pub(super) fn defined(op: &Op) -> Result<Pattern, SpecError> {
        let mut b = Builder::new();
        let x = b.weight("x", [3, SIZE]);
        let x = b.cast(x, DType::Float);
        let y = define::define(&mut b, op, &[x]).unwrap_or(x);
        b.output("y", y);
        // In the form that the passes before this one give.
        let graph = canonicalise::run(&layout::run(&fold::run(&b.finish()?)?)?)?;
        let y = graph.outputs[0].1;
        Ok(Pattern::of(&graph, y))
    }

    /// The [`FREE`] number, for `defined`.
    pub(super) const EPS: f32 = FREE;

    fn of(graph: &Graph, v: Value) -> Pattern {
        let v = unkept(graph, v);
        let node = graph.node(v);
        let inner = || node.inputs.iter().map(|&i| Pattern::of(graph, i)).collect::<Vec<_>>();
        match &node.op {
            Op::Weight { .. } => Pattern::Any(0),
            Op::Const { .. } => match fold::number(graph, v) {
                Some(FREE) => Pattern::Free(0),
                Some(n) if n == SIZE as f32 => Pattern::Size,
                n => Pattern::Number(n.unwrap_or(f32::NAN)),
            },
            Op::Sum { .. } => Pattern::Reduced(Op::Sum { axis: 0, keep: true }, Box::new(inner().remove(0))),
            Op::ReduceMax { .. } => {
                Pattern::Reduced(Op::ReduceMax { axis: 0, keep: true }, Box::new(inner().remove(0)))
            }
            op => Pattern::Is(op.clone(), inner()),
        }
    }

    /// Whether a node, not yet part of the graph that its inputs are in, looks like this.
    pub(super) fn matches(&self, graph: &Graph, node: &Node) -> Option<Found> {
        let mut found = Found::default();
        self.node(graph, node, &mut found).then_some(found)
    }

    fn value(&self, graph: &Graph, v: Value, found: &mut Found) -> bool {
        match self {
            Pattern::Any(i) => {
                let v = uncast(graph, v);
                match found.values[*i] {
                    Some(known) => known == v,
                    None => {
                        found.values[*i] = Some(v);
                        true
                    }
                }
            }
            Pattern::Number(n) => fold::number(graph, v).is_some_and(|x| close(x, *n)),
            Pattern::Free(i) => match (fold::number(graph, v), found.numbers[*i]) {
                (Some(x), None) => {
                    found.numbers[*i] = Some(x);
                    true
                }
                (x, known) => x.is_some() && x == known,
            },
            Pattern::Size => {
                let size = found.values[0].and_then(|x| graph.ty(x).shape.0.last().and_then(Dim::as_const));
                size.is_some_and(|n| fold::number(graph, v) == Some(n as f32))
            }
            Pattern::Is(..) => self.node(graph, graph.node(unkept(graph, v)), found),
            Pattern::Reduced(op, inner) => {
                let node = graph.node(unkept(graph, v));
                let axis = match (op, &node.op) {
                    (Op::Sum { .. }, Op::Sum { axis, .. }) => axis,
                    (Op::ReduceMax { .. }, Op::ReduceMax { axis, .. }) => axis,
                    _ => return false,
                };
                axis + 1 == graph.ty(node.inputs[0]).shape.rank() && inner.value(graph, node.inputs[0], found)
            }
        }
    }

    fn node(&self, graph: &Graph, node: &Node, found: &mut Found) -> bool {
        let Pattern::Is(op, parts) = self else { return false };
        if *op != node.op || parts.len() != node.inputs.len() {
            return false;
        }
        let both = |order: [usize; 2], found: &mut Found| {
            let mut trial = found.clone();
            // What is not free first: it says what `Size` and repeated values are.
            let fits = (0..2).all(|k| parts[k].value(graph, node.inputs[order[k]], &mut trial));
            if fits {
                *found = trial;
            }
            fits
        };
        match (op, parts.len()) {
            (Op::Mul | Op::Add | Op::Max | Op::Min | Op::And | Op::Or, 2) => {
                both([0, 1], found) || both([1, 0], found) || (*op == Op::Mul && self.factors(graph, node, found))
            }
            _ => parts.iter().zip(&node.inputs).all(|(p, &v)| p.value(graph, v, found)),
        }
    }

    /// Both sides as lists of factors, numbers multiplied out.
    fn factors(&self, graph: &Graph, node: &Node, found: &mut Found) -> bool {
        let mut wanted = vec![];
        let mut wanted_number = 1.0;
        flatten_pattern(self, &mut wanted, &mut wanted_number);
        let (mut given, mut number) = (vec![], 1.0);
        for &v in &node.inputs {
            flatten(graph, v, &mut given, &mut number);
        }
        if given.len() != wanted.len() || given.len() > 5 || !close(number, wanted_number) {
            return false;
        }
        assign(graph, &wanted, &given, found)
    }
}

fn flatten_pattern<'a>(p: &'a Pattern, out: &mut Vec<&'a Pattern>, number: &mut f32) {
    match p {
        Pattern::Is(Op::Mul, parts) => parts.iter().for_each(|p| flatten_pattern(p, out, number)),
        Pattern::Number(n) => *number *= n,
        other => out.push(other),
    }
}

fn flatten(graph: &Graph, v: Value, out: &mut Vec<Value>, number: &mut f32) {
    let v = uncast(graph, v);
    let node = graph.node(v);
    match (&node.op, fold::number(graph, v)) {
        (_, Some(n)) => *number *= n,
        (Op::Mul, _) if out.len() <= 5 => node.inputs.iter().for_each(|&i| flatten(graph, i, out, number)),
        _ => out.push(v),
    }
}

/// Finds for every pattern a value of its own.
fn assign(graph: &Graph, wanted: &[&Pattern], given: &[Value], found: &mut Found) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    (0..given.len()).any(|i| {
        let mut trial = found.clone();
        let mut others = given.to_vec();
        let v = others.remove(i);
        let fits = first.value(graph, v, &mut trial) && assign(graph, rest, &others, &mut trial);
        if fits {
            *found = trial;
        }
        fits
    })
}

/// Equal but for how the number was written: 0.7978845608 for sqrt(2 / pi).
pub(super) fn close(a: f32, b: f32) -> bool {
    a == b || (a - b).abs() <= 2e-6 * b.abs()
}

/// Shorthands for patterns that are written by hand.
pub(super) mod short {
    use super::*;

    pub(in crate::graph::recognise) fn any(i: usize) -> Pattern {
        Pattern::Any(i)
    }

    pub(in crate::graph::recognise) fn num(n: f32) -> Pattern {
        Pattern::Number(n)
    }

    pub(in crate::graph::recognise) fn is<const N: usize>(op: Op, parts: [Pattern; N]) -> Pattern {
        Pattern::Is(op, parts.into())
    }
}
