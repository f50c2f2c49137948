//! The composites that mix tokens or choose weights by token, against naive programs in f64: masks, convolutions,
//! running states, experts, and attention that does not see every key.

use plugin_api::{AttentionOptions, DType, Dim, Op, Value};

use super::{Fixture, Random, Tensor, assert_close, at, tensor_of};

const TOLERANCE: f32 = 2e-6;

#[test]
fn a_causal_mask_shows_the_window_and_the_chunk() {
    for (window, chunk) in [(None, None), (Some(1), None), (Some(3), None), (None, Some(4)), (Some(3), Some(5))] {
        for t in [0usize, 1, 4, 11] {
            let mut f = Fixture::default();
            let mask = f.b.op(Op::CausalMask { window, chunk }, &[]);
            let sees = |i: usize, j: usize| {
                j <= i
                    && window.is_none_or(|w| i - j < w as usize)
                    && chunk.is_none_or(|c| i / c as usize == j / c as usize)
            };
            let expected = Tensor::bool([t, t], (0..t * t).map(|n| sees(n / t, n % t)).collect());
            assert_close("causal_mask", &f.run(mask, t, &[]).unwrap(), &expected, 0.0);
        }
    }
}

#[test]
fn a_causal_convolution_sees_the_rows_before() {
    let mut random = Random::new(30);
    for (channels, width) in [(3, 1), (5, 2), (4, 4), (2, 9)] {
        let (x, w, bias) =
            (random.tensor(&[8, channels]), random.tensor(&[channels, width]), random.tensor(&[channels]));
        for t in [0usize, 1, 2, 8] {
            for biased in [false, true] {
                let mut f = Fixture::default();
                let (xv, wv) = (f.by_token(&x), f.weight(&w));
                let bv = biased.then(|| f.weight(&bias));
                let y = f.b.causal_conv1d(0, xv, wv, bv);
                let expected = tensor_of(&[t, channels], |c| {
                    let sum: f64 = (0..width)
                        .filter(|k| c[0] + k + 1 >= width)
                        .map(|k| at(&w, &[c[1], k]) * at(&x, &[c[0] + k + 1 - width, c[1]]))
                        .sum();
                    sum + if biased { at(&bias, &[c[1]]) } else { 0.0 }
                });
                let what = format!("[{t},{channels}] of width {width}");
                assert_close(&what, &f.run(y, t, &[]).unwrap(), &expected, TOLERANCE);
            }
        }
    }
}

/// One linear attention to test.
#[derive(Clone, Copy, Debug)]
struct Running {
    t: usize,
    key_heads: usize,
    heads: usize,
    dk: usize,
    dv: usize,
    per_channel: bool,
    delta: bool,
    /// Factor of the logarithms of the decay.
    strength: f32,
}

/// As documented at `Op::LinearAttention`: one state, token by token.
fn naive_running(a: &Running, [q, k, v, decay, beta]: [&Tensor; 5]) -> Tensor {
    let mut out = vec![0.0f64; a.t * a.heads * a.dv];
    for h in 0..a.heads {
        let hk = h / (a.heads / a.key_heads);
        let mut state = vec![vec![0.0f64; a.dv]; a.dk];
        for t in 0..a.t {
            for (i, row) in state.iter_mut().enumerate() {
                let log = if a.per_channel { at(decay, &[t, h, i]) } else { at(decay, &[t, h]) };
                row.iter_mut().for_each(|s| *s *= log.exp());
            }
            for j in 0..a.dv {
                let mut u = at(v, &[t, h, j]);
                if a.delta {
                    let known: f64 = (0..a.dk).map(|i| at(k, &[t, hk, i]) * state[i][j]).sum();
                    u = at(beta, &[t, h]) * (u - known);
                }
                for (i, row) in state.iter_mut().enumerate() {
                    row[j] += at(k, &[t, hk, i]) * u;
                }
                out[(t * a.heads + h) * a.dv + j] = (0..a.dk).map(|i| at(q, &[t, hk, i]) * state[i][j]).sum();
            }
        }
    }
    Tensor::f32([a.t, a.heads, a.dv], out.into_iter().map(|x| x as f32).collect())
}

fn check_running(a: Running, change: impl Fn(&mut Tensor)) {
    let mut random = Random::new(31);
    let mut negative = |shape: &[usize]| {
        let mut t = random.tensor(shape);
        if let plugin_api::ConstData::F32(v) = &mut t.data {
            v.iter_mut().for_each(|x| *x = -x.abs() * a.strength);
        }
        change(&mut t);
        t
    };
    let decay = if a.per_channel { negative(&[9, a.heads, a.dk]) } else { negative(&[9, a.heads]) };
    let (q, k) = (random.tensor(&[9, a.key_heads, a.dk]), random.tensor(&[9, a.key_heads, a.dk]));
    let (v, beta) = (random.tensor(&[9, a.heads, a.dv]), random.tensor(&[9, a.heads]));
    let expected = naive_running(&a, [&q, &k, &v, &decay, &beta]);
    let mut f = Fixture::default();
    let qkv = [&q, &k, &v].map(|t| f.by_token(t));
    let by_token = |f: &mut Fixture, t: &Tensor| {
        let x = f.by_token(t);
        f.b.cast(x, DType::F32)
    };
    let decay = by_token(&mut f, &decay);
    let beta = a.delta.then(|| by_token(&mut f, &beta));
    let y = f.b.linear_attention(0, qkv, decay, beta);
    assert_close(&format!("{a:?}"), &f.run(y, a.t, &[]).unwrap(), &expected, TOLERANCE);
}

#[test]
fn linear_attention_is_a_running_state() {
    let sizes = [(1, 1, 1, 1), (1, 3, 4, 5), (2, 2, 3, 2), (2, 6, 2, 4), (5, 5, 3, 1)];
    for (key_heads, heads, dk, dv) in sizes {
        for t in [0, 1, 2, 9] {
            for (per_channel, delta) in [(false, false), (true, false), (false, true), (true, true)] {
                check_running(Running { t, key_heads, heads, dk, dv, per_channel, delta, strength: 1.0 }, |_| {});
            }
        }
    }
}

/// Decays that forget nearly everything, or all of it, leave the digits of what comes after.
#[test]
fn linear_attention_survives_strong_decays() {
    let a = Running { t: 9, key_heads: 1, heads: 2, dk: 3, dv: 2, per_channel: true, delta: false, strength: 1000.0 };
    check_running(a, |decay| {
        if let plugin_api::ConstData::F32(v) = &mut decay.data {
            v.iter_mut().enumerate().filter(|(i, _)| i % 3 > 0).for_each(|(_, x)| *x = -0.01);
            v[12] = f32::NEG_INFINITY;
        }
    });
}

#[test]
fn grouped_linears_take_the_matrices_of_each_token() {
    let mut random = Random::new(32);
    for (experts, choices, n, d) in [(1, 1, 1, 1), (4, 2, 3, 5), (3, 5, 4, 2)] {
        let (w, bias) = (random.tensor(&[experts, n, d]), random.tensor(&[experts, n]));
        let ids = random.index(&[7, choices], experts);
        let (shared, own) = (random.tensor(&[7, d]), random.tensor(&[7, choices, d]));
        for t in [0usize, 1, 7] {
            for (biased, x) in [(false, &shared), (true, &shared), (false, &own), (true, &own)] {
                let mut f = Fixture::default();
                let (xv, wv) = (f.by_token(x), f.weight(&w));
                let (table, tokens) = (f.literal(&ids), f.b.token_ids());
                let chosen = f.b.op(Op::Take { axis: 0 }, &[table, tokens]);
                let bv = biased.then(|| f.weight(&bias));
                let y = f.b.grouped_linear(xv, chosen, wv, bv);
                let expected = tensor_of(&[t, choices, n], |c| {
                    let e = at(&ids, &c[..2]) as usize;
                    let x = |i: usize| if x.shape.len() == 2 { at(x, &[c[0], i]) } else { at(x, &[c[0], c[1], i]) };
                    let sum: f64 = (0..d).map(|i| at(&w, &[e, c[2], i]) * x(i)).sum();
                    sum + if biased { at(&bias, &[e, c[2]]) } else { 0.0 }
                });
                let what = format!("{experts} experts, [{t},{choices},{d}] -> {n}, {:?}", x.shape);
                assert_close(&what, &f.run(y, t, &[]).unwrap(), &expected, TOLERANCE);
            }
        }
    }
    let mut f = Fixture::default();
    let (x, w, ids) = (f.by_token(&random.tensor(&[2, 3])), f.weight(&random.tensor(&[2, 1, 3])), f.b.token_ids());
    let ids = f.b.reshape(ids, [Dim::T(), Dim::from(1usize)]);
    let two = f.b.int(1);
    let ids = f.b.add(ids, two);
    let y = f.b.grouped_linear(x, ids, w, None);
    let error = f.run(y, 2, &[]).unwrap_err().to_string();
    assert!(error.contains("index 2 is out of range, axis 0 has 2"), "{error}");
}

/// bool[T, T], or bool[heads, T, T]: true on the diagonal and where 7 i + 3 j + h is no multiple of 4.
fn chosen(f: &mut Fixture, heads: Option<usize>) -> Value {
    let number = |f: &mut Fixture, len: Dim, factor: i64, shape: [Dim; 3]| {
        let (i, n) = (f.b.iota(len), f.b.int(factor));
        let i = f.b.op(Op::Mul, &[i, n]);
        f.b.reshape(i, shape)
    };
    let (t, one) = (Dim::T(), Dim::from(1usize));
    let h = Dim::from(heads.unwrap_or(1));
    let i = number(f, t.clone(), 7, [one.clone(), t.clone(), one.clone()]);
    let j = number(f, t.clone(), 3, [one.clone(), one.clone(), t.clone()]);
    let head = number(f, h.clone(), 1, [h, one.clone(), one.clone()]);
    let sum = f.b.add(i, j);
    let sum = f.b.add(sum, head);
    let (four, none) = (f.b.int(4), f.b.int(0));
    let rest = f.b.op(Op::Rem, &[sum, four]);
    let some = f.b.op(Op::Ne, &[rest, none]);
    let rows = number(f, t.clone(), 1, [one.clone(), t.clone(), one.clone()]);
    let columns = number(f, t.clone(), 1, [one.clone(), one, t.clone()]);
    let diagonal = f.b.op(Op::Eq, &[rows, columns]);
    let mask = f.b.op(Op::Or, &[some, diagonal]);
    if heads.is_some() { mask } else { f.b.reshape(mask, [t.clone(), t]) }
}

#[test]
fn attention_sees_its_chunk_and_its_mask() {
    let (heads, kv_heads, d, dv, t) = (4, 2, 3, 2, 9);
    let mut random = Random::new(33);
    let (q, k) = (random.tensor(&[t, heads, d]), random.tensor(&[t, kv_heads, d]));
    let (v, sinks) = (random.tensor(&[t, kv_heads, dv]), random.tensor(&[heads]));
    // Chunk, window, mask (per head or not), sinks.
    let cases = [
        (Some(1), None, None, false),
        (Some(4), None, None, false),
        (Some(4), Some(2), None, true),
        (None, None, Some(false), false),
        (None, Some(5), Some(true), true),
        (Some(5), None, Some(true), false),
    ];
    for (chunk, window, mask, sink) in cases {
        let mut f = Fixture::default();
        let qkv = [&q, &k, &v].map(|t| f.by_token(t));
        let options = AttentionOptions {
            chunk,
            window,
            sinks: sink.then(|| f.weight(&sinks)),
            mask: mask.map(|per_head| chosen(&mut f, per_head.then_some(heads))),
            ..AttentionOptions::default()
        };
        let y = f.b.attention(0, qkv, 0.7, options);
        let sees = |i: usize, j: usize, h: usize| {
            j <= i
                && window.is_none_or(|w: u32| i - j < w as usize)
                && chunk.is_none_or(|c: u32| i / c as usize == j / c as usize)
                && mask
                    .is_none_or(|per_head| i == j || !(7 * i + 3 * j + if per_head { h } else { 0 }).is_multiple_of(4))
        };
        let expected = tensor_of(&[t, heads, dv], |c| {
            let (i, h, kv) = (c[0], c[1], c[1] / (heads / kv_heads));
            let weight = |j: usize| {
                let dot: f64 = (0..d).map(|e| at(&q, &[i, h, e]) * at(&k, &[j, kv, e])).sum();
                if sees(i, j, h) { (f64::from(0.7f32) * dot).exp() } else { 0.0 }
            };
            let rest = if sink { at(&sinks, &[h]).exp() } else { 0.0 };
            let total: f64 = (0..t).map(weight).sum::<f64>() + rest;
            (0..t).map(|j| weight(j) / total * at(&v, &[j, kv, c[2]])).sum()
        });
        let what = format!("chunk {chunk:?}, window {window:?}, mask {mask:?}, sink {sink}");
        assert_close(&what, &f.run(y, t, &[]).unwrap(), &expected, TOLERANCE);
    }
}
