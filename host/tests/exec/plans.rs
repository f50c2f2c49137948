//! What `lower` decides: which values share memory, what is done in place, what is one call. Whole plans, small
//! enough to read, against `plans.txt` (`UPDATE_GOLDEN=1` writes it anew).

use std::path::Path;

use host::exec::cpu::{CpuExecutor, LowerError, plan};
use host::exec::{Dtype, KvCacheDtype};
use host::graph::optimise;
use plugin_api::{Activation, AttentionOptions, Builder, DType, Dim, Graph, Op, Value, spec};

use super::support::*;

fn graph(make: impl Fn(&mut Builder, Value) -> Value) -> Graph {
    let mut b = Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [9, 8]));
    let x = b.embedding(ids, table);
    let y = make(&mut b, x);
    let y = b.select_outputs(y);
    b.output("logits", y);
    b.finish().unwrap()
}

fn residual(b: &mut Builder, x: Value, name: &str) -> Value {
    let (w, v) = (b.weight(&format!("{name}.up"), [6, 8]), b.weight(&format!("{name}.down"), [8, 6]));
    let h = b.linear(x, w);
    let h = b.activation(h, Activation::Gelu);
    let y = b.linear(h, v);
    b.add(x, y)
}

fn angles(b: &mut Builder, n: usize) -> (Value, Value) {
    let p = b.positions();
    let p = b.cast(p, DType::F32);
    let p = b.reshape(p, [Dim::T(), 1usize.into()]);
    let f = b.constant((0..n).map(|i| 0.5f32.powi(i as i32)).collect());
    let a = b.mul(p, f);
    (b.op(Op::Cos, &[a]), b.op(Op::Sin, &[a]))
}

type Line = (&'static str, fn(&mut Builder, Value) -> Value);

const CASES: &[Line] = &[
    ("the residual stream is added to in place, its activation is fused", |b, x| {
        let x = residual(b, x, "a");
        residual(b, x, "b")
    }),
    ("x is read after the add: the sum is another value", |b, x| {
        let y = residual(b, x, "a");
        b.mul(x, y)
    }),
    ("a view of x is read after the add: the same", |b, x| {
        let view = b.slice(x, 1, 2usize, 5usize);
        let y = residual(b, x, "a");
        let y = b.slice(y, 1, 0usize, 3usize);
        b.mul(view, y)
    }),
    ("x is an output: its selected rows are added to, not x", |b, x| {
        b.output("x", x);
        residual(b, x, "a")
    }),
    ("the linear is an output too: nothing is fused", |b, x| {
        let w = b.weight("w", [8, 8]);
        let y = b.linear(x, w);
        b.output("y", y);
        b.add(x, y)
    }),
    ("the linear is read twice: nothing is fused", |b, x| {
        let w = b.weight("w", [8, 8]);
        let y = b.linear(x, w);
        let z = b.activation(y, Activation::Silu);
        b.add(z, y)
    }),
    ("both sides are linears of one input: the right one is fused, the left one its residual", |b, x| {
        let (u, v) = (b.weight("u", [8, 8]), b.weight("v", [8, 8]));
        let (y, z) = (b.linear(x, u), b.linear(x, v));
        b.add(y, z)
    }),
    ("q, k and v of three weights: one call; q and k are rotated in place", |b, x| {
        let (q, k, v) = (b.weight("q", [8, 8]), b.weight("k", [4, 8]), b.weight("v", [4, 8]));
        let [q, k, v] = [q, k, v].map(|w| b.linear(x, w));
        let (q, k, v) = (b.split_heads(q, 2, 4), b.split_heads(k, 1, 4), b.split_heads(v, 1, 4));
        let a = angles(b, 2);
        let (q, k) = (b.rope(q, a, false), b.rope(k, a, false));
        let y = b.attention(0, [q, k, v], 0.5, AttentionOptions::default());
        b.merge_heads(y)
    }),
    ("q, k and v are slices of one projection: it is read to the end, so the rotated parts are new values", |b, x| {
        let w = b.weight("qkv", [16, 8]);
        let y = b.linear(x, w);
        let [q, k, v] = [(0usize, 8usize, 2), (8, 12, 1), (12, 16, 1)].map(|(from, to, heads)| {
            let part = b.slice(y, 1, from, to);
            b.split_heads(part, heads, 4)
        });
        let a = angles(b, 2);
        let (q, k) = (b.rope(q, a, true), b.rope(k, a, true));
        let y = b.attention(0, [q, k, v], 0.5, AttentionOptions::default());
        b.merge_heads(y)
    }),
    ("rotated values that are read again, or rotated twice", |b, x| {
        let q = b.split_heads(x, 2, 4);
        let a = angles(b, 2);
        let once = b.rope(q, a, false);
        let twice = b.rope(once, a, false);
        let sum = b.add(q, twice);
        b.merge_heads(sum)
    }),
    ("tables that are views are copied once, however often they are read", |b, x| {
        let q = b.split_heads(x, 2, 4);
        let (both, _) = angles(b, 4);
        let a = (b.slice(both, 1, 0usize, 2usize), b.slice(both, 1, 2usize, 4usize));
        let q = b.rope(q, a, false);
        let q = b.rope(q, a, false);
        b.merge_heads(q)
    }),
    ("reshapes, casts between floats and slices of columns cost nothing", |b, x| {
        let y = b.cast(x, DType::F32);
        let y = b.reshape(y, [Dim::T(), 2usize.into(), 4usize.into()]);
        let y = b.slice(y, 1, 1usize, 2usize);
        let y = b.slice(y, 2, 1usize, 4usize);
        let y = b.reshape(y, [Dim::T(), 3usize.into()]);
        let y = b.cast(y, DType::Float);
        b.activation(y, Activation::Tanh)
    }),
    ("equal static expressions are one, whoever wrote them; names that look like expressions are quoted", |b, x| {
        let (w, odd) = (b.weight("w", [8, 8]), b.weight("permute(axes:[1,0])(w)", [8, 8]));
        let (s, t) = (b.permute(w, [1, 0]), b.permute(w, [1, 0]));
        let y = b.linear(x, s);
        let y = b.linear(y, t);
        b.linear(y, odd)
    }),
];

#[test]
fn plans_are_as_written_down() {
    let mut out = String::from("Plans of small graphs; see plans.rs.\n");
    for (what, make) in CASES {
        let g = optimise(&graph(make)).unwrap();
        spec::verify_graph("case", &g).unwrap();
        let weights = checkpoint(&g, 1, Stored::F32);
        let (_, plan) = plan(&g, &weights, Dtype::Float32, None).unwrap();
        out += &format!("\n=== {what}\n{plan}");
        // And it computes what it should.
        let mut r = Random(3);
        let seqs = [4, 17].map(|n| r.tokens(n, 9));
        let options = options(Dtype::Float32, KvCacheDtype::Float32);
        check_executor(what, &g, &weights, (&options, 2e-5), &seqs).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exec/plans.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &out).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (i, (new, old)) in out.lines().zip(golden.lines()).enumerate() {
        assert_eq!(new, old, "plans.txt, line {}", i + 1);
    }
    assert_eq!(out.len(), golden.len(), "plans.txt is longer or shorter than the plans");
}

/// Through the life of every random plan's calls, what a call reads is what was last meant to be there: no buffer is
/// written by a call that reads it, but for rotations and sums in place.
#[test]
fn calls_write_no_buffer_that_they_read() {
    for seed in 0..200 {
        let g = optimise(&super::random::graph(seed, false)).unwrap();
        let (_, plan) = plan(&g, &checkpoint(&g, seed, Stored::F32), Dtype::Float32, None).unwrap();
        let pinned = plan.inputs;
        let pinned: Vec<usize> = [pinned.token_ids, pinned.positions, pinned.context_length]
            .into_iter()
            .flatten()
            .map(|v| v.buffer)
            .collect();
        for mut call in plan.calls.clone() {
            use host::exec::cpu::{Call, Epilogue};
            let text = format!("seed {seed}: {call:?}");
            let in_place = match &call {
                Call::Rope { x, out, .. } => x == out,
                Call::Linear { epilogue, .. } => *epilogue == Epilogue::Accumulate,
                _ => false,
            };
            let writes = !matches!(call, Call::WriteKv { .. });
            let mut views: Vec<_> = call.views().into_iter().map(|v| *v).collect();
            for v in &views {
                let b = &plan.buffers[v.buffer];
                let room = b.per_token.max(b.per_selected);
                assert!(b.elem == v.elem && v.offset + v.cols <= v.stride.max(v.cols) && v.stride <= room, "{text}");
            }
            let Some(out) = views.pop().filter(|_| writes) else { continue };
            assert!(!pinned.contains(&out.buffer), "{text} writes an input");
            let same = views.iter().filter(|v| v.buffer == out.buffer).count();
            assert_eq!(same, usize::from(in_place && matches!(call, Call::Rope { .. })), "{text}");
        }
    }
}

#[test]
fn a_graph_needs_logits_that_depend_on_the_step() {
    let mut b = Builder::new();
    let w = b.weight("w", [2, 3]);
    b.output("logits", w);
    let g = b.finish().unwrap();
    let weights = checkpoint(&g, 1, Stored::F32);
    assert!(matches!(plan(&g, &weights, Dtype::Float32, None), Err(LowerError::NoOutput)));
    assert!(CpuExecutor::new(&g, &weights, &options(Dtype::Float32, KvCacheDtype::Float32)).is_err());
}
