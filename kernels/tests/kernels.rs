//! Every case of the table on every instruction set and several thread counts, against f64; and bitwise equality where
//! results must not depend on what else is computed.

mod table;

use kernels::cpu::{Cpu, CpuOptions, Isa, StateSpan};
use table::On;
use table::attention::{Held, Paged, Spec as AttentionSpec};
use table::grouped::{Experts, Operands as GroupedOperands};
use table::linear::{Kind, Operands, Spec};
use table::recurrent::{ConvOperands, ScanOperands, conv_specs, scan_specs};

fn cpus() -> Vec<Cpu> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            all.push(Cpu::with_options(CpuOptions { threads, isa: Some(isa), pin: false }).unwrap());
        }
    }
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs the cases whose name begins with `prefix`.
fn check(prefix: &str) {
    let cpus = cpus();
    let mut checked = 0;
    for mut case in table::test_cases().into_iter().filter(|c| c.name.starts_with(prefix)) {
        let expected = (case.reference)();
        assert_eq!(expected.len(), case.outputs, "{}", case.name);
        let mut before: Option<(Isa, Vec<u32>)> = None;
        for cpu in &cpus {
            let mut out = vec![f32::NAN; case.outputs];
            (case.run)(&On::Cpu(cpu), &mut out);
            for (i, (&got, want)) in out.iter().zip(&expected).enumerate() {
                let error = (f64::from(got) - want.value).abs();
                let allowed = case.tolerance * want.scale + f64::from(f32::MIN_POSITIVE);
                let place = (cpu.isa(), cpu.threads());
                assert!(
                    error <= allowed,
                    "{} {place:?} [{i}]: {got} for {}, off by {error:e}, allowed {allowed:e}",
                    case.name,
                    want.value
                );
            }
            let out = bits(&out);
            if let Some((isa, other)) = &before {
                assert!(*isa != cpu.isa() || *other == out, "{} {isa}: depends on threads", case.name);
            }
            before = Some((cpu.isa(), out));
        }
        checked += 1;
    }
    assert!(checked > 0, "no case begins with {prefix}");
}

#[test]
fn linear_matches_f64() {
    check("linear/");
}

#[test]
fn attention_matches_f64() {
    check("attention/");
}

#[test]
fn grouped_linear_matches_f64() {
    check("grouped_linear/");
}

#[test]
fn recurrent_kernels_match_f64() {
    check("causal_conv1d/");
    check("linear_attention/");
}

#[test]
fn row_wise_kernels_match_f64() {
    for prefix in [
        "activate",
        "gated",
        "rms_norm",
        "layer_norm",
        "add",
        "rope",
        "mul",
        "scale",
        "soft",
        "zip",
        "argmax",
        "embed",
        "gather",
    ] {
        check(prefix);
    }
}

/// A row of a linear layer gives the same bits alone, in any batch and at any place in it, whatever else it is merged
/// with.
#[test]
fn linear_is_batch_invariant() {
    for cpu in &cpus() {
        let on = &On::Cpu(cpu);
        for kind in Kind::ALL {
            for k in [64, 67, 640] {
                let mut all = Operands::new(Spec::new(kind, 40, k, &[87, 10]));
                let stride = all.stride();
                let mut whole = vec![0.0; all.outputs()];
                all.run(on, 0..40, &mut whole);
                for rows in [0..1, 7..8, 39..40, 3..5, 1..4, 10..15, 20..27, 9..40] {
                    let mut part = vec![0.0; rows.len() * stride];
                    all.run(on, rows.clone(), &mut part);
                    let same = bits(&part) == bits(&whole[rows.start * stride..rows.end * stride]);
                    assert!(same, "{} {kind:?} k={k} rows {rows:?}", cpu.isa());
                }
                // The same weight rows at another place in a merged weight.
                let first = all.weights[0][0].clone();
                let mut single = Operands::new(Spec::new(kind, 40, k, &[87]));
                single.weights[0][0] = first;
                single.x.clone_from(&all.x);
                let mut alone = vec![0.0; single.outputs()];
                single.run(on, 0..40, &mut alone);
                for row in 0..40 {
                    let (a, b) = (&alone[row * single.stride()..][..87], &whole[row * stride..][..87]);
                    assert_eq!(bits(a), bits(b), "{} {kind:?} k={k} row {row}", cpu.isa());
                }
            }
        }
    }
}

fn attention_specs() -> Vec<AttentionSpec> {
    let base = AttentionSpec::new(&[(150, 150), (77, 77)], 4, 2, 32, 24);
    vec![
        base.clone(),
        AttentionSpec { held: Held::Bf16, ..base.clone() },
        AttentionSpec { held: Held::Int8, ..base.clone() },
        AttentionSpec { held: Held::Int8, window: Some(37), sinks: true, softcap: Some(2.0), ..base.clone() },
        AttentionSpec { chunk: Some(41), ..base.clone() },
        AttentionSpec { window: Some(37), alibi: true, sinks: true, ..base.clone() },
        AttentionSpec {
            heads: 3,
            shape: kernels::cpu::KvShape { kv_heads: 3, ..base.shape },
            softcap: Some(2.0),
            ..base
        },
    ]
}

/// What is lost with a cache of int8: a key or value is off by half a step, 1/254 of its largest element.
#[test]
fn a_cache_of_int8_is_close_to_exact_attention() {
    let shape = kernels::cpu::KvShape { kv_heads: 2, head_dim: 64, value_dim: 64 };
    let exact = AttentionSpec { shape, ..AttentionSpec::new(&[(150, 150), (40, 1)], 4, 2, 64, 64) };
    let expected = Paged::new(exact.clone(), 1).reference();
    for cpu in &cpus() {
        let mut paged = Paged::new(AttentionSpec { held: Held::Int8, ..exact.clone() }, 1);
        paged.write_all(&On::Cpu(cpu));
        let mut out = vec![0.0; paged.outputs()];
        paged.attend(&On::Cpu(cpu), &paged.parts(), 0, &mut out);
        let errors = out.iter().zip(&expected).map(|(&got, want)| (f64::from(got) - want.value).abs());
        let largest = errors.fold(0.0, f64::max);
        // Elements are below 1. Something was rounded.
        assert!((1e-5..0.02).contains(&largest), "{}: {largest}", cpu.isa());
    }
}

/// Zeros stay zeros; what is not finite makes the outputs that see it NaN, and no others; the smallest numbers become zeros.
#[test]
fn extreme_keys_and_values_in_a_cache_of_int8() {
    use kernels::cpu::{AttentionParams, KvCache, KvCacheMut, KvMut, KvRef, KvShape, Rows, RowsMut, SeqSpan};
    let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 4 };
    let span = SeqSpan { first_row: 0, rows: 5, first_position: 0, blocks: &[0] };
    let params = AttentionParams {
        heads: 1,
        scale: 1.0,
        window: Some(1),
        chunk: None,
        softcap: None,
        sinks: None,
        alibi_slopes: None,
    };
    let v: Vec<f32> =
        [[0.0; 4], [1.0, -127.0, 0.4, 64.0], [1e-40; 4], [f32::NAN, 1.0, 1.0, 1.0], [1.0, f32::INFINITY, 2.0, 3.0]]
            .concat();
    for cpu in &cpus() {
        let (mut codes, mut scales) = (([0; 64], [0; 64]), ([0.0; 16], [0.0; 16]));
        let (k, v) = (Rows::dense(&[1.0; 20], 5, 4), Rows::dense(&v, 5, 4));
        let cache = KvCacheMut {
            shape,
            k: KvMut::Int8 { codes: &mut codes.0, scales: &mut scales.0 },
            v: KvMut::Int8 { codes: &mut codes.1, scales: &mut scales.1 },
        };
        kernels::cpu::write_kv(cpu, k, v, &[span], cache).unwrap();
        let cache = KvCache {
            shape,
            k: KvRef::Int8 { codes: &codes.0, scales: &scales.0 },
            v: KvRef::Int8 { codes: &codes.1, scales: &scales.1 },
        };
        let mut out = [9.0; 20];
        let to = RowsMut::dense(&mut out, 5, 4);
        kernels::cpu::attention(cpu, &params, k, cache, &[span], to).unwrap();
        assert_eq!(out[..12], [0.0, 0.0, 0.0, 0.0, 1.0, -127.0, 0.0, 64.0, 0.0, 0.0, 0.0, 0.0], "{}", cpu.isa());
        assert!(out[12..].iter().all(|x| x.is_nan()), "{}: {out:?}", cpu.isa());
    }
}

/// Attention for a position gives the same bits whole, in chunks, token by token, next to another sequence or alone,
/// and in whichever physical blocks its keys lie.
#[test]
fn attention_is_batch_invariant() {
    for cpu in &cpus() {
        let on = &On::Cpu(cpu);
        for spec in attention_specs() {
            let width = spec.heads * spec.shape.value_dim;
            let mut paged = Paged::new(spec.clone(), 1);
            paged.write_all(on);
            let mut whole = vec![0.0; paged.outputs()];
            paged.attend(on, &paged.parts(), 0, &mut whole);

            let mut moved = Paged::new(spec.clone(), 2);
            moved.write_all(on);
            let mut elsewhere = vec![0.0; moved.outputs()];
            moved.attend(on, &moved.parts(), 0, &mut elsewhere);
            assert_eq!(bits(&whole), bits(&elsewhere), "{} {spec:?}: depends on blocks", cpu.isa());

            // In chunks of every size, the cache filled only as far as computed, blocks freed behind the window.
            for chunk in [1, 5, 16, 64, 100] {
                let mut fresh = Paged::new(spec.clone(), 3);
                let mut from = 0;
                while from < 150 {
                    let to = (from + chunk).min(150);
                    fresh.write(on, 0, from, to);
                    fresh.free_before(0, from);
                    let mut out = vec![0.0; (to - from) * width];
                    fresh.attend(on, &[(0, from, to)], 0, &mut out);
                    assert_eq!(
                        bits(&out),
                        bits(&whole[from * width..to * width]),
                        "{} {spec:?} {from}..{to}",
                        cpu.isa()
                    );
                    from = to;
                }
            }
            // One token of each sequence in a step.
            let mut out = vec![0.0; 2 * width];
            paged.attend(on, &[(1, 70, 71), (0, 140, 141)], 7, &mut out);
            assert_eq!(bits(&out[..width]), bits(&whole[(150 + 70) * width..][..width]));
            assert_eq!(bits(&out[width..]), bits(&whole[140 * width..][..width]));
        }
    }
}

/// A choice gives the same bits alone and among any others, and those of the plain linear layer with its expert's weight.
#[test]
fn grouped_linear_is_batch_invariant() {
    for cpu in &cpus() {
        let on = &On::Cpu(cpu);
        for kind in Kind::ALL {
            for per_choice in [false, true] {
                let spec = Experts { per_choice, ..Experts::new(kind, 23, 3, 5, &[37, 10], 67) };
                let mut all = GroupedOperands::new(spec);
                let (width, choices) = (all.width(), 3);
                let mut whole = vec![0.0; all.outputs()];
                all.run(on, 0..23, &mut whole);
                for rows in [0..1, 7..8, 22..23, 3..5, 9..23] {
                    let mut part = vec![0.0; rows.len() * choices * width];
                    all.run(on, rows.clone(), &mut part);
                    let same = bits(&part) == bits(&whole[rows.start * choices * width..rows.end * choices * width]);
                    assert!(same, "{} {kind:?} rows {rows:?}", cpu.isa());
                }
                let plain = all.by_plain_linears(on);
                assert_eq!(bits(&plain), bits(&whole), "{} {kind:?}", cpu.isa());
            }
        }
    }
}

/// The spans cut into steps of `chunk` rows a sequence; each with its first row in the operands.
fn chunks(seqs: &[StateSpan], chunk: usize) -> Vec<(usize, StateSpan)> {
    let cut = |seq: &StateSpan| {
        let seq = *seq;
        (0..seq.rows).step_by(chunk).map(move |from| {
            let span =
                StateSpan { first_row: 0, rows: chunk.min(seq.rows - from), fresh: seq.fresh && from == 0, ..seq };
            (seq.first_row + from, span)
        })
    };
    seqs.iter().flat_map(cut).collect()
}

/// What, the width of its outputs, the sequences, the state, and a step.
type Recurrent = (String, usize, Vec<StateSpan>, Vec<f32>, table::recurrent::Step);

/// Rows give the same bits whole and cut into steps, with other sequences and alone, and leave the same state.
#[test]
fn recurrent_kernels_are_batch_invariant() {
    for cpu in &cpus() {
        let on = &On::Cpu(cpu);
        let mut runs: Vec<Recurrent> = vec![];
        for spec in conv_specs() {
            let (what, width, seqs) = (format!("{spec:?}"), spec.channels, spec.seqs.0.clone());
            let operands = ConvOperands::new(spec);
            let state = operands.state.clone();
            let step = move |on: &On<'_>, seqs: &[StateSpan], row: usize, state: &mut [f32], out: &mut [f32]| {
                operands.run(on, seqs, row, state, out);
            };
            runs.push((what, width, seqs, state, Box::new(step)));
        }
        for spec in scan_specs() {
            let (what, seqs) = (format!("{spec:?}"), spec.seqs.0.clone());
            let operands = ScanOperands::new(spec);
            let (width, state) = (operands.width(), operands.state.clone());
            let step = move |on: &On<'_>, seqs: &[StateSpan], row: usize, state: &mut [f32], out: &mut [f32]| {
                operands.run(on, seqs, row, state, out);
            };
            runs.push((what, width, seqs, state, Box::new(step)));
        }
        for (what, width, seqs, start, step) in runs {
            let rows: usize = seqs.iter().map(|s| s.rows).sum();
            let (mut state, mut whole) = (start.clone(), vec![0.0; rows * width]);
            step(on, &seqs, 0, &mut state, &mut whole);
            for chunk in [1, 3] {
                let mut other = start.clone();
                for (row, span) in chunks(&seqs, chunk) {
                    let mut out = vec![0.0; span.rows * width];
                    step(on, &[span], row, &mut other, &mut out);
                    let want = &whole[row * width..][..span.rows * width];
                    assert_eq!(bits(&out), bits(want), "{} {what}: in steps of {chunk}", cpu.isa());
                }
                assert_eq!(bits(&other), bits(&state), "{} {what}: the state in steps of {chunk}", cpu.isa());
            }
        }
    }
}
