//! Checkpoints in memory, the two ways to run a graph, and their comparison.

use std::collections::HashMap;

use half::{bf16, f16};
use host::exec::cpu::{CpuExecutor, CpuOptions};
use host::exec::reference::{self, EvalError, Inputs, Tensor};
use host::exec::{BLOCK_SIZE, BlockId, Dtype, ExecError, Executor, KvCacheDtype, LogitRows, Step, StepSeq};
use host::hub::Weights;
use plugin_api::{ConstData, Graph};

/// Numbers that are the same in every run (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub(super) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// True in one of `n` cases.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, E>(&mut self, from: &'a [E]) -> &'a E {
        &from[self.below(from.len())]
    }

    pub(super) fn tokens(&mut self, n: usize, vocabulary: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocabulary) as u32).collect()
    }

    pub(super) fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut out: Vec<u32> = (0..n as u32).collect();
        (1..n).for_each(|i| out.swap(i, self.below(i + 1)));
        out
    }
}

/// How a checkpoint stores its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stored {
    F32,
    Bf16,
    F16,
    /// One after the other of the three.
    Mixed,
}

/// A checkpoint with random values for every weight that the graph reads.
pub(super) fn checkpoint(graph: &Graph, seed: u64, stored: Stored) -> Weights {
    let mut random = Random(seed);
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = vec![];
    for (i, (name, shape)) in graph.weights().into_iter().enumerate() {
        let begin = data.len();
        let kind = match stored {
            Stored::Mixed => [Stored::F32, Stored::Bf16, Stored::F16][i % 3],
            one => one,
        };
        for _ in 0..shape.iter().product::<usize>() {
            let x = random.float();
            match kind {
                Stored::Bf16 => data.extend(bf16::from_f32(x).to_le_bytes()),
                Stored::F16 => data.extend(f16::from_f32(x).to_le_bytes()),
                _ => data.extend(x.to_le_bytes()),
            }
        }
        let dtype = match kind {
            Stored::Bf16 => "BF16",
            Stored::F16 => "F16",
            _ => "F32",
        };
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    // Tensors of different element sizes need their alignment.
    weights_of(header, &data)
}

pub(super) fn weights_of(header: serde_json::Map<String, serde_json::Value>, data: &[u8]) -> Weights {
    let mut text = serde_json::to_string(&header).unwrap();
    while !(text.len()).is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    file.extend(data);
    // An aligned copy that lives as long as the process, as the built-in model does.
    let mut words = vec![0u64; file.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..file.len()].copy_from_slice(&file);
    let bytes: &'static [u8] = bytemuck::cast_slice(Box::leak(words.into_boxed_slice()));
    Weights::from_static(&bytes[..file.len()]).unwrap()
}

/// All outputs by the reference.
pub(super) fn evaluate(graph: &Graph, weights: &Weights, inputs: &Inputs) -> Result<Vec<(String, Tensor)>, EvalError> {
    reference::eval(graph, inputs, &reference::checkpoint(weights))
}

/// The logits of every position of a sequence, by the reference.
pub(super) fn by_reference(graph: &Graph, weights: &Weights, tokens: &[u32]) -> Vec<f32> {
    let rows: Vec<usize> = (0..tokens.len()).collect();
    let out = evaluate(graph, weights, &Inputs::prompt(tokens, &rows)).unwrap();
    let (_, logits) = out.into_iter().find(|(name, _)| name == "logits").unwrap();
    logits.as_f32().unwrap().to_vec()
}

pub(super) fn options(dtype: Dtype, kv_cache_dtype: KvCacheDtype) -> CpuOptions {
    CpuOptions {
        threads: Some(2),
        pin_threads: false,
        dtype,
        quantization: None,
        kv_cache_dtype,
        max_tokens: 64,
        max_seqs: 8,
    }
}

/// How sequences are cut into steps.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Alone,
    Together,
    /// At most so many tokens of a sequence in a step; sequence i enters at step i.
    Chunks(usize),
}

pub(super) const WAYS: [Way; 4] = [Way::Alone, Way::Together, Way::Chunks(1), Way::Chunks(3)];

/// The logits of every position of every sequence, by an executor.
pub(super) fn by_executor(
    executor: &mut dyn Executor,
    seqs: &[Vec<u32>],
    way: Way,
    seed: u64,
) -> Result<Vec<Vec<f32>>, ExecError> {
    let width = executor.spec().row_width;
    let per_seq = seqs.iter().map(|s| s.len().div_ceil(BLOCK_SIZE)).max().unwrap_or(1);
    executor.allocate_cache(per_seq * seqs.len() + 3)?;
    let blocks: Vec<BlockId> = Random(seed).shuffled(per_seq * seqs.len() + 3);
    let mut done = vec![0usize; seqs.len()];
    let mut out = vec![vec![]; seqs.len()];
    for turn in 0.. {
        if done.iter().zip(seqs).all(|(&d, s)| d == s.len()) {
            break;
        }
        let mut takes = vec![0usize; seqs.len()];
        match way {
            Way::Alone => {
                let next = (0..seqs.len()).find(|&i| done[i] < seqs[i].len()).unwrap();
                takes[next] = seqs[next].len();
            }
            Way::Together => (0..seqs.len()).for_each(|i| takes[i] = seqs[i].len()),
            Way::Chunks(n) => (0..seqs.len().min(turn + 1)).for_each(|i| takes[i] = n.min(seqs[i].len() - done[i])),
        }
        let chosen: Vec<usize> = (0..seqs.len()).rev().filter(|&i| takes[i] > 0).collect();
        let step: Vec<StepSeq<'_>> = chosen
            .iter()
            .map(|&i| StepSeq {
                id: i as u64,
                tokens: &seqs[i][..done[i] + takes[i]],
                computed: done[i],
                context_len: seqs[i].len(),
                blocks: &blocks[i * per_seq..][..per_seq],
                logits: LogitRows::From(0),
            })
            .collect();
        let logits = executor.execute(&Step { seqs: &step })?;
        let mut rest = logits;
        for &i in &chosen {
            let (own, others) = rest.split_at(takes[i] * width);
            out[i].extend_from_slice(own);
            done[i] += takes[i];
            rest = others;
        }
        assert!(rest.is_empty());
    }
    Ok(out)
}

/// Every way gives the same bits, and these are the reference's within `tolerance`. One more step without any
/// logits must work too.
pub(super) fn check_executor(
    what: &str,
    graph: &Graph,
    weights: &Weights,
    (options, tolerance): (&CpuOptions, f32),
    seqs: &[Vec<u32>],
) -> Result<(), ExecError> {
    check_any(what, graph, weights, (&mut CpuExecutor::new(graph, weights, options)?, tolerance), seqs);
    Ok(())
}

/// As [`check_executor`], for an executor that is ready.
pub(super) fn check_any(
    what: &str,
    graph: &Graph,
    weights: &Weights,
    (executor, tolerance): (&mut dyn Executor, f32),
    seqs: &[Vec<u32>],
) {
    let mut first: Option<Vec<Vec<f32>>> = None;
    for (i, way) in WAYS.into_iter().enumerate() {
        let got = by_executor(executor, seqs, way, i as u64).unwrap_or_else(|e| panic!("{what}, {way:?}: {e}"));
        match &first {
            None => {
                for (tokens, got) in seqs.iter().zip(&got) {
                    assert_close(what, got, &by_reference(graph, weights, tokens), tolerance);
                }
                first = Some(got);
            }
            Some(first) => {
                for (a, b) in first.iter().flatten().zip(got.iter().flatten()) {
                    assert!(
                        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
                        "{what}: {way:?} gives {b}, not {a}"
                    );
                }
            }
        }
    }
    let seq = StepSeq {
        id: 99,
        tokens: &seqs[0],
        computed: 0,
        context_len: seqs[0].len(),
        blocks: &Random(5).shuffled(seqs[0].len().div_ceil(BLOCK_SIZE)),
        logits: LogitRows::None,
    };
    let none = executor.execute(&Step { seqs: &[seq] }).unwrap_or_else(|e| panic!("{what}, no rows: {e}"));
    assert_eq!(none, [0f32; 0], "{what}");
}

/// Within `tolerance` of the largest magnitude of the expected values (or 1); NaN and infinities alike.
pub(super) fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1f32, |m, x| m.max(x.abs()));
    for (i, (&a, &b)) in got.iter().zip(expected).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * scale;
        assert!(same, "{what}: element {i} is {a}, expected {b} (tolerance {tolerance} of {scale})");
    }
}

/// Two results of the reference: same names, shapes, and elements.
pub(super) fn assert_same(what: &str, got: &[(String, Tensor)], expected: &[(String, Tensor)]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for ((name, a), (expected_name, b)) in got.iter().zip(expected) {
        assert_eq!((name, &a.shape), (expected_name, &b.shape), "{what}");
        match (&a.data, &b.data) {
            (ConstData::F32(a), ConstData::F32(b)) => assert_close(&format!("{what}, {name}"), a, b, 1e-6),
            (a, b) => assert_eq!(a, b, "{what}, {name}"),
        }
    }
}

/// How often each op occurs.
pub(super) fn census(graph: &Graph, into: &mut HashMap<String, usize>) {
    graph.nodes.iter().for_each(|n| *into.entry(n.op.name()).or_default() += 1);
}
