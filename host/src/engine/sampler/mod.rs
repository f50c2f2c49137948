//! Turns a row of logits into a token. Follows vLLM's order: what a guide allows, allowed tokens, bad words, min_tokens and
//! bias; then penalties; then temperature, min_p, top_k, top_p and the draw. Called by the step loop. What an executor can do
//! as well, on the device where the logits are, is a [`Draw`]: see [`draw`].
//!
//! A token depends on its own request only: random numbers are a function of (seed, position), and sums of
//! probabilities do not depend on the order of adding (`numbers.rs`). Equal logits are ordered by token id.
//! The vocabulary is never sorted, unless all its log-probabilities are asked for.

mod numbers;

use std::collections::{HashMap, HashSet};

use kernels::cpu::logits;

use super::guide::GuideError;
use super::params::{SamplingParams, TokenLogprobs};
use crate::exec::{Draw, Drawn};

/// What is less likely than the best token by more than this (as a logarithm) is never drawn: see `logits::whole`.
const REACH: f32 = 29.0;

/// The largest vocabulary.
pub const MAX_VOCAB: usize = numbers::MAX_ROW;

/// Why no token could be chosen. The request fails; others go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model is broken, or its numbers overflowed.
    #[error("the model produced {value} as the logit of token {token}; the request cannot go on")]
    NotFinite {
        /// The first such token.
        token: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// Every token has probability 0.
    #[error(
        "no token is left to choose from: the model's logits, allowed_token_ids, bad_words, logit_bias, min_tokens and the \
         structured output together exclude all of them"
    )]
    NothingLeft,
    /// The request's guide failed.
    #[error(transparent)]
    Guide(#[from] GuideError),
}

/// What a request has seen, as far as choosing its next token depends on it.
#[derive(Debug, Clone, Default)]
pub struct History {
    output: Vec<u32>,
    prompt_len: usize,
    /// How often each token is in the output; kept if penalties need it.
    counts: Option<HashMap<u32, u32>>,
    /// The prompt's tokens; kept if the repetition penalty needs them.
    prompt: HashSet<u32>,
}

impl History {
    /// Nothing generated yet.
    pub fn new(prompt: &[u32], params: &SamplingParams) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let penalties = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        Self {
            output: Vec::new(),
            prompt_len: prompt.len(),
            counts: penalties.then(HashMap::new),
            prompt: if repetition { prompt.iter().copied().collect() } else { HashSet::new() },
        }
    }

    /// `token` was chosen.
    pub fn push(&mut self, token: u32) {
        self.output.push(token);
        if let Some(counts) = &mut self.counts {
            *counts.entry(token).or_default() += 1;
        }
    }

    /// Where the next token goes.
    fn position(&self) -> u64 {
        (self.prompt_len + self.output.len()) as u64
    }

    /// The tokens chosen so far.
    pub fn output(&self) -> &[u32] {
        &self.output
    }
}

/// Working memory, used again for every row.
#[derive(Debug, Default)]
pub struct Sampler {
    changed: Vec<f32>,
    kept: Vec<f32>,
    tokens: Vec<u32>,
    weights: Vec<f32>,
    keys: Vec<u64>,
}

impl Sampler {
    /// The next token after `history`; `allowed` is a guide's mask.
    pub fn sample(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
        params: &SamplingParams,
        history: &History,
        seed: u64,
    ) -> Result<u32, SampleError> {
        let mut best = max(logits)?;
        let mut changed = std::mem::take(&mut self.changed);
        let logits = if allowed.is_some() || changes_logits(params, history) {
            changed.clear();
            changed.extend_from_slice(logits);
            if let Some(allowed) = allowed {
                mask(&mut changed, allowed);
            }
            change_logits(&mut changed, params, history);
            best = max(&changed)?;
            &changed
        } else {
            logits
        };
        let token = if best == f32::NEG_INFINITY {
            Err(SampleError::NothingLeft)
        } else if params.greedy() {
            Ok(logits::first(logits, best) as u32)
        } else {
            Ok(self.draw(logits, best, params, random(seed, history.position())))
        };
        self.changed = changed;
        token
    }

    fn draw(&mut self, logits: &[f32], best: f32, params: &SamplingParams, random: u64) -> u32 {
        let Self { kept, tokens, weights, keys, .. } = self;
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = *params;
        // top_k and min_p both keep a beginning of the same order, so it does not matter which comes first.
        let few = top_k > 0 && top_k < logits.len();
        let row = if few {
            numbers::largest(logits, top_k, keys);
            tokens.clear();
            tokens.extend(keys.iter().map(|&key| numbers::index(key) as u32));
            tokens.sort_unstable();
            kept.clear();
            kept.extend(tokens.iter().map(|&token| logits[token as usize]));
            &kept[..]
        } else {
            logits
        };
        logits::exp_all(row, best, temperature, weights);
        if min_p > 0.0 {
            weights.iter_mut().for_each(|weight| *weight = if *weight < min_p { 0.0 } else { *weight });
        }
        if top_p < 1.0 {
            numbers::keep_nucleus(row, (best, REACH * temperature), weights, top_p, keys);
        }
        let at = numbers::draw(weights, random);
        if few { tokens[at] } else { at as u32 }
    }

    /// The log-probability of `token` and of the `count` most likely tokens, from the model's own logits.
    pub fn logprobs(&mut self, logits: &[f32], token: u32, count: usize) -> Result<TokenLogprobs, SampleError> {
        let norm = self.norm(logits, token)?;
        numbers::largest(logits, count, &mut self.keys);
        Ok(self.report(logits, token, norm))
    }

    /// The log-probability of `token` and of `others`.
    pub fn logprobs_of(&mut self, logits: &[f32], token: u32, others: &[u32]) -> Result<TokenLogprobs, SampleError> {
        let norm = self.norm(logits, token)?;
        let places = others.iter().map(|&other| other as usize).filter(|&at| at < logits.len());
        self.keys.clear();
        self.keys.extend(places.map(|at| numbers::key(logits, at)));
        Ok(self.report(logits, token, norm))
    }

    /// The logarithm of the sum of all exponentials.
    fn norm(&mut self, logits: &[f32], token: u32) -> Result<f64, SampleError> {
        let best = max(logits)?;
        if best == f32::NEG_INFINITY || token as usize >= logits.len() {
            return Err(SampleError::NothingLeft);
        }
        logits::exp_all(logits, best, 1.0, &mut self.weights);
        Ok(f64::from(best) + logits::sum(&self.weights).ln())
    }

    /// `token`, and the tokens of `self.keys` in order.
    fn report(&mut self, logits: &[f32], token: u32, norm: f64) -> TokenLogprobs {
        let logprob = |at: usize| (f64::from(logits[at]) - norm) as f32;
        self.keys.sort_unstable();
        self.keys.dedup();
        let top = self.keys.iter().map(|&key| numbers::index(key)).map(|at| (at as u32, logprob(at))).collect();
        let at = token as usize;
        TokenLogprobs { token, logprob: logprob(at), rank: 1 + numbers::rank(logits, at), top }
    }
}

/// A uniform number for a position of a sequence.
pub fn random(seed: u64, position: u64) -> u64 {
    numbers::random(seed, position)
}

/// A seed for each of several choices of one request; the first keeps the request's own.
pub fn derive_seed(seed: u64, choice: u64) -> u64 {
    let mix = numbers::mix;
    if choice == 0 { seed } else { mix(mix(seed) ^ choice.wrapping_mul(0x9E37_79B9_7F4A_7C15)) }
}

/// The largest logit; minus infinity excludes a token, anything else that is not a number is an error.
fn max(logits: &[f32]) -> Result<f32, SampleError> {
    logits::max(logits).map_err(|token| SampleError::NotFinite { token, value: logits[token] })
}

fn changes_logits(params: &SamplingParams, history: &History) -> bool {
    excludes_or_biases(params, history) || history.counts.is_some()
}

/// Whether more than penalties changes logits.
fn excludes_or_biases(params: &SamplingParams, history: &History) -> bool {
    params.allowed_token_ids.is_some()
        || !params.bad_words.is_empty()
        || history.output.len() < params.min_tokens
        || !params.logit_bias.is_empty()
}

/// How an executor chooses the same token as [`Sampler::sample`] without a guide would; none if it needs what executors do
/// not know: biases, and tokens that are excluded.
pub fn draw(params: &SamplingParams, history: &History, seed: u64) -> Option<Draw> {
    if excludes_or_biases(params, history) {
        return None;
    }
    let mut seen: Vec<(u32, u32)> = Vec::new();
    if let Some(counts) = &history.counts {
        seen.extend(counts.iter().map(|(&token, &count)| (token, count)));
        let in_prompt_only = history.prompt.iter().filter(|token| !counts.contains_key(token));
        seen.extend(in_prompt_only.map(|&token| (token, 0)));
    }
    Some(Draw {
        random: random(seed, history.position()),
        temperature: if params.greedy() { 0.0 } else { params.temperature },
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        seen,
    })
}

/// The token that an executor has drawn.
pub fn token_of(drawn: Drawn) -> Result<u32, SampleError> {
    match drawn {
        Drawn::Token(token) => Ok(token),
        Drawn::NotFinite { token, value } => Err(SampleError::NotFinite { token, value }),
        Drawn::NothingLeft => Err(SampleError::NothingLeft),
    }
}

/// Excludes all tokens whose bit is not set.
fn mask(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

/// Everything that can change which token is the most likely, in vLLM's order.
fn change_logits(logits: &mut [f32], params: &SamplingParams, history: &History) {
    let ban = |token: u32, logits: &mut [f32]| {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    };
    if let Some(allowed) = &params.allowed_token_ids {
        let kept: Vec<(u32, f32)> =
            allowed.iter().filter_map(|&token| Some((token, *logits.get(token as usize)?))).collect();
        logits.fill(f32::NEG_INFINITY);
        for (token, logit) in kept {
            logits[token as usize] = logit;
        }
    }
    for word in &params.bad_words {
        if let Some((&last, before)) = word.split_last()
            && history.output.ends_with(before)
        {
            ban(last, logits);
        }
    }
    if history.output.len() < params.min_tokens {
        let eos: &[u32] = if params.ignore_eos { &[] } else { &params.eos_token_ids };
        for &token in eos.iter().chain(&params.stop_token_ids) {
            ban(token, logits);
        }
    }
    for &(token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(counts) = &history.counts {
        penalise(logits, params, history, counts);
    }
}

fn penalise(logits: &mut [f32], params: &SamplingParams, history: &History, counts: &HashMap<u32, u32>) {
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let in_prompt_only = history.prompt.iter().filter(|token| !counts.contains_key(token));
        for &token in counts.keys().chain(in_prompt_only) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
    }
    for (&token, &count) in counts {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= params.frequency_penalty * count as f32;
            *logit -= params.presence_penalty;
        }
    }
}
