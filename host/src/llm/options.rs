//! What a caller may ask of a model, and the check of it. Ranges are vLLM's. Never tokenises and never
//! talks to the engine. Filled by `server` and `cli`.

use super::guide::Grammar;
use super::pooling::Pooler;
use crate::engine::sampler::derive_seed;
use crate::engine::{EngineHandle, SamplingParams};

/// What a model is called and how it is run.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// As the user wrote it.
    pub name: String,
    /// The names it answers to; the first is the one it gives.
    pub served_names: Vec<String>,
    /// The most tokens of prompt and output.
    pub max_model_len: usize,
    /// Tokens that can come out: the width of the logits.
    pub vocab_size: usize,
    /// Tokens that can go in: rows of the embedding.
    pub input_vocab_size: usize,
    /// The plugin that built the graph.
    pub plugin: String,
    /// Its version.
    pub plugin_version: String,
    /// `native` or `transformers`.
    pub model_impl: String,
    /// Version of the package `transformers`, where the plugin reads it.
    pub transformers: Option<String>,
    /// The model's class, such as `LlamaForCausalLM`.
    pub architecture: String,
    /// What it computes in.
    pub dtype: String,
    /// What runs its graph: `cpu`, or `reference`, which is slow.
    pub executor: String,
    /// Unix seconds.
    pub created: u64,
    /// The most `logprobs` and `prompt_logprobs` that may be asked for; -1: no limit (vLLM's `--max-logprobs`).
    pub max_logprobs: i64,
    /// Element type of the KV cache.
    pub kv_cache_dtype: String,
    /// How it pools; None: it generates.
    pub pooler: Option<Pooler>,
}

impl Default for ModelInfo {
    fn default() -> Self {
        Self {
            name: String::new(),
            served_names: Vec::new(),
            max_model_len: 0,
            vocab_size: 0,
            input_vocab_size: 0,
            plugin: String::new(),
            plugin_version: String::new(),
            model_impl: String::new(),
            transformers: None,
            architecture: String::new(),
            dtype: String::new(),
            executor: "cpu".into(),
            created: 0,
            max_logprobs: 20,
            kv_cache_dtype: String::new(),
            pooler: None,
        }
    }
}

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text, tokenised first.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

/// What a loop over borrowed prompts yields.
macro_rules! from_borrowed {
    ($($borrowed:ty)*) => {
        $(impl From<$borrowed> for Prompt {
            fn from(prompt: $borrowed) -> Self {
                prompt.to_owned().into()
            }
        })*
    };
}

from_borrowed!(&str &&str &String &[u32] &&[u32] &Vec<u32> &Prompt);

/// A prompt and how to continue it.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub params: RequestParams,
    /// Lower runs first.
    pub priority: i32,
}

/// Parameters as a user gives them; vLLM's names, meanings and defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestParams {
    /// Choices to generate.
    pub n: usize,
    /// None: as many as the context allows.
    pub max_tokens: Option<usize>,
    /// See [`SamplingParams::min_tokens`]; stop strings are not looked for before either.
    pub min_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// See [`SamplingParams::top_p`].
    pub top_p: f32,
    /// 0 and -1 are off.
    pub top_k: i64,
    /// See [`SamplingParams::min_p`].
    pub min_p: f32,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: f32,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: f32,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: f32,
    /// Added to logits; clamped to -100..=100 as vLLM does.
    pub logit_bias: Vec<(u32, f32)>,
    /// See [`SamplingParams::allowed_token_ids`].
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Words that must not be produced.
    pub bad_words: Vec<String>,
    /// Strings that end the generation.
    pub stop: Vec<String>,
    /// Tokens that end the generation.
    pub stop_token_ids: Vec<u32>,
    /// Leave the stop string or token in the text.
    pub include_stop_str_in_output: bool,
    /// Do not end at the model's eos tokens.
    pub ignore_eos: bool,
    /// The same seed gives the same output. None: a new one for each request.
    pub seed: Option<i64>,
    /// Log-probabilities of this many most likely tokens; -1: of all.
    pub logprobs: Option<i64>,
    /// Log-probabilities of these tokens in place of the most likely ones; together with `logprobs` only.
    pub logprob_token_ids: Vec<u32>,
    /// The same as `logprobs` for the prompt.
    pub prompt_logprobs: Option<i64>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Where special tokens are shown: keep the spaces that the tokenizer puts between them.
    pub spaces_between_special_tokens: bool,
    /// Give text; without it only token ids.
    pub detokenize: bool,
    /// What the output must be (see [`super::Llm::grammar`]).
    pub grammar: Option<Grammar>,
    /// Let the tokenizer add its special tokens (bos) to a text prompt.
    pub add_special_tokens: bool,
}

impl Default for RequestParams {
    fn default() -> Self {
        let SamplingParams { max_tokens, temperature, top_p, min_p, repetition_penalty, .. } =
            SamplingParams::default();
        Self {
            n: 1,
            max_tokens: Some(max_tokens),
            min_tokens: 0,
            temperature,
            top_p,
            top_k: 0,
            min_p,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            seed: None,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            prompt_logprobs: None,
            skip_special_tokens: true,
            spaces_between_special_tokens: true,
            detokenize: true,
            grammar: None,
            add_special_tokens: true,
        }
    }
}

/// A parameter is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ParamError {
    /// Its name in the API.
    pub field: &'static str,
    /// The limit and the value given.
    pub message: String,
}

const MAX_N: usize = 128;
const MAX_STOP: usize = 16;
/// vLLM's.
const MAX_LOGPROB_TOKEN_IDS: usize = 128;

impl RequestParams {
    /// Checks every range.
    pub fn validate(&self, info: &ModelInfo) -> Result<(), ParamError> {
        in_range("temperature", self.temperature, "at least 0", |v| v >= 0.0)?;
        in_range("top_p", self.top_p, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?;
        in_range("min_p", self.min_p, "from 0 to 1", |v| (0.0..=1.0).contains(&v))?;
        in_range("presence_penalty", self.presence_penalty, "from -2 to 2", |v| (-2.0..=2.0).contains(&v))?;
        in_range("frequency_penalty", self.frequency_penalty, "from -2 to 2", |v| (-2.0..=2.0).contains(&v))?;
        in_range("repetition_penalty", self.repetition_penalty, "above 0", |v| v > 0.0)?;
        for &(_, bias) in &self.logit_bias {
            in_range("logit_bias", bias, "a finite number", |_| true)?;
        }
        check("top_k", self.top_k >= -1, || format!("must be -1 or 0 (off), or at least 1, got {}", self.top_k))?;
        check("n", (1..=MAX_N).contains(&self.n), || format!("must be from 1 to {MAX_N}, got {}", self.n))?;
        self.check_lengths()?;
        self.check_stop()?;
        check_logprobs("logprobs", self.logprobs, info)?;
        check_logprobs("prompt_logprobs", self.prompt_logprobs, info)?;
        self.check_ids(info)
    }

    fn check_lengths(&self) -> Result<(), ParamError> {
        let Self { max_tokens, min_tokens, .. } = *self;
        check("max_tokens", max_tokens != Some(0), || "must be at least 1, got 0".into())?;
        check("min_tokens", max_tokens.is_none_or(|max| min_tokens <= max), || {
            format!("must be at most max_tokens ({}), got {min_tokens}", max_tokens.unwrap_or_default())
        })
    }

    fn check_stop(&self) -> Result<(), ParamError> {
        let count = self.stop.len();
        check("stop", count <= MAX_STOP, || format!("must be at most {MAX_STOP} strings, got {count}"))?;
        check("stop", self.stop.iter().all(|stop| !stop.is_empty()), || "must not contain an empty string".into())?;
        check("stop", self.stop.is_empty() || self.detokenize, || {
            "strings can only be found in text; set detokenize to true, or use stop_token_ids".into()
        })?;
        let words = self.bad_words.iter().all(|word| !word.trim_start().is_empty());
        check("bad_words", words, || "must not contain an empty word".into())
    }

    fn check_ids(&self, info: &ModelInfo) -> Result<(), ParamError> {
        let vocab_size = info.vocab_size;
        let each = |field, mut ids: Box<dyn Iterator<Item = u32> + '_>| match ids.find(|&id| id as usize >= vocab_size)
        {
            Some(id) => check(field, false, || {
                format!(
                    "token id {id} is out of range; the model has {vocab_size} tokens (0 to {})",
                    vocab_size.saturating_sub(1)
                )
            }),
            None => Ok(()),
        };
        each("logit_bias", Box::new(self.logit_bias.iter().map(|&(id, _)| id)))?;
        each("stop_token_ids", Box::new(self.stop_token_ids.iter().copied()))?;
        let count = self.logprob_token_ids.len();
        check("logprob_token_ids", count <= MAX_LOGPROB_TOKEN_IDS, || {
            format!("must be at most {MAX_LOGPROB_TOKEN_IDS} ids, got {count}")
        })?;
        check("logprob_token_ids", count == 0 || self.logprobs.is_some(), || {
            "goes with logprobs; ask for logprobs too".into()
        })?;
        each("logprob_token_ids", Box::new(self.logprob_token_ids.iter().copied()))?;
        if let Some(allowed) = &self.allowed_token_ids {
            check("allowed_token_ids", !allowed.is_empty(), || {
                "must not be empty; leave it out to allow all tokens".into()
            })?;
            each("allowed_token_ids", Box::new(allowed.iter().copied()))?;
        }
        Ok(())
    }

    /// The engine's parameters for choice `index`. Checked already.
    pub(super) fn sampling(
        &self,
        index: usize,
        prompt_len: usize,
        bad_words: &[Vec<u32>],
        eos_token_ids: &[u32],
        engine: &EngineHandle,
    ) -> SamplingParams {
        let vocab_size = engine.spec().row_width;
        let count = |wanted: Option<i64>| wanted.map(|count| usize::try_from(count).unwrap_or(vocab_size));
        let room = engine.max_request_tokens().saturating_sub(prompt_len).max(1);
        SamplingParams {
            max_tokens: self.max_tokens.unwrap_or(room),
            min_tokens: self.min_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: usize::try_from(self.top_k).unwrap_or(0),
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.iter().map(|&(id, bias)| (id, bias.clamp(-100.0, 100.0))).collect(),
            allowed_token_ids: self.allowed_token_ids.clone(),
            bad_words: bad_words.to_vec(),
            stop_token_ids: self.stop_token_ids.clone(),
            eos_token_ids: eos_token_ids.to_vec(),
            ignore_eos: self.ignore_eos,
            seed: self.seed.map(|seed| derive_seed(seed as u64, index as u64)),
            logprobs: count(self.logprobs),
            logprob_token_ids: self.logprob_token_ids.clone(),
            // The prompt is the same for all choices: the first reports on it.
            prompt_logprobs: count(self.prompt_logprobs).filter(|_| index == 0),
        }
    }
}

fn check(field: &'static str, fine: bool, message: impl FnOnce() -> String) -> Result<(), ParamError> {
    if fine { Ok(()) } else { Err(ParamError { field, message: message() }) }
}

fn in_range(field: &'static str, value: f32, range: &str, fine: impl Fn(f32) -> bool) -> Result<(), ParamError> {
    check(field, !value.is_nan(), || format!("must be {range}, got NaN (not a number)"))?;
    check(field, value.is_finite() && fine(value), || format!("must be {range}, got {value}"))
}

fn check_logprobs(field: &'static str, value: Option<i64>, info: &ModelInfo) -> Result<(), ParamError> {
    let (Some(value), limit) = (value, info.max_logprobs) else {
        return Ok(());
    };
    check(field, value >= -1, || format!("must be at least 0, or -1 for the whole vocabulary, got {value}"))?;
    let wanted = if value == -1 { i64::try_from(info.vocab_size).unwrap_or(i64::MAX) } else { value };
    check(field, limit < 0 || wanted <= limit, || {
        let whole = if value == -1 { format!("-1 (the whole vocabulary, {wanted})") } else { value.to_string() };
        format!("must be at most {limit}, got {whole}; the server can allow more with --max-logprobs")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_is_checked_and_the_message_names_field_limit_and_value() {
        type Change = fn(&mut RequestParams);
        let cases: &[(Change, &str)] = &[
            (|p| p.temperature = -0.1, "temperature: must be at least 0, got -0.1"),
            (|p| p.temperature = f32::NAN, "temperature: must be at least 0, got NaN (not a number)"),
            (|p| p.temperature = f32::INFINITY, "temperature: must be at least 0, got inf"),
            (|p| p.top_p = 0.0, "top_p: must be above 0 and at most 1, got 0"),
            (|p| p.top_p = 1.5, "top_p: must be above 0 and at most 1, got 1.5"),
            (|p| p.top_k = -2, "top_k: must be -1 or 0 (off), or at least 1, got -2"),
            (|p| p.min_p = 1.1, "min_p: must be from 0 to 1, got 1.1"),
            (|p| p.presence_penalty = 2.5, "presence_penalty: must be from -2 to 2, got 2.5"),
            (|p| p.frequency_penalty = -2.5, "frequency_penalty: must be from -2 to 2, got -2.5"),
            (|p| p.repetition_penalty = 0.0, "repetition_penalty: must be above 0, got 0"),
            (|p| p.logit_bias = vec![(1, f32::NAN)], "logit_bias: must be a finite number, got NaN (not a number)"),
            (
                |p| p.logit_bias = vec![(257, 1.0)],
                "logit_bias: token id 257 is out of range; the model has 257 tokens (0 to 256)",
            ),
            (
                |p| p.stop_token_ids = vec![300],
                "stop_token_ids: token id 300 is out of range; the model has 257 tokens (0 to 256)",
            ),
            (
                |p| p.allowed_token_ids = Some(vec![]),
                "allowed_token_ids: must not be empty; leave it out to allow all tokens",
            ),
            (
                |p| (p.logprobs, p.logprob_token_ids) = (Some(1), vec![0; 129]),
                "logprob_token_ids: must be at most 128 ids, got 129",
            ),
            (|p| p.logprob_token_ids = vec![1], "logprob_token_ids: goes with logprobs; ask for logprobs too"),
            (
                |p| (p.logprobs, p.logprob_token_ids) = (Some(1), vec![257]),
                "logprob_token_ids: token id 257 is out of range; the model has 257 tokens (0 to 256)",
            ),
            (|p| p.max_tokens = Some(0), "max_tokens: must be at least 1, got 0"),
            (|p| p.min_tokens = 17, "min_tokens: must be at most max_tokens (16), got 17"),
            (|p| p.n = 0, "n: must be from 1 to 128, got 0"),
            (|p| p.n = 129, "n: must be from 1 to 128, got 129"),
            (|p| p.stop = vec!["x".into(); 17], "stop: must be at most 16 strings, got 17"),
            (|p| p.stop = vec![String::new()], "stop: must not contain an empty string"),
            (|p| p.bad_words = vec![" ".into()], "bad_words: must not contain an empty word"),
            (
                |p| p.logprobs = Some(21),
                "logprobs: must be at most 20, got 21; the server can allow more with --max-logprobs",
            ),
            (
                |p| p.prompt_logprobs = Some(-2),
                "prompt_logprobs: must be at least 0, or -1 for the whole vocabulary, got -2",
            ),
            (
                |p| p.logprobs = Some(-1),
                "logprobs: must be at most 20, got -1 (the whole vocabulary, 257); the server can allow more with --max-logprobs",
            ),
            (
                |p| (p.stop, p.detokenize) = (vec!["x".into()], false),
                "stop: strings can only be found in text; set detokenize to true, or use stop_token_ids",
            ),
        ];
        let info = ModelInfo { vocab_size: 257, ..ModelInfo::default() };
        for (change, expected) in cases {
            let mut params = RequestParams::default();
            change(&mut params);
            assert_eq!(params.validate(&info).map_err(|error| error.to_string()), Err((*expected).to_owned()));
        }
        let extremes = RequestParams {
            temperature: 50.0,
            top_p: 1.0,
            top_k: -1,
            min_p: 1.0,
            presence_penalty: -2.0,
            repetition_penalty: 1e-3,
            n: 128,
            max_tokens: None,
            min_tokens: 999,
            stop: vec!["x".into(); 16],
            logprobs: Some(20),
            prompt_logprobs: Some(0),
            ..RequestParams::default()
        };
        assert_eq!(extremes.validate(&info), Ok(()));
        let all = RequestParams { logprobs: Some(-1), ..RequestParams::default() };
        assert_eq!(all.validate(&ModelInfo { max_logprobs: -1, ..info }), Ok(()));
    }
}
