//! Every composite's kernel against its definition: one line a case. Each case is run by the CPU executor (with its
//! KV cache, several sequences in a step, chunks, blocks in disorder) and by the reference on whole sequences.
//!
//! With `float32`, results agree to 2e-5 of the largest one, whatever the weights are stored in. With `bfloat16`,
//! weights, inputs of products and the KV cache may lose all but 8 bits: 4e-2. With `float16` weights lose all but
//! 11 bits: 4e-3.

use host::exec::cpu::{LowerError, plan};
use host::exec::{Dtype, KvCacheDtype};
use host::graph::optimise;
use plugin_api::{Activation, AttentionOptions, Builder, DType, Dim, Graph, Op, Value};

use super::primitives::PRIMITIVES;
use super::support::*;

pub(super) const VOCABULARY: usize = 11;

/// Builds the graph of a case.
pub(super) struct Case {
    pub(super) b: Builder,
    weights: usize,
}

impl Case {
    /// A weight of its own.
    pub(super) fn w(&mut self, shape: &[usize]) -> Value {
        self.weights += 1;
        let name = format!("w{}", self.weights);
        self.b.weight(&name, shape.to_vec())
    }

    /// A random row for every token: float[T, dims].
    pub(super) fn x(&mut self, dims: &[usize]) -> Value {
        let ids = self.b.token_ids();
        let n: usize = dims.iter().product();
        let table = self.w(&[VOCABULARY, n]);
        let x = self.b.embedding(ids, table);
        self.shaped(x, dims)
    }

    pub(super) fn shaped(&mut self, x: Value, dims: &[usize]) -> Value {
        let first = self.b.ty(x).shape.0[0].clone();
        self.b.reshape(x, std::iter::once(first).chain(dims.iter().map(|&d| d.into())).collect::<plugin_api::Shape>())
    }

    /// Cosines and sines of position times frequencies.
    fn angles(&mut self, n: usize) -> (Value, Value) {
        let p = self.b.positions();
        let p = self.b.cast(p, DType::F32);
        let p = self.b.reshape(p, [Dim::T(), 1usize.into()]);
        let f = self.b.constant((0..n).map(|i| 0.7f32.powi(i as i32)).collect());
        let angles = self.b.mul(p, f);
        (self.b.op(Op::Cos, &[angles]), self.b.op(Op::Sin, &[angles]))
    }

    pub(super) fn op(&mut self, op: Op, inputs: &[Value]) -> Value {
        self.b.op(op, inputs)
    }

    /// Numbers of `k` different experts for every token.
    fn choices(&mut self, experts: usize, k: usize) -> Value {
        let x = self.x(&[experts]);
        self.op(Op::TopK { k }, &[x])
    }

    /// [experts, sum of n, d], put together from a weight for each part of each expert.
    fn stacked(&mut self, experts: usize, n: &[usize], d: usize) -> Value {
        let all: Vec<Value> = (0..experts)
            .map(|_| {
                let parts: Vec<Value> = n.iter().map(|&n| self.w(&[n, d])).collect();
                let one = if parts.len() == 1 { parts[0] } else { self.b.concat(0, &parts) };
                self.b.reshape(one, [1, n.iter().sum(), d])
            })
            .collect();
        self.b.concat(0, &all)
    }

    /// Linear attention of [key heads, heads, key size, value size], with decays of a softplus and betas of a sigmoid.
    fn runs(&mut self, [key_heads, heads, dk, dv]: [usize; 4], per_channel: bool, delta: bool) -> Value {
        let (q, k, v) = (self.x(&[key_heads, dk]), self.x(&[key_heads, dk]), self.x(&[heads, dv]));
        let decay = if per_channel { self.x(&[heads, dk]) } else { self.x(&[heads]) };
        let decay = self.b.activation(decay, Activation::Softplus);
        let decay = self.b.scale(decay, -0.5);
        let decay = self.b.cast(decay, DType::F32);
        let beta = delta.then(|| {
            let beta = self.x(&[heads]);
            let beta = self.op(Op::Sigmoid, &[beta]);
            self.b.cast(beta, DType::F32)
        });
        let k = self.b.scale(k, 0.4);
        self.b.linear_attention(0, [q, k, v], decay, beta)
    }

    /// q[T, heads, dim], k[T, kv, dim], v[T, kv, dim_v]: parts of one projection.
    fn attend(&mut self, [heads, kv, dim, dim_v]: [usize; 4], options: AttentionOptions) -> Value {
        let x = self.x(&[8]);
        let part = |c: &mut Case, h: usize, d: usize| {
            let w = c.w(&[h * d, 8]);
            let y = c.b.linear(x, w);
            c.shaped(y, &[h, d])
        };
        let (q, k, v) = (part(self, heads, dim), part(self, kv, dim), part(self, kv, dim_v));
        self.b.attention(3, [q, k, v], 0.5, options)
    }
}

/// An index into the last axis of `i`, of its shape: whether each element is odd.
fn j_of(c: &mut Case, i: Value) -> Value {
    let two = c.b.int(2);
    c.op(Op::Rem, &[i, two])
}

/// The graph whose logits are the value, of any shape, by token or by row.
pub(super) fn graph(make: impl Fn(&mut Case) -> Value) -> Graph {
    let mut c = Case { b: Builder::new(), weights: 0 };
    let y = make(&mut c);
    let y = if c.b.ty(y).dtype.is_float() { y } else { c.b.cast(y, DType::Float) };
    let n: i64 = c.b.ty(y).shape.0[1..].iter().map(|d| d.as_const().unwrap()).product();
    let first = c.b.ty(y).shape.0[0].clone();
    let y = c.b.reshape(y, [first.clone(), n.into()]);
    let y = if first == Dim::T() { c.b.select_outputs(y) } else { y };
    c.b.output("logits", y);
    c.b.finish().unwrap()
}

/// What, a call that the plan must have, and the value.
pub(super) type Line = (&'static str, &'static str, fn(&mut Case) -> Value);

const WINDOW: AttentionOptions =
    AttentionOptions { window: Some(4), softcap: None, sinks: None, alibi: None, chunk: None, mask: None };
const SOFTCAP: AttentionOptions =
    AttentionOptions { window: None, softcap: Some(0.8), sinks: None, alibi: None, chunk: None, mask: None };
const PLAIN: AttentionOptions =
    AttentionOptions { window: None, softcap: None, sinks: None, alibi: None, chunk: None, mask: None };

#[rustfmt::skip]
pub(super) const LINES: &[Line] = &[
    // linear
    ("linear", "] (w2) -> ", |c| { let (x, w) = (c.x(&[5]), c.w(&[7, 5])); c.b.linear(x, w) }),
    ("linear, wide", "linear ", |c| { let (x, w) = (c.x(&[130]), c.w(&[67, 130])); c.b.linear(x, w) }),
    ("linear, bias", "(w2 + w3)", |c| { let (x, w, b) = (c.x(&[5]), c.w(&[7, 5]), c.w(&[7])); c.b.linear_bias(x, w, b) }),
    ("linear, merged", " | ", |c| { let x = c.x(&[6]); let (u, v, w) = (c.w(&[4, 6]), c.w(&[3, 6]), c.w(&[3])); let (a, b) = (c.b.linear(x, u), c.b.linear_bias(x, v, w)); c.b.concat(1, &[a, b]) }),
    ("linear, rows selected before", "[R,5]", |c| { let (x, w) = (c.x(&[5]), c.w(&[7, 5])); let x = c.b.select_outputs(x); c.b.linear(x, w) }),
    ("linear of a strided view", "@", |c| { let (x, w) = (c.x(&[9]), c.w(&[4, 5])); let x = c.b.slice(x, 1, 3usize, 8usize); c.b.linear(x, w) }),
    ("linear + activation", " Silu) ->", |c| { let (x, w) = (c.x(&[5]), c.w(&[7, 5])); let y = c.b.linear(x, w); c.b.activation(y, Activation::Silu) }),
    ("linear + bias + activation", " + w3 GeluTanh) ->", |c| { let (x, w, b) = (c.x(&[5]), c.w(&[7, 5]), c.w(&[7])); let y = c.b.linear_bias(x, w, b); c.b.activation(y, Activation::GeluTanh) }),
    ("residual in place", " +=  -> ", |c| { let (x, w) = (c.x(&[6]), c.w(&[6, 4])); let z = c.x(&[4]); let y = c.b.linear(z, w); c.b.add(x, y) }),
    ("residual in place, on the right", " +=  -> ", |c| { let (x, w) = (c.x(&[6]), c.w(&[6, 4])); let z = c.x(&[4]); let y = c.b.linear(z, w); c.b.add(y, x) }),
    ("residual that is read later", ") + b", |c| { let (x, w) = (c.x(&[6]), c.w(&[6, 4])); let z = c.x(&[4]); let y = c.b.linear(z, w); let s = c.b.add(x, y); c.b.mul(s, x) }),
    ("residual that is the linear's input", ") + b", |c| { let (x, w) = (c.x(&[6]), c.w(&[6, 6])); let y = c.b.linear(x, w); c.b.add(x, y) }),
    ("residual from a strided view", ") + b", |c| { let (x, w) = (c.x(&[9]), c.w(&[6, 4])); let x = c.b.slice(x, 1, 1usize, 7usize); let z = c.x(&[4]); let y = c.b.linear(z, w); c.b.add(x, y) }),
    ("two linears added", " +=  -> ", |c| { let (x, z) = (c.x(&[5]), c.x(&[4])); let (u, v) = (c.w(&[6, 5]), c.w(&[6, 4])); let (a, b) = (c.b.linear(x, u), c.b.linear(z, v)); c.b.add(a, b) }),
    ("a linear added to itself", "add ", |c| { let (x, w) = (c.x(&[5]), c.w(&[6, 5])); let y = c.b.linear(x, w); c.b.add(y, y) }),
    ("more linears of one input than one call takes", "linear ", |c| { let x = c.x(&[5]); let parts: Vec<Value> = (0..20).map(|_| { let w = c.w(&[2, 5]); c.b.linear(x, w) }).collect(); c.b.concat(1, &parts) }),
    ("linear of rank 3", "linear b2[T,15] by 5 (w2)", |c| { let (x, w) = (c.x(&[3, 5]), c.w(&[7, 5])); c.b.linear(x, w) }),
    ("linear of rank 3, bias", " by 5 (w2 + w3)", |c| { let (x, w, b) = (c.x(&[3, 5]), c.w(&[7, 5]), c.w(&[7])); c.b.linear_bias(x, w, b) }),
    ("linear over nothing", "linear ", |c| { let x = c.x(&[5]); let (x, w, b) = (c.b.slice(x, 1, 2usize, 2usize), c.w(&[3, 0]), c.w(&[3])); c.b.linear_bias(x, w, b) }),
    // static expressions over weights
    ("permuted weight", "(permute(axes:[1,0])(w2))", |c| { let (x, w) = (c.x(&[5]), c.w(&[5, 7])); let w = c.b.permute(w, [1, 0]); c.b.linear(x, w) }),
    ("sliced weight", "(slice(", |c| { let (x, w) = (c.x(&[5]), c.w(&[9, 5])); let w = c.b.slice(w, 0, 2usize, 6usize); c.b.linear(x, w) }),
    ("joined weights", "(concat(", |c| { let (x, u, v) = (c.x(&[5]), c.w(&[3, 5]), c.w(&[4, 5])); let w = c.b.concat(0, &[u, v]); c.b.linear(x, w) }),
    ("sum of weights", "(add(w2, w3))", |c| { let (x, u, v) = (c.x(&[5]), c.w(&[3, 5]), c.w(&[3, 5])); let w = c.b.add(u, v); c.b.linear(x, w) }),
    ("normed weight: a static composite", "linear ", |c| { let (x, u, v) = (c.x(&[5]), c.w(&[3, 5]), c.w(&[5])); let w = c.b.rms_norm(u, v, 1e-5); c.b.linear(x, w) }),
    ("one weight as matrix and as operand", "elementwise add", |c| { let (x, w) = (c.x(&[5]), c.w(&[1, 5])); let y = c.b.linear(x, w); let z = c.b.add(x, w); c.b.concat(1, &[y, z]) }),
    ("doubled 200 times and scaled back", "linear ", |c| { let (x, mut w) = (c.x(&[5]), c.w(&[3, 5])); for _ in 0..60 { w = c.b.add(w, w); } let w = c.b.scale(w, 2f32.powi(-60)); c.b.linear(x, w) }),
    // dynamic weights
    ("norm with a weight for each token", "elementwise mul", |c| { let x = c.x(&[1, 6]); let w = c.x(&[1, 6]); let one = c.w(&[6]); let y = c.b.rms_norm(x, one, 1e-5); c.b.mul(y, w) }),
    ("product of two values of the step", "reference matmul", |c| { let (a, b) = (c.x(&[2, 3]), c.x(&[3, 4])); c.b.matmul(a, b) }),
    ("product with a weight", "reference matmul", |c| { let (a, b) = (c.x(&[5]), c.w(&[5, 4])); c.b.matmul(a, b) }),
    // embedding
    ("embedding", "embed w1", |c| c.x(&[6])),
    ("embedding of positions", "embed w1", |c| { let (w, p) = (c.w(&[40, 5]), c.b.positions()); c.b.embedding(p, w) }),
    ("embedding of computed ids", "embed w1", |c| { let (w, p, n) = (c.w(&[7, 5]), c.b.positions(), c.b.int(7)); let i = c.op(Op::Rem, &[p, n]); c.b.embedding(i, w) }),
    ("embedding of selected ids", "embed w1", |c| { let (w, i) = (c.w(&[VOCABULARY, 5]), c.b.token_ids()); let i = c.b.select_outputs(i); c.b.embedding(i, w) }),
    ("embedding of a column of ids", "copy ", |c| { let (w, i) = (c.w(&[VOCABULARY, 5]), c.b.token_ids()); let i = c.shaped(i, &[1]); let two = c.b.concat(1, &[i, i]); let i = c.b.slice(two, 1, 1usize, 2usize); let i = c.shaped(i, &[]); c.b.embedding(i, w) }),
    ("embedding of two ids for each token", "reference take", |c| { let (w, i) = (c.w(&[VOCABULARY, 5]), c.b.token_ids()); let i = c.shaped(i, &[1]); let two = c.b.concat(1, &[i, i]); c.b.embedding(two, w) }),
    // norms
    ("rms_norm", "rms_norm b", |c| { let (x, w) = (c.x(&[37]), c.w(&[37])); c.b.rms_norm(x, w, 1e-5) }),
    ("rms_norm, unit offset", " unit_offset ->", |c| { let (x, w) = (c.x(&[6]), c.w(&[6])); c.op(Op::RmsNorm { eps: 0.1, unit_offset: true }, &[x, w]) }),
    ("rms_norm of a strided view", "@", |c| { let (x, w) = (c.x(&[9]), c.w(&[6])); let x = c.b.slice(x, 1, 2usize, 8usize); c.b.rms_norm(x, w, 1e-5) }),
    ("rms_norm of heads", "rms_norm b2[T,12] by 4 w2", |c| { let (x, w) = (c.x(&[3, 4]), c.w(&[4])); c.b.rms_norm(x, w, 1e-5) }),
    ("layer_norm of one input", "layer_norm b", |c| { let x = c.x(&[6]); c.op(Op::LayerNorm { eps: 1e-5 }, &[x]) }),
    ("layer_norm of two", "layer_norm b", |c| { let (x, w) = (c.x(&[6]), c.w(&[6])); c.op(Op::LayerNorm { eps: 1e-5 }, &[x, w]) }),
    ("layer_norm of three", "layer_norm b", |c| { let (x, w, b) = (c.x(&[37]), c.w(&[37]), c.w(&[37])); c.b.layer_norm(x, w, b, 1e-5) }),
    ("layer_norm of heads", "layer_norm b2[T,12] by 4 w2 w3", |c| { let (x, w, b) = (c.x(&[3, 4]), c.w(&[4]), c.w(&[4])); c.b.layer_norm(x, w, b, 1e-5) }),
    // rope
    ("rope, halves, in place", "Half 8 -> ", |c| { let x = c.x(&[3, 8]); let a = c.angles(4); c.b.rope(x, a, false) }),
    ("rope, pairs, in place", "Interleaved 8 -> ", |c| { let x = c.x(&[3, 8]); let a = c.angles(4); c.b.rope(x, a, true) }),
    ("rope of a part, halves", "heads of 8 Half 4", |c| { let x = c.x(&[3, 8]); let a = c.angles(2); c.b.rope(x, a, false) }),
    ("rope of a part, pairs", "heads of 8 Interleaved 6", |c| { let x = c.x(&[3, 8]); let a = c.angles(3); c.b.rope(x, a, true) }),
    ("rope, wide", "rope ", |c| { let x = c.x(&[2, 70]); let a = c.angles(35); c.b.rope(x, a, false) }),
    ("rope of a value that is read later", "rope ", |c| { let x = c.x(&[3, 8]); let a = c.angles(4); let y = c.b.rope(x, a, false); c.b.add(x, y) }),
    ("rope of parts of one value", "rope ", |c| { let x = c.x(&[4, 6]); let (q, k) = (c.b.slice(x, 1, 0usize, 2usize), c.b.slice(x, 1, 2usize, 4usize)); let a = c.angles(3); let (q, k) = (c.b.rope(q, a, false), c.b.rope(k, a, false)); c.b.sub(q, k) }),
    ("rope with tables that are views", "copy ", |c| { let x = c.x(&[3, 8]); let (cos, sin) = c.angles(4); let both = c.b.concat(1, &[cos, sin]); let (cos, sin) = (c.b.slice(both, 1, 0usize, 4usize), c.b.slice(both, 1, 4usize, 8usize)); c.b.rope(x, (cos, sin), false) }),
    ("rope with tables out of the rotated value", "rope ", |c| { let x = c.x(&[12]); let x = c.b.cast(x, DType::F32); let (h, cos, sin) = (c.b.slice(x, 1, 0usize, 8usize), c.b.slice(x, 1, 8usize, 10usize), c.b.slice(x, 1, 10usize, 12usize)); let h = c.shaped(h, &[2, 4]); c.b.rope(h, (cos, sin), false) }),
    ("rope of selected rows", "[R,", |c| { let x = c.x(&[3, 8]); let (cos, sin) = c.angles(4); let (x, cos, sin) = (c.b.select_outputs(x), c.b.select_outputs(cos), c.b.select_outputs(sin)); c.b.rope(x, (cos, sin), false) }),
    // attention
    ("attention", "attention 0 ", |c| c.attend([2, 2, 4, 4], PLAIN)),
    ("attention, grouped", "heads=6", |c| c.attend([6, 2, 4, 4], PLAIN)),
    ("attention, one key head", "attention", |c| c.attend([5, 1, 4, 4], PLAIN)),
    ("attention, wide", "attention", |c| c.attend([2, 1, 72, 72], PLAIN)),
    ("attention, values of another size", "attention", |c| c.attend([4, 2, 4, 3], PLAIN)),
    ("attention, window", "window=4", |c| c.attend([4, 2, 4, 4], WINDOW)),
    ("attention, window of one", "window=1", |c| c.attend([4, 2, 4, 4], AttentionOptions { window: Some(1), ..PLAIN })),
    ("attention, softcap", "softcap=0.8", |c| c.attend([4, 2, 4, 4], SOFTCAP)),
    ("attention, sinks", "sinks=w1", |c| { let sinks = Some(c.w(&[4])); c.attend([4, 2, 4, 4], AttentionOptions { sinks, ..PLAIN }) }),
    ("attention, alibi", "alibi=", |c| { let s = c.w(&[4]); let alibi = Some(c.b.cast(s, DType::F32)); c.attend([4, 2, 4, 4], AttentionOptions { alibi, ..PLAIN }) }),
    ("attention, everything", "sinks=w2", |c| { let s = c.w(&[4]); let alibi = Some(c.b.cast(s, DType::F32)); let sinks = Some(c.w(&[4])); c.attend([4, 2, 4, 6], AttentionOptions { alibi, sinks, window: Some(5), softcap: Some(2.0), ..PLAIN }) }),
    ("attention of one value thrice", "attention", |c| { let x = c.x(&[2, 4]); c.b.attention(0, [x, x, x], 1.0, PLAIN) }),
    ("attention of views", "attention", |c| { let x = c.x(&[4, 6]); let [q, k, v] = [(0, 2), (2, 3), (3, 4)].map(|(i, j)| c.b.slice(x, 1, i as usize, j as usize)); c.b.attention(0, [q, k, v], 1.0, PLAIN) }),
    ("two attentions", "attention 1 ", |c| { let x = c.x(&[2, 4]); let y = c.b.attention(0, [x, x, x], 1.0, WINDOW); let z = c.b.attention(1, [y, x, y], 1.0, PLAIN); c.b.add(y, z) }),
    ("attention, chunks", "chunk=5", |c| c.attend([4, 2, 4, 4], AttentionOptions { chunk: Some(5), ..PLAIN })),
    ("attention, chunks and a window", "chunk=20", |c| c.attend([4, 1, 5, 3], AttentionOptions { chunk: Some(20), window: Some(7), ..PLAIN })),
    ("attention, keys of another layer", "attention 0 b", |c| { let x = c.x(&[2, 4]); let y = c.b.attention(0, [x, x, x], 1.0, WINDOW); let z = c.b.attention(1, [y, x, x], 1.0, PLAIN); let z = c.b.attention(2, [z, x, x], 1.0, WINDOW); c.b.add(y, z) }),
    // experts
    ("experts", "grouped_linear ", |c| { let (x, i, w) = (c.x(&[6]), c.choices(5, 2), c.w(&[5, 7, 6])); c.b.grouped_linear(x, i, w, None) }),
    ("experts, bias", " (5 of w3) + w4 -> ", |c| { let (x, i) = (c.x(&[6]), c.choices(5, 2)); let (w, b) = (c.w(&[5, 7, 6]), c.w(&[5, 7])); c.b.grouped_linear(x, i, w, Some(b)) }),
    ("experts, an input for each choice", "grouped_linear ", |c| { let (x, i, w) = (c.x(&[3, 6]), c.choices(4, 3), c.w(&[4, 67, 6])); c.b.grouped_linear(x, i, w, None) }),
    ("experts, stored one by one", "(3 of w3)", |c| { let (x, i) = (c.x(&[6]), c.choices(3, 2)); let w = c.stacked(3, &[7], 6); c.b.grouped_linear(x, i, w, None) }),
    ("experts, gate and up apart", "(3 of w3 | w4)", |c| { let (x, i) = (c.x(&[6]), c.choices(3, 2)); let w = c.stacked(3, &[4, 4], 6); c.b.grouped_linear(x, i, w, None) }),
    ("experts, gates and ups apart", "(3 of w3 | w4)", |c| { let (x, i) = (c.x(&[6]), c.choices(3, 2)); let (g, u) = (c.w(&[3, 4, 6]), c.w(&[3, 5, 6])); let w = c.b.concat(1, &[g, u]); c.b.grouped_linear(x, i, w, None) }),
    ("experts, some of more", "(2 of w3)", |c| { let (x, i, w) = (c.x(&[6]), c.choices(2, 1), c.w(&[4, 7, 6])); let w = c.b.slice(w, 0, 1usize, 3usize); let w = c.b.slice(w, 1, 2usize, 6usize); c.b.grouped_linear(x, i, w, None) }),
    ("experts, transposed", "(3 of permute", |c| { let (x, i, w) = (c.x(&[6]), c.choices(3, 2), c.w(&[3, 6, 7])); let w = c.b.permute(w, [0, 2, 1]); c.b.grouped_linear(x, i, w, None) }),
    ("experts of selected rows", "[R,", |c| { let (x, i, w) = (c.x(&[6]), c.choices(5, 2), c.w(&[5, 7, 6])); let (x, i) = (c.b.select_outputs(x), c.b.select_outputs(i)); c.b.grouped_linear(x, i, w, None) }),
    ("a mixture of experts", "grouped_linear ", |c| { let x = c.x(&[8]); let r = c.w(&[6, 8]); let l = c.b.linear(x, r); let p = c.op(Op::Softmax, &[l]); let i = c.op(Op::TopK { k: 2 }, &[p]); let p = c.op(Op::Gather { axis: 1 }, &[p, i]); let (w, d) = (c.w(&[6, 10, 8]), c.w(&[6, 8, 5])); let h = c.b.grouped_linear(x, i, w, None); let (g, u) = (c.b.slice(h, 2, 0usize, 5usize), c.b.slice(h, 2, 5usize, 10usize)); let h = c.b.gated(g, u, Activation::Silu); let y = c.b.grouped_linear(h, i, d, None); let p = c.shaped(p, &[2, 1]); let y = c.b.mul(y, p); c.op(Op::Sum { axis: 1, keep: false }, &[y]) }),
    // running states
    ("convolution", "causal_conv 0 ", |c| { let (x, w) = (c.x(&[7]), c.w(&[7, 4])); c.b.causal_conv1d(0, x, w, None) }),
    ("convolution, bias, activation", " + w3 Silu) width=3", |c| { let (x, w, b) = (c.x(&[20]), c.w(&[20, 3]), c.w(&[20])); let y = c.b.causal_conv1d(0, x, w, Some(b)); c.b.activation(y, Activation::Silu) }),
    ("convolution of one row", "width=1", |c| { let (x, w) = (c.x(&[7]), c.w(&[7, 1])); c.b.causal_conv1d(0, x, w, None) }),
    ("convolution of a part", "causal_conv 0 ", |c| { let (x, w) = (c.x(&[9]), c.w(&[4, 2])); let x = c.b.slice(x, 1, 3usize, 7usize); let y = c.b.causal_conv1d(0, x, w, None); let z = c.b.activation(y, Activation::Relu); c.b.add(y, z) }),
    ("two convolutions", "causal_conv 1 ", |c| { let (x, v, w) = (c.x(&[5]), c.w(&[5, 4]), c.w(&[5, 2])); let y = c.b.causal_conv1d(4, x, v, None); c.b.causal_conv1d(2, y, w, None) }),
    ("running state", "linear_attention 0 ", |c| c.runs([2, 4, 5, 3], false, false)),
    ("running state, decay of channels", "heads=1/2 state=8x16", |c| c.runs([1, 2, 8, 16], true, false)),
    ("running state, delta rule", " delta b", |c| c.runs([2, 2, 6, 20], false, true)),
    ("running state, delta rule, decay of channels", " delta b", |c| c.runs([2, 4, 6, 3], true, true)),
    ("running state, one column", "state=16x1", |c| c.runs([1, 9, 16, 1], true, false)),
    ("running state, one element", "state=1x1", |c| c.runs([1, 20, 1, 1], false, false)),
    ("a convolution, a running state, and attention", "attention 0 ", |c| { let y = c.runs([2, 2, 4, 4], false, true); let w = c.w(&[8, 4]); let y = c.shaped(y, &[8]); let y = c.b.causal_conv1d(9, y, w, None); let y = c.shaped(y, &[2, 4]); c.b.attention(3, [y, y, y], 0.5, PLAIN) }),
    // gated, softmax, selection
    ("gated", "gated Silu", |c| { let (x, u, v) = (c.x(&[6]), c.w(&[5, 6]), c.w(&[5, 6])); let (g, u) = (c.b.linear(x, u), c.b.linear(x, v)); c.b.gated(g, u, Activation::Silu) }),
    ("gated halves of one projection", "gated Gelu", |c| { let x = c.x(&[10]); let (g, u) = (c.b.slice(x, 1, 0usize, 5usize), c.b.slice(x, 1, 5usize, 10usize)); c.b.gated(g, u, Activation::Gelu) }),
    ("gated with itself", "gated Tanh", |c| { let x = c.x(&[2, 5]); c.b.gated(x, x, Activation::Tanh) }),
    ("softmax", "softmax b2[T,15] by 5", |c| { let x = c.x(&[3, 5]); c.op(Op::Softmax, &[x]) }),
    ("select_outputs of a strided view", "select_rows ", |c| { let x = c.x(&[9]); let x = c.b.slice(x, 1, 2usize, 7usize); c.b.select_outputs(x) }),
    ("select_outputs of integers", "select_rows ", |c| { let x = c.b.token_ids(); let x = c.shaped(x, &[1]); c.b.select_outputs(x) }),
    ("select_outputs of truth values", "select_rows ", |c| { let (x, y) = (c.x(&[5]), c.x(&[5])); let x = c.op(Op::Lt, &[x, y]); c.b.select_outputs(x) }),
    ("logits that are a part of a value", "logits b", |c| { let (x, w) = (c.x(&[5]), c.w(&[9, 5])); let x = c.b.select_outputs(x); let y = c.b.linear(x, w); c.b.slice(y, 1, 3usize, 8usize) }),
    ("logits that are one linear of several", "logits b", |c| { let x = c.x(&[5]); let x = c.b.select_outputs(x); let (u, v) = (c.w(&[4, 5]), c.w(&[6, 5])); let a = c.b.linear(x, u); let b = c.b.linear(x, v); let t = c.b.activation(a, Activation::Relu); let n = c.b.slice(t, 1, 0usize, 1usize); let s = c.b.mul(b, n); let _ = s; b }),
    ("logits that do not depend on the step", "rows broadcast", |c| { let w = c.w(&[1, 5]); c.op(Op::Broadcast { shape: vec![Dim::R(), 5usize.into()] }, &[w]) }),
    // primitives: native ones, and those by the reference
    ("an expression in floats", "elementwise sin", |c| { let (x, w) = (c.x(&[2, 3]), c.w(&[3])); let y = c.b.mul(x, w); let y = c.op(Op::Sin, &[y]); let z = c.op(Op::Max, &[y, x]); c.b.div(z, w) }),
    ("broadcasts of every kind", "elementwise", |c| { let (x, a, b, s) = (c.x(&[2, 3]), c.w(&[1, 2, 1]), c.x(&[1, 3]), c.w(&[])); let y = c.b.add(a, x); let y = c.b.mul(y, b); c.b.sub(s, y) }),
    ("views as operands", "@", |c| { let x = c.x(&[9]); let (a, b) = (c.b.slice(x, 1, 1usize, 5usize), c.b.slice(x, 1, 4usize, 8usize)); let y = c.b.mul(a, b); c.op(Op::Ge, &[y, a]) }),
    ("an expression in integers", "elementwise rem", |c| { let (i, p, n) = (c.b.token_ids(), c.b.positions(), c.b.int(-3)); let y = c.b.sub(i, p); let y = c.b.mul(y, n); let five = c.b.int(5); let y = c.op(Op::Rem, &[y, five]); let y = c.op(Op::Neg, &[y]); c.shaped(y, &[1]) }),
    ("conditions", "elementwise select", |c| { let (x, y, w) = (c.x(&[4]), c.x(&[4]), c.w(&[4])); let (a, b) = (c.op(Op::Gt, &[x, y]), c.op(Op::Le, &[x, w])); let (d, n) = (c.op(Op::And, &[a, b]), c.op(Op::Not, &[a])); let o = c.op(Op::Or, &[d, n]); c.b.select(o, x, w) }),
    ("a choice of integers", "elementwise select", |c| { let (i, p, n) = (c.b.token_ids(), c.b.positions(), c.b.int(3)); let m = c.op(Op::Eq, &[i, n]); let y = c.b.select(m, p, n); c.shaped(y, &[1]) }),
    ("truth values compared and cast", "elementwise eq", |c| { let (x, y, z) = (c.x(&[4]), c.x(&[4]), c.x(&[4])); let (a, b) = (c.op(Op::Gt, &[x, y]), c.op(Op::Gt, &[x, z])); let e = c.op(Op::Eq, &[a, b]); c.b.cast(e, DType::I64) }),
    ("floats to integers and back", "elementwise cast", |c| { let x = c.x(&[4]); let x = c.b.scale(x, 7.0); let i = c.b.cast(x, DType::I64); let y = c.b.cast(i, DType::F32); c.b.cast(y, DType::Float) }),
    ("reductions", "rows cumsum", |c| { let x = c.x(&[3, 4]); let s = c.op(Op::Sum { axis: 1, keep: true }, &[x]); let m = c.op(Op::ReduceMin { axis: 2, keep: true }, &[x]); let y = c.b.add(x, s); let y = c.b.mul(y, m); c.op(Op::Cumsum { axis: 2 }, &[y]) }),
    ("sorted, and the largest", "rows gather", |c| { let x = c.x(&[6]); let i = c.op(Op::TopK { k: 4 }, &[x]); let y = c.op(Op::Gather { axis: 1 }, &[x, i]); let j = c.op(Op::Argmax { axis: 1, keep: true }, &[x]); let j = c.b.cast(j, DType::Float); c.b.concat(1, &[y, j]) }),
    ("scattered", "rows scatter_add", |c| { let x = c.x(&[6]); let i = c.op(Op::TopK { k: 2 }, &[x]); let v = c.b.slice(x, 1, 0usize, 2usize); c.op(Op::ScatterAdd { axis: 1 }, &[x, i, v]) }),
    ("permuted, sliced inside, every second", "rows permute", |c| { let x = c.x(&[3, 4]); let y = c.b.permute(x, [0, 2, 1]); let y = c.b.slice(y, 2, 1usize, 3usize); c.op(Op::Slice { axis: 1, start: 0usize.into(), end: 4usize.into(), step: 2 }, &[y]) }),
    ("rms_norm without a weight", "rms_norm b2[T,37]  eps", |c| { let x = c.x(&[37]); c.op(Op::RmsNorm { eps: 1e-5, unit_offset: false }, &[x]) }),
    ("softmax of selected rows", "softmax b", |c| { let x = c.x(&[6]); let x = c.b.select_outputs(x); c.op(Op::Softmax, &[x]) }),
    ("reductions inside", "rows reduce_max", |c| { let x = c.x(&[3, 4]); let s = c.op(Op::Sum { axis: 1, keep: false }, &[x]); let m = c.op(Op::ReduceMax { axis: 1, keep: false }, &[x]); let n = c.op(Op::ReduceMin { axis: 1, keep: false }, &[x]); let y = c.op(Op::Cumsum { axis: 1 }, &[x]); let y = c.shaped(y, &[12]); c.b.concat(1, &[s, m, n, y]) }),
    ("reductions of integers", "rows sum", |c| { let x = c.x(&[2, 5]); let i = c.op(Op::TopK { k: 3 }, &[x]); let s = c.op(Op::Sum { axis: 1, keep: true }, &[i]); let m = c.op(Op::ReduceMax { axis: 2, keep: true }, &[i]); let n = c.op(Op::ReduceMin { axis: 2, keep: true }, &[i]); let y = c.b.add(s, m); let y = c.b.mul(y, n); let a = c.op(Op::Argmax { axis: 2, keep: true }, &[i]); let y = c.b.add(y, a); c.op(Op::Cumsum { axis: 2 }, &[y]) }),
    ("argmax inside", "rows argmax", |c| { let x = c.x(&[3, 4]); c.op(Op::Argmax { axis: 1, keep: false }, &[x]) }),
    ("gathered inside, integers and truth values", "rows gather", |c| { let x = c.x(&[4, 3]); let y = c.x(&[4, 3]); let i = c.op(Op::TopK { k: 2 }, &[x]); let j = j_of(c, i); let k = c.op(Op::Gather { axis: 2 }, &[i, j]); let t = c.op(Op::Gt, &[x, y]); let t = c.op(Op::Gather { axis: 2 }, &[t, i]); let t = c.b.cast(t, DType::I64); c.b.add(k, t) }),
    ("scattered integers and truth values", "rows scatter", |c| { let x = c.x(&[2, 6]); let i = c.op(Op::TopK { k: 2 }, &[x]); let all = c.op(Op::Argsort { descending: true }, &[x]); let a = c.op(Op::Scatter { axis: 2 }, &[all, i, i]); let y = c.x(&[2, 6]); let t = c.op(Op::Gt, &[x, y]); let v = c.b.slice(t, 2, 0usize, 2usize); let t = c.op(Op::Scatter { axis: 2 }, &[t, i, v]); let t = c.b.cast(t, DType::I64); c.b.add(a, t) }),
    ("moved integers and truth values", "rows permute", |c| { let (x, y) = (c.x(&[3, 4]), c.x(&[3, 4])); let t = c.op(Op::Gt, &[x, y]); let t = c.b.permute(t, [0, 2, 1]); let t = c.b.slice(t, 2, 1usize, 3usize); let i = c.op(Op::TopK { k: 2 }, &[x]); let i = c.b.concat(1, &[i, i]); let t = c.b.cast(t, DType::F32); let i = c.b.cast(i, DType::F32); let i = c.shaped(i, &[4, 3]); let i = c.b.slice(i, 2, 0usize, 2usize); let y = c.b.mul(t, i); c.b.cast(y, DType::Float) }),
    ("broadcast inside", "rows broadcast", |c| { let x = c.x(&[3, 1, 2]); c.op(Op::Broadcast { shape: vec![Dim::T(), 3usize.into(), 4usize.into(), 2usize.into()] }, &[x]) }),
    ("heads repeated", "rows broadcast", |c| { let x = c.x(&[2, 3]); let x = c.shaped(x, &[2, 1, 3]); let x = c.op(Op::Broadcast { shape: vec![Dim::T(), 2usize.into(), 3usize.into(), 3usize.into()] }, &[x]); c.shaped(x, &[6, 3]) }),
    ("groups of experts masked", "rows scatter", |c| { let x = c.x(&[8]); let s = c.op(Op::Sigmoid, &[x]); let g = c.shaped(s, &[4, 2]); let g = c.op(Op::ReduceMax { axis: 2, keep: false }, &[g]); let i = c.op(Op::TopK { k: 2 }, &[g]); let zero = c.b.scalar(DType::Float, 0.0); let none = c.b.mul(g, zero); let one = c.b.slice(none, 1, 0usize, 2usize); let one = c.b.shift(one, 1.0); let m = c.op(Op::Scatter { axis: 1 }, &[none, i, one]); let m = c.shaped(m, &[4, 1]); let s = c.shaped(s, &[4, 2]); let m = c.op(Op::Gt, &[m, zero]); let low = c.b.scalar(DType::Float, -1.0); c.b.select(m, s, low) }),
    ("an empty slice joined", "rows concat", |c| { let x = c.x(&[3]); let e = c.b.slice(x, 1, 1usize, 1usize); c.b.concat(1, &[e, x]) }),
];

/// The first settings round nothing.
const EXACT: usize = 2;

fn settings() -> [(Stored, Dtype, KvCacheDtype, f32); 7] {
    use Dtype::{Bfloat16, Float16, Float32};
    [
        (Stored::F32, Float32, KvCacheDtype::Float32, 2e-5),
        (Stored::Mixed, Float32, KvCacheDtype::Float32, 2e-5),
        (Stored::Bf16, Bfloat16, KvCacheDtype::Bfloat16, 4e-2),
        (Stored::Mixed, Bfloat16, KvCacheDtype::Float32, 4e-2),
        (Stored::F16, Float16, KvCacheDtype::Float32, 4e-3),
        (Stored::Mixed, Float16, KvCacheDtype::Bfloat16, 4e-2),
        (Stored::F32, Float32, KvCacheDtype::Int8, 4e-2),
    ]
}

fn check(what: &str, graph: &Graph, wanted: Option<&str>) -> Vec<String> {
    let mut missing = vec![];
    let mut r = Random(what.len() as u64);
    // One that fills blocks and crosses their borders, one token, three.
    let seqs: Vec<Vec<u32>> = [37, 1, 3].iter().map(|&n| r.tokens(n, VOCABULARY)).collect();
    // Optimised graphs differ in their calls, not in their arithmetic: two settings do.
    let some = if wanted.is_some() { usize::MAX } else { EXACT };
    for (i, (stored, dtype, kv, tolerance)) in settings().into_iter().take(some).enumerate() {
        let weights = checkpoint(graph, i as u64, stored);
        if let Some(wanted) = wanted.filter(|_| i == 0) {
            let (_, plan) = plan(graph, &weights, dtype, None).unwrap_or_else(|e| panic!("{what}: {e}"));
            if !plan.to_string().contains(wanted) {
                missing.push(format!("{what}: the plan has no `{wanted}`:\n{plan}"));
            }
        }
        let what = format!("{what}, {stored:?} as {}, cache {}", dtype.name(), kv.name());
        check_executor(&what, graph, &weights, (&options(dtype, kv), tolerance), &seqs).unwrap();
    }
    missing
}

#[test]
fn kernels_compute_what_the_definitions_say() {
    let missing: Vec<String> =
        LINES.iter().flat_map(|(what, wanted, make)| check(what, &graph(make), Some(wanted))).collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Most jump somewhere, so numbers that are rounded first are not compared.
#[test]
fn primitives_compute_what_the_reference_does() {
    let mut missing = vec![];
    for (what, wanted, make) in PRIMITIVES {
        let graph = graph(make);
        check(what, &graph, None);
        let (_, plan) = plan(&graph, &checkpoint(&graph, 0, Stored::F32), Dtype::Float32, None).unwrap();
        if !plan.to_string().contains(wanted) {
            missing.push(format!("{what}: the plan has no `{wanted}`:\n{plan}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn optimised_cases_compute_the_same() {
    for (what, _, make) in LINES.iter().chain(PRIMITIVES) {
        check(what, &optimise(&graph(make)).unwrap(), None);
    }
}

#[test]
fn every_activation_alone_fused_and_gated() {
    use Activation::*;
    for kind in [Silu, Gelu, GeluTanh, QuickGelu, Relu, ReluSquared, Softplus, Sigmoid, Tanh] {
        let spread = |c: &mut Case, n: usize| {
            let x = c.x(&[n]);
            c.b.scale(x, 8.0)
        };
        let alone = graph(|c| {
            let x = spread(c, 19);
            c.b.activation(x, kind)
        });
        let fused = graph(|c| {
            let (x, w) = (spread(c, 6), c.w(&[19, 6]));
            let y = c.b.linear(x, w);
            c.b.activation(y, kind)
        });
        let gated = graph(|c| {
            let (x, y) = (spread(c, 19), spread(c, 19));
            c.b.gated(x, y, kind)
        });
        for (what, g, wanted) in [("alone", alone, "activate"), ("fused", fused, "linear"), ("gated", gated, "gated")] {
            let missing = check(&format!("{kind:?} {what}"), &g, Some(wanted));
            assert!(missing.is_empty(), "{}", missing.join("\n"));
        }
    }
}

/// What mixes tokens is refused, by name, and never computed wrongly.
#[test]
fn graphs_that_cannot_be_batched_are_refused() {
    let slice = |start: &str, end: &str, axis| Op::Slice {
        axis,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
        step: 1,
    };
    type Make<'a> = Box<dyn Fn(&mut Case) -> Value + 'a>;
    let cases: [(&str, Make<'_>); 9] = [
        (
            "sum",
            Box::new(|c| {
                let x = c.x(&[4]);
                let s = c.op(Op::Sum { axis: 0, keep: true }, &[x]);
                c.b.add(x, s)
            }),
        ),
        (
            "cumsum",
            Box::new(|c| {
                let x = c.x(&[4]);
                c.op(Op::Cumsum { axis: 0 }, &[x])
            }),
        ),
        (
            "iota",
            Box::new(|c| {
                // 0, 1, 2, ... are the positions, one a token; 1, 2, 3, ... are no rows of it.
                let i = c.b.iota("T+1".parse::<Dim>().unwrap());
                let i = c.b.op(slice("1", "T+1", 0), &[i]);
                c.shaped(i, &[1])
            }),
        ),
        (
            "permute",
            Box::new(|c| {
                let x = c.x(&[4]);
                let t = c.b.permute(x, [1, 0]);
                let s = c.b.matmul(x, t);
                c.b.matmul(s, x)
            }),
        ),
        (
            "permute",
            Box::new(|c| {
                // Attention without its composite.
                let x = c.x(&[4]);
                let t = c.b.permute(x, [1, 0]);
                let s = c.b.matmul(x, t);
                let p = c.op(Op::Softmax, &[s]);
                c.b.matmul(p, x)
            }),
        ),
        (
            "linear",
            Box::new(|c| {
                let x = c.x(&[4]);
                let y = c.b.linear(x, x);
                let y = c.op(Op::Sum { axis: 1, keep: true }, &[y]);
                c.b.add(x, y)
            }),
        ),
        // A part of constant size whose place depends on how many tokens there are.
        (
            "slice",
            Box::new(|c| {
                let w = c.w(&[60, 4]);
                let y = c.op(slice("T-1", "T", 0), &[w]);
                let x = c.x(&[4]);
                c.b.add(x, y)
            }),
        ),
        (
            "slice",
            Box::new(|c| {
                let x = c.x(&[60]);
                c.op(slice("T-1", "T", 1), &[x])
            }),
        ),
        (
            "slice",
            Box::new(|c| {
                let x = c.x(&[4]);
                let y = c.op(slice("T-1", "T", 0), &[x]);
                c.b.add(x, y)
            }),
        ),
    ];
    for (i, (op, make)) in cases.iter().enumerate() {
        for g in [graph(make), optimise(&graph(make)).unwrap()] {
            match plan(&g, &checkpoint(&g, 1, Stored::F32), Dtype::Float32, None) {
                // Composites without a kernel are refused in their definition.
                Err(LowerError::NotBatchable { op: got, .. }) => {
                    assert!(got == *op || (*op == "linear" && got == "permute"), "case {i}: `{got}`, not `{op}`")
                }
                other => panic!("case {i}, {op}: {:?}", other.map(|(_, plan)| plan.to_string())),
            }
        }
    }
}
