//! Every check of every entry: one row of a table each. The message names the argument, and nothing is written.

use half::{bf16, f16};
use kernels::cpu::*;

const A: [f32; 64] = [1.0; 64];

fn x(rows: usize, cols: usize) -> Rows<'static> {
    Rows::dense(&A, rows, cols)
}

/// What an entry says, and that it left its output alone.
fn refuse(case: &str, expected: &str, call: impl FnOnce(&Cpu, &mut [f32]) -> Result<(), KernelError>) {
    let cpu = Cpu::new(1).unwrap();
    let mut out = [7.0; 64];
    let error = call(&cpu, &mut out).expect_err(case).to_string();
    assert!(error.starts_with(expected), "{case}: {error}");
    assert_eq!(out, [7.0; 64], "{case}: wrote something");
}

fn segment(weight: &[f32], n: usize, out_offset: usize) -> Segment<'_> {
    Segment { weight: WeightRef::F32(weight), bias: None, n, out_offset, activation: None }
}

#[test]
fn linear() {
    type Change = fn(&mut Call);
    struct Call {
        x: Rows<'static>,
        segments: Vec<Segment<'static>>,
        compute: Compute,
        epilogue: Epilogue<'static>,
        scratch: Scratch,
        out: (usize, usize, usize),
    }
    static HALVES: [f16; 8] = [f16::ONE; 8];
    let table: [(&str, Change); 15] = [
        ("x: row stride 3 is smaller than its 4 columns", |c| c.x.stride = 3),
        ("x: needs 400 elements, has 64", |c| (c.x.rows, c.out.0) = (100, 100)),
        ("out: number of rows is 3, expected 2", |c| c.out.0 = 3),
        ("out: row stride 5 is smaller", |c| c.out.2 = 5),
        ("out: needs 70 elements, has 64", |c| c.out.2 = 62),
        ("out: needs 9 elements, has 8", |c| c.segments[1].out_offset = 7),
        ("segment.weight: number of elements (n * k) is 8, expected 12", |c| c.segments[0].n = 3),
        ("segment.weight: number of elements", |c| c.segments[0].n = usize::MAX),
        ("segment.bias: length is 3, expected 2", |c| c.segments[0].bias = Some(&A[..3])),
        ("segment.weight: dtype f16 cannot", |c| c.segments[1].weight = WeightRef::F16(&HALVES)),
        ("segment.weight: dtype f32 cannot be used here: Compute::Bf16 needs", |c| c.compute = Compute::Bf16),
        ("segments: part 0 and part 1 overlap", |c| c.segments[1].out_offset = 1),
        ("scratch: holds 128 bytes, this input needs 256", |c| c.scratch = Scratch::with_capacity(1, 4)),
        ("epilogue.other: number of columns is 7", |c| c.epilogue = Epilogue::Add(Rows::dense(&A, 2, 7))),
        ("segment.activation: needs Epilogue::None", |c| {
            c.epilogue = Epilogue::Accumulate;
            c.segments[1].activation = Some(Activation::Silu);
        }),
    ];
    for (expected, change) in table {
        let mut call = Call {
            x: x(2, 4),
            segments: vec![segment(&A[..8], 2, 0), segment(&A[..8], 2, 3)],
            compute: Compute::F32,
            epilogue: Epilogue::None,
            scratch: Scratch::with_capacity(2, 4),
            out: (2, 8, 8),
        };
        change(&mut call);
        refuse(expected, expected, |cpu, out| {
            let out = RowsMut::strided(out, call.out.0, call.out.1, call.out.2);
            kernels::cpu::linear(cpu, &mut call.scratch, call.x, &call.segments, call.compute, call.epilogue, out)
        });
    }
}

#[test]
fn attention_and_cache() {
    struct Call {
        params: AttentionParams<'static>,
        shape: KvShape,
        q: Rows<'static>,
        k: usize,
        v: usize,
        half: bool,
        seqs: Vec<SeqSpan<'static>>,
        out: (usize, usize),
    }
    static CACHE: [f32; 256] = [0.0; 256];
    static HALF: [bf16; 256] = [bf16::ZERO; 256];
    let base = || Call {
        params: AttentionParams {
            heads: 2,
            scale: 1.0,
            window: None,
            chunk: None,
            softcap: None,
            sinks: None,
            alibi_slopes: None,
        },
        shape: KvShape { kv_heads: 1, head_dim: 4, value_dim: 2 },
        q: x(3, 8),
        k: 128,
        v: 64,
        half: false,
        seqs: vec![
            SeqSpan { first_row: 0, rows: 2, first_position: 15, blocks: &[1, 0] },
            SeqSpan { first_row: 2, rows: 1, first_position: 0, blocks: &[0] },
        ],
        out: (3, 4),
    };
    type Change = fn(&mut Call);
    let table: [(&str, Change); 19] = [
        ("params.heads: must be a positive multiple", |c| c.params.heads = 0),
        ("params.heads: must be a positive multiple", |c| {
            (c.shape.kv_heads, c.params.heads, c.k, c.v) = (2, 3, 128, 64);
        }),
        ("params.window: must be at least 1", |c| c.params.window = Some(0)),
        ("params.chunk: must be at least 1", |c| c.params.chunk = Some(0)),
        ("params.softcap: must be positive", |c| c.params.softcap = Some(f32::NAN)),
        ("params.sinks: length is 3, expected 2", |c| c.params.sinks = Some(&A[..3])),
        ("params.alibi_slopes: length is 1, expected 2", |c| c.params.alibi_slopes = Some(&A[..1])),
        ("cache.shape: kv_heads, head_dim and value_dim", |c| c.shape.value_dim = 0),
        ("cache.k: length (blocks * k_block) is 100, expected 64", |c| c.k = 100),
        ("cache.v: length (blocks * v_block) is 32, expected 64", |c| c.v = 32),
        ("cache.v: dtype another dtype", |c| c.half = true),
        ("q: number of columns is 7, expected 8", |c| c.q.cols = 7),
        ("q: needs 80 elements", |c| (c.q.rows, c.out.0) = (10, 10)),
        ("out: number of columns is 5, expected 4", |c| c.out.1 = 5),
        ("seqs: part 0 and part 1 overlap", |c| c.seqs[1].first_row = 1),
        ("q: needs 4 elements, has 3", |c| c.seqs[1].rows = 2),
        ("seqs.blocks: needs 2 elements, has 1", |c| c.seqs[0].blocks = &[0]),
        ("seqs.blocks: index 2 at place 1 is outside 0..2", |c| c.seqs[0].blocks = &[1, 2]),
        ("seqs.blocks: index 4294967295 at place 0", |c| c.seqs[0].blocks = &[NO_BLOCK, 0]),
    ];
    for (expected, change) in table {
        let mut call = base();
        change(&mut call);
        refuse(expected, expected, |cpu, out| {
            let out = RowsMut::dense(out, call.out.0, call.out.1);
            let k = KvRef::F32(&CACHE[..call.k]);
            let v = if call.half { KvRef::Bf16(&HALF[..call.v]) } else { KvRef::F32(&CACHE[..call.v]) };
            let cache = KvCache { shape: call.shape, k, v };
            kernels::cpu::attention(cpu, &call.params, call.q, cache, &call.seqs, out)
        });
    }
    // Writing: shapes of k and v, and blocks, which may not be missing even before a window.
    type WriteChange = fn(&mut (Rows<'static>, Rows<'static>, &'static [u32]));
    let table: [(&str, WriteChange); 4] = [
        ("k: number of columns is 3, expected 4", |c| c.0.cols = 3),
        ("v: number of rows is 1, expected 2", |c| c.1.rows = 1),
        ("seqs.blocks: index 4294967295 at place 0", |c| c.2 = &[NO_BLOCK, 0]),
        ("seqs.blocks: needs 2 elements, has 0", |c| c.2 = &[]),
    ];
    for (expected, change) in table {
        let mut call: (_, _, &[u32]) = (x(2, 4), x(2, 2), &[1, 0]);
        change(&mut call);
        refuse(expected, expected, |cpu, _| {
            let (mut k, mut v) = ([0.0; 128], [0.0; 64]);
            let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 2 };
            let cache = KvCacheMut { shape, k: KvMut::F32(&mut k), v: KvMut::F32(&mut v) };
            let span = SeqSpan { first_row: 0, rows: 2, first_position: 15, blocks: call.2 };
            let result = write_kv(cpu, call.0, call.1, &[span], cache);
            assert!(k.iter().chain(&v).all(|&x| x == 0.0));
            result
        });
    }
    // A cache of int8: as many scales as keys and values.
    for (expected, k_scales, v_scales) in [
        ("cache.k.scales: length (blocks * scales_block) is 31, expected 32", 31, 32),
        ("cache.v.scales: length (blocks * scales_block) is 0, expected 32", 32, 0),
    ] {
        refuse(expected, expected, |cpu, _| {
            let (mut k, mut v, mut scales) = ([0; 128], [0; 64], ([0.0; 32], [0.0; 32]));
            let shape = KvShape { kv_heads: 1, head_dim: 4, value_dim: 2 };
            let k = KvMut::Int8 { codes: &mut k, scales: &mut scales.0[..k_scales] };
            let v = KvMut::Int8 { codes: &mut v, scales: &mut scales.1[..v_scales] };
            let span = SeqSpan { first_row: 0, rows: 2, first_position: 15, blocks: &[1, 0] };
            write_kv(cpu, x(2, 4), x(2, 2), &[span], KvCacheMut { shape, k, v })
        });
    }
}

#[test]
fn row_wise() {
    let rms = RmsNorm { weight: None, weight_offset: 0.0, eps: 1e-5 };
    let layer = LayerNorm { weight: None, bias: None, eps: 1e-5 };
    let long = Some(&A[..5]);
    let turn = Rope { head_dim: 4, rotary_dims: 4, style: RopeStyle::Half, cos: &A[..4], sin: &A[..4] };
    fn to(out: &mut [f32]) -> RowsMut<'_> {
        RowsMut::dense(out, 2, 4)
    }
    let bad = || Rows::strided(&A, 2, 4, 3);
    refuse("rms_norm", "x: row stride", |c, o| rms_norm(c, bad(), &rms, to(o)));
    refuse("rms_norm", "out: number of rows", |c, o| rms_norm(c, x(3, 4), &rms, to(o)));
    refuse("rms_norm", "norm.weight: length", |c, o| rms_norm(c, x(2, 4), &RmsNorm { weight: long, ..rms }, to(o)));
    refuse("layer_norm", "norm.weight: length", |c, o| {
        layer_norm(c, x(2, 4), &LayerNorm { weight: long, ..layer }, to(o))
    });
    refuse("layer_norm", "norm.bias: length", |c, o| layer_norm(c, x(2, 4), &LayerNorm { bias: long, ..layer }, to(o)));
    refuse("add_rms_norm", "residual: number of columns", |c, o| {
        let (r, o) = o.split_at_mut(32);
        add_rms_norm(c, RowsMut::dense(r, 2, 5), x(2, 4), &rms, to(o))
    });
    refuse("add_layer_norm", "out: number of columns", |c, o| {
        let (r, o) = o.split_at_mut(32);
        add_layer_norm(c, to(r), x(2, 4), &layer, RowsMut::dense(o, 2, 5))
    });
    let three = RmsNorm { weight: None, ..rms };
    refuse("rms_norm_parts", "width: must divide", |c, o| rms_norm_parts(c, x(2, 4), 3, &three, to(o)));
    refuse("rms_norm_parts", "width: must divide", |c, o| rms_norm_parts(c, x(2, 4), 0, &three, to(o)));
    refuse("rms_norm_parts", "norm.weight: length", |c, o| {
        rms_norm_parts(c, x(2, 4), 2, &RmsNorm { weight: long, ..rms }, to(o))
    });
    refuse("softmax_to", "width: must divide", |c, o| softmax_to(c, x(2, 4), 3, to(o)));
    let runs = ZipRuns::new((0..4).map(|i| [i, 3]));
    let of = |len: usize, stride: usize| ZipOperand { data: &A[..len], stride };
    refuse("zip", "a: needs 9 elements, has 8", |c, o| zip(c, Binary::Add, of(8, 5), of(4, 0), &runs, to(o)));
    refuse("zip", "b: needs 4 elements, has 3", |c, o| zip(c, Binary::Add, of(8, 4), of(3, 0), &runs, to(o)));
    refuse("zip", "runs: columns is 3, expected 4", |c, o| {
        zip(c, Binary::Add, of(8, 4), of(4, 0), &ZipRuns::new((0..3).map(|i| [i, i])), to(o))
    });
    refuse("rope", "rope.head_dim: must divide", |c, o| rope(c, to(o), &Rope { head_dim: 3, ..turn }));
    refuse("rope", "rope.rotary_dims: must be even", |c, o| rope(c, to(o), &Rope { rotary_dims: 3, ..turn }));
    refuse("rope", "rope.rotary_dims: must be even", |c, o| rope(c, to(o), &Rope { rotary_dims: 6, ..turn }));
    refuse("rope", "rope.cos: length", |c, o| rope(c, to(o), &Rope { cos: &A[..5], ..turn }));
    refuse("rope", "rope.sin: length", |c, o| rope(c, to(o), &Rope { sin: &A[..3], ..turn }));
    refuse("rope_to", "out: number of rows", |c, o| rope_to(c, x(1, 4), &turn, to(o)));
    refuse("activate", "x: row stride", |c, o| activate(c, Activation::Silu, RowsMut::strided(o, 2, 4, 3)));
    refuse("activate_to", "x: number of columns", |c, o| activate_to(c, Activation::Silu, x(2, 5), to(o)));
    refuse("gated", "up: number of rows", |c, o| gated(c, Activation::Silu, x(2, 4), x(3, 4), to(o)));
    refuse("add", "b: number of columns", |c, o| add(c, x(2, 4), x(2, 3), to(o)));
    refuse("mul", "a: needs 8 elements, has 3", |c, o| mul(c, Rows::dense(&A[..3], 2, 4), x(2, 4), to(o)));
    refuse("add_assign", "y: number of rows", |c, o| add_assign(c, to(o), x(1, 4)));
    refuse("scale", "x: needs", |c, o| scale(c, 2.0, RowsMut::dense(o, 9, 8)));
    refuse("softcap", "cap: must be positive", |c, o| softcap(c, 0.0, to(o)));
    refuse("embed", "out: number of rows", |c, o| embed(c, WeightRef::F32(&A), &[1], to(o)));
    refuse("embed", "out.cols: must divide", |c, o| embed(c, WeightRef::F32(&A[..10]), &[1, 1], to(o)));
    refuse("embed", "ids: index 16 at place 1 is outside 0..16", |c, o| embed(c, WeightRef::F32(&A), &[15, 16], to(o)));
    refuse("gather_rows", "index: index 3 at place 0", |c, o| gather_rows(c, x(3, 4), &[3, 0], to(o)));
    refuse("softmax", "x: row stride", |c, o| softmax(c, RowsMut::strided(o, 2, 4, 1)));
    refuse("argmax", "out: length is 3, expected 2", |c, _| argmax(c, x(2, 4), &mut [0; 3]));
    refuse("argmax", "x: needs 1 elements", |c, _| argmax(c, x(2, 0), &mut [0; 2]));
}

#[test]
fn context() {
    assert!(Cpu::new(0).unwrap_err().to_string().starts_with("threads: must be between 1"));
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Portable] {
        let made = Cpu::with_options(CpuOptions { threads: 1, isa: Some(isa), pin: false });
        assert_eq!(made.is_ok(), isa.is_available());
    }
}

/// A running state's slots, and the sizes of everything beside it.
#[test]
fn recurrent() {
    let span = |first_row, rows, slot| StateSpan { first_row, rows, slot, fresh: true };
    let conv = |weight: usize, width: usize, bias: Option<usize>| CausalConv {
        weight: &A[..weight],
        bias: bias.map(|n| &A[..n]),
        width,
        activation: None,
    };
    let run = |conv: CausalConv<'static>, seqs: &'static [StateSpan], state: usize, out: usize| {
        move |cpu: &Cpu, o: &mut [f32]| {
            let mut state = vec![0.0; state];
            causal_conv1d(cpu, &conv, x(2, 4), seqs, &mut state, RowsMut::dense(o, 2, out))
        }
    };
    static ONE: [StateSpan; 1] = [StateSpan { first_row: 0, rows: 2, slot: 0, fresh: true }];
    static TWICE: [StateSpan; 2] = [ONE[0], StateSpan { first_row: 1, rows: 1, slot: 1, fresh: true }];
    static SAME_SLOT: [StateSpan; 2] = [
        StateSpan { first_row: 0, rows: 1, slot: 1, fresh: true },
        StateSpan { first_row: 1, rows: 1, slot: 1, fresh: true },
    ];
    static LONG: [StateSpan; 1] = [StateSpan { first_row: 0, rows: 3, slot: 0, fresh: true }];
    assert_eq!(ONE[0], span(0, 2, 0));
    refuse("conv", "conv.width: must be 1 to 16 (got 17)", run(conv(60, 17, None), &ONE, 8, 4));
    refuse("conv", "conv.width: must be 1 to 16 (got 0)", run(conv(0, 0, None), &ONE, 8, 4));
    refuse("conv", "conv.weight: length (channels * width) is 11, expected 12", run(conv(11, 3, None), &ONE, 8, 4));
    refuse("conv", "conv.bias: length is 3, expected 4", run(conv(12, 3, Some(3)), &ONE, 8, 4));
    refuse("conv", "out: number of columns is 3, expected 4", run(conv(12, 3, None), &ONE, 8, 3));
    refuse("conv", "state: length (slots * elements of one) is 9, expected 8", run(conv(12, 3, None), &ONE, 9, 4));
    refuse("conv", "seqs: part 0 and part 1 overlap", run(conv(12, 3, None), &TWICE, 16, 4));
    refuse("conv", "seqs.slot: part 0 and part 1 overlap", run(conv(12, 3, None), &SAME_SLOT, 16, 4));
    refuse("conv", "seqs.slot: index 1 at place 0 is outside 0..1", run(conv(12, 3, None), &SAME_SLOT, 8, 4));
    refuse("conv", "x: needs 3 elements, has 2", run(conv(12, 3, None), &LONG, 8, 4));

    let good = LinearAttention { key_heads: 1, heads: 2, key_dim: 4, value_dim: 3, per_channel: false };
    let scan = |shape: LinearAttention, sizes: [usize; 5], state: usize| {
        move |cpu: &Cpu, o: &mut [f32]| {
            let [q, k, v, decay, beta] = sizes.map(|cols| x(2, cols));
            let operands = LinearAttentionOperands { q, k, v, decay, beta: Some(beta) };
            let mut state = vec![0.0; state];
            linear_attention(cpu, &shape, &operands, &ONE, &mut state, RowsMut::dense(o, 2, 6))
        }
    };
    let sizes = [4, 4, 6, 2, 2];
    refuse("scan", "shape: sizes must be positive", scan(LinearAttention { heads: 0, ..good }, sizes, 24));
    refuse(
        "scan",
        "shape: sizes must be positive, and heads a multiple",
        scan(LinearAttention { key_heads: 3, ..good }, sizes, 24),
    );
    refuse("scan", "q: number of columns is 5, expected 4", scan(good, [5, 4, 6, 2, 2], 24));
    refuse("scan", "k: number of columns is 3, expected 4", scan(good, [4, 3, 6, 2, 2], 24));
    refuse("scan", "v: number of columns is 7, expected 6", scan(good, [4, 4, 7, 2, 2], 24));
    refuse(
        "scan",
        "decay: number of columns is 2, expected 8",
        scan(LinearAttention { per_channel: true, ..good }, sizes, 24),
    );
    refuse("scan", "beta: number of columns is 1, expected 2", scan(good, [4, 4, 6, 2, 1], 24));
    refuse("scan", "state: length (slots * elements of one) is 25, expected 24", scan(good, sizes, 25));
}

#[test]
fn grouped_linear_checks() {
    let mut groups = Groups::with_capacity(4, 3);
    assert_eq!(groups.sort(&[0, 3], 3).unwrap_err().to_string(), "ids: index 3 at place 1 is outside 0..3");
    assert!(groups.sort(&[-1], 3).unwrap_err().to_string().starts_with("ids: index 18446744073709551615 at place 0"));
    assert!(
        groups.sort(&[0; 5], 3).unwrap_err().to_string().starts_with("scratch: holds 16 bytes, this input needs 20")
    );
    assert!(groups.sort(&[0], 4).unwrap_err().to_string().starts_with("scratch: "));
    groups.sort(&[2, 0, 2, 2], 3).unwrap();
    assert_eq!(groups.chosen().collect::<Vec<_>>(), [0, 2]);
    static HALVES: [f16; 8] = [f16::ONE; 8];
    type Change = fn(&mut Vec<Segment<'static>>, &mut (Rows<'static>, usize, usize, usize));
    let table: [(&str, Change); 8] = [
        ("segments: length (experts chosen * segments of one) is 3, expected 2", |s, _| s.push(s[0])),
        ("segments: length", |s, _| s.clear()),
        ("x.rows: must divide the number of choices (got 3)", |_, c| c.0 = x(3, 4)),
        ("out: number of rows is 3, expected 4", |_, c| c.1 = 3),
        ("out: needs 2 elements, has 1", |_, c| c.2 = 1),
        ("segment.n: rows, as those of the first expert, is 1, expected 2", |s, _| {
            (s[1].n, s[1].weight) = (1, WeightRef::F32(&A[..4]));
        }),
        ("segment.weight: dtype f16 cannot be used here: all experts", |s, _| s[1].weight = WeightRef::F16(&HALVES)),
        ("scratch: holds", |_, c| c.3 = 1),
    ];
    for (expected, change) in table {
        let mut segments = vec![segment(&A[..8], 2, 0), segment(&A[8..16], 2, 0)];
        let mut call = (x(2, 4), 4, 2, 4);
        change(&mut segments, &mut call);
        refuse("grouped_linear", expected, |cpu, out| {
            let mut scratch = Scratch::with_capacity(call.3, 4);
            let out = RowsMut::dense(out, call.1, call.2);
            grouped_linear(cpu, &mut scratch, call.0, &groups, &segments, Compute::F32, out)
        });
    }
}
