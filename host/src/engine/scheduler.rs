//! The policy: which tokens of which sequences run in the next step. Pure: no executor, no time, no
//! threads, no channels; [`Scheduler::schedule`] decides and [`Scheduler::complete`] takes note of what
//! came of it. Called by the step loop, and by property tests with a simulator.
//!
//! There is no prefill and no decode: every sequence has tokens that are not computed yet, and a step has
//! a budget of tokens. What runs goes on first, each sequence at least one token a step, the rest of the
//! budget in order of (priority, arrival); then waiting sequences are admitted in that order, none
//! overtaking another. If blocks run out, the last in order loses its own and waits to be computed again.
//! A sequence whose next token is not chosen yet ([`Outcome::Wait`]) keeps its place and has no part in a step.

use plugin_api::LengthDependence;
use std::collections::BTreeMap;

use super::blocks::{BlockPool, FREED, first_block};
use super::sequence::Sequence;
use crate::exec::{BLOCK_SIZE, BlockId, PrefixCaching};

/// What the policy must not exceed.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens in a step; at least `max_num_seqs`.
    pub max_num_batched_tokens: usize,
    /// KV blocks.
    pub kv_blocks: usize,
    /// Blocks wholly before `computed - window` are freed.
    pub window: Option<usize>,
    /// `Unsupported` also where the user switched it off.
    pub prefix_cache: PrefixCaching,
    /// Rows in a step in excess of one a sequence.
    pub extra_rows: usize,
    /// How what is computed depends on a sequence's length.
    pub by_length: Option<LengthDependence>,
}

impl Limits {
    /// What is computed for sequences of one class is the same.
    fn class(&self, length: usize) -> u64 {
        self.by_length.map_or(0, |by| by.class(length))
    }

    /// The most blocks that a sequence of `tokens` tokens holds at once while it computes `remaining` of them.
    pub fn peak_blocks(&self, tokens: usize, remaining: usize) -> usize {
        let all = Sequence::blocks_for(tokens);
        self.window.map_or(all, |window| {
            let chunk = self.max_num_batched_tokens.min(remaining);
            all.min(Sequence::blocks_for(window.saturating_add(chunk)).saturating_add(2))
        })
    }
}

/// What became of a sequence that had a part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its prompt is not done.
    Continue,
    /// This token was chosen.
    Token(u32),
    /// Its next token will be chosen later: see [`Scheduler::decide`].
    Wait,
    /// It ended.
    Finish,
}

/// What [`Scheduler::schedule`] did beyond `scheduled` of each sequence.
#[derive(Debug, Default)]
pub struct Decision {
    /// Admitted from the queue.
    pub admitted: Vec<u64>,
    /// Lost their blocks and went back to the queue.
    pub preempted: Vec<u64>,
    /// Alone, and still too large for the pool: removed.
    pub impossible: Vec<u64>,
    /// Tokens in the step.
    pub tokens: usize,
}

/// Counts since the start.
#[derive(Debug, Default, Clone, Copy)]
pub struct CacheCounts {
    /// Prompt tokens looked up in the prefix cache.
    pub queries: u64,
    /// Of these, found.
    pub hits: u64,
    /// Preemptions.
    pub preemptions: u64,
}

/// All sequences, the queue and the blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    running: Vec<Sequence>, // in order of `key`
    waiting: BTreeMap<(i32, u64), Sequence>,
    counts: CacheCounts,
}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(limits: Limits) -> Self {
        let pool = BlockPool::new(limits.kv_blocks);
        Self { limits, pool, running: Vec::new(), waiting: BTreeMap::new(), counts: CacheCounts::default() }
    }

    /// Queues a sequence.
    pub fn add(&mut self, mut seq: Sequence) {
        seq.class = self.limits.class(seq.tokens.len());
        seq.cacheable = self.limits.prefix_cache != PrefixCaching::Unsupported;
        seq.extend_hashes(seq.tokens.len());
        self.waiting.insert(seq.key(), seq);
    }

    /// Decides the next step. Afterwards [`Self::running`] holds its sequences, those with `scheduled > 0`.
    pub fn schedule(&mut self) -> Decision {
        let mut decision = Decision::default();
        let mut budget = self.limits.max_num_batched_tokens;
        let mut rows = self.limits.extra_rows;

        // What runs goes on, in order. The last in order, which has no part in this step yet, gives way.
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].waits() {
                at += 1;
                continue;
            }
            let others = self.running.len() - at - 1; // each keeps one token of the budget
            let chunk = chunk(&self.running[at], budget - others, rows);
            self.leave_window(at);
            while self.pool.free() < self.missing(&self.running[at], chunk) && self.running.len() > at + 1 {
                self.preempt_last(&mut decision);
            }
            if self.pool.free() < self.missing(&self.running[at], chunk) {
                if at == 0 {
                    decision.impossible.push(self.running[0].id);
                    self.remove(0);
                } else {
                    self.preempt_last(&mut decision);
                }
                break;
            }
            self.grow(at, chunk);
            (budget, rows) = spend(&self.running[at], budget, rows);
            at += 1;
        }

        // Then who waits, in order, if all its known tokens fit beside what the others still need.
        while decision.preempted.is_empty() && budget > 0 && self.running.len() < self.limits.max_num_seqs {
            let Some(table) = self.waiting.values().next().and_then(|head| self.can_admit(head)) else {
                break;
            };
            let Some((_, head)) = self.waiting.pop_first() else {
                break;
            };
            decision.admitted.push(head.id);
            let at = self.admit(head, table);
            let chunk = chunk(&self.running[at], budget, rows);
            self.grow(at, chunk);
            (budget, rows) = spend(&self.running[at], budget, rows);
        }
        decision.tokens = self.limits.max_num_batched_tokens - budget;
        decision
    }

    /// Takes note of a step: `outcome` is asked once for each sequence of it, in order.
    pub fn complete(&mut self, mut outcome: impl FnMut(&Sequence) -> Outcome) {
        let Self { running, pool, limits, .. } = self;
        running.retain_mut(|seq| {
            if seq.scheduled == 0 {
                return true;
            }
            let outcome = outcome(seq);
            seq.computed = seq.step_end();
            seq.scheduled = 0;
            seq.prompt_rows = seq.prompt_rows.map(|row| row.max(seq.computed)).filter(|row| row + 1 < seq.prompt_len);
            remember(pool, seq);
            settle(pool, limits, seq, outcome)
        });
    }

    /// Asks for the outcome of each sequence that waits for its token, in order. Not between [`Self::schedule`] and
    /// [`Self::complete`].
    pub fn decide(&mut self, mut outcome: impl FnMut(&Sequence) -> Outcome) {
        let Self { running, pool, limits, .. } = self;
        running.retain_mut(|seq| !seq.waits() || settle(pool, limits, seq, outcome(seq)));
    }

    /// The step failed: removes its sequences and returns their ids.
    pub fn fail_step(&mut self) -> Vec<u64> {
        let Self { running, pool, .. } = self;
        let failed = running.extract_if(.., |seq| seq.scheduled > 0);
        failed
            .map(|mut seq| {
                pool.release_all(&mut seq.blocks);
                seq.id
            })
            .collect()
    }

    /// Removes a sequence wherever it is. Not between [`Self::schedule`] and [`Self::complete`].
    pub fn abort(&mut self, priority: i32, id: u64) {
        if self.waiting.remove(&(priority, id)).is_none()
            && let Ok(at) = self.running.binary_search_by_key(&(priority, id), Sequence::key)
        {
            self.remove(at);
        }
    }

    /// Sequences that hold blocks, in order.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences in the queue, preempted ones too.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Blocks held and blocks in all.
    pub fn block_usage(&self) -> (usize, usize) {
        (self.pool.total() - self.pool.free(), self.pool.total())
    }

    /// Counts since the start.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    /// Blocks to take before `seq` can compute `chunk` more tokens.
    fn missing(&self, seq: &Sequence, chunk: usize) -> usize {
        Sequence::blocks_for(seq.computed + chunk).saturating_sub(seq.blocks.len())
    }

    /// Blocks that `seq` will take until all its known tokens are computed, and one for what it generates.
    fn outstanding(&self, seq: &Sequence) -> usize {
        let tokens = seq.tokens.len() + BLOCK_SIZE;
        self.limits.peak_blocks(tokens, tokens - seq.computed).saturating_sub(seq.held)
    }

    /// Asks whether `seq` can run beside the others: if so, the cached table that it starts from.
    fn can_admit(&self, seq: &Sequence) -> Option<Vec<BlockId>> {
        let Self { limits, pool, running, .. } = self;
        let others: usize = running.iter().map(|other| self.outstanding(other)).sum();
        if others >= pool.free() && !running.is_empty() {
            return None; // whatever is cached, one block is always needed
        }
        // The last token is always computed: its logits are wanted. So are those of prompt_logprobs.
        let last = (seq.tokens.len() - 1) / BLOCK_SIZE;
        let reusable = if seq.prompt_rows.is_some() { 0 } else { last };
        let hashes = &seq.hashes[..reusable.min(seq.hashes.len())];
        let table = pool.lookup(hashes, limits.window);
        let end = table.len();
        if running.is_empty() {
            return Some(table);
        }
        // If someone computes the next block right now, it will be in the cache: wait for it.
        let computes = |other: &Sequence, hash| other.remembered <= end && other.hashes.get(end) == Some(hash);
        if let Some(next) = hashes.get(end)
            && running.iter().any(|other| computes(other, next))
        {
            return None;
        }
        let unheld = |&&id: &&BlockId| id != FREED && pool.refs(id) == 0;
        let revived = table.iter().filter(unheld).count();
        let most = limits.peak_blocks(seq.tokens.len(), seq.tokens.len() - end * BLOCK_SIZE);
        let own = most.saturating_sub(held(&table)) + revived;
        (own + others <= pool.free()).then_some(table)
    }

    /// Acts on what [`Self::can_admit`] allowed. Returns the place in `running`.
    fn admit(&mut self, mut seq: Sequence, table: Vec<BlockId>) -> usize {
        for &id in table.iter().filter(|&&id| id != FREED) {
            self.pool.share(id);
        }
        seq.computed = table.len() * BLOCK_SIZE;
        if seq.preemptions == 0 {
            seq.cached_tokens = seq.computed;
            if seq.cacheable && seq.prompt_rows.is_none() {
                self.counts.queries += seq.tokens.len() as u64;
                self.counts.hits += seq.computed as u64;
            }
        }
        seq.held = held(&table);
        seq.left = table.len() - seq.held;
        seq.remembered = table.len();
        seq.blocks = table;
        let at = self.running.partition_point(|other| other.key() < seq.key());
        self.running.insert(at, seq);
        at
    }

    /// Takes the blocks for `chunk` more tokens (the caller asked whether they are there) and schedules them.
    fn grow(&mut self, at: usize, chunk: usize) {
        let seq = &mut self.running[at];
        let want = Sequence::blocks_for(seq.computed + chunk);
        while seq.blocks.len() < want {
            let Some(id) = self.pool.take() else { break };
            seq.blocks.push(id);
            seq.held += 1;
        }
        seq.scheduled = chunk.min(seq.blocks.len() * BLOCK_SIZE - seq.computed);
    }

    /// Frees blocks that no window reaches any more.
    fn leave_window(&mut self, at: usize) {
        let seq = &mut self.running[at];
        let first = first_block(seq.computed, self.limits.window).min(seq.blocks.len());
        for id in &mut seq.blocks[seq.left.min(first)..first] {
            self.pool.release(std::mem::replace(id, FREED));
            seq.held -= 1;
        }
        seq.left = seq.left.max(first);
    }

    fn preempt_last(&mut self, decision: &mut Decision) {
        let Some(mut seq) = self.running.pop() else {
            return;
        };
        self.pool.release_all(&mut seq.blocks);
        seq.restart(seq.class);
        seq.preemptions += 1;
        self.counts.preemptions += 1;
        decision.preempted.push(seq.id);
        seq.extend_hashes(seq.tokens.len());
        self.waiting.insert(seq.key(), seq);
    }

    fn remove(&mut self, at: usize) {
        let mut seq = self.running.remove(at);
        self.pool.release_all(&mut seq.blocks);
    }

    /// Panics unless the bookkeeping is consistent.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        self.pool.check(self.running.iter().map(|seq| &seq.blocks[..]));
        assert!(self.running.is_sorted_by_key(Sequence::key), "running is in order");
        assert!(self.running.len() <= self.limits.max_num_seqs, "too many sequences");
        assert!(self.waiting.values().all(|seq| seq.blocks.is_empty() && seq.computed == 0));
        for seq in &self.running {
            assert_eq!(seq.held, held(&seq.blocks));
            assert!(seq.held <= self.limits.peak_blocks(seq.tokens.len(), seq.tokens.len()), "peak_blocks is too low");
        }
    }
}

/// How many of its tokens `seq` computes next.
fn chunk(seq: &Sequence, budget: usize, rows: usize) -> usize {
    let chunk = budget.min(seq.tokens.len() - seq.computed);
    // Rows for prompt_logprobs are bounded too, but one token is always allowed.
    seq.prompt_rows.map_or(chunk, |from| chunk.min(from.saturating_sub(seq.computed) + rows.max(1)))
}

/// What an outcome makes of a sequence; false if it ended.
fn settle(pool: &mut BlockPool, limits: &Limits, seq: &mut Sequence, outcome: Outcome) -> bool {
    match outcome {
        Outcome::Continue | Outcome::Wait => {}
        Outcome::Token(token) => {
            seq.tokens.push(token);
            let class = limits.class(seq.tokens.len());
            if class != seq.class {
                pool.release_all(&mut seq.blocks);
                seq.restart(class);
            }
        }
        Outcome::Finish => pool.release_all(&mut seq.blocks),
    }
    outcome != Outcome::Finish
}

/// The budget that is left after what `seq` got.
fn spend(seq: &Sequence, budget: usize, rows: usize) -> (usize, usize) {
    let used = seq.prompt_rows.map_or(0, |_| seq.logit_positions().len());
    (budget - seq.scheduled, rows.saturating_sub(used))
}

/// Offers full blocks to the prefix cache.
fn remember(pool: &mut BlockPool, seq: &mut Sequence) {
    seq.extend_hashes(seq.computed);
    while seq.remembered < seq.hashes.len() && (seq.remembered + 1) * BLOCK_SIZE <= seq.computed {
        pool.remember(seq.blocks[seq.remembered], seq.hashes[seq.remembered]);
        seq.remembered += 1;
    }
}

fn held(table: &[BlockId]) -> usize {
    table.iter().filter(|&&id| id != FREED).count()
}
