//! One zoo entry on the reference executor and on the CPU executor:
//! logits and greedy ids as torch gives them, and the same bits however a sequence is cut into steps.

use host::exec::cpu::{CpuExecutor, CpuOptions, read_f32};
use host::exec::reference::{Limits, ReferenceExecutor};
use host::exec::{BLOCK_SIZE, BlockId, Dtype, ExecError, Executor, KvCacheDtype, LogitRows, Step, StepSeq};
use host::graph;
use host::hub::Weights;

use crate::hidden;
use crate::zoo::{self, Golden, GoldenPrompt};
use plugin_api::{BuildRequest, Graph, Model, Plugin};

const MAX_TOKENS: usize = 128;

/// A sequence being generated.
struct Run {
    tokens: Vec<u32>,
    prompt_len: usize,
    computed: usize,
    blocks: Vec<BlockId>,
    /// Logits of the last prompt token.
    first: Vec<f32>,
    steps: usize,
}

/// Generates `steps` greedy tokens for all prompts at once, at most `chunk` tokens of each in a step.
fn generate(exec: &mut dyn Executor, prompts: &[&[u32]], chunk: usize, steps: usize) -> Vec<Run> {
    let runs = try_generate(exec, prompts, chunk, steps).expect("a step");
    (0..prompts.len()).for_each(|id| exec.forget(id as u64));
    runs
}

fn try_generate(
    exec: &mut dyn Executor,
    prompts: &[&[u32]],
    chunk: usize,
    steps: usize,
) -> Result<Vec<Run>, ExecError> {
    let mut next_block = 0;
    let mut runs: Vec<Run> = prompts
        .iter()
        .map(|p| {
            let n = (p.len() + steps).div_ceil(BLOCK_SIZE) as u32;
            // Blocks in a mixed-up order: nothing may depend on it.
            let blocks = (next_block..next_block + n).rev().collect();
            next_block += n;
            Run { tokens: p.to_vec(), prompt_len: p.len(), computed: 0, blocks, first: vec![], steps: 0 }
        })
        .collect();
    while runs.iter().any(|r| r.steps < steps) {
        let mut ends = vec![];
        for r in &runs {
            ends.push(r.tokens.len().min(r.computed + chunk));
        }
        let active: Vec<usize> = (0..runs.len()).filter(|&i| runs[i].steps < steps).collect();
        let seqs: Vec<StepSeq<'_>> = active
            .iter()
            .map(|&i| StepSeq {
                id: i as u64,
                tokens: &runs[i].tokens[..ends[i]],
                computed: runs[i].computed,
                context_len: runs[i].tokens.len(),
                blocks: &runs[i].blocks,
                logits: if ends[i] == runs[i].tokens.len() { LogitRows::Last } else { LogitRows::None },
            })
            .collect();
        let (vocabulary, by_length) = (exec.spec().row_width, exec.spec().by_length);
        let logits = exec.execute(&Step { seqs: &seqs })?.to_vec();
        let mut rows = logits.chunks_exact(vocabulary);
        for &i in &active {
            let r = &mut runs[i];
            r.computed = ends[i];
            if r.computed < r.tokens.len() {
                continue;
            }
            let row = rows.next().expect("a row for every finished chunk");
            if r.steps == 0 {
                r.first = row.to_vec();
            }
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).expect("logits");
            r.tokens.push(best as u32);
            r.steps += 1;
            if by_length.is_some_and(|by| by.class(r.tokens.len()) != by.class(r.tokens.len() - 1)) {
                r.computed = 0;
            }
        }
        assert!(rows.next().is_none(), "more rows than asked for");
    }
    Ok(runs)
}

fn cpu(graph: &Graph, weights: &Weights, threads: usize) -> CpuExecutor {
    let options = CpuOptions {
        threads: Some(threads),
        pin_threads: false,
        dtype: Dtype::Float32,
        quantization: None,
        kv_cache_dtype: KvCacheDtype::Float32,
        max_tokens: MAX_TOKENS,
        max_seqs: 4,
    };
    let mut exec = CpuExecutor::new(graph, weights, &options).expect("plans");
    exec.allocate_cache(32).expect("allocates");
    exec
}

/// Compares with torch: logits within 1e-3 of their spread, the same greedy ids. The reference's own cache changes the ids
/// of some entries (dynamic NTK): then either of its lists is right.
fn compare(golden: &Golden, prompt: &GoldenPrompt, run: &Run) -> Result<(), String> {
    let of = format!("prompt of {}", run.prompt_len);
    let (low, high) = prompt.last_logits.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    let spread = high - low;
    let differences = run.first.iter().zip(&prompt.last_logits).map(|(a, b)| (a - b).abs());
    // NaN is the worst of all.
    let worst = differences.fold(0.0f32, |worst, d| if d > worst || d.is_nan() { d } else { worst });
    if run.first.len() != prompt.last_logits.len() || worst.is_nan() || worst > 1e-3 * spread {
        return Err(format!("{of}: logits differ by {worst} of {spread}"));
    }
    let ids = &run.tokens[run.prompt_len..];
    let also = prompt.greedy_ids_no_cache.as_deref().filter(|_| !golden.cache_matches.unwrap_or(false));
    if ids == prompt.greedy_ids || Some(ids) == also {
        return Ok(());
    }
    Err(format!("{of}: ids {ids:?}, torch gives {:?} or {also:?}", prompt.greedy_ids))
}

/// Runs one entry, built by the plugin `P`, in all ways.
pub fn check<P: Plugin>(name: &str) {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let request = BuildRequest::new(entry.config().expect("has a configuration"), vec![]);
    let model = P::build(&request).expect("builds");
    plugin_api::spec::verify(&model).expect("verifies");
    let dir = tempfile::tempdir().expect("a folder");
    let weights = Weights::open(&entry.materialize(dir.path()).expect("materialises")).expect("opens");
    let graph = &model.graphs["decode"];
    let optimised = graph::optimise(graph).expect("optimises");
    let prompts: Vec<&[u32]> = golden.prompts.iter().map(|p| p.prompt_ids.as_slice()).collect();

    let limits = Limits { max_tokens: MAX_TOKENS, max_seqs: 4 };
    for graph in [graph, &optimised] {
        let model = Model { graphs: [("decode".to_owned(), graph.clone())].into(), ..model.clone() };
        let mut reference = ReferenceExecutor::new(&model, &|name| read_f32(&weights, name), limits).expect("prepares");
        for (prompt, run) in golden.prompts.iter().zip(generate(&mut reference, &prompts, MAX_TOKENS, 16)) {
            compare(&golden, prompt, &run).unwrap_or_else(|e| panic!("{name} (reference), {e}"));
        }
    }

    let mut exec = cpu(&optimised, &weights, 1);
    let alone: Vec<Run> = prompts.iter().flat_map(|p| generate(&mut exec, &[p], MAX_TOKENS, 16)).collect();
    for (prompt, run) in golden.prompts.iter().zip(&alone) {
        compare(&golden, prompt, run).unwrap_or_else(|e| panic!("{name}, {e}"));
    }
    for (way, threads, chunk) in
        [("together", 1, 40), ("chunks of 3", 1, 3), ("three threads", 3, 40), ("one by one", 2, 1)]
    {
        let mut exec = cpu(&optimised, &weights, threads);
        for (run, alone) in generate(&mut exec, &prompts, chunk, 16).iter().zip(&alone) {
            assert_eq!(run.tokens, alone.tokens, "{name}: {way}");
            let same = run.first.iter().zip(&alone.first).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}: logits of {way} differ in some bit");
        }
    }
    hidden::check(name, graph, &weights, &golden);
}

/// What an executor makes of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As torch.
    Right,
    /// It cannot run it, and says why.
    Refused(String),
    /// Other numbers than torch's.
    Wrong(String),
}

/// Holds a graph of a zoo entry to torch's outputs on the reference executor.
pub fn on_reference(graph: &Graph, model: &Model, weights: &Weights, golden: &Golden) -> Verdict {
    let model = Model { graphs: [("decode".to_owned(), graph.clone())].into(), ..model.clone() };
    let limits = Limits { max_tokens: MAX_TOKENS, max_seqs: 4 };
    match ReferenceExecutor::new(&model, &|name| read_f32(weights, name), limits) {
        Ok(mut exec) => verdict(&mut exec, golden),
        Err(e) => Verdict::Refused(e.to_string()),
    }
}

/// Holds an optimised graph of a zoo entry to torch's outputs on the CPU executor.
pub fn on_cpu(graph: &Graph, weights: &Weights, golden: &Golden) -> Verdict {
    let options = CpuOptions {
        threads: Some(1),
        pin_threads: false,
        dtype: Dtype::Float32,
        quantization: None,
        kv_cache_dtype: KvCacheDtype::Float32,
        max_tokens: MAX_TOKENS,
        max_seqs: 4,
    };
    let made = CpuExecutor::new(graph, weights, &options).and_then(|mut exec| exec.allocate_cache(32).map(|()| exec));
    match made {
        Ok(mut exec) => verdict(&mut exec, golden),
        Err(e) => Verdict::Refused(e.to_string()),
    }
}

fn verdict(exec: &mut dyn Executor, golden: &Golden) -> Verdict {
    for prompt in &golden.prompts {
        let runs = match try_generate(exec, &[&prompt.prompt_ids], MAX_TOKENS, 16) {
            Ok(runs) => runs,
            Err(e) => return Verdict::Refused(e.to_string()),
        };
        exec.forget(0);
        if let Err(e) = compare(golden, prompt, &runs[0]) {
            return Verdict::Wrong(e);
        }
    }
    Verdict::Right
}

/// The entries whose `architectures[0]` the plugin claims.
pub fn claimed<P: Plugin>() -> Vec<String> {
    let architectures = P::describe().architectures;
    let claims = |e: &zoo::Entry| {
        let config = e.config().expect("has a configuration");
        config["architectures"][0].as_str().is_some_and(|a| architectures.iter().any(|b| a == b))
    };
    zoo::entries().into_iter().filter(claims).map(|e| e.name).collect()
}

/// A test for every named entry, and one that no entry that the plugin claims is left out.
#[macro_export]
macro_rules! zoo_tests {
    ($plugin:ty: $($test:ident $name:literal),* $(,)?) => {
        #[test]
        fn every_entry_that_the_plugin_claims_is_tested() {
            assert_eq!($crate::executors::claimed::<$plugin>(), [$($name),*]);
        }
        $(#[test] fn $test() { $crate::executors::check::<$plugin>($name); })*
    };
}
