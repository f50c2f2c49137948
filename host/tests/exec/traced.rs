//! Graphs as they are traced from modelling code (a batch dimension of 1, heads before tokens, norms and rotary embeddings
//! in single steps) have the plans of the same models written with composites.

use host::exec::Dtype;
use host::exec::cpu::plan;
use host::graph::optimise;
use plugin_api::{Activation, AttentionOptions, Builder, DType, Dim, Graph, Op, Value, spec};

use super::support::*;

const HIDDEN: usize = 16;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const SIZE: usize = 8;

/// What modelling code calls, as the tracer records it.
pub(super) struct Tracer(pub(super) Builder);

impl Tracer {
    pub(super) fn dims(&self, x: Value) -> Vec<Dim> {
        self.0.ty(x).shape.0
    }

    pub(super) fn view(&mut self, x: Value, dims: &[Dim]) -> Value {
        self.0.reshape(x, dims.iter().cloned().collect::<plugin_api::Shape>())
    }

    pub(super) fn unsqueeze(&mut self, x: Value, axis: usize) -> Value {
        let mut dims = self.dims(x);
        dims.insert(axis, Dim::from(1usize));
        self.view(x, &dims)
    }

    pub(super) fn transpose(&mut self, x: Value, a: usize, b: usize) -> Value {
        let mut axes: Vec<usize> = (0..self.dims(x).len()).collect();
        axes.swap(a, b);
        self.0.permute(x, axes)
    }

    pub(super) fn mean(&mut self, x: Value) -> Value {
        let (axis, dtype) = (self.dims(x).len() - 1, self.0.ty(x).dtype);
        let n = self.dims(x)[axis].as_const().unwrap();
        let sum = self.0.op(Op::Sum { axis, keep: true }, &[x]);
        let n = self.0.scalar(dtype, n as f32);
        self.0.div(sum, n)
    }

    pub(super) fn last(&self, x: Value) -> usize {
        self.dims(x).last().unwrap().as_const().unwrap() as usize
    }

    pub(super) fn columns(&mut self, x: Value, start: usize, end: usize, step: usize) -> Value {
        let axis = self.dims(x).len() - 1;
        self.0.op(Op::Slice { axis, start: start.into(), end: end.into(), step }, &[x])
    }

    fn rms_norm(&mut self, x: Value, name: &str) -> Value {
        let x32 = self.0.cast(x, DType::F32);
        let two = self.0.scalar(DType::F32, 2.0);
        let squares = self.0.op(Op::Pow, &[x32, two]);
        let variance = self.mean(squares);
        let variance = self.0.shift(variance, 1e-5);
        let factor = self.0.op(Op::Rsqrt, &[variance]);
        let y = self.0.mul(x32, factor);
        let y = self.0.cast(y, DType::Float);
        let w = self.0.weight(name, [HIDDEN]);
        self.0.mul(w, y)
    }

    fn layer(&mut self, x: Value, name: &str, n: usize) -> Value {
        let w = self.0.weight(name, [n, self.last(x)]);
        self.0.linear(x, w)
    }

    fn heads(&mut self, x: Value, heads: usize) -> Value {
        let x = self.view(x, &[1usize.into(), Dim::T(), heads.into(), SIZE.into()]);
        self.transpose(x, 1, 2)
    }

    /// cos and sin [1, T, SIZE] as in `LlamaRotaryEmbedding`.
    fn tables(&mut self) -> (Value, Value) {
        let positions = self.0.positions();
        let positions = self.unsqueeze(positions, 0);
        let exponents = self.0.iota(SIZE / 2);
        let two = self.0.int(2);
        let exponents = self.0.mul(exponents, two);
        let exponents = self.0.cast(exponents, DType::F32);
        let size = self.0.scalar(DType::F32, SIZE as f32);
        let exponents = self.0.div(exponents, size);
        let (theta, one) = (self.0.scalar(DType::F32, 10000.0), self.0.scalar(DType::F32, 1.0));
        let wavelengths = self.0.op(Op::Pow, &[theta, exponents]);
        let inv_freq = self.0.div(one, wavelengths);
        let inv_freq = self.view(inv_freq, &[1usize.into(), (SIZE / 2).into(), 1usize.into()]);
        let positions = self.unsqueeze(positions, 1);
        let positions = self.0.cast(positions, DType::F32);
        let freqs = self.0.matmul(inv_freq, positions);
        let freqs = self.transpose(freqs, 1, 2);
        let emb = self.0.concat(2, &[freqs, freqs]);
        let [cos, sin] = [Op::Cos, Op::Sin].map(|op| {
            let table = self.0.op(op, &[emb]);
            let table = self.0.scale(table, 1.0);
            self.0.cast(table, DType::Float)
        });
        (cos, sin)
    }

    fn rotate_half(&mut self, x: Value) -> Value {
        let n = self.last(x);
        let (x1, x2) = (self.columns(x, 0, n / 2, 1), self.columns(x, n / 2, n, 1));
        let x2 = self.0.op(Op::Neg, &[x2]);
        self.0.concat(3, &[x2, x1])
    }

    fn rotate_pairs(&mut self, x: Value) -> Value {
        let n = self.last(x);
        let (x1, x2) = (self.columns(x, 0, n, 2), self.columns(x, 1, n, 2));
        let x2 = self.0.op(Op::Neg, &[x2]);
        let (x1, x2) = (self.unsqueeze(x1, 4), self.unsqueeze(x2, 4));
        let pairs = self.0.concat(4, &[x2, x1]);
        let dims = self.dims(x);
        self.view(pairs, &dims)
    }

    fn each_twice(&mut self, x: Value) -> Value {
        let mut dims = self.dims(x);
        let x = self.unsqueeze(x, dims.len());
        dims.push(2usize.into());
        let x = self.0.op(Op::Broadcast { shape: dims.clone() }, &[x]);
        dims.pop();
        let n = dims.pop().unwrap().as_const().unwrap() as usize;
        dims.push((2 * n).into());
        self.view(x, &dims)
    }

    fn rotary(&mut self, x: Value, (cos, sin): (Value, Value), pairs: bool) -> Value {
        let (mut cos, mut sin) = (self.unsqueeze(cos, 1), self.unsqueeze(sin, 1));
        let turned = if pairs {
            [cos, sin] = [cos, sin].map(|t| {
                let half = self.columns(t, 0, SIZE / 2, 1);
                self.each_twice(half)
            });
            self.rotate_pairs(x)
        } else {
            self.rotate_half(x)
        };
        let (a, b) = (self.0.mul(x, cos), self.0.mul(turned, sin));
        self.0.add(a, b)
    }

    /// [1, H, T, D] x 3 -> [1, T, H * D], through the composite, as taken from transformers' attention interface.
    fn attention(&mut self, qkv: [Value; 3]) -> Value {
        let qkv = qkv.map(|x| {
            let x = self.transpose(x, 1, 2);
            let dims = self.dims(x)[1..].to_vec();
            self.view(x, &dims)
        });
        let y = self.0.attention(0, qkv, 1.0 / (SIZE as f32).sqrt(), AttentionOptions::default());
        let y = self.unsqueeze(y, 0);
        self.view(y, &[1usize.into(), Dim::T(), (HEADS * SIZE).into()])
    }

    fn embedded(&mut self) -> Value {
        let ids = self.0.token_ids();
        let ids = self.unsqueeze(ids, 0);
        let table = self.0.weight("embed", [9, HIDDEN]);
        self.0.embedding(ids, table)
    }

    fn logits(mut self, x: Value) -> Graph {
        let logits = self.layer(x, "head", 9);
        let logits = self.view(logits, &[Dim::T(), 9usize.into()]);
        let logits = self.0.select_outputs(logits);
        self.0.output("logits", logits);
        self.0.finish().unwrap()
    }
}

fn traced_llama(pairs: bool) -> Graph {
    let mut t = Tracer(Builder::new());
    let x = t.embedded();
    let tables = t.tables();
    let normed = t.rms_norm(x, "norm1");
    let [q, k, v] = [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)].map(|(name, heads)| {
        let flat = t.layer(normed, name, heads * SIZE);
        t.heads(flat, heads)
    });
    let (q, k) = (t.rotary(q, tables, pairs), t.rotary(k, tables, pairs));
    let y = t.attention([q, k, v]);
    let y = t.layer(y, "o", HIDDEN);
    let x = t.0.add(x, y);
    let normed = t.rms_norm(x, "norm2");
    let (gate, up) = (t.layer(normed, "gate", 32), t.layer(normed, "up", 32));
    let gate = t.0.activation(gate, Activation::Silu);
    let inner = t.0.mul(gate, up);
    let y = t.layer(inner, "down", HIDDEN);
    let x = t.0.add(x, y);
    let x = t.rms_norm(x, "norm");
    t.logits(x)
}

fn written_llama(pairs: bool) -> Graph {
    let b = &mut Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [9, HIDDEN]));
    let x = b.embedding(ids, table);
    let positions = b.positions();
    let positions = b.cast(positions, DType::F32);
    let positions = b.reshape(positions, [Dim::T(), 1usize.into()]);
    let inv_freq = b.constant(vec![1.0, 0.1, 0.01, 0.001]);
    let angles = b.mul(positions, inv_freq);
    let tables = (b.op(Op::Cos, &[angles]), b.op(Op::Sin, &[angles]));
    let layer = |b: &mut Builder, x: Value, name: &str, n: usize| {
        let k = b.ty(x).shape.0.last().unwrap().as_const().unwrap() as usize;
        let w = b.weight(name, [n, k]);
        b.linear(x, w)
    };
    let norm = |b: &mut Builder, x: Value, name: &str| {
        let w = b.weight(name, [HIDDEN]);
        b.rms_norm(x, w, 1e-5)
    };
    let normed = norm(b, x, "norm1");
    let [q, k, v] = [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)].map(|(name, heads)| {
        let flat = layer(b, normed, name, heads * SIZE);
        b.split_heads(flat, heads, SIZE)
    });
    let (q, k) = (b.rope(q, tables, pairs), b.rope(k, tables, pairs));
    let y = b.attention(0, [q, k, v], 1.0 / (SIZE as f32).sqrt(), AttentionOptions::default());
    let y = b.merge_heads(y);
    let y = layer(b, y, "o", HIDDEN);
    let x = b.add(x, y);
    let normed = norm(b, x, "norm2");
    let (gate, up) = (layer(b, normed, "gate", 32), layer(b, normed, "up", 32));
    let inner = b.gated(gate, up, Activation::Silu);
    let y = layer(b, inner, "down", HIDDEN);
    let x = b.add(x, y);
    let x = b.select_outputs(x);
    let x = norm(b, x, "norm");
    let logits = layer(b, x, "head", 9);
    b.output("logits", logits);
    std::mem::take(b).finish().unwrap()
}

fn planned(graph: &Graph) -> String {
    spec::verify_graph("case", graph).unwrap();
    let g = optimise(graph).unwrap();
    let weights = checkpoint(graph, 1, Stored::F32);
    match plan(&g, &weights, Dtype::Float32) {
        Ok((_, plan)) => format!("{:?}\n{plan}", plan.buffers),
        Err(e) => panic!("{e}\n{}", g.to_text()),
    }
}

/// Optimised, it computes the same.
pub(super) fn check_meaning(what: &str, graph: &Graph) {
    let weights = checkpoint(graph, 1, Stored::F32);
    let tokens = Random(4).tokens(7, 9);
    let g = optimise(graph).unwrap();
    assert_close(what, &by_reference(&g, &weights, &tokens), &by_reference(graph, &weights, &tokens), 1e-5);
}

#[test]
fn a_traced_llama_has_the_plan_of_a_written_one() {
    for pairs in [false, true] {
        let (traced, written) = (traced_llama(pairs), written_llama(pairs));
        check_meaning("traced", &traced);
        check_meaning("written", &written);
        assert_eq!(planned(&traced), planned(&written), "pairs: {pairs}");
    }
}
