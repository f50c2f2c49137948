//! An executor without a model, for tests and for benchmarks of everything around the model. Its logits
//! are a hash of the whole token history, so whoever mixes up sequences, positions or blocks gets other
//! tokens. It remembers with which history each slot of the cache was written, and refuses a step that
//! would read a stale, freed or foreign slot, or write into a block that another sequence holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kernels::cpu::Pool;

use crate::exec::{
    BLOCK_SIZE, BlockId, ExecError, ExecSpec, Executor, Gives, LogitRows, MAX_PROMPT_ROWS, PrefixCaching, Step, StepSeq,
};

/// How to simulate.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// What the engine is told. With a window, slots before it are not read.
    /// With `by_length` the histories depend on the class of the sequence's length.
    pub spec: ExecSpec,
    /// Check every slot that is read (costs time for each token of history).
    pub verify: bool,
    /// How long a step takes at least.
    pub step_time: Duration,
    /// These steps (from 0) fail.
    pub failing_steps: Vec<u64>,
    /// This step panics.
    pub panicking_step: Option<u64>,
    /// A row after this token is NaN.
    pub poison: Option<u32>,
    /// Threads for the sampler.
    pub threads: Option<Arc<Pool>>,
}

impl SimOptions {
    /// A checking simulator with room for any step.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            spec: ExecSpec {
                gives: Gives::Logits,
                row_width: vocab_size,
                input_vocab_size: vocab_size,
                extra_rows: MAX_PROMPT_ROWS,
                kv_bytes_per_block: BLOCK_SIZE * 8,
                window: None,
                prefix_cache: PrefixCaching::Shared,
                state_bytes_per_seq: 0,
                by_length: None,
                max_tokens: 1 << 20,
                max_seqs: 1 << 16,
            },
            verify: true,
            step_time: Duration::ZERO,
            failing_steps: Vec::new(),
            panicking_step: None,
            poison: None,
            threads: None,
        }
    }
}

/// What is known of a sequence between its steps.
#[derive(Debug, Default)]
struct Live {
    blocks: Vec<BlockId>,
    /// History of the first `computed` tokens.
    computed: usize,
    history: u64,
}

/// See the module.
#[derive(Debug)]
pub struct SimExecutor {
    options: SimOptions,
    slots: Vec<u64>,
    live: HashMap<u64, Live>,
    logits: Vec<f32>,
    steps: u64,
}

impl SimExecutor {
    /// A simulator without a cache yet.
    pub fn new(options: SimOptions) -> Self {
        Self { options, slots: Vec::new(), live: HashMap::new(), logits: Vec::new(), steps: 0 }
    }

    fn start(&self, seq: &StepSeq<'_>) -> u64 {
        1 + self.options.spec.by_length.map_or(0, |by| by.class(seq.context_len))
    }

    /// Everything that can be said without looking at the cache.
    fn check_shape(&self, step: &Step<'_>) -> Result<(), ExecError> {
        let spec = &self.options.spec;
        let tokens: usize = step.seqs.iter().map(|seq| seq.tokens.len().saturating_sub(seq.computed)).sum();
        check(!step.seqs.is_empty(), || "no sequences".into())?;
        check(step.seqs.len() <= spec.max_seqs, || format!("{} sequences", step.seqs.len()))?;
        check(tokens <= spec.max_tokens, || format!("{tokens} tokens"))?;
        let mut rows = 0;
        for (at, seq) in step.seqs.iter().enumerate() {
            let StepSeq { id, tokens, computed, context_len, blocks, logits } = *seq;
            check(step.seqs[..at].iter().all(|other| other.id != id), || format!("sequence {id} twice"))?;
            check(computed < tokens.len(), || format!("sequence {id}: nothing to compute"))?;
            check(context_len >= tokens.len(), || format!("sequence {id}: shorter than its tokens"))?;
            let needed = tokens.len().div_ceil(BLOCK_SIZE);
            check(blocks.len() >= needed, || format!("sequence {id}: {} of {needed} blocks", blocks.len()))?;
            let inside = |block: &BlockId| *block == BlockId::MAX || (*block as usize) < self.slots.len() / BLOCK_SIZE;
            check(blocks.iter().all(inside), || format!("sequence {id}: a block that does not exist"))?;
            check(tokens.iter().all(|&token| (token as usize) < spec.input_vocab_size), || {
                format!("sequence {id}: a token that does not exist")
            })?;
            rows += positions(seq).len();
            let from = |from| from < tokens.len();
            check(!matches!(logits, LogitRows::From(at) if !from(at)), || format!("sequence {id}: no such rows"))?;
        }
        let most = spec.max_seqs + spec.extra_rows;
        check(rows <= most, || format!("{rows} rows of logits, at most {most} were announced"))
    }

    /// Nobody writes into a block that someone else holds.
    fn check_owners(&self, step: &Step<'_>) -> Result<(), ExecError> {
        let mut holders: HashMap<BlockId, usize> = HashMap::new();
        for &block in self.live.values().flat_map(|live| &live.blocks) {
            *holders.entry(block).or_default() += 1;
        }
        for seq in step.seqs {
            for &block in &seq.blocks[seq.computed / BLOCK_SIZE..seq.tokens.len().div_ceil(BLOCK_SIZE)] {
                check(block != BlockId::MAX, || format!("sequence {}: writes a freed block", seq.id))?;
                check(holders[&block] == 1, || format!("sequence {}: writes block {block} of another", seq.id))?;
            }
        }
        Ok(())
    }

    /// The slots that `seq` reads hold its own history.
    fn check_reads(&self, seq: &StepSeq<'_>) -> Result<(), ExecError> {
        let first = self.options.spec.window.map_or(0, |window| seq.computed.saturating_sub(window));
        let mut history = self.start(seq);
        for (position, &token) in seq.tokens[..seq.computed].iter().enumerate() {
            history = extend(history, token);
            if position >= first {
                let block = seq.blocks[position / BLOCK_SIZE];
                let id = seq.id;
                check(block != BlockId::MAX, || format!("sequence {id}: freed block at position {position}"))?;
                let slot = self.slots[block as usize * BLOCK_SIZE + position % BLOCK_SIZE];
                check(slot == history, || format!("sequence {id}: foreign content at position {position}"))?;
            }
        }
        Ok(())
    }

    /// Writes the new slots and the rows of logits.
    fn compute(&mut self, seq: &StepSeq<'_>) {
        let start = self.start(seq);
        let live = self.live.entry(seq.id).or_default();
        let (from, mut history) = if live.computed == seq.computed && !self.options.verify && live.computed > 0 {
            (live.computed, live.history)
        } else {
            (0, start)
        };
        let rows = positions(seq);
        for (position, &token) in seq.tokens.iter().enumerate().skip(from) {
            history = extend(history, token);
            if position >= seq.computed {
                let block = seq.blocks[position / BLOCK_SIZE] as usize;
                self.slots[block * BLOCK_SIZE + position % BLOCK_SIZE] = history;
            }
            if rows.contains(&position) {
                let poisoned = self.options.poison == Some(token);
                let row = (0..self.options.spec.row_width as u64).map(|token| logit(history, token));
                self.logits.extend(row.map(|logit| if poisoned { f32::NAN } else { logit }));
            }
        }
        (live.computed, live.history) = (seq.tokens.len(), history);
    }
}

impl Executor for SimExecutor {
    fn spec(&self) -> &ExecSpec {
        &self.options.spec
    }

    fn allocate_cache(&mut self, blocks: usize) -> Result<(), ExecError> {
        self.slots = vec![0; blocks * BLOCK_SIZE];
        Ok(())
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        let number = self.steps;
        self.steps += 1;
        std::thread::sleep(self.options.step_time);
        assert!(self.options.panicking_step != Some(number), "simulated panic in step {number}");
        if self.options.failing_steps.contains(&number) {
            return Err(ExecError::Failed(format!("simulated failure in step {number}")));
        }
        self.check_shape(step)?;
        if self.options.verify {
            for seq in step.seqs {
                let live = self.live.entry(seq.id).or_default();
                live.blocks.clear();
                live.blocks.extend(seq.blocks.iter().filter(|&&block| block != BlockId::MAX));
            }
            self.check_owners(step)?;
            for seq in step.seqs {
                self.check_reads(seq)?;
            }
        }
        self.logits.clear();
        for seq in step.seqs {
            self.compute(seq);
        }
        Ok(&self.logits)
    }

    fn threads(&self) -> Option<Arc<Pool>> {
        self.options.threads.clone()
    }

    fn forget(&mut self, id: u64) {
        self.live.remove(&id);
    }
}

fn check(fine: bool, message: impl FnOnce() -> String) -> Result<(), ExecError> {
    if fine { Ok(()) } else { Err(ExecError::BadStep(message())) }
}

fn positions(seq: &StepSeq<'_>) -> std::ops::Range<usize> {
    let end = seq.tokens.len();
    match seq.logits {
        LogitRows::None => end..end,
        LogitRows::Last => end - 1..end,
        LogitRows::From(from) => from.max(seq.computed).min(end)..end,
    }
}

fn extend(history: u64, token: u32) -> u64 {
    (history ^ u64::from(token).wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// Between -4 and 4.
fn logit(history: u64, token: u64) -> f32 {
    let mut x = history ^ token.wrapping_mul(0xD605_BBB5_8C8A_BBC9);
    x = (x ^ (x >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 40) as f32 / (1u64 << 21) as f32 - 4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq<'a>(id: u64, tokens: &'a [u32], computed: usize, blocks: &'a [BlockId]) -> StepSeq<'a> {
        StepSeq { id, tokens, computed, context_len: tokens.len(), blocks, logits: LogitRows::Last }
    }

    fn sim() -> SimExecutor {
        let mut sim = SimExecutor::new(SimOptions::new(10));
        assert!(sim.allocate_cache(8).is_ok());
        sim
    }

    fn message(result: Result<&[f32], ExecError>) -> String {
        result.map(<[f32]>::to_vec).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn chunks_give_the_same_logits_and_wrong_blocks_are_found() {
        let tokens: Vec<u32> = (0..40).map(|i| i % 10).collect();
        let mut sim = sim();
        let whole = sim.execute(&Step { seqs: &[seq(1, &tokens, 0, &[0, 1, 2])] }).map(<[f32]>::to_vec);
        let part = sim.execute(&Step { seqs: &[seq(2, &tokens[..20], 0, &[3, 4, 5])] }).map(<[f32]>::to_vec);
        let rest = sim.execute(&Step { seqs: &[seq(2, &tokens, 20, &[3, 4, 5])] }).map(<[f32]>::to_vec);
        let (Ok(whole), Ok(part), Ok(rest)) = (whole, part, rest) else { panic!("valid steps failed") };
        assert_eq!(whole, rest);
        assert_ne!(whole, part);
        sim.forget(2);
        let fresh = message(sim.execute(&Step { seqs: &[seq(3, &tokens, 20, &[3, 6, 5])] }));
        assert!(fresh.contains("foreign content at position 16"), "{fresh}");
        sim.forget(3);
        let freed = message(sim.execute(&Step { seqs: &[seq(4, &tokens, 20, &[BlockId::MAX, 4, 5])] }));
        assert!(freed.contains("freed block at position 0"), "{freed}");
        sim.forget(4);
        let stolen = message(sim.execute(&Step { seqs: &[seq(5, &tokens, 0, &[3, 4, 2])] }));
        assert!(stolen.contains("writes block 2 of another"), "{stolen}");
        sim.forget(5);
        let short = message(sim.execute(&Step { seqs: &[seq(6, &tokens, 0, &[3, 4])] }));
        assert!(short.contains("2 of 3 blocks"), "{short}");
    }
}
