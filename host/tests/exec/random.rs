//! Random well-formed graphs: every pass keeps their meaning, and the CPU executor computes them as the reference
//! does, however they are batched, or says that they cannot be batched.

use std::collections::HashMap;

use host::exec::cpu::{LowerError, plan};
use host::exec::reference::Inputs;
use host::exec::{Dtype, KvCacheDtype};
use host::graph::{PASSES, optimise};
use plugin_api::{Activation, AttentionOptions, Builder, DType, Dim, Graph, Op, Value, define, spec};

use super::support::*;

pub(super) const VOCABULARY: usize = 9;
const ACTIVATIONS: [Activation; 9] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::ReluSquared,
    Activation::Softplus,
    Activation::Sigmoid,
    Activation::Tanh,
];

/// A graph that grows by one random op at a time.
struct Grower {
    b: Builder,
    r: Random,
    /// Float values by token, and by selected row, of rank 2 or more.
    tokens: Vec<Value>,
    rows: Vec<Value>,
    weights: usize,
    states: usize,
    /// Whether ops that mix tokens may be used.
    mixes: bool,
}

/// The graph of a seed. With `mixes`, it may hold ops that no batch of sequences can be laid end to end for.
pub(super) fn graph(seed: u64, mixes: bool) -> Graph {
    let mut g = Grower {
        b: Builder::new(),
        r: Random(seed.wrapping_mul(0x1234_5678_9ABC_DEF1)),
        tokens: vec![],
        rows: vec![],
        weights: 0,
        states: 0,
        mixes,
    };
    g.embedded();
    for _ in 0..4 + g.r.below(24) {
        g.grow();
    }
    let spelled = seed % 4 == 1;
    let g = g.finish();
    if spelled { spell_out(&g, seed) } else { g }
}

/// The graph with some composites written out, as modelling code has them. (Others have definitions that are no rows
/// of rows.)
fn spell_out(graph: &Graph, seed: u64) -> Graph {
    let (mut b, mut r) = (Builder::new(), Random(seed));
    let mut map: Vec<Value> = vec![];
    for node in &graph.nodes {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let rows = matches!(node.op, Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Softmax | Op::Rope { .. });
        let written = rows || matches!(node.op, Op::Activation { .. } | Op::Gated { .. });
        let spelled = if written && !r.one_in(4) { define::define(&mut b, &node.op, &inputs) } else { None };
        map.push(spelled.unwrap_or_else(|| b.op(node.op.clone(), &inputs)));
    }
    graph.outputs.iter().for_each(|(name, v)| b.output(name, map[v.index()]));
    b.finish().unwrap()
}

impl Grower {
    fn finish(mut self) -> Graph {
        let mut logits: Option<Value> = None;
        for _ in 0..1 + self.r.below(3) {
            let x = self.any();
            let x = self.flat(x);
            let x = if self.is_rows(x) { x } else { self.b.select_outputs(x) };
            let y = self.linear_to(x, 5);
            let y = self.b.cast(y, DType::Float);
            logits = Some(logits.map_or(y, |l| self.b.add(l, y)));
        }
        self.b.output("logits", logits.unwrap());
        if self.r.one_in(4) {
            let extra = self.any();
            self.b.output("extra", extra);
        }
        self.b.finish().unwrap()
    }

    fn dims(&self, x: Value) -> Vec<usize> {
        self.b.ty(x).shape.0[1..].iter().map(|d| d.as_const().unwrap() as usize).collect()
    }

    fn first(&self, x: Value) -> Dim {
        self.b.ty(x).shape.0[0].clone()
    }

    fn is_rows(&self, x: Value) -> bool {
        self.first(x) == Dim::R()
    }

    /// Later values more often: graphs get deep.
    fn any(&mut self) -> Value {
        let from = if !self.rows.is_empty() && self.r.one_in(3) { &self.rows } else { &self.tokens };
        from[from.len() - 1 - self.r.below(from.len()).min(self.r.below(from.len()))]
    }

    fn put(&mut self, x: Value) {
        let ty = self.b.ty(x);
        if ty.dtype.is_float() && ty.shape.rank() >= 2 && self.dims(x).iter().product::<usize>() <= 64 {
            if self.is_rows(x) { self.rows.push(x) } else { self.tokens.push(x) }
        }
    }

    fn weight(&mut self, shape: &[usize], dtype: DType) -> Value {
        self.weights += 1;
        let name = format!("w{}", self.weights);
        let w = self.b.weight(&name, shape.to_vec());
        self.b.cast(w, dtype)
    }

    fn embedded(&mut self) {
        let (width, ids) = (*self.r.pick(&[4, 6, 8, 12]), self.b.token_ids());
        let table = self.weight(&[VOCABULARY, width], DType::Float);
        let x = self.b.embedding(ids, table);
        self.put(x);
    }

    fn flat(&mut self, x: Value) -> Value {
        let n: usize = self.dims(x).iter().product();
        let first = self.first(x);
        self.b.reshape(x, [first, n.into()])
    }

    fn heads(&mut self, x: Value) -> (Value, usize, usize) {
        let n: usize = self.dims(x).iter().product();
        let size = *self.r.pick(&[2, 4, 6].map(|d| if n.is_multiple_of(d) { d } else { n }));
        let first = self.first(x);
        (self.b.reshape(x, [first, (n / size).into(), size.into()]), n / size, size)
    }

    fn linear_to(&mut self, x: Value, n: usize) -> Value {
        let (dtype, k) = (self.b.ty(x).dtype, *self.dims(x).last().unwrap());
        let w = match self.r.below(5) {
            0 => {
                let w = self.weight(&[k, n], dtype);
                self.b.permute(w, [1, 0])
            }
            1 => {
                let w = self.weight(&[n + 3, k], dtype);
                self.b.slice(w, 0, 2usize, n + 2)
            }
            _ => self.weight(&[n, k], dtype),
        };
        let y = if self.r.one_in(2) {
            let bias = self.weight(&[n], dtype);
            self.b.linear_bias(x, w, bias)
        } else {
            self.b.linear(x, w)
        };
        self.b.scale(y, 1.0 / (k.max(1) as f32).sqrt())
    }

    /// Of the type of x: another value, or x again.
    fn like(&mut self, x: Value) -> Value {
        let ty = self.b.ty(x);
        let same: Vec<Value> = self.tokens.iter().chain(&self.rows).copied().filter(|&v| self.b.ty(v) == ty).collect();
        *self.r.pick(&same)
    }

    fn angles(&mut self, rows: bool, n: usize) -> (Value, Value) {
        let positions = self.b.positions();
        let positions = self.b.cast(positions, DType::F32);
        let positions = self.b.reshape(positions, [Dim::T(), 1usize.into()]);
        let frequencies = self.b.constant((0..n).map(|i| 1.0 / (i as f32 + 1.0)).collect());
        let angles = self.b.mul(positions, frequencies);
        let (cos, sin) = if self.r.one_in(2) {
            (self.b.op(Op::Cos, &[angles]), self.b.op(Op::Sin, &[angles]))
        } else {
            // Two halves of one table: views with a stride.
            let (cos, sin) = (self.b.op(Op::Cos, &[angles]), self.b.op(Op::Sin, &[angles]));
            let both = self.b.concat(1, &[cos, sin]);
            (self.b.slice(both, 1, 0usize, n), self.b.slice(both, 1, n, 2 * n))
        };
        if rows { (self.b.select_outputs(cos), self.b.select_outputs(sin)) } else { (cos, sin) }
    }

    fn grow(&mut self) {
        let x = self.any();
        let kind = self.r.below(if self.mixes { 25 } else { 22 });
        let y = match kind {
            0 | 1 => self.unary(x),
            2 | 3 => self.binary(x),
            4 => self.reshaped(x),
            5 => self.permuted(x),
            6 => self.sliced(x),
            7 => self.joined(x),
            8 | 9 => self.linears(x),
            10 => self.norm(x),
            11 => self.rope(x),
            12 | 13 => self.attention(x),
            14 => self.gated(x),
            15 => self.reduced(x),
            16 => self.selected_elements(x),
            17 => self.cast_around(x),
            18 if !self.is_rows(x) => self.b.select_outputs(x),
            19 => self.tables(),
            20 => self.residual(x),
            21 => self.sorted(x),
            22.. => self.mixed(x),
            _ => return self.embedded(),
        };
        self.put(y);
    }

    fn unary(&mut self, x: Value) -> Value {
        let ops = [Op::Tanh, Op::Sigmoid, Op::Neg, Op::Abs, Op::Sin, Op::Cos, Op::Erf, Op::Floor, Op::Round, Op::Sign];
        let op = self.r.pick(&ops).clone();
        if self.r.one_in(5) {
            let axis = self.dims(x).len();
            let twice = self.b.concat(axis, &[x, x]);
            let y = self.b.op(op, &[twice]);
            return self.b.slice(y, axis, 0usize, self.dims(x)[axis - 1]);
        }
        self.b.op(op, &[x])
    }

    fn binary(&mut self, x: Value) -> Value {
        let (ty, dims) = (self.b.ty(x), self.dims(x));
        let other = match self.r.below(5) {
            0 => self.weight(&dims[dims.len() - 1..], ty.dtype),
            1 => self.weight(&dims, ty.dtype),
            2 => self.weight(&[&[1], &dims[..]].concat(), ty.dtype),
            _ => self.like(x),
        };
        let op = self.r.pick(&[Op::Add, Op::Sub, Op::Mul, Op::Max, Op::Min, Op::Add]).clone();
        let y = if self.r.one_in(3) { self.b.op(op, &[other, x]) } else { self.b.op(op, &[x, other]) };
        self.b.op(Op::Tanh, &[y])
    }

    fn reshaped(&mut self, x: Value) -> Value {
        let (y, ..) = self.heads(x);
        if self.r.one_in(3) { self.flat(y) } else { y }
    }

    fn permuted(&mut self, x: Value) -> Value {
        let (y, ..) = self.heads(x);
        let y = self.b.permute(y, [0, 2, 1]);
        if self.r.one_in(3) { self.b.permute(y, [0, 2, 1]) } else { y }
    }

    fn sliced(&mut self, x: Value) -> Value {
        let dims = self.dims(x);
        let axis = 1 + self.r.below(dims.len());
        let n = dims[axis - 1];
        let (start, end) = (self.r.below(n), n - self.r.below(n.div_ceil(2)));
        if start >= end {
            return self.b.slice(x, axis, 0usize, n);
        }
        let step = 1 + usize::from(self.r.one_in(4));
        let y = self.b.op(Op::Slice { axis, start: start.into(), end: end.into(), step }, &[x]);
        let left = self.dims(y)[axis - 1];
        if self.r.one_in(3) { self.b.slice(y, axis, 0usize, left.div_ceil(2)) } else { y }
    }

    fn joined(&mut self, x: Value) -> Value {
        let other = self.like(x);
        let axis = 1 + self.r.below(self.dims(x).len());
        let parts = if self.r.one_in(5) { vec![x] } else { vec![x, other] };
        self.b.concat(axis, &parts)
    }

    fn linears(&mut self, x: Value) -> Value {
        let x = if self.r.one_in(4) { x } else { self.flat(x) };
        for _ in 0..self.r.below(3) {
            let n = *self.r.pick(&[4, 6, 8]);
            let y = self.linear_to(x, n);
            self.put(y);
        }
        let n = *self.r.pick(&[4, 6, 8]);
        let y = self.linear_to(x, n);
        if self.r.one_in(3) { self.b.activation(y, *self.r.pick(&ACTIVATIONS)) } else { y }
    }

    fn norm(&mut self, x: Value) -> Value {
        let (dtype, d) = (self.b.ty(x).dtype, *self.dims(x).last().unwrap());
        let weight = self.weight(&[d], dtype);
        match self.r.below(5) {
            0 => self.b.op(Op::LayerNorm { eps: 1e-5 }, &[x]),
            1 => self.b.op(Op::LayerNorm { eps: 1e-5 }, &[x, weight]),
            2 => {
                let bias = self.weight(&[d], dtype);
                self.b.layer_norm(x, weight, bias, 1e-5)
            }
            n => self.b.op(Op::RmsNorm { eps: 1e-5, unit_offset: n == 3 }, &[x, weight]),
        }
    }

    fn rope(&mut self, x: Value) -> Value {
        let (y, _, size) = self.heads(x);
        if size < 2 {
            return y;
        }
        let n = if self.r.one_in(2) { size / 2 } else { 1 };
        let angles = self.angles(self.is_rows(x), n);
        self.b.rope(y, angles, self.r.0.is_multiple_of(2))
    }

    fn attention(&mut self, x: Value) -> Value {
        let x = if self.is_rows(x) { self.tokens[self.r.below(self.tokens.len())] } else { x };
        let (q, heads, size) = self.heads(x);
        let other = self.like(x);
        let k = self.b.reshape(other, [Dim::T(), heads.into(), size.into()]);
        let kv_heads = *self.r.pick(&[1, heads]);
        let k = self.b.slice(k, 1, 0usize, kv_heads);
        let v = if self.r.one_in(3) { self.b.slice(k, 2, 0usize, 1usize) } else { k };
        let window = self.r.one_in(3).then_some(1 + self.r.below(4) as u32);
        let softcap = self.r.one_in(4).then_some(1.5);
        let dtype = self.b.ty(x).dtype;
        let sinks = if self.r.one_in(4) { Some(self.weight(&[heads], dtype)) } else { None };
        let alibi = if self.r.one_in(4) { Some(self.weight(&[heads], DType::F32)) } else { None };
        self.states += 1;
        let options = AttentionOptions { window, softcap, sinks, alibi, ..AttentionOptions::default() };
        self.b.attention(self.states, [q, k, v], 0.7, options)
    }

    fn gated(&mut self, x: Value) -> Value {
        let (up, kind) = (self.like(x), *self.r.pick(&ACTIVATIONS));
        if self.r.one_in(3) {
            return self.b.gated(x, up, kind);
        }
        let gate = self.b.activation(x, kind);
        if self.r.one_in(3) {
            self.put(gate);
        }
        if self.r.one_in(2) { self.b.mul(gate, up) } else { self.b.mul(up, gate) }
    }

    fn reduced(&mut self, x: Value) -> Value {
        let axis = 1 + self.r.below(self.dims(x).len());
        let keep = self.dims(x).len() == 1 || self.r.one_in(2);
        match self.r.below(5) {
            0 => self.b.op(Op::ReduceMax { axis, keep }, &[x]),
            1 => self.b.op(Op::ReduceMin { axis, keep }, &[x]),
            2 => self.b.op(Op::Softmax, &[x]),
            3 => self.b.op(Op::Cumsum { axis }, &[x]),
            _ => self.b.op(Op::Sum { axis, keep }, &[x]),
        }
    }

    fn selected_elements(&mut self, x: Value) -> Value {
        let (a, b) = (self.like(x), self.like(x));
        let op = self.r.pick(&[Op::Gt, Op::Le, Op::Eq, Op::Ne]).clone();
        let condition = self.b.op(op, &[x, a]);
        let condition = match self.r.below(3) {
            0 => self.b.op(Op::Not, &[condition]),
            1 => {
                let other = self.b.op(Op::Lt, &[a, b]);
                self.b.op(self.r.pick(&[Op::And, Op::Or]).clone(), &[condition, other])
            }
            _ => condition,
        };
        self.b.select(condition, a, b)
    }

    fn cast_around(&mut self, x: Value) -> Value {
        let to = *self.r.pick(&[DType::F32, DType::I64, DType::Bool, DType::Float]);
        let x = self.b.scale(x, 3.0);
        let mut y = self.b.cast(x, to);
        if to == DType::I64 {
            let three = self.b.int(3);
            y = self.b.op(self.r.pick(&[Op::Rem, Op::Div, Op::Max]).clone(), &[y, three]);
        }
        if self.r.one_in(2) && !self.is_rows(y) {
            y = self.b.select_outputs(y);
        }
        let y = self.b.cast(y, DType::Float);
        self.b.op(Op::Tanh, &[y])
    }

    /// Tables that are read by position, and by sums of ids.
    fn tables(&mut self) -> Value {
        let (ids, positions) = (self.b.token_ids(), self.b.positions());
        let n = self.b.int(VOCABULARY as i64);
        let sum = self.b.add(ids, positions);
        let mut index = self.b.op(Op::Rem, &[sum, n]);
        if self.r.one_in(3) {
            index = self.b.select_outputs(index);
        }
        let width = *self.r.pick(&[4, 6]);
        let table = self.weight(&[VOCABULARY, width], DType::Float);
        match self.r.below(3) {
            0 => self.b.op(Op::Take { axis: 0 }, &[table, index]),
            1 => {
                let first = self.first(index);
                let index = self.b.reshape(index, [first, 1usize.into()]);
                self.b.embedding(index, table)
            }
            _ => self.b.embedding(index, table),
        }
    }

    fn residual(&mut self, x: Value) -> Value {
        let x = self.flat(x);
        let n = self.dims(x)[0];
        let dtype = self.b.ty(x).dtype;
        let w = self.weight(&[n, n], dtype);
        let y = self.b.linear(x, w);
        let other = if self.r.one_in(2) { self.like_flat(x) } else { x };
        let y = if self.r.one_in(2) { self.b.add(other, y) } else { self.b.add(y, other) };
        self.put(y);
        self.b.op(Op::Tanh, &[y])
    }

    fn like_flat(&mut self, x: Value) -> Value {
        let y = self.unary(x);
        if self.r.one_in(2) {
            self.put(y);
        }
        y
    }

    fn sorted(&mut self, x: Value) -> Value {
        let axis = self.dims(x).len();
        let n = self.dims(x)[axis - 1];
        let index = match self.r.below(3) {
            0 => self.b.op(Op::Argsort { descending: true }, &[x]),
            1 => self.b.op(Op::TopK { k: n.div_ceil(2) }, &[x]),
            _ => self.b.op(Op::Argmax { axis, keep: true }, &[x]),
        };
        self.b.op(Op::Gather { axis }, &[x, index])
    }

    /// Mixes tokens, or depends on how many there are.
    fn mixed(&mut self, x: Value) -> Value {
        let x = if self.is_rows(x) { self.tokens[0] } else { x };
        let x = self.flat(x);
        let dtype = self.b.ty(x).dtype;
        match self.r.below(5) {
            0 => self.b.op(Op::Cumsum { axis: 0 }, &[x]),
            1 => {
                let total = self.b.op(Op::Sum { axis: 0, keep: true }, &[x]);
                let y = self.b.add(x, total);
                self.b.op(Op::Tanh, &[y])
            }
            2 => {
                let i = self.b.iota(Dim::T());
                let i = self.b.cast(i, dtype);
                let i = self.b.reshape(i, [Dim::T(), 1usize.into()]);
                self.b.mul(x, i)
            }
            3 => {
                let t = self.b.permute(x, [1, 0]);
                let scores = self.b.matmul(x, t);
                let scores = self.b.op(Op::Softmax, &[scores]);
                self.b.matmul(scores, x)
            }
            _ => {
                let two = Dim::from(2usize);
                let twice = self.b.concat(0, &[x, x]);
                let twice = self
                    .b
                    .op(Op::Slice { axis: 0, start: Dim::T(), end: Dim::T().mul(&two).unwrap(), step: 1 }, &[twice]);
                self.b.op(Op::Tanh, &[twice])
            }
        }
    }
}

/// Token counts and selected rows: none, odd orders, twice the same.
fn inputs(r: &mut Random) -> Vec<Inputs> {
    let mut cases = vec![];
    for t in [1, 2, 5] {
        let tokens = r.tokens(t, VOCABULARY);
        let some: Vec<usize> = (0..1 + r.below(4)).map(|_| r.below(t)).collect();
        for rows in [vec![], vec![t - 1], (0..t).rev().collect(), some] {
            cases.push(Inputs::prompt(&tokens, &rows));
        }
    }
    cases
}

fn check_passes(seed: u64, graph: &Graph) {
    let weights = checkpoint(graph, seed, Stored::F32);
    let inputs = inputs(&mut Random(seed));
    let evaluated = |g: &Graph| -> Vec<_> { inputs.iter().map(|i| evaluate(g, &weights, i).unwrap()).collect() };
    let before = evaluated(graph);
    let compare = |what: &str, g: &Graph| {
        spec::verify_graph(what, g).unwrap();
        for (after, before) in evaluated(g).iter().zip(&before) {
            assert_same(what, after, before);
        }
    };
    for (i, pass) in PASSES.iter().enumerate() {
        // Equal entries of the list are one pass.
        if PASSES[..i].iter().all(|p| p.name != pass.name) {
            let after = pass.run(graph).unwrap();
            if after != *graph {
                compare(&format!("seed {seed}, pass {}", pass.name), &after);
            }
        }
    }
    let optimised = optimise(graph).unwrap();
    compare(&format!("seed {seed}, all passes"), &optimised);
    assert_eq!(
        optimise(&optimised).unwrap().to_text(),
        optimised.to_text(),
        "seed {seed}: optimising twice changes more"
    );
}

#[test]
fn every_pass_keeps_the_meaning() {
    (0..120).for_each(|seed| check_passes(seed, &graph(seed, true)));
}

#[test]
fn generated_graphs_cover_the_ops() {
    let mut counts = HashMap::new();
    let mut changed = HashMap::new();
    for seed in 0..300 {
        let g = graph(seed, true);
        census(&g, &mut counts);
        for pass in PASSES {
            *changed.entry(pass.name).or_insert(0) += usize::from(pass.run(&g).unwrap() != g);
        }
    }
    for op in [
        "linear",
        "embedding",
        "rms_norm",
        "layer_norm",
        "rope",
        "attention",
        "activation",
        "gated",
        "softmax",
        "select_outputs",
        "reshape",
        "permute",
        "slice",
        "concat",
        "select",
        "cast",
        "take",
        "gather",
        "cumsum",
        "iota",
        "matmul",
        "sum",
        "argsort",
        "top_k",
    ] {
        assert!(counts.get(op).copied().unwrap_or(0) >= 10, "{op}: {:?}", counts.get(op));
    }
    for (pass, n) in changed {
        assert!(n >= 10, "{pass} changed {n} of 300 graphs");
    }
}

#[test]
fn the_cpu_executor_computes_random_graphs_as_the_reference_does() {
    let mut refused = 0;
    for seed in 0..150u64 {
        let raw = graph(seed, seed % 3 == 0);
        let weights = checkpoint(&raw, seed, if seed % 2 == 0 { Stored::F32 } else { Stored::Mixed });
        let mut r = Random(seed);
        let seqs: Vec<Vec<u32>> = [5, 1, 18].iter().map(|&n| r.tokens(n, VOCABULARY)).collect();
        let graph = if seed % 5 == 0 { raw } else { optimise(&raw).unwrap() };
        match plan(&graph, &weights, Dtype::Float32, None) {
            Ok(_) => {}
            Err(LowerError::NotBatchable { .. }) => {
                refused += 1;
                assert!(seed % 3 == 0, "seed {seed}: refused a graph that does not mix tokens");
                continue;
            }
            Err(e) => panic!("seed {seed}: {e}"),
        }
        let options = options(Dtype::Float32, KvCacheDtype::Float32);
        check_executor(&format!("seed {seed}"), &graph, &weights, (&options, 2e-5), &seqs).unwrap();
    }
    assert!((5..50).contains(&refused), "{refused} of the 50 graphs that may mix tokens were refused");
}

#[test]
fn the_generator_is_deterministic() {
    assert_eq!(graph(7, true).to_text(), graph(7, true).to_text());
    assert_ne!(graph(7, true).to_text(), graph(8, true).to_text());
}
