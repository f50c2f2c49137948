//! The table of primitives: one line for each op of the graph language and each type of element that it takes, for the CPU
//! executor (`kernels.rs`) and for the emulated device (`device.rs`).

use plugin_api::{DType, Dim, Op, Value};

use super::kernels::{Case, Line};

/// Integers from -12 to 12, several times each: 3 dimensions of them.
fn ints(c: &mut Case, dims: &[usize]) -> Value {
    let x = c.x(dims);
    let x = c.b.scale(x, 12.0);
    c.b.cast(x, DType::I64)
}

/// Truth values.
fn truths(c: &mut Case, dims: &[usize]) -> Value {
    let (x, y) = (c.x(dims), c.x(dims));
    c.op(Op::Gt, &[x, y])
}

/// Floats with ties and zeros.
fn coarse(c: &mut Case, dims: &[usize]) -> Value {
    let x = c.x(dims);
    let x = c.b.scale(x, 2.5);
    c.op(Op::Round, &[x])
}

/// What is defined for positive numbers only.
fn positive(c: &mut Case, op: Op) -> Value {
    let x = c.x(&[7]);
    let x = c.op(Op::Abs, &[x]);
    let x = c.b.shift(x, 0.125);
    c.op(op, &[x])
}

fn unary(c: &mut Case, op: Op) -> Value {
    let x = c.x(&[3, 7]);
    let x = c.b.scale(x, 3.0);
    c.op(op, &[x])
}

fn binary(c: &mut Case, op: Op) -> Value {
    let (x, y, w) = (c.x(&[2, 5]), c.x(&[5]), c.w(&[5]));
    let y = c.shaped(y, &[1, 5]);
    let a = c.op(op.clone(), &[x, y]);
    let b = c.op(op, &[w, x]);
    c.b.concat(1, &[a, b])
}

fn int_unary(c: &mut Case, op: Op) -> Value {
    let x = ints(c, &[9]);
    c.op(op, &[x])
}

fn int_binary(c: &mut Case, op: Op) -> Value {
    let (x, y) = (ints(c, &[2, 5]), ints(c, &[5]));
    // No zeros: they are an error of divisions.
    let one = c.b.int(1);
    let odd = c.b.add(y, y);
    let y = c.b.add(odd, one);
    let y = c.shaped(y, &[1, 5]);
    c.op(op, &[x, y])
}

/// Compares floats, integers and truth values.
fn comparison(c: &mut Case, op: Op) -> Value {
    let (x, y) = (coarse(c, &[8]), coarse(c, &[8]));
    let (i, j) = (ints(c, &[8]), ints(c, &[8]));
    let (s, t) = (truths(c, &[8]), truths(c, &[1]));
    let all = [[x, y], [i, j], [s, t]].map(|pair| c.op(op.clone(), &pair));
    c.b.concat(1, &all)
}

fn reduction(c: &mut Case, op: fn(usize, bool) -> Op) -> Value {
    let x = coarse(c, &[3, 4]);
    let i = ints(c, &[3, 4]);
    let all = [(x, 1), (x, 2), (i, 1), (i, 2)].map(|(x, axis)| {
        let y = c.op(op(axis, false), &[x]);
        let n = c.b.ty(y).shape.0[1].as_const().unwrap() as usize;
        let y = c.b.cast(y, DType::Float);
        c.shaped(y, &[n])
    });
    c.b.concat(1, &all)
}

/// Places of a lane, of integers and of floats.
fn sorted(c: &mut Case, op: &dyn Fn(usize) -> Op, n: usize) -> Value {
    let (x, i) = (coarse(c, &[2, n]), ints(c, &[2, n]));
    let all = [x, i].map(|x| c.op(op(n), &[x]));
    c.b.concat(1, &all)
}

fn dims(d: &[usize]) -> Vec<Dim> {
    std::iter::once(Dim::T()).chain(d.iter().map(|&n| n.into())).collect()
}

#[rustfmt::skip]
pub(super) const PRIMITIVES: &[Line] = &[
    ("neg", "elementwise neg", |c| unary(c, Op::Neg)),
    ("abs", "elementwise abs", |c| unary(c, Op::Abs)),
    ("sign", "elementwise sign", |c| { let x = coarse(c, &[9]); c.op(Op::Sign, &[x]) }),
    ("exp", "activate Exp", |c| unary(c, Op::Exp)),
    ("log", "elementwise log", |c| positive(c, Op::Log)),
    ("sqrt", "elementwise sqrt", |c| positive(c, Op::Sqrt)),
    ("rsqrt", "elementwise rsqrt", |c| positive(c, Op::Rsqrt)),
    ("sin", "elementwise sin", |c| unary(c, Op::Sin)),
    ("cos", "elementwise cos", |c| unary(c, Op::Cos)),
    ("tanh", "activate Tanh", |c| unary(c, Op::Tanh)),
    ("sigmoid", "activate Sigmoid", |c| unary(c, Op::Sigmoid)),
    ("erf", "elementwise erf", |c| unary(c, Op::Erf)),
    ("floor", "elementwise floor", |c| unary(c, Op::Floor)),
    ("ceil", "elementwise ceil", |c| unary(c, Op::Ceil)),
    ("round", "elementwise round", |c| unary(c, Op::Round)),
    ("not", "elementwise not", |c| { let t = truths(c, &[9]); c.op(Op::Not, &[t]) }),
    ("add", "elementwise add", |c| binary(c, Op::Add)),
    ("sub", "elementwise sub", |c| binary(c, Op::Sub)),
    ("mul", "elementwise mul", |c| binary(c, Op::Mul)),
    ("div", "elementwise div", |c| { let x = c.x(&[6]); let y = positive(c, Op::Sqrt); let y = c.b.slice(y, 1, 0usize, 6usize); c.op(Op::Div, &[x, y]) }),
    ("pow", "elementwise pow", |c| { let x = positive(c, Op::Sqrt); let y = c.x(&[7]); c.op(Op::Pow, &[x, y]) }),
    ("max", "elementwise max", |c| binary(c, Op::Max)),
    ("min", "elementwise min", |c| binary(c, Op::Min)),
    // Of coarse numbers: a remainder jumps where the quotient is whole.
    ("rem", "elementwise rem", |c| { let (x, y) = (coarse(c, &[7]), positive(c, Op::Sqrt)); let y = c.b.scale(y, 0.37); c.op(Op::Rem, &[x, y]) }),
    ("neg of integers", "elementwise neg", |c| int_unary(c, Op::Neg)),
    ("abs of integers", "elementwise abs", |c| int_unary(c, Op::Abs)),
    ("sign of integers", "elementwise sign", |c| int_unary(c, Op::Sign)),
    ("add of integers", "elementwise add", |c| int_binary(c, Op::Add)),
    ("sub of integers", "elementwise sub", |c| int_binary(c, Op::Sub)),
    ("mul of integers", "elementwise mul", |c| int_binary(c, Op::Mul)),
    ("div of integers", "elementwise div", |c| int_binary(c, Op::Div)),
    ("max of integers", "elementwise max", |c| int_binary(c, Op::Max)),
    ("min of integers", "elementwise min", |c| int_binary(c, Op::Min)),
    ("rem of integers", "elementwise rem", |c| int_binary(c, Op::Rem)),
    ("and", "elementwise and", |c| { let (s, t) = (truths(c, &[3, 4]), truths(c, &[1, 4])); c.op(Op::And, &[s, t]) }),
    ("or", "elementwise or", |c| { let (s, t) = (truths(c, &[3, 4]), truths(c, &[1, 4])); c.op(Op::Or, &[s, t]) }),
    ("eq", "elementwise eq", |c| comparison(c, Op::Eq)),
    ("ne", "elementwise ne", |c| comparison(c, Op::Ne)),
    ("lt", "elementwise lt", |c| comparison(c, Op::Lt)),
    ("le", "elementwise le", |c| comparison(c, Op::Le)),
    ("gt", "elementwise gt", |c| comparison(c, Op::Gt)),
    ("ge", "elementwise ge", |c| comparison(c, Op::Ge)),
    ("select", "elementwise select", |c| { let t = truths(c, &[3, 1]); let (x, y) = (c.x(&[3, 4]), c.w(&[4])); c.b.select(t, x, y) }),
    ("select of integers", "elementwise select", |c| { let t = truths(c, &[3, 1]); let (x, y) = (ints(c, &[3, 4]), ints(c, &[1, 4])); c.b.select(t, x, y) }),
    ("select of truth values", "elementwise select", |c| { let t = truths(c, &[3, 1]); let (x, y) = (truths(c, &[3, 4]), truths(c, &[1, 4])); c.b.select(t, x, y) }),
    ("cast of floats to integers", "elementwise cast", |c| { let x = unary(c, Op::Neg); c.b.cast(x, DType::I64) }),
    ("cast of floats to truth values", "elementwise cast(dtype:bool)", |c| { let x = coarse(c, &[9]); let x = c.b.cast(x, DType::Bool); c.b.cast(x, DType::Float) }),
    ("cast of integers to truth values", "elementwise cast(dtype:bool)", |c| { let (x, two) = (ints(c, &[9]), c.b.int(2)); let x = c.op(Op::Rem, &[x, two]); let x = c.b.cast(x, DType::Bool); c.b.cast(x, DType::I64) }),
    ("cast of truth values", "elementwise cast", |c| { let t = truths(c, &[9]); let i = c.b.cast(t, DType::I64); let x = c.b.cast(t, DType::F32); let i = c.b.cast(i, DType::F32); c.b.add(i, x) }),
    ("cast to the same type", "elementwise not", |c| { let t = truths(c, &[9]); let t = c.b.cast(t, DType::Bool); let t = c.op(Op::Not, &[t]); let i = c.b.cast(t, DType::I64); c.b.cast(i, DType::I64) }),
    ("sum", "rows sum", |c| reduction(c, |axis, keep| Op::Sum { axis, keep })),
    ("reduce_max", "rows reduce_max", |c| reduction(c, |axis, keep| Op::ReduceMax { axis, keep })),
    ("reduce_min", "rows reduce_min", |c| reduction(c, |axis, keep| Op::ReduceMin { axis, keep })),
    ("argmax", "rows argmax", |c| reduction(c, |axis, keep| Op::Argmax { axis, keep })),
    ("cumsum", "rows cumsum", |c| { let (x, i) = (c.x(&[3, 4]), ints(c, &[3, 4])); let x = c.op(Op::Cumsum { axis: 1 }, &[x]); let i = c.op(Op::Cumsum { axis: 2 }, &[i]); let i = c.b.cast(i, DType::Float); c.b.add(x, i) }),
    ("sum of nothing", "reference sum", |c| { let x = c.x(&[3]); let e = c.b.slice(x, 1, 1usize, 1usize); let s = c.op(Op::Sum { axis: 1, keep: true }, &[e]); c.b.add(x, s) }),
    ("matmul", "reference matmul", |c| { let (a, b) = (c.x(&[2, 3, 4]), c.x(&[2, 4, 5])); c.b.matmul(a, b) }),
    ("matmul of one for several", "reference matmul", |c| { let (a, b) = (c.x(&[3, 2, 1, 2, 4]), c.x(&[1, 1, 3, 4, 2])); c.b.matmul(a, b) }),
    ("matmul with weights", "reference matmul", |c| { let (a, b, d) = (c.x(&[2, 3, 4]), c.w(&[2, 4, 5]), c.w(&[1, 2, 5, 3])); let y = c.b.matmul(a, b); let y = c.b.matmul(y, d); let e = c.w(&[2, 3]); c.b.matmul(e, y) }),
    ("matmul over nothing", "reference matmul", |c| { let x = c.x(&[3]); let e = c.b.slice(x, 1, 1usize, 1usize); let w = c.w(&[0, 3]); let y = c.b.matmul(e, w); c.b.add(x, y) }),
    ("reshape", "linear ", |c| { let (x, w) = (c.x(&[3, 4]), c.w(&[5, 6])); let x = c.shaped(x, &[2, 6]); c.b.linear(x, w) }),
    ("permute", "rows permute", |c| { let (x, i) = (c.x(&[2, 3, 4]), ints(c, &[2, 3, 4])); let x = c.b.permute(x, [0, 3, 1, 2]); let i = c.b.permute(i, [0, 3, 1, 2]); let i = c.b.cast(i, DType::Float); c.b.add(x, i) }),
    ("broadcast", "rows broadcast", |c| { let (x, t) = (c.x(&[3, 1]), truths(c, &[1, 4])); let shape = dims(&[3, 4]); let x = c.op(Op::Broadcast { shape: shape.clone() }, &[x]); let t = c.op(Op::Broadcast { shape }, &[t]); let t = c.b.cast(t, DType::Float); c.b.add(x, t) }),
    ("broadcast of integers that are fixed", "reference broadcast", |c| { let i = c.b.iota(4usize); let i = c.op(Op::Broadcast { shape: dims(&[4]) }, &[i]); let j = ints(c, &[4]); c.b.add(i, j) }),
    ("slice", "rows slice", |c| { let i = ints(c, &[3, 7]); c.op(Op::Slice { axis: 2, start: 1usize.into(), end: 6usize.into(), step: 2 }, &[i]) }),
    ("concat", "rows concat", |c| { let (i, j) = (ints(c, &[2, 3]), ints(c, &[2, 4])); c.b.concat(2, &[i, j]) }),
    ("take", "reference take", |c| { let (w, i, n) = (c.w(&[5, 2, 3]), ints(c, &[4]), c.b.int(5)); let i = c.op(Op::Rem, &[i, n]); c.op(Op::Take { axis: 0 }, &[w, i]) }),
    ("take of integers and truth values", "reference take", |c| { let (p, i, n) = (c.b.iota(5usize), ints(c, &[4]), c.b.int(5)); let two = c.b.int(2); let odd = c.op(Op::Rem, &[p, two]); let t = c.b.cast(odd, DType::Bool); let i = c.op(Op::Rem, &[i, n]); let a = c.op(Op::Take { axis: 0 }, &[p, i]); let b = c.op(Op::Take { axis: 0 }, &[t, i]); let b = c.b.cast(b, DType::I64); c.b.add(a, b) }),
    ("gather", "rows gather", |c| { let (x, i, n) = (c.x(&[3, 4, 2]), ints(c, &[3, 6, 2]), c.b.int(4)); let i = c.op(Op::Rem, &[i, n]); c.op(Op::Gather { axis: 2 }, &[x, i]) }),
    ("scatter", "rows scatter", |c| { let (x, v, i) = (c.x(&[3, 4]), c.x(&[3, 6]), ints(c, &[3, 6])); let n = c.b.int(4); let i = c.op(Op::Rem, &[i, n]); c.op(Op::Scatter { axis: 2 }, &[x, i, v]) }),
    ("scatter_add", "rows scatter_add", |c| { let (x, v, i) = (c.x(&[3, 4]), c.x(&[3, 6]), ints(c, &[3, 6])); let n = c.b.int(4); let i = c.op(Op::Rem, &[i, n]); c.op(Op::ScatterAdd { axis: 2 }, &[x, i, v]) }),
    ("scatter_add of integers", "reference scatter_add", |c| { let (x, v, i) = (ints(c, &[3, 4]), ints(c, &[3, 6]), ints(c, &[3, 6])); let n = c.b.int(4); let i = c.op(Op::Rem, &[i, n]); c.op(Op::ScatterAdd { axis: 2 }, &[x, i, v]) }),
    ("top_k", "rows top_k", |c| sorted(c, &|_| Op::TopK { k: 5 }, 9)),
    ("top_k of many", "reference top_k", |c| sorted(c, &|_| Op::TopK { k: 70 }, 75)),
    ("argsort", "reference argsort", |c| sorted(c, &|_| Op::Argsort { descending: false }, 9)),
    ("argsort, descending", "reference argsort", |c| sorted(c, &|_| Op::Argsort { descending: true }, 9)),
    ("select_outputs", "select_rows", |c| { let x = ints(c, &[5]); c.b.select_outputs(x) }),
];

/// Every primitive that can be in a plan; the others are inputs, what is computed at load, or mix tokens and are refused.
#[test]
fn the_table_has_every_primitive() {
    let mut counts = std::collections::HashMap::new();
    for (_, _, make) in PRIMITIVES {
        super::support::census(&super::kernels::graph(make), &mut counts);
    }
    for name in "neg abs sign exp log sqrt rsqrt sin cos tanh sigmoid erf floor ceil round not add sub mul div pow max min \
                 rem and or eq ne lt le gt ge select cast sum reduce_max reduce_min argmax cumsum matmul reshape permute \
                 broadcast slice concat take gather scatter scatter_add top_k argsort select_outputs"
        .split_whitespace()
    {
        assert!(counts.contains_key(name), "no line has `{name}`");
    }
}
