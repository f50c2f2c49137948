//! One sequence as the scheduler sees it: tokens, how far they are computed, and where. Pure data.

use std::ops::Range;

use super::blocks::{BlockHash, block_hash};
use crate::exec::{BLOCK_SIZE, BlockId, LogitRows};

/// A prompt and what has been generated.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Unique; later requests have larger ones.
    pub id: u64,
    /// Lower runs first.
    pub priority: i32,
    /// Prompt and output.
    pub tokens: Vec<u32>,
    /// Length of the prompt as sent.
    pub prompt_len: usize,
    /// `tokens[..computed]` are in the cache.
    pub computed: usize,
    /// Tokens `computed..computed + scheduled` run in the present step; 0 if it has no part in it.
    pub scheduled: usize,
    /// The block table.
    pub blocks: Vec<BlockId>,
    /// Prompt tokens found in the prefix cache when first admitted.
    pub cached_tokens: usize,
    /// How often its blocks were taken away.
    pub preemptions: u32,
    /// The next prompt position whose row is wanted beside the last one's: for `prompt_logprobs`, or to pool.
    pub prompt_rows: Option<usize>,
    /// The class of its length, where what is computed depends on that. Goes into the block hashes.
    pub(super) class: u64,
    /// May use and leave cached blocks.
    pub(super) cacheable: bool,
    /// Hashes of the full blocks of `tokens`.
    pub(super) hashes: Vec<BlockHash>,
    /// `blocks[..remembered]` have been offered to the prefix cache.
    pub(super) remembered: usize,
    /// `blocks[..left]` are out of the window and freed.
    pub(super) left: usize,
    /// Entries of `blocks` that are not freed.
    pub(super) held: usize,
}

impl Sequence {
    /// A sequence that has not run. `all_rows`: those of all tokens of the prompt are wanted, not of the last alone.
    pub fn new(id: u64, priority: i32, prompt: Vec<u32>, all_rows: bool) -> Self {
        let prompt_len = prompt.len();
        Self {
            id,
            priority,
            tokens: prompt,
            prompt_len,
            computed: 0,
            scheduled: 0,
            blocks: Vec::new(),
            cached_tokens: 0,
            preemptions: 0,
            prompt_rows: (all_rows && prompt_len > 1).then_some(0),
            class: 0,
            cacheable: false,
            hashes: Vec::new(),
            remembered: 0,
            left: 0,
            held: 0,
        }
    }

    /// Position in the queue: smaller runs first.
    pub fn key(&self) -> (i32, u64) {
        (self.priority, self.id)
    }

    /// Tokens generated so far.
    pub fn output_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Where the present step's part ends.
    pub fn step_end(&self) -> usize {
        self.computed + self.scheduled
    }

    /// Whether all of it is computed, and its next token is not chosen yet.
    pub fn waits(&self) -> bool {
        self.computed == self.tokens.len()
    }

    /// Whether a token is to be chosen after the present step.
    pub fn samples(&self) -> bool {
        self.scheduled > 0 && self.step_end() == self.tokens.len()
    }

    /// The positions whose logits the present step gives.
    pub fn logit_positions(&self) -> Range<usize> {
        let end = self.step_end();
        match (self.prompt_rows, self.samples()) {
            (Some(from), _) => from.max(self.computed).min(end)..end,
            (None, true) => end - 1..end,
            (None, false) => end..end,
        }
    }

    /// The same in the executor's terms.
    pub fn logit_rows(&self) -> LogitRows {
        let positions = self.logit_positions();
        if positions.is_empty() {
            LogitRows::None
        } else if self.prompt_rows.is_some() {
            LogitRows::From(positions.start)
        } else {
            LogitRows::Last
        }
    }

    /// Forgets what was computed; its blocks have been released. `class` is that of its length.
    pub(super) fn restart(&mut self, class: u64) {
        (self.computed, self.remembered, self.left, self.held) = (0, 0, 0, 0);
        if class != self.class {
            self.class = class;
            self.hashes.clear();
        }
    }

    /// Blocks that all of `tokens[..end]` take.
    pub(super) fn blocks_for(end: usize) -> usize {
        end.div_ceil(BLOCK_SIZE)
    }

    /// Hashes what became full.
    pub(super) fn extend_hashes(&mut self, end: usize) {
        while self.cacheable && (self.hashes.len() + 1) * BLOCK_SIZE <= end {
            let at = self.hashes.len() * BLOCK_SIZE;
            self.hashes.push(block_hash(self.hashes.last(), &self.tokens[at..at + BLOCK_SIZE], self.class));
        }
    }
}
