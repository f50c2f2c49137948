//! Causal attention over a paged KV cache, and writing to that cache.
//!
//! The cache of one layer is one slice for K and one for V, in blocks of 16 positions. The layout inside a block is the
//! kernels' own (K is transposed, so that 16 keys are scored without horizontal sums):
//!
//! ```text
//! K [blocks][kv_heads][head_dim][16]        V [blocks][kv_heads][16][value_dim]
//! ```
//!
//! A cache of int8 has a scale for each key and each value, f32 `[blocks][kv_heads][16]`: that of a key is a factor of its
//! scores, that of a value a factor of its weights, so no element is ever scaled by itself.
//!
//! Checks and the split over threads are here; `kernel` computes, `cache` writes. Batch invariance: keys are taken in
//! tiles of 64 positions that begin at absolute multiples of 64, with an online softmax from tile to tile; a masked key
//! contributes exactly nothing. So an output depends on the query's position, its keys and values, and on nothing else.

mod cache;
mod kernel;

use half::bf16;

use super::error::check_eq;
use super::simd::{self, Kernel, Simd};
use super::{Cpu, KernelError, Rows, RowsMut};

pub use cache::write_kv;
use kernel::{Scales, Task, Work};

/// Positions of a block.
pub const BLOCK: usize = 16;

/// In a block table: a block that was freed because it lies before every window. Never read.
pub const NO_BLOCK: u32 = u32::MAX;

/// Queries (rows times heads of one kv head) that share one pass over the keys.
const QUERIES: usize = 16;

/// The sizes of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Heads of K and V.
    pub kv_heads: usize,
    /// Elements of a key (and query).
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
}

impl KvShape {
    /// Elements of one block of K.
    pub fn k_block(&self) -> usize {
        self.kv_heads * self.head_dim * BLOCK
    }

    /// Elements of one block of V.
    pub fn v_block(&self) -> usize {
        self.kv_heads * self.value_dim * BLOCK
    }

    /// Scales of one block of K, and of V, in a cache of int8.
    pub fn scales_block(&self) -> usize {
        self.kv_heads * BLOCK
    }

    /// Number of blocks in slices of these lengths: elements of K and V, and their scales if they have some.
    fn blocks(&self, (k, k_scales): Lengths, (v, v_scales): Lengths) -> Result<usize, KernelError> {
        if self.k_block() == 0 || self.v_block() == 0 {
            let why = "kv_heads, head_dim and value_dim must be positive";
            return Err(KernelError::Option { argument: "cache.shape", got: format!("{self:?}"), why });
        }
        let blocks = k / self.k_block();
        check_eq("cache.k", "length (blocks * k_block)", blocks * self.k_block(), k)?;
        check_eq("cache.v", "length (blocks * v_block)", blocks * self.v_block(), v)?;
        for (argument, scales) in [("cache.k.scales", k_scales), ("cache.v.scales", v_scales)] {
            if let Some(got) = scales {
                check_eq(argument, "length (blocks * scales_block)", blocks * self.scales_block(), got)?;
            }
        }
        Ok(blocks)
    }
}

/// How many elements, and how many scales if there are some.
type Lengths = (usize, Option<usize>);

/// K or V of one layer, to read.
#[derive(Debug, Clone, Copy)]
pub enum KvRef<'a> {
    /// As computed.
    F32(&'a [f32]),
    /// Rounded to nearest even when written.
    Bf16(&'a [bf16]),
    /// Each key or value of a head rounded to 255 steps of a size of its own when written.
    Int8 {
        /// Elements, from -127 to 127.
        codes: &'a [i8],
        /// `blocks * shape.scales_block()`: what a code of a key or value stands for.
        scales: &'a [f32],
    },
}

impl KvRef<'_> {
    fn lengths(&self) -> Lengths {
        match self {
            KvRef::F32(x) => (x.len(), None),
            KvRef::Bf16(x) => (x.len(), None),
            KvRef::Int8 { codes, scales } => (codes.len(), Some(scales.len())),
        }
    }
}

/// K or V of one layer, to write.
#[derive(Debug)]
pub enum KvMut<'a> {
    /// As computed.
    F32(&'a mut [f32]),
    /// Rounded to nearest even.
    Bf16(&'a mut [bf16]),
    /// As in [`KvRef::Int8`].
    Int8 {
        /// Elements.
        codes: &'a mut [i8],
        /// Their scales.
        scales: &'a mut [f32],
    },
}

/// One layer's cache, to read. K and V have the same element type and number of blocks.
#[derive(Debug, Clone, Copy)]
pub struct KvCache<'a> {
    /// Its sizes.
    pub shape: KvShape,
    /// `blocks * shape.k_block()` elements.
    pub k: KvRef<'a>,
    /// `blocks * shape.v_block()` elements.
    pub v: KvRef<'a>,
}

/// One layer's cache, to write.
#[derive(Debug)]
pub struct KvCacheMut<'a> {
    /// Its sizes.
    pub shape: KvShape,
    /// `blocks * shape.k_block()` elements.
    pub k: KvMut<'a>,
    /// `blocks * shape.v_block()` elements.
    pub v: KvMut<'a>,
}

/// Rows of a step that belong to one sequence: consecutive positions.
#[derive(Debug, Clone, Copy)]
pub struct SeqSpan<'a> {
    /// The first of its rows in q, k, v and out.
    pub first_row: usize,
    /// How many rows.
    pub rows: usize,
    /// Position of the first row in the sequence.
    pub first_position: usize,
    /// Block `i` holds positions `16 i .. 16 i + 16`. May be longer than needed.
    pub blocks: &'a [u32],
}

impl SeqSpan<'_> {
    /// The first position that is not of this step.
    fn end(&self) -> usize {
        self.first_position.saturating_add(self.rows)
    }

    /// Checks that the blocks of positions `from..end` are there.
    fn check_blocks(&self, from: usize, limit: usize) -> Result<(), KernelError> {
        let needed = self.end().div_ceil(BLOCK);
        super::error::check_len("seqs.blocks", needed, self.blocks.len())?;
        let first = from / BLOCK;
        match self.blocks[first.min(needed)..needed].iter().position(|&b| b as usize >= limit) {
            None => Ok(()),
            Some(at) => {
                let place = first + at;
                Err(KernelError::Index { argument: "seqs.blocks", place, index: self.blocks[place].into(), limit })
            }
        }
    }
}

/// Checks that the spans lie in `rows` rows, in ascending order and disjoint.
fn check_spans(seqs: &[SeqSpan<'_>], rows: usize) -> Result<(), KernelError> {
    let mut end = 0;
    for (index, seq) in seqs.iter().enumerate() {
        if seq.first_row < end {
            return Err(KernelError::Overlap { argument: "seqs", first: index - 1, second: index });
        }
        end = seq.first_row.saturating_add(seq.rows);
        super::error::check_len("q", end, rows)?;
    }
    Ok(())
}

/// How attention is computed. Always causal: a query at position p sees keys at positions up to p.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams<'a> {
    /// Query heads: a multiple of kv_heads. Heads `g * h .. g * (h + 1)` share kv head `h`.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A query at position p sees keys j with `p - window < j` only.
    pub window: Option<usize>,
    /// Positions are cut into chunks of this size; a query sees keys of its own chunk only.
    pub chunk: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// For each query head one more logit that takes part in the softmax and has no value.
    pub sinks: Option<&'a [f32]>,
    /// For each query head: `slope * (j - p)` is added to the score of key j.
    pub alibi_slopes: Option<&'a [f32]>,
}

impl AttentionParams<'_> {
    fn check(&self, shape: &KvShape) -> Result<(), KernelError> {
        let option = |argument, got: String, why| Err(KernelError::Option { argument, got, why });
        if self.heads == 0 || !self.heads.is_multiple_of(shape.kv_heads) {
            return option("params.heads", self.heads.to_string(), "must be a positive multiple of kv_heads");
        }
        if self.window == Some(0) {
            return option("params.window", "0".into(), "must be at least 1");
        }
        if self.chunk == Some(0) {
            return option("params.chunk", "0".into(), "must be at least 1");
        }
        if let Some(cap) = self.softcap
            && !(cap > 0.0 && cap.is_finite())
        {
            return option("params.softcap", cap.to_string(), "must be positive and finite");
        }
        self.sinks.map_or(Ok(()), |x| check_eq("params.sinks", "length", self.heads, x.len()))?;
        self.alibi_slopes.map_or(Ok(()), |x| check_eq("params.alibi_slopes", "length", self.heads, x.len()))
    }

    /// The first position that a query at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        let in_window = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        self.chunk.map_or(in_window, |chunk| in_window.max(position - position % chunk))
    }
}

/// Attention for all rows of `seqs`: `q` is `[T, heads * head_dim]`, `out` is `[T, heads * value_dim]`. Keys and values of
/// this step's own positions must be in the cache already. Rows of no sequence are left as they are.
pub fn attention(
    cpu: &Cpu,
    params: &AttentionParams<'_>,
    q: Rows<'_>,
    cache: KvCache<'_>,
    seqs: &[SeqSpan<'_>],
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    let shape = cache.shape;
    let blocks = shape.blocks(cache.k.lengths(), cache.v.lengths())?;
    params.check(&shape)?;
    q.check_shape("q", q.rows, params.heads * shape.head_dim)?;
    out.check_shape("out", q.rows, params.heads * shape.value_dim)?;
    check_spans(seqs, q.rows)?;
    for seq in seqs {
        seq.check_blocks(params.first_seen(seq.first_position), blocks)?;
    }
    let out = out.share();
    match (cache.k, cache.v) {
        (KvRef::F32(k), KvRef::F32(v)) => spread(cpu, seqs, Work { params, shape, q, k, v, scales: None, out }),
        (KvRef::Bf16(k), KvRef::Bf16(v)) => spread(cpu, seqs, Work { params, shape, q, k, v, scales: None, out }),
        (KvRef::Int8 { codes: k, scales: k_scales }, KvRef::Int8 { codes: v, scales: v_scales }) => {
            let scales = Some(Scales { k: k_scales, v: v_scales });
            spread(cpu, seqs, Work { params, shape, q, k, v, scales, out });
        }
        _ => {
            let why = "K and V have the same dtype";
            return Err(KernelError::Dtype { argument: "cache.v", got: "another dtype than cache.k", why });
        }
    }
    Ok(())
}

/// Deals the tasks out to the threads, in turn: for each sequence and kv head, tiles of rows.
fn spread<E: simd::Element>(cpu: &Cpu, seqs: &[SeqSpan<'_>], work: Work<'_, E>) {
    let isa = cpu.isa();
    cpu.pool().run(&|part, parts| simd::dispatch(isa, Share { work: &work, seqs, part, parts }));
}

/// One thread's tasks.
struct Share<'w, E> {
    work: &'w Work<'w, E>,
    seqs: &'w [SeqSpan<'w>],
    part: usize,
    parts: usize,
}

impl<E: simd::Element> Kernel for Share<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let group = self.work.params.heads / self.work.shape.kv_heads;
        let tile = (QUERIES / group).max(1);
        let mut turn = 0;
        for seq in self.seqs {
            for kv_head in 0..self.work.shape.kv_heads {
                for first in (0..seq.rows).step_by(tile) {
                    if turn == self.part {
                        let rows = tile.min(seq.rows - first);
                        for head in (0..group).step_by(QUERIES) {
                            let heads = QUERIES.min(group - head);
                            let head = kv_head * group + head;
                            self.work.task(s, &Task { seq, kv_head, head, heads, first, rows });
                        }
                    }
                    turn = if turn + 1 == self.parts { 0 } else { turn + 1 };
                }
            }
        }
    }
}
