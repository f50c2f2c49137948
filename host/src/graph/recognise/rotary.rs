//! Rotary embeddings that are written out, in halves and in pairs, on whole heads and on a part of each.

use plugin_api::{DType, Dim, Graph, Node, Op, SpecError, Value};

use super::pattern::uncast;
use super::{Replaced, cast};

/// Elements of the last axis of a value: `start`, `start + step`, ..., `len` of them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    root: Value,
    start: usize,
    len: usize,
    step: usize,
}

/// Which elements are turned together, or repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pairing {
    /// i and i + N
    Halves,
    /// 2i and 2i + 1
    Neighbours,
}

fn last(out: &Graph, v: Value) -> Option<usize> {
    out.ty(v).shape.0.last().and_then(Dim::as_const).and_then(|n| usize::try_from(n).ok())
}

/// What part of which value this is. Looks through casts.
fn range(out: &Graph, v: Value) -> Option<Range> {
    let v = uncast(out, v);
    let whole = || Some(Range { root: v, start: 0, len: last(out, v)?, step: 1 });
    let node = out.node(v);
    match &node.op {
        Op::Slice { axis, start, step, .. } if axis + 1 == node.ty.shape.rank() => {
            let inner = range(out, node.inputs[0])?;
            let start = usize::try_from(start.as_const()?).ok()?;
            let (start, step) = (inner.start + start * inner.step, inner.step * step);
            Some(Range { root: inner.root, start, len: last(out, v)?, step })
        }
        // [.., N] of [.., N, 1], a column of [.., N, step], which is [.., N * step].
        Op::Reshape { shape } => {
            let Op::Slice { axis, start, step: 1, .. } = &out.node(node.inputs[0]).op else { return whole() };
            let columns = uncast(out, out.node(node.inputs[0]).inputs[0]);
            let dims = &out.ty(columns).shape.0;
            let column = *axis == shape.len() && dims.len() == shape.len() + 1 && dims[..*axis] == shape[..];
            let (Op::Reshape { .. }, true) = (&out.node(columns).op, column) else { return whole() };
            let inner = range(out, out.node(columns).inputs[0])?;
            let (step, rows) = (last(out, columns)?, last(out, v)?);
            let same_lead = out.ty(inner.root).shape.0.len() == shape.len()
                && out.ty(inner.root).shape.0[..shape.len() - 1] == shape[..shape.len() - 1];
            if !same_lead || inner.len != step * rows {
                return whole();
            }
            let start = usize::try_from(start.as_const()?).ok()?;
            Some(Range {
                root: inner.root,
                start: inner.start + start * inner.step,
                len: rows,
                step: step * inner.step,
            })
        }
        _ => whole(),
    }
}

/// x of a value [.., N * 2] that holds each element twice.
fn repeated(out: &Graph, v: Value) -> Option<(Value, Pairing)> {
    let v = uncast(out, v);
    let node = out.node(v);
    match &node.op {
        Op::Concat { axis } if axis + 1 == node.ty.shape.rank() => match node.inputs.as_slice() {
            [a, b] if a == b => Some((*a, Pairing::Halves)),
            _ => None,
        },
        Op::Reshape { .. } => {
            let inner = uncast(out, node.inputs[0]);
            if let Op::Broadcast { shape } = &out.node(inner).op {
                let column = out.node(inner).inputs[0];
                let twice = shape.last()?.as_const() == Some(2) && out.ty(column).shape.0.last()?.is_one();
                let x = without_ones(out, column);
                return (twice && last(out, v)? == 2 * last(out, x)?).then_some((x, Pairing::Neighbours));
            }
            // A reshape that only adds an axis of size 1.
            let dims = |v: Value| out.ty(v).shape.0.iter().filter(|d| !d.is_one()).cloned().collect::<Vec<_>>();
            if dims(v) == dims(inner) { repeated(out, inner) } else { None }
        }
        _ => None,
    }
}

/// The value without axes of size 1 that a reshape added.
fn without_ones(out: &Graph, v: Value) -> Value {
    let v = uncast(out, v);
    let node = out.node(v);
    let Op::Reshape { shape } = &node.op else { return v };
    let inner = node.inputs[0];
    let full = |dims: &[Dim]| dims.iter().filter(|d| !d.is_one()).cloned().collect::<Vec<_>>();
    let smaller = out.ty(inner).shape.rank() < shape.len();
    if smaller && full(shape) == full(&out.ty(inner).shape.0) { uncast(out, inner) } else { v }
}

/// Two values whose elements are joined one after the other, or turn by turn.
fn joined(out: &Graph, node: &Node) -> Option<(Vec<Value>, Pairing)> {
    match &node.op {
        Op::Concat { axis } if axis + 1 == node.ty.shape.rank() => Some((node.inputs.clone(), Pairing::Halves)),
        Op::Reshape { shape } => {
            let inner = out.node(uncast(out, node.inputs[0]));
            let Op::Concat { axis } = inner.op else { return None };
            let columns = inner.ty.shape.0.as_slice();
            let fits = axis == shape.len() && columns.len() == shape.len() + 1 && inner.inputs.len() == 2;
            let one = |v: &Value| out.ty(*v).shape.0.last().is_some_and(Dim::is_one);
            if !fits || !inner.inputs.iter().all(one) || columns[..axis - 1] != shape[..axis - 1] {
                return None;
            }
            Some((inner.inputs.iter().map(|&v| without_ones(out, v)).collect(), Pairing::Neighbours))
        }
        _ => None,
    }
}

/// What is turned by which angles.
struct Turn {
    x: Range,
    cos: Value,
    sin: Value,
    pairing: Pairing,
}

/// x * cos + rotated(x) * sin, and the two rows of a rotation joined.
pub(super) fn rotary(out: &mut Graph, node: &Node) -> Replaced {
    let found = match &node.op {
        Op::Add => by_rotated(out, node),
        Op::Concat { .. } | Op::Reshape { .. } => by_rows(out, node),
        _ => None,
    };
    match found {
        Some(turn) => write(out, node, &turn),
        None => Ok(None),
    }
}

/// x * (c, c) + (-x2, x1) * (s, s)
fn by_rotated(out: &Graph, node: &Node) -> Option<Turn> {
    for (plain, turned) in [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])] {
        let (Some((x, cos, pairing)), Some((y, sin, same))) = (by_table(out, plain), by_table(out, turned)) else {
            continue;
        };
        let turned = joined(out, out.node(uncast(out, y)));
        let (Some(x), Some((parts, joined))) = (range(out, x), turned) else { continue };
        let [negated, first] = parts.as_slice() else { continue };
        let negated = out.node(uncast(out, *negated));
        if negated.op != Op::Neg || pairing != same || joined != pairing {
            continue;
        }
        let (Some(second), Some(first)) = (range(out, negated.inputs[0]), range(out, *first)) else { continue };
        if halves(x, pairing) == [first, second] {
            return Some(Turn { x, cos, sin, pairing });
        }
    }
    None
}

/// The two elements that are turned together, of all pairs.
fn halves(x: Range, pairing: Pairing) -> [Range; 2] {
    let n = x.len / 2;
    match pairing {
        Pairing::Halves => [Range { len: n, ..x }, Range { start: x.start + n * x.step, len: n, ..x }],
        Pairing::Neighbours => {
            [Range { len: n, step: 2 * x.step, ..x }, Range { start: x.start + x.step, len: n, step: 2 * x.step, ..x }]
        }
    }
}

/// x and c of x * (c, c)
fn by_table(out: &Graph, v: Value) -> Option<(Value, Value, Pairing)> {
    let node = out.node(uncast(out, v));
    let (Op::Mul, [a, b]) = (&node.op, node.inputs.as_slice()) else { return None };
    [(*a, *b), (*b, *a)].into_iter().find_map(|(x, table)| {
        let (table, pairing) = repeated(out, table)?;
        Some((x, table, pairing))
    })
}

/// (x1 * c - x2 * s, x2 * c + x1 * s), and what is not turned after it.
fn by_rows(out: &Graph, node: &Node) -> Option<Turn> {
    let (parts, joined) = joined(out, node)?;
    let [first, second] = *parts.first_chunk::<2>()?;
    let (difference, sum) = (out.node(uncast(out, first)), out.node(uncast(out, second)));
    if difference.op != Op::Sub || sum.op != Op::Add || parts.len() != 2 {
        return None;
    }
    let factors = |v: Value| {
        let node = out.node(uncast(out, v));
        match (&node.op, node.inputs.as_slice()) {
            (Op::Mul, [a, b]) => vec![(*a, *b), (*b, *a)],
            _ => vec![],
        }
    };
    for (x1, cos) in factors(difference.inputs[0]) {
        for (x2, sin) in factors(difference.inputs[1]) {
            let is = |v: Value, x: Value, y: Value| {
                factors(v).iter().any(|&(a, b)| uncast(out, a) == uncast(out, x) && uncast(out, b) == uncast(out, y))
            };
            let [p, q] = *sum.inputs.first_chunk::<2>()?;
            if !(is(p, x2, cos) && is(q, x1, sin) || is(q, x2, cos) && is(p, x1, sin)) {
                continue;
            }
            let (Some(a), Some(b)) = (range(out, x1), range(out, x2)) else { continue };
            let whole = match joined {
                Pairing::Halves => Range { len: 2 * a.len, ..a },
                Pairing::Neighbours if a.step % 2 == 0 => Range { len: 2 * a.len, step: a.step / 2, ..a },
                Pairing::Neighbours => continue,
            };
            let (cos, sin) = (without_ones(out, cos), without_ones(out, sin));
            let angles = out.ty(cos).shape.rank() == 2 && out.ty(sin).shape.rank() == 2;
            if halves(whole, joined) == [a, b] && angles && last(out, cos) == Some(a.len) {
                return Some(Turn { x: whole, cos, sin, pairing: joined });
            }
        }
    }
    None
}

fn write(out: &mut Graph, node: &Node, turn: &Turn) -> Replaced {
    let Turn { x, cos, sin, pairing } = turn;
    let (cos, sin) = (uncast(out, *cos), uncast(out, *sin));
    let dims = node.ty.shape.0.clone();
    let angles = [dims[0].clone(), Dim::from(x.len / 2)];
    let fits = x.step == 1
        && x.len % 2 == 0
        && (2..=3).contains(&dims.len())
        && last(out, x.root).is_some_and(|n| x.start + x.len <= n)
        && dims.last() == Some(&Dim::from(x.len))
        && out.ty(x.root).shape.0[..][..dims.len() - 1] == dims[..dims.len() - 1]
        && [cos, sin].iter().all(|v| out.ty(*v).shape.0 == angles && out.ty(*v).dtype.is_float());
    if !fits {
        return Ok(None);
    }
    let name = &node.name;
    let mut y = sliced(out, x, name)?;
    // One head has lost its axis.
    let heads = [dims[0].clone(), Dim::from(1usize), dims[dims.len() - 1].clone()];
    if dims.len() == 2 {
        y = out.push(Op::Reshape { shape: heads.to_vec() }, vec![y], name)?;
    }
    let (cos, sin) = (cast(out, cos, DType::F32, name)?, cast(out, sin, DType::F32, name)?);
    y = out.push(Op::Rope { interleaved: *pairing == Pairing::Neighbours }, vec![y, cos, sin], name)?;
    if dims.len() == 2 {
        y = out.push(Op::Reshape { shape: dims }, vec![y], name)?;
    }
    cast(out, y, node.ty.dtype, name).map(Some)
}

fn sliced(out: &mut Graph, x: &Range, name: &str) -> Result<Value, SpecError> {
    if x.start == 0 && last(out, x.root) == Some(x.len) {
        return Ok(x.root);
    }
    let axis = out.ty(x.root).shape.rank() - 1;
    let (start, end) = (x.start.into(), (x.start + x.len).into());
    out.push(Op::Slice { axis, start, end, step: 1 }, vec![x.root], name)
}

/// (rope(x[..R]), x[R..]) is rope(x): it turns the first elements of every head.
pub(super) fn partial(out: &mut Graph, node: &Node) -> Replaced {
    let (Op::Concat { axis }, [turned, rest]) = (&node.op, node.inputs.as_slice()) else { return Ok(None) };
    let rope = out.node(uncast(out, *turned)).clone();
    if !matches!(rope.op, Op::Rope { .. }) || axis + 1 != node.ty.shape.rank() {
        return Ok(None);
    }
    let (Some(head), Some(tail)) = (range(out, rope.inputs[0]), range(out, *rest)) else { return Ok(None) };
    let whole = head.root == tail.root
        && (head.start, head.step, tail.step) == (0, 1, 1)
        && tail.start == head.len
        && last(out, head.root) == Some(head.len + tail.len);
    if !whole {
        return Ok(None);
    }
    let y = out.push(rope.op, vec![head.root, rope.inputs[1], rope.inputs[2]], &node.name)?;
    cast(out, y, node.ty.dtype, &node.name).map(Some)
}
