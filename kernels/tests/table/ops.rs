//! Row-wise kernels.

use half::{bf16, f16};
use kernels::cpu::{Activation, Binary, LayerNorm, RmsNorm, Rope, RopeStyle, Rows, RowsMut, WeightRef, ZipOperand};

use super::on::{
    activate, activate_to, add, add_assign, add_layer_norm, add_rms_norm, argmax, embed, gated, gather_rows,
    layer_norm, layer_norm_parts, mul, rms_norm, rms_norm_parts, rope, rope_to, scale, softcap, softmax, softmax_to,
    zip,
};
use super::{Case, Expected, On, Random, relative};

pub const ACTIVATIONS: [Activation; 11] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu2,
    Activation::Silu,
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Exp,
    Activation::Softplus,
];

/// erf in f64: the Taylor series near zero, a continued fraction for erfc elsewhere.
pub fn erf(x: f64) -> f64 {
    let t = x.abs();
    let y = if t < 2.5 {
        let (mut term, mut sum, mut n) = (t, t, 0.0);
        while term.abs() > 1e-18 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -t * t / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut f = 0.0;
        for n in (1..=200).rev() {
            f = f64::from(n) / 2.0 / (t + f);
        }
        1.0 - (-t * t).exp() / (t + f) / std::f64::consts::PI.sqrt()
    };
    y.copysign(x)
}

pub fn activation(f: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match f {
        Activation::Identity => x,
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
        Activation::Silu => x * sigmoid(x),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Exp => x.exp(),
        Activation::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
    }
}

/// A case whose kernel reads `x` (and maybe more) and writes `[rows, cols]`.
fn case(
    name: String,
    (rows, cols): (usize, usize),
    tolerance: f64,
    passes: usize,
    run: impl FnMut(&On<'_>, &mut [f32]) + 'static,
    reference: impl Fn() -> Vec<Expected> + 'static,
) -> Case {
    Case {
        name: format!("{name}/{rows}x{cols}"),
        tolerance,
        flops: (rows * cols) as f64,
        bytes: (4 * passes * rows * cols) as f64,
        outputs: rows * cols,
        run: Box::new(run),
        reference: Box::new(reference),
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

fn activations((rows, cols): (usize, usize), out: &mut Vec<Case>) {
    for f in ACTIVATIONS {
        // Small, middling and large arguments of both signs.
        let mut random = Random(11);
        let x: Vec<f32> = (0..rows * cols).map(|i| random.unit() * [1e-4, 0.1, 1.0, 4.0, 20.0, 85.0][i % 6]).collect();
        let up = random.vec(rows * cols);
        let magnitude = move |x: f32, y: f64| match f {
            // x/2 (1 + erf) cancels for negative x, in every implementation in f32.
            Activation::GeluErf | Activation::GeluTanh => y.abs().max(0.25 * f64::from(x).abs()),
            Activation::QuickGelu | Activation::Silu | Activation::Sigmoid | Activation::Exp => {
                // The rounding of the argument of exp alone gives |x| eps.
                y.abs() * (1.0 + 0.6 * f64::from(x).abs()) + 1e-30
            }
            _ => y.abs() + 1e-37,
        };
        let (x1, x2, x3, x4) = (x.clone(), x.clone(), x.clone(), x);
        let (up1, up2) = (up.clone(), up);
        out.push(case(
            format!("activate/{f:?}"),
            (rows, cols),
            4e-7,
            2,
            move |cpu, y| activate_to(cpu, f, Rows::dense(&x1, rows, cols), RowsMut::dense(y, rows, cols)).unwrap(),
            move || {
                x2.iter()
                    .map(|&x| (x, activation(f, x.into())))
                    .map(|(x, value)| Expected { value, scale: magnitude(x, value) })
                    .collect()
            },
        ));
        out.push(case(
            format!("gated/{f:?}"),
            (rows, cols),
            5e-7,
            3,
            move |cpu, y| {
                let (gate, up) = (Rows::dense(&x3, rows, cols), Rows::dense(&up1, rows, cols));
                gated(cpu, f, gate, up, RowsMut::dense(y, rows, cols)).unwrap();
            },
            move || {
                x4.iter()
                    .zip(&up2)
                    .map(|(&x, &up)| (x, f64::from(up), activation(f, x.into())))
                    .map(|(x, up, y)| Expected { value: y * up, scale: magnitude(x, y) * up.abs() + 1e-30 })
                    .collect()
            },
        ));
    }
}

fn rms(x: &[f64], weight: Option<&[f32]>, offset: f64, eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let f = 1.0 / (mean + eps).sqrt();
    x.iter().enumerate().map(|(i, x)| x * f * weight.map_or(1.0, |w| f64::from(w[i]) + offset)).collect()
}

fn layer(x: &[f64], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    let f = 1.0 / (var + eps).sqrt();
    let at = |w: Option<&[f32]>, i: usize, none: f64| w.map_or(none, |w| w[i].into());
    x.iter().enumerate().map(|(i, x)| (x - mean) * f * at(weight, i, 1.0) + at(bias, i, 0.0)).collect()
}

/// Error relative to the largest magnitude that a normed row has.
fn about_one(values: impl IntoIterator<Item = f64>) -> Vec<Expected> {
    values.into_iter().map(|value| Expected { value, scale: value.abs().max(0.5) }).collect()
}

fn norms((rows, cols): (usize, usize), out: &mut Vec<Case>) {
    let mut random = Random(12);
    let eps = 1e-5f32;
    let data: std::rc::Rc<[Vec<f32>; 4]> =
        std::rc::Rc::new([random.vec(rows * cols), random.vec(rows * cols), random.vec(cols), random.vec(cols)]);
    let per_row = move |x: &[f64], f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<Expected> {
        about_one(x.chunks_exact(cols).flat_map(f))
    };
    for (weighted, offset) in [(false, 0.0), (true, 0.0), (true, 1.0)] {
        let (d, e) = (data.clone(), data.clone());
        let run = move |cpu: &On<'_>, y: &mut [f32]| {
            let norm = RmsNorm { weight: weighted.then_some(&d[2]), weight_offset: offset, eps };
            rms_norm(cpu, Rows::dense(&d[0], rows, cols), &norm, RowsMut::dense(y, rows, cols)).unwrap();
        };
        let reference = move || {
            let w = weighted.then_some(&e[2][..]);
            per_row(&wide(&e[0]), &|x| rms(x, w, offset.into(), eps.into()))
        };
        out.push(case(format!("rms_norm/{weighted}/{offset}"), (rows, cols), 1e-6, 2, run, reference));

        let (d, e) = (data.clone(), data.clone());
        let run = move |cpu: &On<'_>, y: &mut [f32]| {
            let norm = LayerNorm { weight: weighted.then_some(&d[2]), bias: (offset == 1.0).then_some(&d[3]), eps };
            layer_norm(cpu, Rows::dense(&d[0], rows, cols), &norm, RowsMut::dense(y, rows, cols)).unwrap();
        };
        let reference = move || {
            let (w, b) = (weighted.then_some(&e[2][..]), (offset == 1.0).then_some(&e[3][..]));
            per_row(&wide(&e[0]), &|x| layer(x, w, b, eps.into()))
        };
        out.push(case(format!("layer_norm/{weighted}/{offset}"), (rows, cols), 2e-6, 2, run, reference));
    }
    for fused_layer in [false, true] {
        // The outputs are the normed rows, but every even run checks the residual stream instead.
        for residual_out in [false, true] {
            let (d, e) = (data.clone(), data.clone());
            let run = move |cpu: &On<'_>, y: &mut [f32]| {
                let mut residual = d[1].clone();
                let x = Rows::dense(&d[0], rows, cols);
                let (r, o) = (RowsMut::dense(&mut residual, rows, cols), RowsMut::dense(y, rows, cols));
                if fused_layer {
                    let norm = LayerNorm { weight: Some(&d[2]), bias: Some(&d[3]), eps };
                    add_layer_norm(cpu, r, x, &norm, o).unwrap();
                } else {
                    let norm = RmsNorm { weight: Some(&d[2]), weight_offset: 0.0, eps };
                    add_rms_norm(cpu, r, x, &norm, o).unwrap();
                }
                if residual_out {
                    y.copy_from_slice(&residual);
                }
            };
            let reference = move || {
                let sum: Vec<f64> = e[0].iter().zip(&e[1]).map(|(a, b)| f64::from(a + b)).collect();
                if residual_out {
                    return relative(sum);
                }
                per_row(&sum, &|x| {
                    if fused_layer {
                        layer(x, Some(&e[2]), Some(&e[3]), eps.into())
                    } else {
                        rms(x, Some(&e[2]), 0.0, eps.into())
                    }
                })
            };
            let name = format!("add_norm/layer{fused_layer}/residual{residual_out}");
            out.push(case(name, (rows, cols), 2e-6, 4, run, reference));
        }
    }
}

fn heads_and_rope(rows: usize, heads: usize, dim: usize, out: &mut Vec<Case>) {
    let cols = heads * dim;
    let mut random = Random(13);
    let x: std::rc::Rc<Vec<f32>> = random.vec(rows * cols).into();
    let weight: std::rc::Rc<Vec<f32>> = random.vec(dim).into();
    let (d, e, w, u) = (x.clone(), x.clone(), weight.clone(), weight.clone());
    out.push(case(
        format!("rms_norm_parts/h{heads}"),
        (rows, cols),
        1e-6,
        2,
        move |cpu, y| {
            let norm = RmsNorm { weight: Some(&w), weight_offset: 0.0, eps: 1e-6 };
            rms_norm_parts(cpu, Rows::dense(&d, rows, cols), dim, &norm, RowsMut::dense(y, rows, cols)).unwrap();
        },
        move || about_one(wide(&e).chunks_exact(dim).flat_map(|x| rms(x, Some(&u), 0.0, f64::from(1e-6f32)))),
    ));
    let (d, e, w, u) = (x.clone(), x.clone(), weight.clone(), weight.clone());
    out.push(case(
        format!("layer_norm_parts/h{heads}"),
        (rows, cols),
        2e-6,
        2,
        move |cpu, y| {
            let norm = LayerNorm { weight: Some(&w), bias: None, eps: 1e-6 };
            layer_norm_parts(cpu, Rows::dense(&d, rows, cols), dim, &norm, RowsMut::dense(y, rows, cols)).unwrap();
        },
        move || about_one(wide(&e).chunks_exact(dim).flat_map(|x| layer(x, Some(&u), None, f64::from(1e-6f32)))),
    ));
    let (d, e) = (x.clone(), x.clone());
    out.push(case(
        format!("softmax_parts/h{heads}"),
        (rows, cols),
        1e-6,
        2,
        move |cpu, y| softmax_to(cpu, Rows::dense(&d, rows, cols), dim, RowsMut::dense(y, rows, cols)).unwrap(),
        move || {
            let soft = |x: &[f64]| {
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                x.iter().map(|x| x.exp() / sum).collect::<Vec<_>>()
            };
            relative(wide(&e).chunks_exact(dim).flat_map(soft))
        },
    ));
    // One operand for each head, one for each element of a head, the same for all rows or not.
    for (op, exact) in [
        (Binary::Add, (|a, b| a + b) as fn(f32, f32) -> f32),
        (Binary::Sub, |a, b| a - b),
        (Binary::Mul, |a, b| a * b),
        (Binary::Div, |a, b| a / b),
    ] {
        for stretched in [[false, true], [true, false], [false, false]] {
            let at = move |c: usize, stretched: bool| if stretched { c / dim } else { c };
            let columns: Vec<[u32; 2]> = (0..cols).map(|c| stretched.map(|s| at(c, s) as u32)).collect();
            let (d, e) = (x.clone(), x.clone());
            out.push(case(
                format!("zip/{op:?}/{stretched:?}/h{heads}").replace(' ', ""),
                (rows, cols),
                0.0,
                3,
                move |cpu, y| {
                    let (a, b) = (ZipOperand { data: &d, stride: cols }, ZipOperand { data: &d, stride: 0 });
                    zip(cpu, op, a, b, &columns, RowsMut::dense(y, rows, cols)).unwrap();
                },
                move || {
                    let value = |i: usize| {
                        let (r, c) = (i / cols, i % cols);
                        exact(e[r * cols + at(c, stretched[0])], e[at(c, stretched[1])])
                    };
                    relative((0..rows * cols).map(|i| f64::from(value(i))))
                },
            ));
        }
    }
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for rotary_dims in [dim / 2 * 2, dim / 4 * 2, 0] {
            let half = rotary_dims / 2;
            let angles = random.vec(rows * half);
            let cos: std::rc::Rc<Vec<f32>> = angles.iter().map(|a| (a * 9.0).cos()).collect::<Vec<_>>().into();
            let sin: std::rc::Rc<Vec<f32>> = angles.iter().map(|a| (a * 9.0).sin()).collect::<Vec<_>>().into();
            let (d, e, c, z) = (x.clone(), x.clone(), cos.clone(), sin.clone());
            let in_place = half % 2 == 0;
            let run = move |cpu: &On<'_>, y: &mut [f32]| {
                let table = Rope { head_dim: dim, rotary_dims, style, cos: &c, sin: &z };
                if in_place {
                    y.copy_from_slice(&d);
                    rope(cpu, RowsMut::dense(y, rows, cols), &table).unwrap();
                } else {
                    rope_to(cpu, Rows::dense(&d, rows, cols), &table, RowsMut::dense(y, rows, cols)).unwrap();
                }
            };
            let reference = move || {
                let mut y = wide(&e);
                for (head, y) in y.chunks_exact_mut(dim).enumerate() {
                    for i in 0..half {
                        let (a, b) = match style {
                            RopeStyle::Half => (i, i + half),
                            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        };
                        let at = head / heads * half + i;
                        let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                        (y[a], y[b]) = (y[a] * c - y[b] * s, y[b] * c + y[a] * s);
                    }
                }
                y.into_iter().map(|value| Expected { value, scale: 1.0 }).collect()
            };
            out.push(case(format!("rope/{style:?}/{rotary_dims}of{dim}"), (rows, cols), 2e-7, 2, run, reference));
        }
    }
}

fn simple((rows, cols): (usize, usize), out: &mut Vec<Case>) {
    let mut random = Random(14);
    let a: std::rc::Rc<Vec<f32>> = random.vec(rows * cols).into();
    let b: std::rc::Rc<Vec<f32>> = random.vec(rows * cols).into();
    type Kernel = fn(&On<'_>, Rows<'_>, Rows<'_>, RowsMut<'_>);
    type Exact = fn(f64, f64) -> f64;
    let table: [(&str, Kernel, Exact); 7] = [
        ("add", |c, a, b, y| add(c, a, b, y).unwrap(), |a, b| a + b),
        ("mul", |c, a, b, y| mul(c, a, b, y).unwrap(), |a, b| a * b),
        (
            "add_assign",
            |c, a, b, mut y| {
                copy(a, &mut y);
                add_assign(c, y, b).unwrap()
            },
            |a, b| a + b,
        ),
        (
            "scale",
            |c, a, _, mut y| {
                copy(a, &mut y);
                scale(c, 0.7, y).unwrap()
            },
            |a, _| a * f64::from(0.7f32),
        ),
        (
            "softcap",
            |c, a, _, mut y| {
                copy(a, &mut y);
                softcap(c, 0.5, y).unwrap()
            },
            |a, _| 0.5 * (a / 0.5).tanh(),
        ),
        (
            "activate",
            |c, a, _, mut y| {
                copy(a, &mut y);
                activate(c, Activation::Silu, y).unwrap()
            },
            |a, _| activation(Activation::Silu, a),
        ),
        (
            "gather_rows",
            |c, a, _, y| {
                let index: Vec<u32> = (0..a.rows as u32).rev().collect();
                gather_rows(c, a, &index, y).unwrap();
            },
            |a, _| a,
        ),
    ];
    for (name, kernel, exact) in table {
        let (d, e) = ((a.clone(), b.clone()), (a.clone(), b.clone()));
        let run = move |cpu: &On<'_>, y: &mut [f32]| {
            kernel(cpu, Rows::dense(&d.0, rows, cols), Rows::dense(&d.1, rows, cols), RowsMut::dense(y, rows, cols));
        };
        let reference = move || {
            let values: Vec<f64> = e.0.iter().zip(e.1.iter()).map(|(&a, &b)| exact(a.into(), b.into())).collect();
            if name == "gather_rows" {
                return relative(values.chunks(cols.max(1)).rev().flatten().copied());
            }
            values.into_iter().map(|value| Expected { value, scale: value.abs().max(0.2) }).collect()
        };
        out.push(case(name.into(), (rows, cols), 4e-7, 3, run, reference));
    }
    let (d, e) = (a.clone(), a.clone());
    out.push(case(
        "softmax".into(),
        (rows, cols),
        1e-6,
        2,
        move |cpu, y| {
            y.iter_mut().zip(d.iter()).for_each(|(y, x)| *y = x * 30.0);
            softmax(cpu, RowsMut::dense(y, rows, cols)).unwrap();
        },
        move || {
            let mut values = Vec::new();
            for row in e.chunks_exact(cols) {
                let x: Vec<f64> = row.iter().map(|x| f64::from(x * 30.0)).collect();
                let max = x.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
                // The subtraction of the maximum is rounded before exp.
                values.extend(x.iter().map(|x| {
                    let value = (x - max).exp() / sum;
                    Expected { value, scale: value * (1.0 + 0.06 * (max - x)) }
                }));
            }
            values
        },
    ));
    let (d, e) = (a.clone(), a);
    let mut argmax_case = case(
        "argmax".into(),
        (rows, cols),
        0.0,
        1,
        move |cpu, y| {
            let mut at = vec![0; rows];
            argmax(cpu, Rows::dense(&d, rows, cols), &mut at).unwrap();
            y.iter_mut().zip(at).for_each(|(y, at)| *y = at as f32);
        },
        move || {
            let best = |row: &[f32]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            relative(e.chunks_exact(cols).map(|row| best(row) as f64))
        },
    );
    argmax_case.outputs = rows;
    out.push(argmax_case);
    let vocab = 50;
    let table = random.vec(vocab * cols);
    let ids: Vec<u32> = (0..rows).map(|_| (random.next() % vocab as u64) as u32).collect();
    for dtype in ["f32", "bf16", "f16"] {
        let (f, h, s) = (
            table.clone(),
            table.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
            table.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(),
        );
        let (run_ids, ids) = (ids.clone(), ids.clone());
        let exact = table.clone();
        let run = move |cpu: &On<'_>, y: &mut [f32]| {
            let table = match dtype {
                "f32" => WeightRef::F32(&f),
                "bf16" => WeightRef::Bf16(&h),
                _ => WeightRef::F16(&s),
            };
            embed(cpu, table, &run_ids, RowsMut::dense(y, rows, cols)).unwrap();
        };
        let reference = move || {
            let stored = |x: f32| match dtype {
                "f32" => x,
                "bf16" => bf16::from_f32(x).to_f32(),
                _ => f16::from_f32(x).to_f32(),
            };
            relative(ids.iter().flat_map(|&id| exact[id as usize * cols..][..cols].iter().map(|&x| stored(x).into())))
        };
        out.push(case(format!("embed/{dtype}"), (rows, cols), 0.0, 2, run, reference));
    }
}

fn copy(from: Rows<'_>, to: &mut RowsMut<'_>) {
    to.data[..from.data.len()].copy_from_slice(from.data);
}

pub fn test_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for shape in [(1, 1), (1, 64), (2, 7), (3, 16), (5, 65), (7, 129), (60, 300)] {
        activations(shape, &mut all);
        norms(shape, &mut all);
        simple(shape, &mut all);
    }
    for (rows, heads, dim) in [(1, 1, 2), (3, 4, 64), (2, 3, 36), (5, 2, 9), (70, 4, 80)] {
        heads_and_rope(rows, heads, dim, &mut all);
    }
    all
}

pub fn bench_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for shape in [(1, 4096), (256, 4096)] {
        activations(shape, &mut all);
        norms(shape, &mut all);
        simple(shape, &mut all);
    }
    heads_and_rope(256, 32, 64, &mut all);
    all.retain(|case| !case.name.contains("Identity") && !case.name.contains("residualtrue"));
    all
}
