//! The hidden states of a zoo entry, from the graph that `host::graph::embed` makes: the head's weights make torch's logits
//! of them, both executors agree, and chunks change no bit.

use host::exec::cpu::{CpuExecutor, CpuOptions, read_f32};
use host::exec::reference::{Limits, ReferenceExecutor};
use host::exec::{BLOCK_SIZE, BlockId, Dtype, Executor, Gives, KvCacheDtype, LogitRows, Step, StepSeq};
use host::graph;
use host::hub::Weights;
use plugin_api::Graph;

use crate::zoo::Golden;

const MAX_TOKENS: usize = 128;
/// Under which names heads are stored; where there is none, it is the embedding.
const HEADS: [&str; 3] = ["lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"];

/// The states of all tokens of a sequence, at most `chunk` tokens in a step.
fn states(exec: &mut dyn Executor, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let width = exec.spec().row_width;
    let blocks: Vec<BlockId> = (0..tokens.len().div_ceil(BLOCK_SIZE) as u32).rev().collect();
    let mut out = Vec::new();
    let mut computed = 0;
    while computed < tokens.len() {
        let end = tokens.len().min(computed + chunk);
        let (tokens, context_len) = (&tokens[..end], tokens.len());
        let logits = LogitRows::From(computed);
        let seq = StepSeq { id: 7, tokens, computed, context_len, blocks: &blocks, logits };
        let rows = exec.execute(&Step { seqs: &[seq] }).expect("a step");
        out.extend(rows.chunks_exact(width).map(<[f32]>::to_vec));
        computed = end;
    }
    exec.forget(7);
    out
}

/// The product with the head, in f64.
fn logits(head: &[f32], state: &[f32]) -> Vec<f32> {
    let product = |row: &[f32]| row.iter().zip(state).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32;
    head.chunks_exact(state.len()).map(product).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}

/// Holds the hidden states of one entry to torch's logits. `graph` is its `decode`.
pub fn check(name: &str, graph: &Graph, weights: &Weights, golden: &Golden) {
    let optimised = graph::optimise(graph).expect("optimises");
    let embed = graph::embed(&optimised).expect("has a head");
    plugin_api::spec::verify_graph("embed", &embed).expect("verifies");
    let read = |name: &str| read_f32(weights, name);
    let head = HEADS.iter().find_map(|name| read(name).ok()).expect("has a head");
    let head = head.as_f32().expect("is floats");
    let options = CpuOptions {
        threads: Some(2),
        pin_threads: false,
        dtype: Dtype::Float32,
        quantization: None,
        kv_cache_dtype: KvCacheDtype::Float32,
        max_tokens: MAX_TOKENS,
        max_seqs: 4,
    };
    let mut cpu = CpuExecutor::new(&embed, weights, &options).expect("plans");
    assert_eq!(cpu.spec().gives, Gives::HiddenStates);
    cpu.allocate_cache(32).expect("allocates");
    let limits = Limits { max_tokens: MAX_TOKENS, max_seqs: 4 };
    let plain = graph::embed(graph).expect("has a head");
    let mut reference = ReferenceExecutor::of_graph(&plain, &read, limits).expect("prepares");
    for prompt in &golden.prompts {
        let whole = states(&mut cpu, &prompt.prompt_ids, MAX_TOKENS);
        let (low, high) = prompt.last_logits.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
        let last = whole.last().expect("a state");
        let off = worst(&logits(head, last), &prompt.last_logits);
        assert!(off <= 1e-3 * (high - low), "{name}: the head makes logits that differ by {off}");
        for chunk in [1, 3] {
            let pieces = states(&mut cpu, &prompt.prompt_ids, chunk);
            let bits = |states: &[Vec<f32>]| states.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&pieces), bits(&whole), "{name}: chunks of {chunk} change bits");
        }
        let oracle = states(&mut reference, &prompt.prompt_ids, MAX_TOKENS);
        assert_eq!(oracle.len(), whole.len());
        for (state, expected) in whole.iter().zip(&oracle) {
            let size = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let off = worst(state, expected);
            assert!(off <= 1e-3 * size, "{name}: a state differs from the reference by {off} of {size}");
        }
    }
}
