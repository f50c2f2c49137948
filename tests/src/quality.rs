//! How much of a model quantisation loses: its probabilities of the tokens of a text, beside those of the same model as it
//! is stored.

use host::exec::{BLOCK_SIZE, Executor, LogitRows, MAX_PROMPT_ROWS, Step, StepSeq};
use host::llm::{Blueprint, LlmOptions};

/// What the comparison found, over all tokens of all texts.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// Tokens predicted.
    pub tokens: usize,
    /// Mean Kullback-Leibler divergence of a token's distribution from that of the model as it is, in nats.
    pub divergence: f64,
    /// The largest one.
    pub largest: f64,
    /// Perplexity as it is, and quantised.
    pub perplexity: [f64; 2],
    /// Share of tokens with the same most likely successor.
    pub same: f64,
}

/// A model that gives logits for texts.
pub struct Scorer {
    blueprint: Blueprint,
    executor: Box<dyn Executor>,
}

impl Scorer {
    /// Loads it, for texts of at most `tokens` tokens.
    pub fn new(options: &LlmOptions, tokens: usize) -> Self {
        let blueprint = Blueprint::draw(options).expect("builds");
        let mut executor = blueprint.executor(options).expect("has an executor").executor;
        executor.allocate_cache(tokens.div_ceil(BLOCK_SIZE)).expect("allocates");
        Scorer { blueprint, executor }
    }

    /// Tokens of a text.
    pub fn tokens(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.blueprint.checkpoint.tokenizer.as_ref().expect("has a tokenizer");
        tokenizer.encode(text, true).expect("encodes")
    }

    /// Logits of every token of a sequence, computed `chunk` tokens at a time.
    pub fn logits(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_SIZE) as u32).collect();
        let mut out = vec![];
        for computed in (0..tokens.len()).step_by(chunk) {
            let seq = StepSeq {
                id: 0,
                tokens: &tokens[..tokens.len().min(computed + chunk)],
                computed,
                context_len: tokens.len(),
                blocks: &blocks,
                logits: LogitRows::From(computed),
            };
            let vocabulary = self.executor.spec().row_width;
            let logits = self.executor.execute(&Step { seqs: &[seq] }).expect("runs");
            out.extend(logits.chunks_exact(vocabulary).map(<[f32]>::to_vec));
        }
        self.executor.forget(0);
        out
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

fn best(row: &[f64]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("logits")
}

/// Compares two models with the same vocabulary on texts.
pub fn compare(plain: &mut Scorer, other: &mut Scorer, texts: &[Vec<u32>]) -> Quality {
    let mut sum = Quality { tokens: 0, divergence: 0.0, largest: 0.0, perplexity: [0.0; 2], same: 0.0 };
    for text in texts {
        let (plain, other) = (plain.logits(text, MAX_PROMPT_ROWS), other.logits(text, MAX_PROMPT_ROWS));
        for (i, next) in text.iter().skip(1).enumerate() {
            let (p, q) = (log_probabilities(&plain[i]), log_probabilities(&other[i]));
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            assert!(divergence.is_finite(), "token {i}");
            sum.tokens += 1;
            sum.divergence += divergence;
            sum.largest = sum.largest.max(divergence);
            sum.perplexity[0] -= p[*next as usize];
            sum.perplexity[1] -= q[*next as usize];
            sum.same += f64::from(u8::from(best(&p) == best(&q)));
        }
    }
    let n = sum.tokens as f64;
    let perplexity = sum.perplexity.map(|x| (x / n).exp());
    Quality { divergence: sum.divergence / n, perplexity, same: sum.same / n, ..sum }
}
