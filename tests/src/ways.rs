//! One zoo entry through the whole library, from its folder by way of the plugin's shared library to the engine's answers:
//! on both executors, and in every way in which the engine can come to run the same prompts. The ids are torch's, and
//! nothing differs between the ways, not even in the last bit of a log-probability. Native plugins build the entries that
//! they claim ([`check`]); the plugin `transformers` is tried with all of them (`support.rs`).

use std::path::Path;

use host::exec::{Dtype, KvCacheDtype, PrefixCaching};
use host::llm::{
    Completion, DeviceChoice, ExecutorKind, KvCacheDtypeChoice, Llm, LlmOptions, ModelSource, SamplingParams,
};
use host::registry::ModelImpl;

use crate::library;
use crate::zoo::{self, Golden, GoldenPrompt};

/// Tokens to generate, as many as the goldens have.
const TOKENS: usize = 16;
/// Where the prompts that share a beginning with the prompt of 40 tokens leave it; the first block of 16 is common.
const COMMON: usize = 24;
/// KV blocks that are too few for a crowd.
const SCARCE: usize = 5;
/// Whether requests run at the same time is up to this program's threads too: if they did not, they are sent again.
const TRIES: usize = 10;

/// What came of a prompt: per token its id and the bits of the whole vocabulary's log-probabilities, best first.
#[derive(PartialEq, Clone)]
struct Answer {
    ids: Vec<u32>,
    logprobs: Vec<Vec<(u32, u32)>>,
}

impl From<&Completion> for Answer {
    fn from(completion: &Completion) -> Answer {
        let choice = &completion.choices[0];
        let bits = |top: &[(u32, f32)]| top.iter().map(|&(id, p)| (id, p.to_bits())).collect();
        Answer { ids: choice.token_ids.clone(), logprobs: choice.logprobs.iter().map(|t| bits(&t.top)).collect() }
    }
}

/// One entry on one executor.
struct Case<'a> {
    name: String,
    golden: &'a Golden,
    options: LlmOptions,
    /// What the model's information must say about its plugin.
    model_impl: &'static str,
}

/// Runs one entry in all ways on both executors. `worker` is `env!("CARGO_BIN_EXE_plugin-worker")`.
pub fn check(name: &str, worker: &str) {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    for executor in [ExecutorKind::Cpu, ExecutorKind::Reference] {
        let options = LlmOptions { executor, ..options(&folder, worker) };
        let name = format!("{name} ({executor:?})");
        let case = Case { name, golden: &golden, options, model_impl: "native" };
        case.run().unwrap_or_else(|e| panic!("{}: {e}", case.name));
    }
}

/// Runs one entry in all ways with a KV cache of int8: the same bits in every way, and log-probabilities near torch's.
pub fn check_int8_cache(name: &str, worker: &str) {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    let kv_cache_dtype = KvCacheDtypeChoice::Is(KvCacheDtype::Int8);
    let options = LlmOptions { kv_cache_dtype, executor: ExecutorKind::Cpu, ..options(&folder, worker) };
    let case = Case { name: format!("{name} (cache of int8)"), golden: &golden, options, model_impl: "native" };
    case.run().unwrap_or_else(|e| panic!("{}: {e}", case.name));
}

/// How one entry is loaded onto the emulated CUDA device; `model_impl` is `native` or `transformers`.
fn emulated(folder: &Path, model_impl: &str, worker: &str) -> LlmOptions {
    let mut options = LlmOptions { device: DeviceChoice::Emulated, ..options(folder, worker) };
    if model_impl == "transformers" {
        options.registry = library::registry_with_transformers(worker);
        options.model_impl = ModelImpl::Transformers;
    }
    options
}

/// One entry on the emulated CUDA device, through the whole library: torch's ids, and the same bits for prompts alone, all
/// at once, in chunks of 3, and from the prefix cache.
pub fn check_emulated(name: &str, model_impl: &'static str, worker: &str) {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    let options = emulated(&folder, model_impl, worker);
    let case = Case { name: format!("{name} (emulated)"), golden: &golden, options, model_impl };
    let prompts: Vec<&[u32]> = golden.prompts.iter().map(|p| p.prompt_ids.as_slice()).collect();
    let llm = case.load("one by one", |_| {});
    assert_eq!((llm.info().executor.as_str(), llm.info().model_impl.as_str()), ("emulated", model_impl), "{name}");
    let alone: Vec<Answer> = prompts.iter().map(|p| case.generate(&llm, &[p]).remove(0).0).collect();
    case.compare_with_torch(&alone);
    let known: Vec<(&[u32], Answer)> = prompts.iter().copied().zip(alone).collect();
    case.expect(&llm, "again", &known, &prompts);
    let chunked = case.load("chunks of 3", |o| (o.max_num_batched_tokens, o.max_num_seqs) = (3, 3));
    case.expect(&chunked, "chunks of 3", &known, &prompts);
}

/// Tokens of one entry that are drawn on the emulated CUDA device are those that the sampler draws from the same rows: of the
/// same requests with log-probabilities, for which the rows come back.
pub fn check_emulated_draws(name: &str, worker: &str) {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    let llm = Llm::load(&emulated(&folder, "native", worker)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let prompts: Vec<&[u32]> = golden.prompts.iter().map(|p| p.prompt_ids.as_slice()).collect();
    let plain = SamplingParams { max_tokens: Some(8), seed: Some(5), ..SamplingParams::default() };
    let all = [
        SamplingParams { temperature: 0.0, ..plain.clone() },
        plain.clone(),
        SamplingParams { temperature: 1.7, top_k: 20, ..plain.clone() },
        SamplingParams { temperature: 1.3, top_p: 0.7, min_p: 0.02, seed: Some(6), ..plain.clone() },
        SamplingParams { repetition_penalty: 1.4, frequency_penalty: 0.6, presence_penalty: -0.3, ..plain.clone() },
        // Not for the device: both are the sampler's.
        SamplingParams { logit_bias: vec![(3, 4.0)], ..plain },
    ];
    let mut different = std::collections::BTreeSet::new();
    for params in all {
        let ids = |logprobs: Option<i64>| -> Vec<Vec<u32>> {
            let params = SamplingParams { logprobs, ..params.clone() };
            let completions = llm.generate(&prompts, params).unwrap_or_else(|e| panic!("{name}: {e}"));
            completions.into_iter().map(|mut c| c.choices.remove(0).token_ids).collect()
        };
        let drawn = ids(None);
        assert_eq!(drawn, ids(Some(0)), "{name}: {params:?}");
        different.insert(drawn);
    }
    assert!(different.len() > 4, "{name}: the parameters hardly matter");
}

/// One entry on the emulated CUDA device, each prompt alone: torch's ids. Or why it does not load there.
pub fn try_emulated(name: &str, worker: &str) -> Result<(), String> {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    let options = LlmOptions { trust_remote_code: true, ..emulated(&folder, "transformers", worker) };
    let case = Case { name: format!("{name} (emulated)"), golden: &golden, options, model_impl: "transformers" };
    let llm = Llm::load(&case.options).map_err(|e| e.to_string())?;
    let executor = llm.info().executor.to_string();
    if executor != "emulated" {
        return Err(format!("there is no plan, so that the executor `{executor}` runs it, on the CPU"));
    }
    let alone: Vec<Answer> = golden.prompts.iter().map(|p| case.generate(&llm, &[&p.prompt_ids]).remove(0).0).collect();
    case.compare_with_torch(&alone);
    Ok(())
}

/// Runs one entry in all ways through the plugin `transformers`, on the executor that is chosen for it; gives the
/// executor's name, or why the model does not load. Panics where anything comes out wrong.
pub fn check_traced(name: &str, worker: &str) -> Result<String, String> {
    let entry = zoo::entry(name).expect("is in the zoo");
    let golden = entry.golden().expect("has goldens");
    let dir = tempfile::tempdir().expect("a folder");
    let folder = entry.materialize(dir.path()).expect("materialises");
    let options = LlmOptions {
        registry: library::registry_with_transformers(worker),
        model_impl: ModelImpl::Transformers,
        trust_remote_code: true,
        ..options(&folder, worker)
    };
    Case { name: name.to_owned(), golden: &golden, options, model_impl: "transformers" }.run()
}

fn options(folder: &Path, worker: &str) -> LlmOptions {
    let model = ModelSource::Named(folder.to_str().expect("a path in UTF-8").to_owned());
    LlmOptions {
        dtype: library::dtype(Dtype::Float32),
        threads: Some(1),
        // Room for all that dynamic NTK computes: it begins anew with every token.
        max_num_seqs: 32,
        max_num_batched_tokens: 128,
        max_logprobs: -1,
        ..library::options(model, worker)
    }
}

/// Greedy, with the log-probabilities of the whole vocabulary.
fn params() -> SamplingParams {
    SamplingParams {
        max_tokens: Some(TOKENS),
        temperature: 0.0,
        ignore_eos: true,
        logprobs: Some(-1),
        ..SamplingParams::default()
    }
}

impl Case<'_> {
    /// The name of the executor that ran it; an error if the model does not load at first.
    fn run(&self) -> Result<String, String> {
        let prompts: Vec<&[u32]> = self.golden.prompts.iter().map(|p| p.prompt_ids.as_slice()).collect();
        let &[one, seven, forty] = prompts.as_slice() else { panic!("{}: not three prompts", self.name) };
        // As long as the prompt of 40, and longer.
        let branched = [&forty[..COMMON], &forty[..forty.len() - COMMON]].concat();
        let longer = [forty, &seven[..5]].concat();

        let roomy = Llm::load(&self.options).map_err(|e| e.to_string())?;
        assert_eq!(roomy.info().model_impl, self.model_impl, "{}", self.name);
        let alone: Vec<Answer> = prompts.iter().map(|p| self.generate(&roomy, &[p]).remove(0).0).collect();
        self.compare_with_torch(&alone);
        assert_eq!(roomy.engine().stats().prefix_hits, 0, "{}: nothing is cached at first", self.name);

        let together = self.load("all at once", |o| (o.enable_prefix_caching, o.threads) = (false, Some(3)));
        let mut known: Vec<(&[u32], Answer)> = prompts.iter().copied().zip(alone).collect();
        // One after the other they would take 16 steps each, at least.
        let joined = (0..TRIES).any(|_| {
            let before = together.engine().stats().steps;
            self.expect(&together, "all at once", &known, &prompts);
            together.engine().stats().steps - before < 3 * TOKENS as u64
        });
        assert!(joined, "{}: the prompts never ran together", self.name);
        for prompt in [&branched, &longer] {
            known.push((prompt, self.generate(&together, &[prompt]).remove(0).0));
        }
        assert_eq!(together.engine().stats().prefix_queries, 0, "{}: prefix caching is off", self.name);

        self.prefix_hits(&roomy, &known, &branched, &longer);
        let chunked = self.load("chunks of 3", |o| (o.max_num_batched_tokens, o.max_num_seqs) = (3, 3));
        self.expect(&chunked, "chunks of 3", &known, &prompts);
        let steps = forty.len().div_ceil(3) + TOKENS - 1;
        assert!(chunked.engine().stats().steps >= steps as u64, "{}: the prompt of 40 came in chunks", self.name);
        self.preemption(&known, [one, seven, forty]);
        Ok(roomy.info().executor.to_string())
    }

    /// Loads the model with other options.
    fn load(&self, way: &str, change: impl FnOnce(&mut LlmOptions)) -> Llm {
        let mut options = self.options.clone();
        change(&mut options);
        Llm::load(&options).unwrap_or_else(|e| panic!("{}, {way}: {e}", self.name))
    }

    /// The answers, and how many tokens of each prompt came from the prefix cache.
    fn generate(&self, llm: &Llm, prompts: &[&[u32]]) -> Vec<(Answer, usize)> {
        let completions = llm.generate(prompts, params()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let cached = |c: &Completion| c.choices[0].finish.as_ref().expect("is finished").cached_tokens;
        completions.iter().map(|c| (Answer::from(c), cached(c))).collect()
    }

    /// Generates for these prompts together and holds the answers to the known ones; returns the tokens from the cache.
    fn expect(&self, llm: &Llm, way: &str, known: &[(&[u32], Answer)], prompts: &[&[u32]]) -> Vec<usize> {
        let mut cached = vec![];
        for (&prompt, (answer, hits)) in prompts.iter().zip(self.generate(llm, prompts)) {
            let (_, right) = known.iter().find(|(p, _)| *p == prompt).expect("a known prompt");
            let name = format!("{}, {way}, prompt of {}", self.name, prompt.len());
            assert_eq!(answer.ids, right.ids, "{name}");
            assert!(answer == *right, "{name}: log-probabilities differ in some bit");
            cached.push(hits);
        }
        assert_eq!(library::at_rest(llm).kv_blocks_used, 0, "{}, {way}: blocks are left", self.name);
        cached
    }

    /// The prompts again, and two that begin as the longest does, after it has been computed.
    fn prefix_hits(&self, llm: &Llm, known: &[(&[u32], Answer)], branched: &[u32], longer: &[u32]) {
        // Where state cannot be shared, nothing is taken from a cache and everything is right all the same.
        let shares = llm.engine().spec().prefix_cache == PrefixCaching::Shared;
        let hits = |tokens: usize| if shares { tokens } else { 0 };
        let goldens: Vec<&[u32]> = self.golden.prompts.iter().map(|p| p.prompt_ids.as_slice()).collect();
        let again = self.expect(llm, "from the cache", known, &goldens);
        assert_eq!(again, [0, 0, hits(32)], "{}: tokens from the cache", self.name);
        assert_eq!(self.expect(llm, "a common beginning", known, &[branched]), [hits(16)], "{}", self.name);
        let more = self.expect(llm, "a longer prompt", known, &[longer]);
        // Where keys depend on the length of the whole sequence, that is what the prompt of 40 left when it had grown so
        // long; a cache that took those of another length would give other ids.
        assert_eq!(more, [hits(32)], "{}: tokens from the cache", self.name);
        assert_eq!(llm.engine().stats().prefix_hits, hits(80) as u64, "{}", self.name);
    }

    /// A crowd in few blocks. Three prompts of 7 are admitted while each has one block and all need a second one at the same
    /// time: the last gives way. With full attention the prompt of 40 needs its fourth block when one of 7 before it has
    /// taken the last; with a window it has given its first ones back by then.
    fn preemption(&self, known: &[(&[u32], Answer)], [one, seven, forty]: [&[u32]; 3]) {
        let scarce = self.load("preemption", |o| {
            o.kv_blocks = Some(SCARCE);
            o.max_model_len = Some(forty.len() + TOKENS);
            o.enable_prefix_caching = false;
        });
        assert_eq!(scarce.engine().stats().kv_blocks_total, SCARCE, "{}", self.name);
        let preempts = |crowd: &[&[u32]]| {
            let before = scarce.engine().stats().preemptions;
            self.expect(&scarce, "preemption", known, crowd);
            scarce.engine().stats().preemptions > before
        };
        let windowed = scarce.engine().spec().window.is_some();
        for crowd in [&[seven, seven, seven, one, forty][..], &[seven, forty]].iter().take(if windowed { 1 } else { 2 })
        {
            assert!((0..TRIES).any(|_| preempts(crowd)), "{}: nothing was preempted", self.name);
        }
    }

    /// Ids as torch gives them; log-probabilities as they follow from its logits. The reference's own cache changes the ids
    /// of some entries (dynamic NTK): then either of its lists is right. A cache of int8 may change them too.
    fn compare_with_torch(&self, answers: &[Answer]) {
        let rounded = self.options.kv_cache_dtype == KvCacheDtypeChoice::Is(KvCacheDtype::Int8);
        for (prompt, answer) in self.golden.prompts.iter().zip(answers) {
            let name = format!("{}, prompt of {}", self.name, prompt.prompt_ids.len());
            let also = prompt.greedy_ids_no_cache.as_ref().filter(|_| self.golden.cache_matches == Some(false));
            let ids = &answer.ids;
            assert!(
                rounded || *ids == prompt.greedy_ids || Some(ids) == also,
                "{name}: {ids:?}, torch gives {:?}",
                prompt.greedy_ids
            );
            compare_logprobs(&name, prompt, &answer.logprobs[0], if rounded { 1e-2 } else { 1e-3 });
        }
    }
}

/// Within `share` of the logits' spread.
fn compare_logprobs(name: &str, prompt: &GoldenPrompt, logprobs: &[(u32, u32)], share: f32) {
    let logits = &prompt.last_logits;
    let (low, high) = logits.iter().fold((f32::MAX, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - high).exp()).sum();
    assert_eq!(logprobs.len(), logits.len(), "{name}: log-probabilities of the whole vocabulary");
    for &(id, bits) in logprobs {
        let right = f64::from(logits[id as usize] - high) - sum.ln();
        let off = (f64::from(f32::from_bits(bits)) - right).abs();
        assert!(off <= f64::from(share * (high - low)), "{name}: token {id} is off by {off} of {}", high - low);
    }
}

/// A test for every named entry, and one that no entry that a native plugin claims is left out.
#[macro_export]
macro_rules! engine_tests {
    ($($test:ident $name:literal),* $(,)?) => {
        const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");
        #[test]
        fn every_entry_that_a_plugin_claims_is_tested() {
            assert_eq!($crate::ways::claimed(WORKER), [$($name),*]);
        }
        $(#[test] fn $test() { $crate::ways::check($name, WORKER); })*
    };
}

/// The entries whose `architectures[0]` one of the plugins claims, as they say themselves.
pub fn claimed(worker: &str) -> Vec<String> {
    let registry = host::registry::Registry::new(library::registry(worker)).expect("a registry");
    let found = registry.scan();
    assert_eq!(found.len(), library::PLUGINS.len());
    let descriptions: Vec<_> = found.into_iter().map(|f| f.description.expect("describes itself")).collect();
    let claims = |e: &zoo::Entry| {
        let config = e.config().expect("has a configuration");
        config["architectures"][0].as_str().is_some_and(|a| descriptions.iter().any(|d| d.claims(a)))
    };
    zoo::entries().into_iter().filter(claims).map(|e| e.name).collect()
}
