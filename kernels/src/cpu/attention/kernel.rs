//! The arithmetic of attention: one task is a few queries that share a kv head, against all their keys.
//!
//! For each tile of 64 positions: scores of up to four queries at a time, the online softmax of each query, then the
//! weighted sum of values, which lives in the output row itself.

use std::ops::Range;

use super::super::Rows;
use super::super::operands::SharedRows;
use super::super::simd::{self, Element, Simd, function, map_in_place};
use super::{AttentionParams, BLOCK, KvShape, QUERIES, SeqSpan};

/// Positions of a tile.
const TILE: usize = 64;

function!(Scale { factor: f32 }, |self, s, a, _b, _c| s.mul(a, s.splat(self.factor)));

/// The operands of one call, checked.
pub(super) struct Work<'a, E> {
    pub(super) params: &'a AttentionParams<'a>,
    pub(super) shape: KvShape,
    pub(super) q: Rows<'a>,
    pub(super) k: &'a [E],
    pub(super) v: &'a [E],
    pub(super) scales: Option<Scales<'a>>,
    pub(super) out: SharedRows,
}

/// Scales of keys and of values, 16 for each block and kv head.
#[derive(Clone, Copy)]
pub(super) struct Scales<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

/// Some rows of one sequence and some heads of one kv head: `rows * heads <= 16` queries.
pub(super) struct Task<'a> {
    pub(super) seq: &'a SeqSpan<'a>,
    pub(super) kv_head: usize,
    /// First query head.
    pub(super) head: usize,
    pub(super) heads: usize,
    /// First row, counted in the sequence's rows of this step.
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl Task<'_> {
    /// Row in q and out, and head, of a query.
    #[inline(always)]
    fn place(&self, query: usize) -> (usize, usize) {
        (self.seq.first_row + self.first + query / self.heads, self.head + query % self.heads)
    }

    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.seq.first_position + self.first + query / self.heads
    }
}

/// The state of a task between tiles.
struct State {
    /// The largest score so far, for each query.
    max: [f32; QUERIES],
    /// The sum of e^(score - max).
    sum: [f32; QUERIES],
    /// Factor of what was summed before this tile.
    shrink: [f32; QUERIES],
    /// Keys of this tile that each query sees, counted in the tile.
    seen: [(usize, usize); QUERIES],
    /// Scores, then weights.
    scores: [[f32; TILE]; QUERIES],
}

impl<E: Element> Work<'_, E> {
    /// Attention for one task.
    #[inline(always)]
    pub(super) fn task<S: Simd>(&self, s: S, task: &Task<'_>) {
        let queries = task.rows * task.heads;
        let mut state = State {
            max: [f32::NEG_INFINITY; QUERIES],
            sum: [0.0; QUERIES],
            shrink: [0.0; QUERIES],
            seen: [(0, 0); QUERIES],
            scores: [[0.0; TILE]; QUERIES],
        };
        for query in 0..queries {
            let (row, head) = task.place(query);
            if let Some(sinks) = self.params.sinks {
                (state.max[query], state.sum[query]) = (sinks[head], 1.0);
            }
            // SAFETY: a query of this task; the reference ends here.
            unsafe { self.out(row, head) }.fill(0.0);
        }
        let from = self.params.first_seen(task.position(0));
        let to = task.position(queries - 1) + 1;
        for tile in from / TILE..to.div_ceil(TILE) {
            let base = tile * TILE;
            // Blocks of this tile that some query sees; no other is read.
            let blocks = (from.max(base) - base) / BLOCK..(to.min(base + TILE) - base).div_ceil(BLOCK);
            let ids = &task.seq.blocks[base / BLOCK..];
            for first in (0..queries).step_by(4) {
                let some = first..queries.min(first + 4);
                self.score(s, task, &mut state, some, ids, blocks.clone());
            }
            if let Some(scales) = self.scales {
                self.multiply(s, task, &mut state, scales.k, ids, blocks.clone());
            }
            for query in 0..queries {
                let position = task.position(query);
                let low = self.params.first_seen(position).clamp(base, base + TILE) - base;
                let high = (position + 1).clamp(base, base + TILE) - base;
                state.seen[query] = (low, high.max(low));
                if low < high {
                    self.soften(s, task, &mut state, query, base);
                }
            }
            if let Some(scales) = self.scales {
                self.multiply(s, task, &mut state, scales.v, ids, blocks);
            }
            let mut first = 0;
            while first < queries {
                let seen = state.seen[first];
                let alike = first + 4 <= queries && state.seen[first..first + 4].iter().all(|&other| other == seen);
                if seen.0 < seen.1 {
                    // SAFETY: the blocks of these positions were checked; the outputs are this task's own.
                    unsafe {
                        match alike {
                            true => self.gather::<S, 4>(s, task, &state, first, ids),
                            false => self.gather::<S, 1>(s, task, &state, first, ids),
                        }
                    }
                }
                first += if alike { 4 } else { 1 };
            }
        }
        for query in 0..queries {
            let (row, head) = task.place(query);
            let scale = Scale { factor: 1.0 / state.sum[query] };
            // SAFETY: a query of this task; the reference ends here.
            map_in_place(s, unsafe { self.out(row, head) }, &scale);
        }
    }

    /// The output of one query.
    ///
    /// # Safety
    /// It is a query of the running task, and no other reference to its output is alive.
    #[inline(always)]
    unsafe fn out<'r>(&self, row: usize, head: usize) -> &'r mut [f32] {
        let dim = self.shape.value_dim;
        // SAFETY: each (row, head) belongs to one task; the rest is passed on.
        unsafe { self.out.part(row, head * dim, dim) }
    }

    /// Dot products of up to four queries with the keys of some blocks.
    #[inline(always)]
    fn score<S: Simd>(
        &self,
        s: S,
        task: &Task<'_>,
        state: &mut State,
        queries: Range<usize>,
        ids: &[u32],
        blocks: Range<usize>,
    ) {
        let dim = self.shape.head_dim;
        let mut q = [self.q.data.as_ptr(); 4];
        for (i, query) in queries.clone().enumerate() {
            let (row, head) = task.place(query);
            q[i] = self.q.row(row)[head * dim..][..dim].as_ptr();
        }
        let key = |block: usize| -> *const E {
            let at = ids[block] as usize * self.shape.k_block() + task.kv_head * dim * BLOCK;
            self.k[at..][..dim * BLOCK].as_ptr()
        };
        let to = &mut state.scores[queries];
        let mut block = blocks.start;
        while block < blocks.end {
            // SAFETY: q points to `dim` elements for each query, `keys` to `dim * 16` each.
            unsafe {
                if S::L == 16 && blocks.end - block == 4 {
                    let keys = [key(block), key(block + 1), key(block + 2), key(block + 3)];
                    dots_of::<S, E, 4>(s, q, keys, dim, to, block * BLOCK);
                    block += 4;
                } else if S::L == 16 {
                    dots_of::<S, E, 1>(s, q, [key(block)], dim, to, block * BLOCK);
                    block += 1;
                } else {
                    let keys = [key(block), key(block).add(S::L)];
                    dots_of::<S, E, 2>(s, q, keys, dim, to, block * BLOCK);
                    block += 1;
                }
            }
        }
    }

    /// Scores, or weights, of all queries times the scales of keys, or values, of some blocks. Columns that a query does not
    /// see may become anything: nobody reads them.
    #[inline(always)]
    fn multiply<S: Simd>(
        &self,
        s: S,
        task: &Task<'_>,
        state: &mut State,
        scales: &[f32],
        ids: &[u32],
        blocks: Range<usize>,
    ) {
        for block in blocks {
            let at = (ids[block] as usize * self.shape.kv_heads + task.kv_head) * BLOCK;
            let scales = &scales[at..][..BLOCK];
            for scores in &mut state.scores[..task.rows * task.heads] {
                let scores = &mut scores[block * BLOCK..][..BLOCK];
                for lane in (0..BLOCK).step_by(S::L) {
                    let x = s.mul(s.of(&scores[lane..]), s.of(&scales[lane..]));
                    s.to(&mut scores[lane..], x);
                }
            }
        }
    }

    /// Scores of one query become weights; its maximum and sum move on.
    #[inline(always)]
    fn soften<S: Simd>(&self, s: S, task: &Task<'_>, state: &mut State, query: usize, base: usize) {
        let (low, high) = state.seen[query];
        let scores = &mut state.scores[query];
        let head = task.place(query).1;
        let none = s.splat(f32::NEG_INFINITY);
        let scale = s.splat(self.params.scale);
        let vectors = low / S::L..high.div_ceil(S::L);
        let mut max = none;
        for i in vectors.clone() {
            let at = i * S::L;
            let mut x = s.mul(s.of(&scores[at..]), scale);
            if let Some(cap) = self.params.softcap {
                let cap = s.splat(cap);
                x = s.mul(cap, simd::tanh(s, s.div(x, cap)));
            }
            if let Some(slopes) = self.params.alibi_slopes {
                let distance = (base + at) as f32 - task.position(query) as f32;
                let distance = s.add(s.of(&LANE[..S::L]), s.splat(distance));
                x = s.fma(s.splat(slopes[head]), distance, x);
            }
            x = s.keep(x, low.saturating_sub(at), high - at, none);
            max = s.max(max, x);
            s.to(&mut scores[at..], x);
        }
        let old = state.max[query];
        let new = s.hmax(max);
        let new = if new > old { new } else { old };
        let mut sum = s.splat(0.0);
        let shift = s.splat(new);
        for i in vectors {
            let at = i * S::L;
            let e = simd::exp(s, s.sub(s.of(&scores[at..]), shift));
            let e = s.keep(e, low.saturating_sub(at), high - at, s.splat(0.0));
            sum = s.add(sum, e);
            s.to(&mut scores[at..], e);
        }
        let mut shrink = [1.0];
        if new != old {
            s.to_part(&mut shrink, simd::exp(s, s.splat(old - new)));
        }
        state.max[query] = new;
        state.sum[query] = state.sum[query] * shrink[0] + s.hsum(sum);
        state.shrink[query] = shrink[0];
    }

    /// Adds the weighted values of this tile to the outputs of `N` queries that see the same keys.
    ///
    /// # Safety
    /// The blocks of the keys seen are inside the cache; no reference to an output of this task is alive.
    #[inline(always)]
    unsafe fn gather<S: Simd, const N: usize>(&self, s: S, task: &Task<'_>, state: &State, first: usize, ids: &[u32]) {
        let dim = self.shape.value_dim;
        let seen = state.seen[first];
        let mut shrink = [0.0; N];
        shrink.copy_from_slice(&state.shrink[first..first + N]);
        let mut out = [std::ptr::null_mut(); N];
        for i in 0..N {
            let (row, head) = task.place(first + i);
            // SAFETY: a query of this task; other queries have other outputs.
            out[i] = unsafe { self.out(row, head) }.as_mut_ptr();
        }
        let weights = state.scores[first].as_ptr();
        let mut rows = [self.v.as_ptr(); TILE / BLOCK];
        for block in seen.0 / BLOCK..seen.1.div_ceil(BLOCK) {
            let at = ids[block] as usize * self.shape.v_block() + task.kv_head * BLOCK * dim;
            rows[block] = self.v[at..][..BLOCK * dim].as_ptr();
        }
        let values = Values { rows, dim, seen };
        let mut d = 0;
        // SAFETY: `d` and the vectors after it are inside the row of a value and of an output.
        unsafe {
            if S::L == 16 {
                while d + 4 * S::L <= dim {
                    sum_values::<S, E, N, 4>(s, &values, weights, shrink, out, d);
                    d += 4 * S::L;
                }
            }
            while d + 2 * S::L <= dim {
                sum_values::<S, E, N, 2>(s, &values, weights, shrink, out, d);
                d += 2 * S::L;
            }
            while d + S::L <= dim {
                sum_values::<S, E, N, 1>(s, &values, weights, shrink, out, d);
                d += S::L;
            }
            if d < dim {
                sum_tail::<S, E, N>(s, &values, weights, shrink, out, d);
            }
        }
    }
}

/// 0, 1, 2, ...
const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Where the values of a tile are: a pointer for each block that is seen.
struct Values<E> {
    rows: [*const E; TILE / BLOCK],
    dim: usize,
    seen: (usize, usize),
}

/// Scores of `to.len()` queries (at most four) with `N` vectors of keys, stored from `column` on.
///
/// # Safety
/// Each used `q` has `dim` elements; each of `keys` points to the first of `dim` rows of 16, `L` of which are used.
#[inline(always)]
unsafe fn dots_of<S: Simd, E: Element, const N: usize>(
    s: S,
    q: [*const f32; 4],
    keys: [*const E; N],
    dim: usize,
    to: &mut [[f32; TILE]],
    column: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match to.len() {
            1 => dots::<S, E, 1, N>(s, [q[0]], keys, dim, to, column),
            2 => dots::<S, E, 2, N>(s, [q[0], q[1]], keys, dim, to, column),
            3 => dots::<S, E, 3, N>(s, [q[0], q[1], q[2]], keys, dim, to, column),
            _ => dots::<S, E, 4, N>(s, q, keys, dim, to, column),
        }
    }
}

/// As [`dots_of`], for `Q` queries.
///
/// # Safety
/// As for [`dots_of`].
#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const Q: usize, const N: usize>(
    s: S,
    q: [*const f32; Q],
    keys: [*const E; N],
    dim: usize,
    to: &mut [[f32; TILE]],
    column: usize,
) {
    let mut sums = [[s.splat(0.0); N]; Q];
    for d in 0..dim {
        // SAFETY: d < dim.
        unsafe {
            let mut k = [E::load(s, keys[0].add(d * BLOCK)); N];
            for n in 1..N {
                k[n] = E::load(s, keys[n].add(d * BLOCK));
            }
            for i in 0..Q {
                let x = s.splat(*q[i].add(d));
                for n in 0..N {
                    sums[i][n] = s.fma(x, k[n], sums[i][n]);
                }
            }
        }
    }
    for i in 0..Q {
        for n in 0..N {
            s.to(&mut to[i][column + n * S::L..], sums[i][n]);
        }
    }
}

/// `out[d..][..D * L] = out * shrink + sum over keys of weight * value`, for `N` queries.
///
/// # Safety
/// `weights` are `N` rows of `TILE`; `D * L` elements from `d` on are inside of every value and output.
#[inline(always)]
unsafe fn sum_values<S: Simd, E: Element, const N: usize, const D: usize>(
    s: S,
    values: &Values<E>,
    weights: *const f32,
    shrink: [f32; N],
    out: [*mut f32; N],
    d: usize,
) {
    // SAFETY: keys seen are inside the tile, whose blocks are in `rows`; the rest is passed on.
    unsafe {
        let mut sums = [[s.splat(0.0); D]; N];
        for i in 0..N {
            for c in 0..D {
                sums[i][c] = s.mul(s.load(out[i].add(d + c * S::L)), s.splat(shrink[i]));
            }
        }
        for block in values.seen.0 / BLOCK..values.seen.1.div_ceil(BLOCK) {
            let base = block * BLOCK;
            for j in values.seen.0.max(base)..values.seen.1.min(base + BLOCK) {
                let row = values.rows[block].add((j - base) * values.dim + d);
                let mut v = [E::load(s, row); D];
                for c in 1..D {
                    v[c] = E::load(s, row.add(c * S::L));
                }
                for i in 0..N {
                    let w = s.splat(*weights.add(i * TILE + j));
                    for c in 0..D {
                        sums[i][c] = s.fma(w, v[c], sums[i][c]);
                    }
                }
            }
        }
        for i in 0..N {
            for c in 0..D {
                s.store(out[i].add(d + c * S::L), sums[i][c]);
            }
        }
    }
}

/// As [`sum_values`], for the last elements, fewer than a vector.
///
/// # Safety
/// `weights` are `N` rows of `TILE`; `d` is inside of the values and outputs.
#[inline(always)]
unsafe fn sum_tail<S: Simd, E: Element, const N: usize>(
    s: S,
    values: &Values<E>,
    weights: *const f32,
    shrink: [f32; N],
    out: [*mut f32; N],
    d: usize,
) {
    let tail = values.dim - d;
    // SAFETY: keys seen are inside the tile, whose blocks are in `rows`; `tail` elements remain.
    unsafe {
        for i in 0..N {
            let mut sum = s.mul(s.load_part(out[i].add(d), tail), s.splat(shrink[i]));
            for j in values.seen.0..values.seen.1 {
                let row = values.rows[j / BLOCK].add((j % BLOCK) * values.dim + d);
                let mut padded = [E::ZERO; 16];
                row.copy_to_nonoverlapping(padded.as_mut_ptr(), tail);
                let w = s.splat(*weights.add(i * TILE + j));
                sum = s.fma(w, E::load(s, padded.as_ptr()), sum);
            }
            s.store_part(out[i].add(d), sum, tail);
        }
    }
}
