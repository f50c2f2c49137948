//! The CUDA executor on the emulated device, against the reference: the tables of `kernels.rs` and `primitives.rs`, and random
//! graphs. What runs here is what runs on a GPU, but for the instructions of `ptx.cuh`.

use std::sync::OnceLock;

use ::kernels::cuda::{Cuda, EmulatedOptions, emulated};
use host::exec::cpu::{LowerError, plan};
use host::exec::cuda::{CudaExecutor, CudaOptions};
use host::exec::{Draw, Drawn, Dtype, Executor, KvCacheDtype, LogitRows, Step, StepRows, StepSeq};
use host::graph::optimise;
use host::hub::Weights;
use plugin_api::Graph;

use super::kernels::{LINES, Line, graph};
use super::primitives::PRIMITIVES;
use super::support::*;
use super::{kernels, random};

/// Schedules that every line runs in: threads of a block in another order, and copies that land at other times.
const SEEDS: [u64; 5] = [0, 1, 2, 3, 4];

fn device(seed: u64) -> &'static Cuda {
    static DEVICES: OnceLock<Vec<Cuda>> = OnceLock::new();
    let make = |seed: &u64| emulated(&EmulatedOptions { seed: *seed, ..EmulatedOptions::default() }).unwrap();
    &DEVICES.get_or_init(|| SEEDS.iter().map(make).collect())[seed as usize]
}

fn executor(
    seed: u64,
    graph: &Graph,
    weights: &Weights,
    dtype: Dtype,
    kv: KvCacheDtype,
) -> Result<CudaExecutor, LowerError> {
    let options = CudaOptions { dtype, kv_cache_dtype: kv, max_tokens: 64, max_seqs: 8 };
    let (graph, plan) = plan(graph, weights, dtype, None)?;
    Ok(CudaExecutor::new(device(seed), &graph, plan, weights, &options).unwrap())
}

/// However sequences are batched, in every schedule the same bits, and the reference's numbers.
fn check(lines: &[Line]) {
    let mut r = Random(3);
    let seqs: Vec<Vec<u32>> = [19, 1, 3].iter().map(|&n| r.tokens(n, kernels::VOCABULARY)).collect();
    for (what, _, make) in lines {
        let graph = graph(make);
        let weights = checkpoint(&graph, 5, Stored::F32);
        let exact = (Dtype::Float32, KvCacheDtype::Float32);
        let mut plain = executor(0, &graph, &weights, exact.0, exact.1).unwrap();
        check_any(what, &graph, &weights, (&mut plain, 2e-5), &seqs);
        let bits = |logits: Vec<Vec<f32>>| -> Vec<u32> { logits.iter().flatten().map(|x| x.to_bits()).collect() };
        let first = bits(by_executor(&mut plain, &seqs, Way::Together, 0).unwrap());
        for seed in 1..SEEDS.len() as u64 {
            let mut other = executor(seed, &graph, &weights, exact.0, exact.1).unwrap();
            let got = by_executor(&mut other, &seqs, Way::Together, seed).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(bits(got) == first, "{what}: depends on the schedule");
        }
        // Products of bf16, and a cache of bf16.
        let mut rounded = executor(0, &graph, &weights, Dtype::Bfloat16, KvCacheDtype::Bfloat16).unwrap();
        by_executor(&mut rounded, &seqs, Way::Together, 0).unwrap_or_else(|e| panic!("{what}, bfloat16: {e}"));
    }
}

#[test]
fn every_primitive_runs_on_the_device() {
    check(PRIMITIVES);
}

#[test]
fn every_composite_runs_on_the_device() {
    check(LINES);
}

#[test]
fn random_graphs_run_on_the_device_as_the_reference_computes_them() {
    let mut ran = 0;
    for seed in 1000..1040u64 {
        let graph = optimise(&random::graph(seed, false)).unwrap();
        let weights = checkpoint(&graph, seed, if seed % 2 == 0 { Stored::F32 } else { Stored::Mixed });
        let mut r = Random(seed);
        let seqs: Vec<Vec<u32>> = [5, 1, 18].iter().map(|&n| r.tokens(n, random::VOCABULARY)).collect();
        let mut executor = executor(seed % 5, &graph, &weights, Dtype::Float32, KvCacheDtype::Float32).unwrap();
        check_any(&format!("seed {seed}"), &graph, &weights, (&mut executor, 2e-5), &seqs);
        ran += 1;
    }
    assert_eq!(ran, 40);
}

/// A step with draws: the rows without one come back as they do without any draw, and greedy draws are the most likely tokens.
#[test]
fn draws_take_the_place_of_rows() {
    let graph = graph(LINES[0].2);
    let weights = checkpoint(&graph, 5, Stored::F32);
    let make = || {
        let mut executor = executor(1, &graph, &weights, Dtype::Float32, KvCacheDtype::Float32).unwrap();
        executor.allocate_cache(8).unwrap();
        executor
    };
    let mut r = Random(8);
    let tokens: Vec<Vec<u32>> = [5, 3, 7, 2].iter().map(|&n| r.tokens(n, kernels::VOCABULARY)).collect();
    let rows = [LogitRows::Last, LogitRows::None, LogitRows::From(4), LogitRows::Last];
    let seqs: Vec<StepSeq<'_>> = (0..4usize)
        .map(|i| StepSeq {
            id: i as u64,
            tokens: &tokens[i],
            computed: 0,
            context_len: tokens[i].len(),
            blocks: [&[0], &[1], &[2], &[3]][i],
            logits: rows[i],
        })
        .collect();
    let step = Step { seqs: &seqs };
    let (mut plain, mut drawing) = (make(), make());
    let width = plain.spec().row_width;
    let all = plain.execute(&step).unwrap().to_vec();
    assert_eq!(all.len(), 5 * width, "one row, three, and one");
    let draw = Draw {
        random: 0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        seen: vec![],
    };
    let best = |row: &[f32]| Drawn::Token((0..width).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32);
    assert!(drawing.draws());
    let draws = [Some(draw.clone()), None, None, Some(draw.clone())];
    let StepRows { rows, drawn } = drawing.execute_and_draw(&step, &draws).unwrap();
    assert_eq!(drawn, [best(&all[..width]), best(&all[4 * width..])]);
    assert!(rows == &all[width..4 * width], "the rows without a draw");
    let refused = |executor: &mut CudaExecutor, draws: &[Option<Draw>]| {
        executor.execute_and_draw(&step, draws).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&mut drawing, &draws[..2]).contains("2 draws for 4 sequences"));
    let wrong = [None, Some(draw), None, None];
    assert!(refused(&mut drawing, &wrong).contains("sequence 1 without a last row"));
}
