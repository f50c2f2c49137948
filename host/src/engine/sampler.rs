//! Turns a row of logits into a token. Follows vLLM's order: allowed tokens, bad words, min_tokens and
//! bias; then penalties; then temperature, min_p, top_k, top_p and the draw. Called by the step loop.
//!
//! A token depends on its own request only: random numbers are a function of (seed, position), and the
//! probabilities are whole numbers ([`weight`]), so that their sums do not depend on the order of adding.
//! Equal logits are ordered by token id. Nothing sorts the vocabulary.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::params::{SamplingParams, TokenLogprobs};

/// With more tokens the sum of weights could overflow.
pub const MAX_VOCAB: usize = 1 << 23;
const WEIGHT_ONE: f32 = (1u64 << 40) as f32;

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
        "no token is left to choose from: the model's logits, allowed_token_ids, bad_words, logit_bias and min_tokens \
         together exclude all of them"
    )]
    NothingLeft,
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
        let penalties =
            repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        Self {
            output: Vec::new(),
            prompt_len: prompt.len(),
            counts: penalties.then(HashMap::new),
            prompt: if repetition {
                prompt.iter().copied().collect()
            } else {
                HashSet::new()
            },
        }
    }

    /// `token` was chosen.
    pub fn push(&mut self, token: u32) {
        self.output.push(token);
        if let Some(counts) = &mut self.counts {
            *counts.entry(token).or_default() += 1;
        }
    }

    /// The tokens chosen so far.
    pub fn output(&self) -> &[u32] {
        &self.output
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
    weight: u64,
}

/// Most likely first; equal ones by token id. No logit is NaN here.
fn better_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit
        .partial_cmp(&a.logit)
        .unwrap_or(Ordering::Equal)
        .then(a.token.cmp(&b.token))
}

/// Working memory, used again for every row.
#[derive(Debug, Default)]
pub struct Sampler {
    changed: Vec<f32>,
    candidates: Vec<Candidate>,
    scratch: Vec<Candidate>,
}

impl Sampler {
    /// The next token after `history`.
    pub fn sample(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        history: &History,
        seed: u64,
    ) -> Result<u32, SampleError> {
        check_finite(logits)?;
        let mut changed = std::mem::take(&mut self.changed);
        let logits = if changes_logits(params, history) {
            changed.clear();
            changed.extend_from_slice(logits);
            change_logits(&mut changed, params, history);
            check_finite(&changed)?;
            &changed
        } else {
            logits
        };
        let token = match best(logits) {
            None => Err(SampleError::NothingLeft),
            Some((token, _)) if params.greedy() => Ok(token),
            Some((_, max)) => {
                self.keep(logits, max, params);
                let position = (history.prompt_len + history.output.len()) as u64;
                Ok(draw(&self.candidates, random(seed, position)))
            }
        };
        self.changed = changed;
        token
    }

    /// Leaves in `candidates` the tokens to draw from, by id, and their weights.
    fn keep(&mut self, logits: &[f32], max: f32, params: &SamplingParams) {
        let Self {
            candidates,
            scratch,
            ..
        } = self;
        let least = ((f64::from(params.min_p) * f64::from(WEIGHT_ONE)).ceil() as u64).max(1);
        let weighed = |logit: f32, token: u32| {
            let weight = weight((logit - max) / params.temperature);
            (weight >= least).then_some(Candidate {
                logit,
                token,
                weight,
            })
        };
        if params.top_k > 0 && params.top_k < logits.len() {
            // min_p and top_k both keep a beginning of the same order, so it does not matter which comes first.
            most_likely(logits, params.top_k, scratch);
            candidates.clear();
            candidates.extend(scratch.iter().filter_map(|c| weighed(c.logit, c.token)));
            candidates.sort_unstable_by_key(|c| c.token);
        } else {
            candidates.clear();
            candidates.extend(
                logits
                    .iter()
                    .zip(0u32..)
                    .filter_map(|(&logit, token)| weighed(logit, token)),
            );
        }
        if params.top_p < 1.0 {
            scratch.clone_from(candidates);
            let last = nucleus_end(scratch, params.top_p);
            candidates.retain(|c| better_first(c, &last) != Ordering::Greater);
        }
    }

    /// The log-probability of `token` and of the `count` most likely tokens, from the model's own logits.
    pub fn logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        count: usize,
    ) -> Result<TokenLogprobs, SampleError> {
        check_finite(logits)?;
        let (_, max) = best(logits).ok_or(SampleError::NothingLeft)?;
        let sum: f64 = logits
            .iter()
            .map(|&logit| f64::from(exp(logit - max)))
            .sum();
        let norm = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - norm) as f32;
        let own = logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY);
        let before = |(&logit, other): (&f32, u32)| {
            u32::from(logit > own || (logit == own && other < token))
        };
        let rank = 1 + logits.iter().zip(0u32..).map(before).sum::<u32>();
        most_likely(logits, count, &mut self.scratch);
        self.scratch.sort_unstable_by(better_first);
        let top = self
            .scratch
            .iter()
            .map(|c| (c.token, logprob(c.logit)))
            .collect();
        Ok(TokenLogprobs {
            token,
            logprob: logprob(own),
            rank,
            top,
        })
    }
}

/// Minus infinity excludes a token; anything else that is not a number is an error.
fn check_finite(logits: &[f32]) -> Result<(), SampleError> {
    // NaN and +inf both fail the comparison; without an early exit this is a few vector instructions.
    if logits
        .iter()
        .fold(true, |fine, &logit| fine & (logit < f32::INFINITY))
    {
        return Ok(());
    }
    let bad = logits.iter().position(|&logit| !(logit < f32::INFINITY));
    let token = bad.unwrap_or_default();
    Err(SampleError::NotFinite {
        token,
        value: logits[token],
    })
}

/// The first of the largest logits, unless all are minus infinity.
fn best(logits: &[f32]) -> Option<(u32, f32)> {
    let max = logits.iter().fold(
        f32::NEG_INFINITY,
        |max, &logit| if logit > max { logit } else { max },
    );
    let token = logits.iter().position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some((token as u32, max))
}

fn changes_logits(params: &SamplingParams, history: &History) -> bool {
    params.allowed_token_ids.is_some()
        || !params.bad_words.is_empty()
        || history.output.len() < params.min_tokens
        || !params.logit_bias.is_empty()
        || history.counts.is_some()
}

/// Everything that can change which token is the most likely, in vLLM's order.
fn change_logits(logits: &mut [f32], params: &SamplingParams, history: &History) {
    let ban = |token: u32, logits: &mut [f32]| {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    };
    if let Some(allowed) = &params.allowed_token_ids {
        let kept: Vec<(u32, f32)> = allowed
            .iter()
            .filter_map(|&token| Some((token, *logits.get(token as usize)?)))
            .collect();
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
        let eos: &[u32] = if params.ignore_eos {
            &[]
        } else {
            &params.eos_token_ids
        };
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

fn penalise(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &History,
    counts: &HashMap<u32, u32>,
) {
    let repetition = params.repetition_penalty;
    if repetition != 1.0 {
        let in_prompt_only = history
            .prompt
            .iter()
            .filter(|token| !counts.contains_key(token));
        for &token in counts.keys().chain(in_prompt_only) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
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

/// Puts the `count` best tokens (fewer if others have probability 0) into `out`, in no order: collects
/// what beats the worst of the best so far, and cuts back whenever twice as many are there.
fn most_likely(logits: &[f32], count: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if count == 0 {
        return;
    }
    let room = count.saturating_mul(2).max(256);
    let mut threshold = f32::NEG_INFINITY;
    for (&logit, token) in logits.iter().zip(0u32..) {
        // Later tokens lose against equal earlier ones, so an equal logit is of no use.
        if logit > threshold {
            out.push(Candidate {
                logit,
                token,
                weight: 0,
            });
            if out.len() == room {
                let (_, worst, _) = out.select_nth_unstable_by(count - 1, better_first);
                threshold = worst.logit;
                out.truncate(count);
            }
        }
    }
    if out.len() > count {
        out.select_nth_unstable_by(count - 1, better_first);
        out.truncate(count);
    }
}

/// The last token of the shortest beginning (best first) that holds at least `top_p` of the weight.
/// Halves the range that it must lie in, like quickselect. `all` is not empty.
fn nucleus_end(all: &mut [Candidate], top_p: f32) -> Candidate {
    let total: u64 = all.iter().map(|c| c.weight).sum();
    let mut wanted = ((total as f64 * f64::from(top_p)).ceil() as u64).clamp(1, total);
    let mut range = all;
    while range.len() > 1 {
        let middle = range.len() / 2;
        let (_, _, _) = range.select_nth_unstable_by(middle, better_first);
        let (upper, lower) = range.split_at_mut(middle);
        let held: u64 = upper.iter().map(|c| c.weight).sum();
        if held >= wanted {
            range = upper;
        } else {
            wanted -= held;
            range = lower;
        }
    }
    range[0]
}

/// The token at `random` (as a fraction of 2^64) of the summed weights, in order of token id.
fn draw(candidates: &[Candidate], random: u64) -> u32 {
    let total: u64 = candidates.iter().map(|c| c.weight).sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for candidate in candidates {
        if left < candidate.weight {
            return candidate.token;
        }
        left -= candidate.weight;
    }
    // Not reached: `left` began below the sum of the weights.
    candidates.last().map_or(0, |candidate| candidate.token)
}

/// A uniform number for a position of a sequence: splitmix64's mixer over both.
pub fn random(seed: u64, position: u64) -> u64 {
    mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15))
        ^ position.wrapping_mul(0xD605_BBB5_8C8A_BBC9))
}

/// A seed for each of several choices of one request; the first keeps the request's own.
pub fn derive_seed(seed: u64, choice: u64) -> u64 {
    if choice == 0 {
        seed
    } else {
        mix(mix(seed) ^ choice.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// exp(x) for x <= 0 as a whole number of 2^-40; 0 below about 1e-12.
fn weight(x: f32) -> u64 {
    (exp(x) * WEIGHT_ONE) as u64
}

/// exp(x) for x <= 0, to about 2e-7. Without branches, so that loops over it are vectorised, and without
/// the system's libm, so that every machine draws the same tokens.
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln(2) in two parts: the first times a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 0.0);
    let exponent = (x * LOG2_E - 0.5) as i32; // rounds to nearest, as x <= 0
    let rest = x - exponent as f32 * LN2_HIGH - exponent as f32 * LN2_LOW;
    let mut poly = 1.987_569_1e-4f32;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ] {
        poly = poly * rest + coefficient;
    }
    let poly = poly * rest * rest + rest + 1.0;
    poly * f32::from_bits(((exponent + 127) as u32) << 23)
}
