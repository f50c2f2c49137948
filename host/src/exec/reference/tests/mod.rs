//! Tests of the reference: every primitive against values computed by hand or by an independent naive
//! program in f64, every composite against an independent naive program, errors, the executor.

mod composites;
mod executor;
mod loops;
mod sequence;
mod table;

use std::collections::HashMap;

use plugin_api::{Builder, ConstData, DType, Op, Value};

use super::{EvalError, Inputs, Tensor, eval};

/// Numbers in [-1, 1), the same in every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(super) fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::f32(shape, (0..shape.iter().product()).map(|_| self.float()).collect())
    }

    pub(super) fn index(&mut self, shape: &[usize], n: usize) -> Tensor {
        Tensor::i64(shape, (0..shape.iter().product()).map(|_| self.below(n) as i64).collect())
    }
}

/// The graph under test: its values come from literals, or by token from tables of weights.
#[derive(Default)]
pub(super) struct Fixture {
    pub(super) b: Builder,
    weights: HashMap<String, Tensor>,
}

impl Fixture {
    /// A literal; floats are `f32`.
    pub(super) fn literal(&mut self, t: &Tensor) -> Value {
        let dtype = match t.data {
            ConstData::F32(_) => DType::F32,
            ConstData::I64(_) => DType::I64,
            ConstData::Bool(_) => DType::Bool,
        };
        self.b.op(Op::Const { dtype, shape: t.shape.clone(), data: t.data.clone() }, &[])
    }

    /// A weight, `float`.
    pub(super) fn weight(&mut self, t: &Tensor) -> Value {
        let name = format!("w{}", self.weights.len());
        self.weights.insert(name.clone(), t.clone());
        self.b.weight(&name, t.shape.clone())
    }

    /// Row `token id` of the table for every token: `float[T, ...]`.
    pub(super) fn by_token(&mut self, table: &Tensor) -> Value {
        let (w, ids) = (self.weight(table), self.b.token_ids());
        self.b.op(Op::Take { axis: 0 }, &[w, ids])
    }

    /// Evaluates with tokens 0, 1, ..., `t` - 1.
    pub(super) fn run(self, value: Value, t: usize, rows: &[usize]) -> Result<Tensor, EvalError> {
        let tokens: Vec<u32> = (0..t as u32).collect();
        self.run_with(value, &Inputs::prompt(&tokens, rows))
    }

    pub(super) fn run_with(mut self, value: Value, inputs: &Inputs) -> Result<Tensor, EvalError> {
        self.b.output("y", value);
        let weights = self.weights;
        let source = |name: &str| weights.get(name).cloned().ok_or_else(|| "is missing".to_owned());
        let mut out = eval(&self.b.finish()?, inputs, &source)?;
        assert_eq!(out.len(), 1);
        Ok(out.remove(0).1)
    }
}

/// One op on literals.
pub(super) fn run_op(op: Op, inputs: &[Tensor]) -> Result<Tensor, EvalError> {
    let mut f = Fixture::default();
    let values: Vec<Value> = inputs.iter().map(|t| f.literal(t)).collect();
    let y = f.b.op(op, &values);
    f.run(y, 0, &[])
}

/// Same shape and type; integers and truth values equal; floats within `tolerance` of the larger of 1 and
/// the expected magnitude, infinities and NaN alike.
pub(super) fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(got.shape, expected.shape, "{what}: shape");
    let (ConstData::F32(a), ConstData::F32(b)) = (&got.data, &expected.data) else {
        assert_eq!(got.data, expected.data, "{what}");
        return;
    };
    assert_eq!(a.len(), b.len(), "{what}: number of elements");
    for (i, (&x, &y)) in a.iter().zip(b).enumerate() {
        let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * y.abs().max(1.0);
        assert!(same, "{what}: element {i} is {x}, expected {y}\n got {a:?}\n expected {b:?}");
    }
}

/// Every coordinate of a shape, in row-major order.
pub(super) fn coordinates(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, &n| {
        all.iter().flat_map(|c| (0..n).map(move |i| c.iter().copied().chain([i]).collect())).collect()
    })
}

/// The element at a coordinate, as f64.
pub(super) fn at(t: &Tensor, c: &[usize]) -> f64 {
    let flat = c.iter().zip(&t.shape).fold(0, |flat, (i, n)| flat * n + i);
    match &t.data {
        ConstData::F32(v) => v[flat].into(),
        ConstData::I64(v) => v[flat] as f64,
        ConstData::Bool(v) => f64::from(u8::from(v[flat])),
    }
}

/// A float tensor from a function of the coordinate.
pub(super) fn tensor_of(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Tensor {
    Tensor::f32(shape, coordinates(shape).iter().map(|c| f(c) as f32).collect())
}
