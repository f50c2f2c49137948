//! One table of cases over literals: op, inputs, what must come out (or a part of the error message).

// Expected values are written down as they were computed.
#![allow(clippy::excessive_precision, clippy::approx_constant)]

use plugin_api::{DType, Dim, Op};

use super::{Tensor, assert_close, run_op};

struct Case {
    what: &'static str,
    op: Op,
    inputs: Vec<Tensor>,
    expected: Result<Tensor, &'static str>,
}

fn case(what: &'static str, op: Op, inputs: Vec<Tensor>, expected: Tensor) -> Case {
    Case { what, op, inputs, expected: Ok(expected) }
}

fn error(what: &'static str, op: Op, inputs: Vec<Tensor>, part: &'static str) -> Case {
    Case { what, op, inputs, expected: Err(part) }
}

fn f(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::f32(shape, data.to_vec())
}

fn i(shape: &[usize], data: &[i64]) -> Tensor {
    Tensor::i64(shape, data.to_vec())
}

fn b(shape: &[usize], data: &[u8]) -> Tensor {
    Tensor::bool(shape, data.iter().map(|&x| x != 0).collect())
}

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
const X: [f32; 5] = [-2.5, -0.3, 0.0, 0.7, 3.0];

/// Expected values are those of Python's `math`, in double precision, at the f32 arguments.
fn unary_cases() -> Vec<Case> {
    let x = || vec![f(&[5], &X)];
    let halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.4999998, 8388609.0];
    let erf_x = [0.0, 1e-8, -0.1, 0.3, 0.5, 0.84375, -1.0, 1.25, 1.5, 2.0, -2.5, 2.857143, 3.5, 4.0, 6.5, INF];
    let erf_y = [
        0.0,
        1.128_379_2e-8,
        -0.112_462_92,
        0.328_626_78,
        0.520_499_9,
        0.767_225_7,
        -0.842_700_8,
        0.922_900_1,
        0.966_105_1,
        0.995_322_3,
        -0.999_593_04,
        0.999_946_7,
        0.999_999_26,
        1.0,
        1.0,
        1.0,
    ];
    vec![
        case("neg", Op::Neg, x(), f(&[5], &[2.5, 0.3, 0.0, -0.7, -3.0])),
        case("neg i64", Op::Neg, vec![i(&[3], &[5, -7, i64::MIN])], i(&[3], &[-5, 7, i64::MIN])),
        case("abs", Op::Abs, x(), f(&[5], &[2.5, 0.3, 0.0, 0.7, 3.0])),
        case("abs i64", Op::Abs, vec![i(&[2], &[-4, 4])], i(&[2], &[4, 4])),
        case("sign", Op::Sign, vec![f(&[4], &[-9.0, 0.0, 1e-30, NAN])], f(&[4], &[-1.0, 0.0, 1.0, NAN])),
        case("sign i64", Op::Sign, vec![i(&[3], &[-9, 0, 12])], i(&[3], &[-1, 0, 1])),
        case("exp", Op::Exp, x(), f(&[5], &[0.082_085, 0.740_818_2, 1.0, 2.013_752_7, 20.085_537])),
        case("exp of -inf", Op::Exp, vec![f(&[2], &[-INF, INF])], f(&[2], &[0.0, INF])),
        case(
            "log",
            Op::Log,
            vec![f(&[5], &[0.1, 1.0, 2.5, 0.0, -1.0])],
            f(&[5], &[-2.302_585, 0.0, 0.916_290_7, -INF, NAN]),
        ),
        case("sqrt", Op::Sqrt, vec![f(&[4], &[0.1, 1.0, 2.5, -1.0])], f(&[4], &[0.316_227_77, 1.0, 1.581_138_8, NAN])),
        case("rsqrt", Op::Rsqrt, vec![f(&[4], &[0.1, 1.0, 2.5, 0.0])], f(&[4], &[3.162_277_7, 1.0, 0.632_455_53, INF])),
        case("sin", Op::Sin, x(), f(&[5], &[-0.598_472_14, -0.295_520_22, 0.0, 0.644_217_7, 0.141_120_01])),
        case("cos", Op::Cos, x(), f(&[5], &[-0.801_143_6, 0.955_336_5, 1.0, 0.764_842_2, -0.989_992_5])),
        case("tanh", Op::Tanh, x(), f(&[5], &[-0.986_614_3, -0.291_312_63, 0.0, 0.604_367_8, 0.995_054_77])),
        case("sigmoid", Op::Sigmoid, x(), f(&[5], &[0.075_858_18, 0.425_557_48, 0.5, 0.668_187_8, 0.952_574_13])),
        case("sigmoid far out", Op::Sigmoid, vec![f(&[2], &[-200.0, 200.0])], f(&[2], &[0.0, 1.0])),
        case("erf", Op::Erf, vec![f(&[16], &erf_x)], f(&[16], &erf_y)),
        case("floor", Op::Floor, x(), f(&[5], &[-3.0, -1.0, 0.0, 0.0, 3.0])),
        case("ceil", Op::Ceil, x(), f(&[5], &[-2.0, 0.0, 0.0, 1.0, 3.0])),
        case("round", Op::Round, vec![f(&[8], &halves)], f(&[8], &[-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 2.0, 8388609.0])),
        case("not", Op::Not, vec![b(&[2, 1], &[0, 1])], b(&[2, 1], &[1, 0])),
        case("no elements", Op::Exp, vec![f(&[0, 3], &[])], f(&[0, 3], &[])),
        case("a scalar", Op::Neg, vec![f(&[], &[4.0])], f(&[], &[-4.0])),
    ]
}

fn binary_cases() -> Vec<Case> {
    let ab = || vec![f(&[5], &[7.0, -7.0, 7.0, -7.0, 1.0]), f(&[5], &[2.0, 2.0, -2.0, -2.0, 0.0])];
    let ints = || vec![i(&[6], &[7, -7, 7, -7, -8, 6]), i(&[6], &[2, 2, -2, -2, 2, 3])];
    let nans = || vec![f(&[4], &[NAN, 1.0, -INF, 2.0]), f(&[4], &[1.0, NAN, 3.0, -2.0])];
    vec![
        case("add", Op::Add, ab(), f(&[5], &[9.0, -5.0, 5.0, -9.0, 1.0])),
        case(
            "add stretches both",
            Op::Add,
            vec![f(&[2, 1], &[1.0, 2.0]), f(&[3], &[10.0, 20.0, 30.0])],
            f(&[2, 3], &[11.0, 21.0, 31.0, 12.0, 22.0, 32.0]),
        ),
        case("add scalar", Op::Add, vec![f(&[2], &[1.0, 2.0]), f(&[], &[0.5])], f(&[2], &[1.5, 2.5])),
        case("add of nothing", Op::Add, vec![f(&[0, 2], &[]), f(&[2], &[1.0, 2.0])], f(&[0, 2], &[])),
        case("add i64 wraps", Op::Add, vec![i(&[1], &[i64::MAX]), i(&[1], &[1])], i(&[1], &[i64::MIN])),
        case(
            "sub",
            Op::Sub,
            vec![f(&[2], &[1.0, 2.0]), f(&[2, 1], &[10.0, 20.0])],
            f(&[2, 2], &[-9.0, -8.0, -19.0, -18.0]),
        ),
        case("sub i64", Op::Sub, ints(), i(&[6], &[5, -9, 9, -5, -10, 3])),
        case("mul", Op::Mul, ab(), f(&[5], &[14.0, -14.0, -14.0, 14.0, 0.0])),
        case("mul i64", Op::Mul, ints(), i(&[6], &[14, -14, -14, 14, -16, 18])),
        case("div", Op::Div, ab(), f(&[5], &[3.5, -3.5, -3.5, 3.5, INF])),
        case("div i64 rounds down", Op::Div, ints(), i(&[6], &[3, -4, -4, 3, -4, 2])),
        case("div i64 wraps", Op::Div, vec![i(&[], &[i64::MIN]), i(&[], &[-1])], i(&[], &[i64::MIN])),
        error("div i64 by zero", Op::Div, vec![i(&[2], &[3, 4]), i(&[2], &[1, 0])], "the integer 4 is divided by 0"),
        case("rem", Op::Rem, ab(), f(&[5], &[1.0, 1.0, -1.0, -1.0, NAN])),
        case("rem i64", Op::Rem, ints(), i(&[6], &[1, 1, -1, -1, 0, 0])),
        error("rem i64 by zero", Op::Rem, vec![i(&[], &[3]), i(&[], &[0])], "the integer 3 is divided by 0"),
        case(
            "pow",
            Op::Pow,
            vec![f(&[5], &[2.0, -2.0, -8.0, 0.0, 9.0]), f(&[5], &[10.0, 3.0, 0.5, 0.0, -0.5])],
            f(&[5], &[1024.0, -8.0, NAN, 1.0, 1.0 / 3.0]),
        ),
        case("max", Op::Max, nans(), f(&[4], &[NAN, NAN, 3.0, 2.0])),
        case("max i64", Op::Max, ints(), i(&[6], &[7, 2, 7, -2, 2, 6])),
        case("min", Op::Min, nans(), f(&[4], &[NAN, NAN, -INF, -2.0])),
        case("min i64", Op::Min, ints(), i(&[6], &[2, -7, -2, -7, -8, 3])),
        case("and", Op::And, vec![b(&[4], &[0, 0, 1, 1]), b(&[4], &[0, 1, 0, 1])], b(&[4], &[0, 0, 0, 1])),
        case("or", Op::Or, vec![b(&[2, 1], &[0, 1]), b(&[2], &[0, 1])], b(&[2, 2], &[0, 1, 1, 1])),
        case("eq", Op::Eq, vec![i(&[3], &[1, 2, 3]), i(&[], &[2])], b(&[3], &[0, 1, 0])),
        case("eq bool", Op::Eq, vec![b(&[2], &[0, 1]), b(&[2], &[1, 1])], b(&[2], &[0, 1])),
        case("eq float", Op::Eq, vec![f(&[3], &[0.0, NAN, INF]), f(&[3], &[-0.0, NAN, INF])], b(&[3], &[1, 0, 1])),
        case("ne", Op::Ne, vec![f(&[2], &[NAN, 1.0]), f(&[2], &[NAN, 1.0])], b(&[2], &[1, 0])),
        case("lt", Op::Lt, nans(), b(&[4], &[0, 0, 1, 0])),
        case("le", Op::Le, ints(), b(&[6], &[0, 1, 0, 1, 1, 0])),
        case("gt", Op::Gt, nans(), b(&[4], &[0, 0, 0, 1])),
        case("ge", Op::Ge, vec![i(&[2, 1], &[1, 2]), i(&[2], &[1, 2])], b(&[2, 2], &[1, 0, 1, 1])),
        case(
            "select keeps NaN of the other branch out",
            Op::Select,
            vec![b(&[2, 1], &[1, 0]), f(&[2], &[1.0, NAN]), f(&[2, 2], &[NAN, NAN, 3.0, 4.0])],
            f(&[2, 2], &[1.0, NAN, 3.0, 4.0]),
        ),
        case("select i64", Op::Select, vec![b(&[], &[0]), i(&[1], &[5]), i(&[2], &[6, 7])], i(&[2], &[6, 7])),
        case("select bool", Op::Select, vec![b(&[2], &[0, 1]), b(&[], &[1]), b(&[], &[0])], b(&[2], &[0, 1])),
    ]
}

fn cast_cases() -> Vec<Case> {
    let to = |dtype| Op::Cast { dtype };
    vec![
        case(
            "float to i64 truncates",
            to(DType::I64),
            vec![f(&[5], &[2.9, -2.9, 0.0, NAN, 1e30])],
            i(&[5], &[2, -2, 0, 0, i64::MAX]),
        ),
        case("i64 to float", to(DType::Float), vec![i(&[2], &[-3, 16_777_217])], f(&[2], &[-3.0, 16_777_216.0])),
        case("bool to i64", to(DType::I64), vec![b(&[2], &[0, 1])], i(&[2], &[0, 1])),
        case("bool to f32", to(DType::F32), vec![b(&[2], &[0, 1])], f(&[2], &[0.0, 1.0])),
        case("f32 to bool", to(DType::Bool), vec![f(&[4], &[0.0, -0.0, 0.25, NAN])], b(&[4], &[0, 0, 1, 1])),
        case("i64 to bool", to(DType::Bool), vec![i(&[3], &[0, 256, -1])], b(&[3], &[0, 1, 1])),
        case("to itself", to(DType::I64), vec![i(&[1], &[9])], i(&[1], &[9])),
    ]
}

fn reduction_cases() -> Vec<Case> {
    let x = || vec![f(&[2, 3], &[1.0, 5.0, 5.0, -2.0, NAN, 4.0])];
    let n = || vec![i(&[2, 3], &[1, 5, 5, -2, -7, -2])];
    let none = || vec![f(&[2, 0], &[])];
    vec![
        case("sum", Op::Sum { axis: 1, keep: false }, vec![f(&[2, 2], &[1.0, 2.0, 3.0, 4.5])], f(&[2], &[3.0, 7.5])),
        case("sum, kept", Op::Sum { axis: 0, keep: true }, n(), i(&[1, 3], &[-1, -2, 3])),
        case("sum of nothing", Op::Sum { axis: 1, keep: false }, none(), f(&[2], &[0.0, 0.0])),
        case("sum of no rows", Op::Sum { axis: 1, keep: true }, vec![f(&[0, 2], &[])], f(&[0, 1], &[])),
        case("max", Op::ReduceMax { axis: 1, keep: false }, x(), f(&[2], &[5.0, NAN])),
        case("max along rows", Op::ReduceMax { axis: 0, keep: true }, n(), i(&[1, 3], &[1, 5, 5])),
        error("max of nothing", Op::ReduceMax { axis: 1, keep: false }, none(), "empty axis"),
        case("min", Op::ReduceMin { axis: 1, keep: true }, x(), f(&[2, 1], &[1.0, NAN])),
        case("min i64", Op::ReduceMin { axis: 1, keep: false }, n(), i(&[2], &[1, -7])),
        case("argmax takes the first", Op::Argmax { axis: 1, keep: false }, n(), i(&[2], &[1, 0])),
        case(
            "argmax along rows",
            Op::Argmax { axis: 0, keep: true },
            vec![f(&[2, 2], &[0.0, 1.0, -0.0, 2.0])],
            i(&[1, 2], &[0, 1]),
        ),
        case("argmax, NaN is largest", Op::Argmax { axis: 1, keep: false }, x(), i(&[2], &[1, 1])),
        error("argmax of nothing", Op::Argmax { axis: 1, keep: false }, none(), "empty axis"),
        case(
            "cumsum",
            Op::Cumsum { axis: 0 },
            vec![f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])],
            f(&[3, 2], &[1.0, 2.0, 4.0, 6.0, 9.0, 12.0]),
        ),
        case("cumsum i64", Op::Cumsum { axis: 1 }, n(), i(&[2, 3], &[1, 6, 11, -2, -9, -11])),
    ]
}

fn shape_cases() -> Vec<Case> {
    let x = || vec![i(&[2, 3], &[0, 1, 2, 3, 4, 5])];
    let dims = |d: &[usize]| d.iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
    let cut = |axis, start: usize, end: usize, step| Op::Slice { axis, start: start.into(), end: end.into(), step };
    vec![
        case("reshape", Op::Reshape { shape: dims(&[3, 2]) }, x(), i(&[3, 2], &[0, 1, 2, 3, 4, 5])),
        case("reshape to a scalar", Op::Reshape { shape: vec![] }, vec![f(&[1, 1], &[2.0])], f(&[], &[2.0])),
        case("permute", Op::Permute { axes: vec![1, 0] }, x(), i(&[3, 2], &[0, 3, 1, 4, 2, 5])),
        case("permute a scalar", Op::Permute { axes: vec![] }, vec![f(&[], &[2.0])], f(&[], &[2.0])),
        case(
            "broadcast",
            Op::Broadcast { shape: dims(&[2, 2, 2]) },
            vec![i(&[2, 1], &[7, 8])],
            i(&[2, 2, 2], &[7, 7, 8, 8, 7, 7, 8, 8]),
        ),
        case(
            "broadcast to nothing",
            Op::Broadcast { shape: dims(&[0, 2]) },
            vec![f(&[2], &[7.0, 8.0])],
            f(&[0, 2], &[]),
        ),
        case("slice", cut(1, 1, 3, 1), x(), i(&[2, 2], &[1, 2, 4, 5])),
        case("slice of nothing", cut(1, 2, 2, 1), x(), i(&[2, 0], &[])),
        case("slice in steps", cut(1, 0, 3, 2), x(), i(&[2, 2], &[0, 2, 3, 5])),
        case("slice in long steps", cut(0, 1, 2, 9), x(), i(&[1, 3], &[3, 4, 5])),
        case(
            "concat",
            Op::Concat { axis: 1 },
            vec![i(&[2, 1], &[8, 9]), i(&[2, 0], &[]), i(&[2, 2], &[0, 1, 3, 4])],
            i(&[2, 3], &[8, 0, 1, 9, 3, 4]),
        ),
        case("concat bools", Op::Concat { axis: 0 }, vec![b(&[1], &[1]), b(&[2], &[0, 1])], b(&[3], &[1, 0, 1])),
        case("concat of nothing", Op::Concat { axis: 0 }, vec![f(&[0, 2], &[]), f(&[0, 2], &[])], f(&[0, 2], &[])),
        case("iota", Op::Iota { len: 4usize.into() }, vec![], i(&[4], &[0, 1, 2, 3])),
        error("too large", Op::Iota { len: (1usize << 35).into() }, vec![], "exceeds the limit"),
    ]
}

fn index_cases() -> Vec<Case> {
    let x = || f(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let keys = || f(&[2, 4], &[1.0, 3.0, 3.0, 2.0, -0.0, 0.0, -1.0, NAN]);
    let (s0, s1, a1) = (Op::Scatter { axis: 0 }, Op::Scatter { axis: 1 }, Op::ScatterAdd { axis: 1 });
    vec![
        case(
            "take rows",
            Op::Take { axis: 0 },
            vec![x(), i(&[3], &[1, 0, 1])],
            f(&[3, 3], &[3.0, 4.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ),
        case(
            "take in a grid",
            Op::Take { axis: 1 },
            vec![x(), i(&[1, 2], &[2, 0])],
            f(&[2, 1, 2], &[2.0, 0.0, 5.0, 3.0]),
        ),
        case("take one", Op::Take { axis: 1 }, vec![x(), i(&[], &[1])], f(&[2], &[1.0, 4.0])),
        case("take none", Op::Take { axis: 0 }, vec![x(), i(&[0], &[])], f(&[0, 3], &[])),
        error(
            "take past the end",
            Op::Take { axis: 0 },
            vec![x(), i(&[2], &[0, 2])],
            "index 2 is out of range, axis 0 has 2",
        ),
        error(
            "take before the start",
            Op::Take { axis: 1 },
            vec![x(), i(&[1], &[-1])],
            "index -1 is out of range, axis 1 has 3",
        ),
        case("gather", Op::Gather { axis: 1 }, vec![x(), i(&[2, 2], &[2, 2, 0, 1])], f(&[2, 2], &[2.0, 2.0, 3.0, 4.0])),
        case("gather rows", Op::Gather { axis: 0 }, vec![x(), i(&[1, 3], &[1, 0, 1])], f(&[1, 3], &[3.0, 1.0, 5.0])),
        case("gather i64", Op::Gather { axis: 0 }, vec![i(&[2], &[5, 6]), i(&[3], &[1, 1, 0])], i(&[3], &[6, 6, 5])),
        case("gather bool", Op::Gather { axis: 0 }, vec![b(&[2], &[0, 1]), i(&[2], &[1, 0])], b(&[2], &[1, 0])),
        error(
            "gather past the end",
            Op::Gather { axis: 1 },
            vec![x(), i(&[2, 1], &[0, 3])],
            "index 3 is out of range, the axis has 3",
        ),
        case(
            "scatter, the last wins",
            s1.clone(),
            vec![x(), i(&[2, 2], &[1, 1, 0, 2]), f(&[2, 2], &[7.0, 8.0, 9.0, 6.0])],
            f(&[2, 3], &[0.0, 8.0, 2.0, 9.0, 4.0, 6.0]),
        ),
        case(
            "scatter i64 rows",
            s0.clone(),
            vec![i(&[2, 1], &[1, 2]), i(&[1, 1], &[1]), i(&[1, 1], &[9])],
            i(&[2, 1], &[1, 9]),
        ),
        case("scatter bools", s0.clone(), vec![b(&[3], &[0, 0, 0]), i(&[1], &[2]), b(&[1], &[1])], b(&[3], &[0, 0, 1])),
        error(
            "scatter past the end",
            s0,
            vec![b(&[3], &[0, 0, 0]), i(&[1], &[3]), b(&[1], &[1])],
            "index 3 is out of range",
        ),
        case(
            "scatter_add",
            a1.clone(),
            vec![x(), i(&[2, 2], &[1, 1, 0, 2]), f(&[2, 2], &[7.0, 8.0, 9.0, 6.0])],
            f(&[2, 3], &[0.0, 16.0, 2.0, 12.0, 4.0, 11.0]),
        ),
        case(
            "scatter_add i64",
            Op::ScatterAdd { axis: 0 },
            vec![i(&[2], &[1, 2]), i(&[2], &[0, 0]), i(&[2], &[5, 6])],
            i(&[2], &[12, 2]),
        ),
        error(
            "scatter_add before the start",
            a1,
            vec![x(), i(&[2, 1], &[0, -2]), f(&[2, 1], &[1.0, 1.0])],
            "index -2 is out of range",
        ),
        case("top_k, ties by index, NaN first", Op::TopK { k: 3 }, vec![keys()], i(&[2, 3], &[1, 2, 3, 3, 0, 1])),
        case("top_k i64", Op::TopK { k: 1 }, vec![i(&[3], &[4, 9, 9])], i(&[1], &[1])),
        case(
            "argsort is stable",
            Op::Argsort { descending: false },
            vec![keys()],
            i(&[2, 4], &[0, 3, 1, 2, 2, 0, 1, 3]),
        ),
        case(
            "argsort down is stable",
            Op::Argsort { descending: true },
            vec![keys()],
            i(&[2, 4], &[1, 2, 3, 0, 3, 0, 1, 2]),
        ),
        case("argsort of nothing", Op::Argsort { descending: true }, vec![i(&[2, 0], &[])], i(&[2, 0], &[])),
        case(
            "matmul",
            Op::Matmul,
            vec![f(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f(&[2, 1], &[5.0, 6.0])],
            f(&[2, 1], &[17.0, 39.0]),
        ),
        case("matmul of no columns", Op::Matmul, vec![f(&[2, 0], &[]), f(&[0, 2], &[])], f(&[2, 2], &[0.0; 4])),
        case("matmul of no rows", Op::Matmul, vec![f(&[3, 0, 2], &[]), f(&[2, 1], &[5.0, 6.0])], f(&[3, 0, 1], &[])),
        case(
            "solve_triangular reads below the diagonal only",
            Op::SolveTriangular,
            vec![
                f(&[3, 3], &[NAN, 9.0, 9.0, 2.0, 9.0, 9.0, 3.0, 4.0, NAN]),
                f(&[3, 2], &[1.0, 0.5, 1.0, 1.0, 2.0, 0.0]),
            ],
            // x0 = b0, x1 = b1 - 2 x0, x2 = b2 - 3 x0 - 4 x1
            f(&[3, 2], &[1.0, 0.5, -1.0, 0.0, 3.0, -1.5]),
        ),
        case(
            "solve_triangular stretches both",
            Op::SolveTriangular,
            vec![f(&[2, 1, 2, 2], &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0]), f(&[2, 2, 1], &[1.0, 1.0, 2.0, 2.0])],
            f(&[2, 2, 2, 1], &[1.0, 0.0, 2.0, 0.0, 1.0, 2.0, 2.0, 4.0]),
        ),
        case(
            "solve_triangular of nothing",
            Op::SolveTriangular,
            vec![f(&[2, 0, 0], &[]), f(&[0, 3], &[])],
            f(&[2, 0, 3], &[]),
        ),
        case(
            "solve_triangular cancels exactly",
            Op::SolveTriangular,
            vec![f(&[3, 3], &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1e8, 1e8, 0.0]), f(&[3, 1], &[1.0, 1.0, 1.0])],
            f(&[3, 1], &[1.0, 1.0, 1.0]),
        ),
        case(
            "matmul cancels exactly",
            Op::Matmul,
            vec![f(&[1, 3], &[1e8, 1.0, -1e8]), f(&[3, 1], &[1.0, 1.0, 1.0])],
            f(&[1, 1], &[1.0]),
        ),
        case(
            "matmul spreads infinity to its row only",
            Op::Matmul,
            vec![f(&[2, 1], &[INF, 1.0]), f(&[1, 2], &[1.0, -1.0])],
            f(&[2, 2], &[INF, -INF, 1.0, -1.0]),
        ),
    ]
}

fn cases() -> Vec<Case> {
    [unary_cases(), binary_cases(), cast_cases(), reduction_cases(), shape_cases(), index_cases()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_case_gives_what_it_must() {
    for Case { what, op, inputs, expected } in cases() {
        let what = format!("{} ({what})", op.name());
        match (run_op(op, &inputs), expected) {
            (Ok(got), Ok(expected)) => assert_close(&what, &got, &expected, 2.5e-7),
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{what}: {e}"),
            (got, expected) => panic!("{what}: got {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn no_primitive_is_without_a_case() {
    let primitives = "neg abs sign exp log sqrt rsqrt sin cos tanh sigmoid erf floor ceil round not add sub mul div pow \
        max min rem and or eq ne lt le gt ge select cast sum reduce_max reduce_min argmax cumsum matmul reshape permute \
        broadcast slice concat iota take gather scatter scatter_add top_k argsort solve_triangular";
    let tested: std::collections::HashSet<String> = cases().iter().map(|c| c.op.name()).collect();
    let missing: Vec<&str> = primitives.split_whitespace().filter(|p| !tested.contains(*p)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
