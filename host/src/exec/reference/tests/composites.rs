//! Every composite's definition against an independent naive program in f64.

use plugin_api::{Activation, AttentionOptions, DType, Op};

use super::{Fixture, Random, Tensor, assert_close, at, run_op, tensor_of};

const TOLERANCE: f32 = 1e-6;

fn check(op: Op, inputs: &[Tensor], expected: Tensor) {
    let what = format!("{op} of {:?}", inputs.iter().map(|t| &t.shape).collect::<Vec<_>>());
    assert_close(&what, &run_op(op, inputs).unwrap(), &expected, TOLERANCE);
}

/// The coordinate `c` with its last element replaced.
fn with_last(c: &[usize], last: usize) -> Vec<usize> {
    c[..c.len() - 1].iter().copied().chain([last]).collect()
}

#[test]
fn linear_is_x_times_the_transposed_weight_plus_bias() {
    let mut random = Random::new(10);
    for (x, n) in [(vec![7], 3), (vec![5, 7], 3), (vec![2, 5, 7], 1), (vec![0, 7], 2)] {
        let (x, w, bias) = (random.tensor(&x), random.tensor(&[n, 7]), random.tensor(&[n]));
        let y = |c: &[usize]| -> f64 { (0..7).map(|k| at(&x, &with_last(c, k)) * at(&w, &[c[c.len() - 1], k])).sum() };
        let mut shape = x.shape.clone();
        *shape.last_mut().unwrap() = n;
        let biased = tensor_of(&shape, |c| y(c) + at(&bias, &c[c.len() - 1..]));
        check(Op::Linear, &[x.clone(), w.clone()], tensor_of(&shape, y));
        check(Op::Linear, &[x.clone(), w.clone(), bias], biased);
    }
}

#[test]
fn embedding_is_rows_of_the_table() {
    let mut random = Random::new(11);
    let table = random.tensor(&[6, 3]);
    for shape in [vec![], vec![4], vec![2, 3], vec![0]] {
        let ids = random.index(&shape, 6);
        let mut out = shape.clone();
        out.push(3);
        let expected = tensor_of(&out, |c| at(&table, &[at(&ids, &c[..c.len() - 1]) as usize, c[c.len() - 1]]));
        check(Op::Embedding, &[ids, table.clone()], expected);
    }
    let error = run_op(Op::Embedding, &[Tensor::i64([1], vec![6]), table]).unwrap_err().to_string();
    assert!(error.contains("index 6 is out of range"), "{error}");
}

#[test]
fn norms_follow_their_papers() {
    let mut random = Random::new(12);
    let (w, bias) = (random.tensor(&[8]), random.tensor(&[8]));
    for shape in [vec![8], vec![5, 8], vec![2, 3, 8], vec![0, 8]] {
        let x = random.tensor(&shape);
        let row = |c: &[usize]| (0..8).map(|k| at(&x, &with_last(c, k))).collect::<Vec<f64>>();
        let last = |c: &[usize]| c[c.len() - 1];
        for (eps, unit_offset) in [(1e-6f32, false), (0.5, true)] {
            let expected = tensor_of(&shape, |c| {
                let mean_square = row(c).iter().map(|v| v * v).sum::<f64>() / 8.0;
                let factor = at(&w, &[last(c)]) + if unit_offset { 1.0 } else { 0.0 };
                at(&x, c) / (mean_square + f64::from(eps)).sqrt() * factor
            });
            check(Op::RmsNorm { eps, unit_offset }, &[x.clone(), w.clone()], expected);
            // Without a weight there is nothing that an offset could be added to.
            let plain = tensor_of(&shape, |c| {
                let mean_square = row(c).iter().map(|v| v * v).sum::<f64>() / 8.0;
                at(&x, c) / (mean_square + f64::from(eps)).sqrt()
            });
            check(Op::RmsNorm { eps, unit_offset }, std::slice::from_ref(&x), plain);
        }
        for eps in [1e-5f32, 0.5] {
            let plain = |c: &[usize]| {
                let mean = row(c).iter().sum::<f64>() / 8.0;
                let variance = row(c).iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 8.0;
                (at(&x, c) - mean) / (variance + f64::from(eps)).sqrt()
            };
            let scaled = |c: &[usize]| plain(c) * at(&w, &[last(c)]);
            let shifted = |c: &[usize]| scaled(c) + at(&bias, &[last(c)]);
            check(Op::LayerNorm { eps }, std::slice::from_ref(&x), tensor_of(&shape, plain));
            check(Op::LayerNorm { eps }, &[x.clone(), w.clone()], tensor_of(&shape, scaled));
            check(Op::LayerNorm { eps }, &[x.clone(), w.clone(), bias.clone()], tensor_of(&shape, shifted));
        }
    }
}

/// The mean over a size that is only known at a step counts the elements.
#[test]
fn norms_work_over_a_symbolic_size() {
    let table = Random::new(13).tensor(&[9]);
    for t in [1usize, 4, 9] {
        let mut f = Fixture::default();
        let x = f.by_token(&table);
        let y = f.b.op(Op::LayerNorm { eps: 0.1 }, &[x]);
        let row: Vec<f64> = (0..t).map(|i| at(&table, &[i])).collect();
        let mean = row.iter().sum::<f64>() / t as f64;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / t as f64;
        let expected = tensor_of(&[t], |c| (row[c[0]] - mean) / (variance + 0.1f32 as f64).sqrt());
        assert_close("layer_norm over T", &f.run(y, t, &[]).unwrap(), &expected, TOLERANCE);
    }
}

#[test]
fn rope_rotates_pairs_and_leaves_the_rest() {
    let mut random = Random::new(14);
    for (t, heads, d, n) in [(5, 3, 8, 4), (4, 2, 10, 3), (1, 1, 2, 1), (3, 2, 7, 2), (0, 2, 4, 2)] {
        for interleaved in [false, true] {
            let (x, angles) = (random.tensor(&[6, heads, d]), random.tensor(&[6, n]));
            let table = |f: fn(f64) -> f64| tensor_of(&[6, n], |c| f(3.0 * at(&angles, c)));
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let expected = tensor_of(&[t, heads, d], |c| {
                let (p, h, i) = (c[0], c[1], c[2]);
                if i >= 2 * n {
                    return at(&x, c);
                }
                // The pair that i belongs to, and its partner; the second of a pair turns the other way.
                let (pair, second) = if interleaved { (i / 2, i % 2 == 1) } else { (i % n, i >= n) };
                let partner = match (interleaved, second) {
                    (true, false) => i + 1,
                    (true, true) => i - 1,
                    (false, false) => i + n,
                    (false, true) => i - n,
                };
                let sign = if second { 1.0 } else { -1.0 };
                at(&x, c) * at(&cos, &[p, pair]) + sign * at(&x, &[p, h, partner]) * at(&sin, &[p, pair])
            });
            let mut f = Fixture::default();
            let [xv, cos, sin] = [&x, &cos, &sin].map(|t| f.by_token(t));
            let (cos, sin) = (f.b.cast(cos, DType::F32), f.b.cast(sin, DType::F32));
            let y = f.b.rope(xv, (cos, sin), interleaved);
            let what = format!("rope interleaved={interleaved} [{t},{heads},{d}] n={n}");
            assert_close(&what, &f.run(y, t, &[]).unwrap(), &expected, TOLERANCE);
        }
    }
}

#[test]
fn softmax_survives_large_and_hidden_scores() {
    let mut random = Random::new(15);
    for shape in [vec![5], vec![4, 6], vec![2, 3, 4], vec![0, 3]] {
        let mut x = random.tensor(&shape);
        if let plugin_api::ConstData::F32(data) = &mut x.data {
            data.iter_mut().enumerate().for_each(|(i, v)| match i % 4 {
                0 => *v += 1000.0,
                1 => *v = f32::NEG_INFINITY,
                _ => *v += 999.0,
            });
        }
        let n = shape[shape.len() - 1];
        let expected = tensor_of(&shape, |c| {
            let e = |i| (at(&x, &with_last(c, i)) - 1000.0).exp();
            e(c[c.len() - 1]) / (0..n).map(e).sum::<f64>()
        });
        check(Op::Softmax, &[x], expected);
    }
}

/// By its power series, which is exact enough for arguments up to 4.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activation(kind: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * (1.0 + erf(x / 2f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * (1.0 + inner.tanh()) / 2.0
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0) * x.max(0.0),
        Activation::Softplus => (1.0 + x.exp()).ln(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => x.tanh(),
    }
}

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

#[test]
fn activations_and_gates_follow_their_formulas() {
    let x = tensor_of(&[3, 37], |c| (c[1] as f64 - 18.0) / 3.6 + c[0] as f64 * 0.01);
    let up = Random::new(16).tensor(&[3, 37]);
    for kind in ACTIVATIONS {
        let one = tensor_of(&[3, 37], |c| activation(kind, at(&x, c)));
        check(Op::Activation { kind }, std::slice::from_ref(&x), one);
        let gated = tensor_of(&[3, 37], |c| activation(kind, at(&x, c)) * at(&up, c));
        check(Op::Gated { kind }, &[x.clone(), up.clone()], gated);
        // Far out nothing overflows: the function is x, x^2, 1 or 0 there.
        let far = run_op(Op::Activation { kind }, &[Tensor::f32([2], vec![-1000.0, 1000.0])]).unwrap();
        let expected = match kind {
            Activation::ReluSquared => vec![0.0, 1e6],
            Activation::Sigmoid => vec![0.0, 1.0],
            Activation::Tanh => vec![-1.0, 1.0],
            _ => vec![0.0, 1000.0],
        };
        assert_close(&format!("{kind:?} far out"), &far, &Tensor::f32([2], expected), 0.0);
    }
}

/// One attention to test: sizes and options.
#[derive(Clone, Copy, Debug)]
struct Heads {
    t: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    dv: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
    alibi: bool,
}

const PLAIN: Heads =
    Heads { t: 7, heads: 4, kv_heads: 4, d: 6, dv: 6, window: None, softcap: None, sinks: false, alibi: false };

/// As documented at `Op::Attention`, one query and one head at a time.
fn naive_attention(a: &Heads, scale: f64, [q, k, v, sinks, slopes]: [&Tensor; 5]) -> Tensor {
    tensor_of(&[a.t, a.heads, a.dv], |c| {
        let (i, h, kv) = (c[0], c[1], c[1] / (a.heads / a.kv_heads));
        let first = a.window.map_or(0, |w| (i + 1).saturating_sub(w as usize));
        let score = |j: usize| {
            let dot: f64 = (0..a.d).map(|e| at(q, &[i, h, e]) * at(k, &[j, kv, e])).sum();
            let capped = match a.softcap {
                Some(cap) => f64::from(cap) * (scale * dot / f64::from(cap)).tanh(),
                None => scale * dot,
            };
            let slope = if a.alibi { at(slopes, &[h]) } else { 0.0 };
            capped + slope * (j as f64 - i as f64)
        };
        let sink = if a.sinks { at(sinks, &[h]).exp() } else { 0.0 };
        let total: f64 = (first..=i).map(|j| score(j).exp()).sum::<f64>() + sink;
        (first..=i).map(|j| score(j).exp() / total * at(v, &[j, kv, c[2]])).sum()
    })
}

#[test]
fn attention_follows_its_documentation() {
    let cases = [
        PLAIN,
        Heads { t: 1, ..PLAIN },
        Heads { t: 0, ..PLAIN },
        Heads { kv_heads: 2, ..PLAIN },
        Heads { heads: 6, kv_heads: 1, dv: 3, ..PLAIN },
        Heads { d: 5, dv: 9, kv_heads: 2, ..PLAIN },
        Heads { window: Some(1), ..PLAIN },
        Heads { window: Some(3), kv_heads: 2, ..PLAIN },
        Heads { window: Some(100), ..PLAIN },
        Heads { softcap: Some(0.5), ..PLAIN },
        Heads { sinks: true, ..PLAIN },
        Heads { alibi: true, kv_heads: 2, ..PLAIN },
        Heads {
            t: 9,
            heads: 6,
            kv_heads: 3,
            d: 4,
            dv: 2,
            window: Some(4),
            softcap: Some(2.0),
            sinks: true,
            alibi: true,
        },
    ];
    let mut random = Random::new(17);
    for a in cases {
        let scale = 0.7f32;
        let q = random.tensor(&[10, a.heads, a.d]);
        let (k, v) = (random.tensor(&[10, a.kv_heads, a.d]), random.tensor(&[10, a.kv_heads, a.dv]));
        let (sinks, slopes) = (random.tensor(&[a.heads]), random.tensor(&[a.heads]));
        let expected = naive_attention(&a, scale.into(), [&q, &k, &v, &sinks, &slopes]);
        let mut f = Fixture::default();
        let qkv = [&q, &k, &v].map(|t| f.by_token(t));
        let options = AttentionOptions {
            window: a.window,
            softcap: a.softcap,
            sinks: a.sinks.then(|| f.weight(&sinks)),
            alibi: a.alibi.then(|| f.literal(&slopes)),
            ..AttentionOptions::default()
        };
        let y = f.b.attention(0, qkv, scale, options);
        assert_close(&format!("{a:?}"), &f.run(y, a.t, &[]).unwrap(), &expected, TOLERANCE);
    }
}
