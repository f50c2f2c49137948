//! Which keys a query may see, read from how a mask was computed: comparisons of indices, their combinations, and
//! additive masks made of them.

use plugin_api::{ConstData, Graph, InputKind, Op, Value};

use super::pattern::uncast;
use crate::graph::fold;

/// A query i may see key j where `from` <= i - j < `to`, and i and j are of one chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Band {
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
    pub(super) chunk: Option<u32>,
}

impl Band {
    const ALL: Band = Band { from: None, to: None, chunk: None };

    pub(super) fn and(self, other: Band) -> Option<Band> {
        let chunk = match (self.chunk, other.chunk) {
            (Some(a), Some(b)) if a != b => return None,
            (a, b) => a.or(b),
        };
        let smaller = |a: Option<i64>, b: Option<i64>| a.into_iter().chain(b).min();
        Some(Band { from: self.from.max(other.from), to: smaller(self.to, other.to), chunk })
    }

    fn not(self) -> Option<Band> {
        match self {
            Band { from: Some(from), to: None, chunk: None } => Some(Band { to: Some(from), ..Band::ALL }),
            Band { from: None, to: Some(to), chunk: None } => Some(Band { from: Some(to), ..Band::ALL }),
            _ => None,
        }
    }

    /// Where exactly one of the two holds, if that is a band: one must begin within the other.
    fn differs(self, other: Band) -> Option<Band> {
        match (self, other) {
            (Band { from: Some(a), to: None, chunk: None }, Band { from: Some(b), to: None, chunk: None }) => {
                Some(Band { from: Some(a.min(b)), to: Some(a.max(b)), chunk: None })
            }
            _ => None,
        }
    }
}

/// A number so low that the softmax of it is 0.
pub(super) fn is_low(graph: &Graph, v: Value) -> bool {
    fold::number(graph, v).is_some_and(|n| n <= -1e4)
}

fn is(graph: &Graph, v: Value, n: f32) -> bool {
    fold::number(graph, v) == Some(n)
}

/// The band where a mask of truth values holds.
pub(super) fn band(graph: &Graph, v: Value) -> Option<Band> {
    let node = graph.node(v);
    let input = |i: usize| node.inputs[i];
    match &node.op {
        Op::CausalMask { window, chunk } => Some(Band { from: Some(0), to: window.map(i64::from), chunk: *chunk }),
        Op::And => band(graph, input(0))?.and(band(graph, input(1))?),
        Op::Or => band(graph, input(0))?.not()?.and(band(graph, input(1))?.not()?)?.not(),
        Op::Not => band(graph, input(0))?.not(),
        // A part of a larger mask, from its first row and column; an axis of size 1 before it.
        Op::Slice { start, step: 1, .. } if start.as_const() == Some(0) => band(graph, input(0)),
        Op::Reshape { shape } if shape.iter().filter(|d| !d.is_one()).count() == 2 => band(graph, input(0)),
        // An additive mask is not zero where nothing is to be seen.
        Op::Cast { .. } if graph.ty(input(0)).dtype.is_float() => added(graph, input(0))?.not(),
        Op::Ne if is(graph, input(1), 0.0) => added(graph, input(0))?.not(),
        Op::Eq if is(graph, input(1), 0.0) => added(graph, input(0)),
        Op::Ne => band(graph, input(0))?.differs(band(graph, input(1))?),
        Op::Le | Op::Lt | Op::Ge | Op::Gt => compared(graph, &node.op, input(0), input(1)),
        _ => None,
    }
}

/// The band where a mask of truth values does not hold.
pub(super) fn hidden(graph: &Graph, v: Value) -> Option<Band> {
    let node = graph.node(v);
    match &node.op {
        Op::Not => band(graph, node.inputs[0]),
        Op::Cast { .. } if graph.ty(node.inputs[0]).dtype.is_float() => added(graph, node.inputs[0]),
        Op::Ne if is(graph, node.inputs[1], 0.0) => added(graph, node.inputs[0]),
        Op::Or => hidden(graph, node.inputs[0])?.and(hidden(graph, node.inputs[1])?),
        _ => band(graph, v)?.not(),
    }
}

/// The band of an additive mask: 0 where a key is seen, else a very low number.
pub(super) fn added(graph: &Graph, v: Value) -> Option<Band> {
    let v = uncast(graph, v);
    let node = graph.node(v);
    match (&node.op, node.inputs.as_slice()) {
        (Op::Select, [m, a, b]) if is(graph, *a, 0.0) && is_low(graph, *b) => band(graph, *m),
        (Op::Select, [m, a, b]) if is_low(graph, *a) && is(graph, *b, 0.0) => band(graph, *m)?.not(),
        (Op::Reshape { .. }, [x]) => added(graph, *x),
        // (1 - m) times a low number, m being 1 where a key is seen.
        (Op::Mul, [a, b]) if is_low(graph, *b) => match (&graph.node(uncast(graph, *a)).op, counted(graph, *a)) {
            (Op::Add | Op::Sub, None) => {
                let inner = graph.node(uncast(graph, *a));
                let one_minus = inner.op == Op::Sub && is(graph, inner.inputs[0], 1.0);
                if one_minus { counted(graph, inner.inputs[1]) } else { None }
            }
            (_, hidden) => hidden?.not(),
        },
        _ => None,
    }
}

/// The band where a mask of ones and zeros is 1.
pub(super) fn counted(graph: &Graph, v: Value) -> Option<Band> {
    let v = uncast(graph, v);
    let node = graph.node(v);
    match (&node.op, node.inputs.as_slice()) {
        (Op::Select, [m, a, b]) if is(graph, *a, 1.0) && is(graph, *b, 0.0) => band(graph, *m),
        (Op::Cast { .. }, [m]) => band(graph, *m),
        (Op::Slice { start, step: 1, .. }, [x]) if start.as_const() == Some(0) => counted(graph, *x),
        (Op::Reshape { .. }, [x]) => counted(graph, *x),
        _ => None,
    }
}

/// An index of rows (queries) or columns (keys), plus a number.
enum Index {
    Row(i64),
    Column(i64),
    /// Row - column, plus a number.
    Distance(i64),
    Number(i64),
}

fn compared(graph: &Graph, op: &Op, a: Value, b: Value) -> Option<Band> {
    use Index::*;
    // a - b as sign * (row - column) + offset
    let (sign, offset) = match (index(graph, a)?, index(graph, b)?) {
        (Row(a), Column(b)) => (1, a - b),
        (Column(a), Row(b)) => (-1, a - b),
        (Distance(a), Number(b)) => (1, a - b),
        (Number(a), Distance(b)) => (-1, a - b),
        _ => return None,
    };
    // d = row - column: d + offset >= 0, or offset - d >= 0, and the like.
    Some(match (op, sign) {
        (Op::Ge, 1) => Band { from: Some(-offset), ..Band::ALL },
        (Op::Gt, 1) => Band { from: Some(1 - offset), ..Band::ALL },
        (Op::Le, 1) => Band { to: Some(1 - offset), ..Band::ALL },
        (Op::Lt, 1) => Band { to: Some(-offset), ..Band::ALL },
        (Op::Ge, _) => Band { to: Some(offset + 1), ..Band::ALL },
        (Op::Gt, _) => Band { to: Some(offset), ..Band::ALL },
        (Op::Le, _) => Band { from: Some(offset), ..Band::ALL },
        _ => Band { from: Some(offset + 1), ..Band::ALL },
    })
}

fn index(graph: &Graph, v: Value) -> Option<Index> {
    use Index::*;
    let node = graph.node(v);
    let row = |i: Index| if let Column(n) = i { Some(Row(n)) } else { None };
    match (&node.op, node.inputs.as_slice()) {
        (Op::Input { kind: InputKind::Positions }, _) => Some(Column(0)),
        (Op::Iota { .. }, _) => Some(Column(0)),
        (Op::Const { data: ConstData::I64(v), shape, .. }, _) => match (v.as_slice(), shape.as_slice()) {
            ([n], _) => Some(Number(*n)),
            ([first, ..], [.., last]) if v.iter().zip(*first..).all(|(a, b)| *a == b) => {
                let counted = if *last == 1 { Row(*first) } else { Column(*first) };
                (shape.iter().filter(|d| **d > 1).count() == 1).then_some(counted)
            }
            _ => None,
        },
        (Op::Reshape { shape }, [x]) if shape.last().is_some_and(|d| d.is_one()) => row(index(graph, *x)?),
        (Op::Reshape { .. }, [x]) => index(graph, *x),
        (Op::Add, [a, b]) => match (index(graph, *a)?, index(graph, *b)?) {
            (Row(a), Number(b)) | (Number(a), Row(b)) => Some(Row(a + b)),
            (Column(a), Number(b)) | (Number(a), Column(b)) => Some(Column(a + b)),
            _ => None,
        },
        (Op::Sub, [a, b]) => match (index(graph, *a)?, index(graph, *b)?) {
            (Row(a), Number(b)) => Some(Row(a - b)),
            (Column(a), Number(b)) => Some(Column(a - b)),
            (Row(a), Column(b)) => Some(Distance(a - b)),
            _ => None,
        },
        _ => None,
    }
}
