//! Graphs as they are traced from modelling code (a batch dimension of 1, heads before tokens, norms and rotary embeddings
//! in single steps) have the plans of the same models written with composites.

use host::exec::Dtype;
use host::exec::cpu::plan;
use host::graph::optimise;
use plugin_api::{Activation, AttentionOptions, Builder, ConstData, DType, Dim, Graph, Op, Value, define, spec};

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
    match plan(&g, &weights, Dtype::Float32, None) {
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

/// A graph with these heads of a value [T, 16], whose output is what `make` makes of it.
fn with_heads(heads: usize, make: impl Fn(&mut Tracer, Value) -> Value) -> Graph {
    let mut t = Tracer(Builder::new());
    let (ids, table) = (t.0.token_ids(), t.0.weight("embed", [9, HIDDEN]));
    let x = t.0.embedding(ids, table);
    let x = t.0.split_heads(x, heads, HIDDEN / heads);
    let y = make(&mut t, x);
    let y = t.view(y, &[Dim::T(), HIDDEN.into()]);
    let y = t.0.select_outputs(y);
    t.0.output("logits", y);
    t.0.finish().unwrap()
}

fn count(graph: &Graph, name: &str) -> usize {
    graph.nodes.iter().filter(|n| n.op.name() == name).count()
}

#[test]
fn definitions_are_recognised() {
    use Activation::*;
    let mut ops: Vec<Op> = [Silu, Gelu, GeluTanh, QuickGelu, Relu, ReluSquared, Softplus, Sigmoid, Tanh]
        .map(|kind| Op::Activation { kind })
        .to_vec();
    ops.extend([
        Op::Softmax,
        Op::RmsNorm { eps: 1e-3, unit_offset: false },
        Op::RmsNorm { eps: 1e-6, unit_offset: true },
    ]);
    ops.extend([Op::LayerNorm { eps: 1e-5 }, Op::Rope { interleaved: false }, Op::Rope { interleaved: true }]);
    let plain = AttentionOptions::default();
    for op in ops {
        for dtype in [DType::Float, DType::F32] {
            let graph = with_heads(4, |t, x| {
                let b = &mut t.0;
                let x = b.cast(x, dtype);
                let weight = |b: &mut Builder, name: &str| {
                    let w = b.weight(name, [4]);
                    b.cast(w, dtype)
                };
                let inputs = match op {
                    Op::RmsNorm { .. } => vec![x, weight(b, "w")],
                    Op::LayerNorm { .. } => vec![x, weight(b, "w"), weight(b, "b")],
                    Op::Rope { .. } => {
                        let p = b.positions();
                        let p = b.cast(p, DType::F32);
                        let p = b.reshape(p, [Dim::T(), 1usize.into()]);
                        let f = b.constant(vec![1.0, 0.1]);
                        let a = b.mul(p, f);
                        vec![x, b.op(Op::Cos, &[a]), b.op(Op::Sin, &[a])]
                    }
                    _ => vec![x],
                };
                b.op(op.clone(), &inputs)
            });
            let expanded = define::expand(&graph).unwrap();
            let found = optimise(&expanded).unwrap();
            let what = format!("{op} of {dtype}");
            let known = found.nodes.iter().filter(|n| n.op == op).count();
            assert_eq!(known, 1, "{what}:\n{}", found.to_text());
            check_meaning(&what, &expanded);
        }
    }
    for (what, options) in [
        ("plain", plain),
        ("window", AttentionOptions { window: Some(3), ..plain }),
        ("softcap", AttentionOptions { softcap: Some(2.0), ..plain }),
    ] {
        let graph = with_heads(4, |t, x| t.0.attention(0, [x, x, x], 0.3, options));
        let expanded = define::expand(&graph).unwrap();
        let found = optimise(&expanded).unwrap();
        let same = |n: &&plugin_api::Node| n.op == graph.nodes.iter().find(|n| n.op.state().is_some()).unwrap().op;
        assert_eq!(found.nodes.iter().filter(same).count(), 1, "{what}:\n{}", found.to_text());
        check_meaning(what, &expanded);
    }
}

impl Tracer {
    /// softmax(scores) v by hand: `mask` is applied to [1, H, T, T].
    fn by_hand(&mut self, x: Value, scores: impl Fn(&mut Tracer, Value) -> Value) -> Value {
        let x = self.unsqueeze(x, 0);
        let x = self.transpose(x, 1, 2);
        let k = self.transpose(x, 2, 3);
        let s = self.0.matmul(x, k);
        let s = scores(self, s);
        let p = self.0.op(Op::Softmax, &[s]);
        let y = self.0.matmul(p, x);
        self.transpose(y, 1, 2)
    }

    /// 0 where `mask` holds, else very low; [1, 1, T, T]
    fn additive(&mut self, mask: Value) -> Value {
        let (zero, low) = (self.0.scalar(DType::Float, 0.0), self.0.scalar(DType::Float, -3.3895314e38));
        let y = self.0.select(mask, zero, low);
        self.view(y, &[1usize.into(), 1usize.into(), Dim::T(), Dim::T()])
    }

    fn causal(&mut self) -> Value {
        let mask = self.0.op(Op::CausalMask { window: None, chunk: None }, &[]);
        self.additive(mask)
    }

    /// j <= i + offset of a table of 40 rows and columns, cut to T of each
    fn triangle(&mut self, offset: i64) -> Value {
        let i = self.0.iota(40usize);
        let offset = self.0.int(offset);
        let rows = self.unsqueeze(i, 1);
        let rows = self.0.add(rows, offset);
        self.0.op(Op::Le, &[i, rows])
    }

    fn cut(&mut self, x: Value) -> Value {
        let x = self.0.slice(x, 0, 0usize, Dim::T());
        self.0.slice(x, 1, 0usize, Dim::T())
    }
}

type Scores = (&'static str, &'static str, fn(&mut Tracer, Value) -> Value);

/// What is done to scores, and the attributes that are found in it; none where it is no causal attention.
const SCORES: &[Scores] = &[
    ("an additive mask", "scale:0.25)", |t, s| {
        let s = t.0.scale(s, 0.25);
        let mask = t.causal();
        t.0.add(s, mask)
    }),
    ("divided, masked by a choice", "scale:0.5,window:Some(4))", |t, s| {
        let two = t.0.scalar(DType::Float, 2.0);
        let s = t.0.div(s, two);
        let mask = t.0.op(Op::CausalMask { window: Some(4), chunk: None }, &[]);
        let mask = t.0.op(Op::Not, &[mask]);
        let low = t.0.scalar(DType::Float, f32::MIN);
        t.0.select(mask, low, s)
    }),
    ("a triangle of ones less one further down", "scale:1.0,window:Some(3))", |t, s| {
        let (full, far) = (t.triangle(0), t.triangle(-3));
        let far = t.0.op(Op::And, &[far, full]);
        let near = t.0.op(Op::Ne, &[full, far]);
        let near = t.cut(near);
        let low = t.0.scalar(DType::Float, f32::MIN);
        let s = t.0.select(near, s, low);
        let mask = t.causal();
        t.0.add(s, mask)
    }),
    ("biases by position, and the mask as truth values again", "scale:0.25,alibi:true)", |t, s| {
        let s = t.0.scale(s, 0.25);
        let table: Vec<f32> = (0..4).flat_map(|h| (0..40).map(move |j| (j - 39) as f32 * 0.5f32.powi(h + 1))).collect();
        let table = Op::Const { dtype: DType::F32, shape: vec![1, 4, 1, 40], data: ConstData::F32(table) };
        let table = t.0.op(table, &[]);
        let start = Dim::from(40usize).sub(&Dim::T()).unwrap();
        let bias = t.0.slice(table, 3, start, 40usize);
        let s = t.0.cast(s, DType::F32);
        let s = t.0.add(s, bias);
        let mask = t.causal();
        let hidden = t.0.cast(mask, DType::Bool);
        let low = t.0.scalar(DType::F32, f32::MIN);
        let s = t.0.select(hidden, low, s);
        t.0.cast(s, DType::Float)
    }),
    ("a mask of ones and zeros", "scale:1.0)", |t, s| {
        let (one, zero) = (t.0.scalar(DType::Float, 1.0), t.0.scalar(DType::Float, 0.0));
        let mask = t.triangle(0);
        let ones = t.0.select(mask, one, zero);
        let ones = t.cut(ones);
        let s = t.0.mul(s, ones);
        let hidden = t.0.sub(one, ones);
        let hidden = t.0.scale(hidden, -1e4);
        t.0.add(s, hidden)
    }),
    ("no mask: every token is seen", "", |t, s| t.0.scale(s, 0.25)),
    ("a mask that shows the token after", "", |t, s| {
        let mask = t.triangle(1);
        let mask = t.cut(mask);
        let mask = t.additive(mask);
        t.0.add(s, mask)
    }),
    ("a mask that hides the token itself but shows the first", "", |t, s| {
        let (mask, low) = (t.triangle(-1), t.0.scalar(DType::Float, -5.0));
        let mask = t.cut(mask);
        t.0.select(mask, s, low)
    }),
];

#[test]
fn attention_by_hand_is_recognised_where_it_is_causal() {
    for (what, attributes, scores) in SCORES {
        let graph = with_heads(4, |t, x| t.by_hand(x, scores));
        let found = optimise(&graph).unwrap();
        let text = found.nodes.iter().find(|n| n.op.name() == "attention").map(|n| n.op.to_string());
        match text {
            Some(text) => assert!(!attributes.is_empty() && text.ends_with(attributes), "{what}: {text}"),
            None => assert!(attributes.is_empty(), "{what}:\n{}", found.to_text()),
        }
        check_meaning(what, &graph);
    }
}

#[test]
fn repeated_keys_and_values_are_read_once() {
    let graph = with_heads(4, |t, x| {
        let half = t.0.slice(x, 1, 0usize, 2usize);
        let column = t.view(half, &[Dim::T(), 2usize.into(), 1usize.into(), 4usize.into()]);
        let wide =
            t.0.op(Op::Broadcast { shape: vec![Dim::T(), 2usize.into(), 2usize.into(), 4usize.into()] }, &[column]);
        let k = t.view(wide, &[Dim::T(), 4usize.into(), 4usize.into()]);
        t.0.attention(0, [x, k, k], 0.3, AttentionOptions::default())
    });
    let found = optimise(&graph).unwrap();
    assert_eq!((count(&found, "broadcast"), count(&found, "attention")), (0, 1), "{}", found.to_text());
    check_meaning("repeated keys", &graph);
}
