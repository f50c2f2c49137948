//! Runs entries of the zoo through a native plugin and the reference executor, and compares with their golden outputs.
//!
//! One test binary a plugin: every plugin exports the same symbol, so two of them cannot be linked into one program.

use host::exec::reference::{Inputs, Prepared, checkpoint};
use host::hub::Weights;
use host_tests::zoo::{Entry, GoldenPrompt, entries};
use plugin_api::{BuildRequest, Plugin};

/// Largest distance of a logit, as a share of the logits' spread (the largest minus the smallest).
const TOLERANCE: f32 = 1e-3;

/// Checks every entry whose architecture the plugin claims; there must be at least `count`. All failures are reported.
pub(crate) fn check_family<P: Plugin>(count: usize) {
    let claimed = P::describe().architectures;
    let architecture =
        |entry: &Entry| entry.config().unwrap()["architectures"][0].as_str().unwrap_or_default().to_owned();
    let family: Vec<Entry> = entries().into_iter().filter(|e| claimed.contains(&architecture(e))).collect();
    assert!(family.len() >= count, "{} entries of {claimed:?}, at least {count} are expected", family.len());
    let failures: Vec<String> = family.iter().filter_map(|e| check_entry::<P>(e).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check_entry<P: Plugin>(entry: &Entry) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", entry.name);
    let folder = tempfile::tempdir().map_err(|e| fail(&e))?;
    let dir = entry.materialize(folder.path()).map_err(|e| fail(&e))?;
    let weights = Weights::open(&dir).map_err(|e| fail(&e))?;
    let tensors = weights
        .describe()
        .map(|(name, dtype, shape)| plugin_api::TensorInfo {
            name: name.to_owned(),
            dtype: dtype.name().to_owned(),
            shape: shape.to_vec(),
        })
        .collect();
    let request = BuildRequest::new(entry.config().map_err(|e| fail(&e))?, tensors);
    let model = P::build(&request).map_err(|e| fail(&e))?;
    let prepared = Prepared::new(&model.graphs["decode"], &checkpoint(&weights)).map_err(|e| fail(&e))?;
    let golden = entry.golden().map_err(|e| fail(&e))?;
    let (mut worst, mut problems) = (0f32, Vec::new());
    for prompt in &golden.prompts {
        let error = logits_error(&prepared, prompt).map_err(|e| fail(&e))?;
        worst = worst.max(error);
        if error > TOLERANCE || error.is_nan() {
            problems
                .push(format!("prompt of {}: logits are off by {error:e} of their spread", prompt.prompt_ids.len()));
        }
        if let Err(problem) = check_greedy(&prepared, prompt) {
            problems.push(format!("prompt of {}: {problem}", prompt.prompt_ids.len()));
        }
    }
    println!("{:28} largest error {worst:.1e} of the logits' spread", entry.name);
    if problems.is_empty() { Ok(()) } else { Err(fail(&problems.join("; "))) }
}

/// The logits of the last token of a sequence, computed whole.
fn last_logits(prepared: &Prepared, tokens: &[u32], prompt_len: usize) -> Result<Vec<f32>, String> {
    let inputs = Inputs::sequence(tokens, prompt_len, &[tokens.len() - 1]);
    let outputs = prepared.run(&inputs).map_err(|e| e.to_string())?;
    let (_, logits) = outputs.into_iter().find(|(name, _)| name == "logits").ok_or("no logits")?;
    logits.as_f32().map(<[f32]>::to_vec).ok_or_else(|| "the logits are not floats".to_owned())
}

fn logits_error(prepared: &Prepared, prompt: &GoldenPrompt) -> Result<f32, String> {
    let got = last_logits(prepared, &prompt.prompt_ids, prompt.prompt_ids.len())?;
    let expected = &prompt.last_logits;
    if got.len() != expected.len() {
        return Err(format!("{} logits, expected {}", got.len(), expected.len()));
    }
    let (low, high) = expected.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    // `f32::max` would drop a NaN.
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    Ok(got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, larger) / (high - low))
}

/// Generates greedily, every step from the first token: as the reference does with its cache, where a token sees the context
/// length of the step that computed it, and as it does without, where all tokens see the whole length.
///
/// Where the two differ only the second is compared: frequencies that change with the length are state of the reference's
/// model object, so its ids with a cache also depend on what it ran before.
fn check_greedy(prepared: &Prepared, prompt: &GoldenPrompt) -> Result<(), String> {
    let uncached = prompt.greedy_ids_no_cache.as_ref();
    if uncached.is_none_or(|ids| *ids == prompt.greedy_ids) {
        generates(prepared, prompt, &prompt.greedy_ids, true)?;
    }
    uncached.map_or(Ok(()), |ids| generates(prepared, prompt, ids, false).map_err(|e| format!("without a cache, {e}")))
}

fn generates(prepared: &Prepared, prompt: &GoldenPrompt, expected: &[u32], cached: bool) -> Result<(), String> {
    let mut tokens = prompt.prompt_ids.clone();
    for (i, &id) in expected.iter().enumerate() {
        let prompt_len = if cached { prompt.prompt_ids.len() } else { tokens.len() };
        let logits = last_logits(prepared, &tokens, prompt_len)?;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        if best != Some(id as usize) {
            return Err(format!("greedy token {i} is {best:?}, expected {id}"));
        }
        tokens.push(id);
    }
    Ok(())
}
