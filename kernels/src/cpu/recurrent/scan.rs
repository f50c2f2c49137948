//! Attention by a running matrix S for each head: `S = exp(decay) S + k uᵀ`, `y = qᵀ S`.
//!
//! A column of S depends on no other (under the delta rule too), so threads take some columns of some heads and walk
//! through the rows; S stays in the nearest cache meanwhile. With one column (Mamba 1), vectors lie along the key instead;
//! with one element (gated linear recurrences), along the heads.

use super::super::operands::SharedRows;
use super::super::simd::{self, Kernel, Simd};
use super::super::{Cpu, KernelError, Rows, RowsMut};
use super::{Shared, StateSpan, check_spans};

/// Vectors of columns that are computed together.
const COLUMNS: usize = 4;

/// Heads that are computed together where vectors lie along the key.
const HEADS: usize = 4;

/// Decays of a key whose exponentials are taken at once.
const DECAYS: usize = 64;

/// Fewer multiplications than this are not worth a hand-over to other threads.
const PARALLEL: usize = 1 << 14;

/// The sizes of one linear attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearAttention {
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v, decay, beta and the output; a multiple of `key_heads`.
    pub heads: usize,
    /// Elements of a key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Whether each element of a key has a decay of its own, or each head.
    pub per_channel: bool,
}

impl LinearAttention {
    /// Elements of a sequence's state, `[heads, key_dim, value_dim]`.
    pub fn state_elements(&self) -> usize {
        self.heads.saturating_mul(self.key_dim).saturating_mul(self.value_dim)
    }
}

/// Operands of a call; every one has a row for each token.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// `[T, key_heads * key_dim]`
    pub q: Rows<'a>,
    /// `[T, key_heads * key_dim]`
    pub k: Rows<'a>,
    /// `[T, heads * value_dim]`
    pub v: Rows<'a>,
    /// Logarithms: `[T, heads]`, or `[T, heads * key_dim]` if they are per channel.
    pub decay: Rows<'a>,
    /// `[T, heads]`; with it, u follows the delta rule: `u = beta * (v - kᵀ (exp(decay) S))`, else `u = v`.
    pub beta: Option<Rows<'a>>,
}

/// Linear attention for all rows of `seqs`; `out` is `[T, heads * value_dim]`, `state` is
/// `[slots, heads, key_dim, value_dim]`. Rows of no sequence are left as they are.
pub fn linear_attention(
    cpu: &Cpu,
    shape: &LinearAttention,
    operands: &Operands<'_>,
    seqs: &[StateSpan],
    state: &mut [f32],
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    let LinearAttention { key_heads, heads, key_dim, value_dim, per_channel } = *shape;
    if key_heads == 0 || heads == 0 || key_dim == 0 || value_dim == 0 || !heads.is_multiple_of(key_heads) {
        let why = "sizes must be positive, and heads a multiple of key_heads";
        return Err(KernelError::Option { argument: "shape", got: format!("{shape:?}"), why });
    }
    let rows = operands.v.rows;
    operands.q.check_shape("q", rows, key_heads * key_dim)?;
    operands.k.check_shape("k", rows, key_heads * key_dim)?;
    operands.v.check_shape("v", rows, heads * value_dim)?;
    operands.decay.check_shape("decay", rows, if per_channel { heads * key_dim } else { heads })?;
    operands.beta.map_or(Ok(()), |beta| beta.check_shape("beta", rows, heads))?;
    out.check_shape("out", rows, heads * value_dim)?;
    check_spans(seqs, rows, state.len(), shape.state_elements())?;

    let work = Work { shape, operands, seqs, state: Shared(state.as_mut_ptr()), out: out.share() };
    let isa = cpu.isa();
    let tokens: usize = seqs.iter().map(|s| s.rows).sum();
    let part = |part, parts| simd::dispatch(isa, Share { work: &work, part, parts });
    if tokens.saturating_mul(shape.state_elements()) < PARALLEL {
        part(0, 1)
    } else {
        cpu.pool().run(&part)
    }
    Ok(())
}

struct Work<'a> {
    shape: &'a LinearAttention,
    operands: &'a Operands<'a>,
    seqs: &'a [StateSpan],
    state: Shared,
    out: SharedRows,
}

/// One thread's tasks.
struct Share<'w> {
    work: &'w Work<'w>,
    part: usize,
    parts: usize,
}

impl Kernel for Share<'_> {
    /// Deals the tasks out to the threads, in turn: for each sequence, blocks of heads, and of columns.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LinearAttention { key_heads, heads, key_dim, value_dim, .. } = *self.work.shape;
        let scalar = key_dim == 1 && value_dim == 1 && (key_heads == 1 || key_heads == heads);
        let (heads_each, columns_each) = match (scalar, value_dim) {
            (true, _) => (COLUMNS * S::L, 1),
            (false, 1) => (HEADS, 1),
            _ => (1, COLUMNS * S::L),
        };
        let mut turn = 0;
        for seq in self.work.seqs.iter().filter(|seq| seq.rows > 0) {
            for head in (0..heads).step_by(heads_each) {
                for column in (0..value_dim).step_by(columns_each) {
                    if turn == self.part {
                        // SAFETY: heads and columns are in range, operands were checked, and each task is one thread's.
                        unsafe {
                            match (scalar, value_dim) {
                                (true, _) => self.work.elements(s, seq, head, heads.min(head + heads_each)),
                                (false, 1) => self.work.keys(s, seq, head, heads.min(head + heads_each)),
                                _ => self.work.columns(s, seq, head, column),
                            }
                        }
                    }
                    turn = if turn + 1 == self.parts { 0 } else { turn + 1 };
                }
            }
        }
    }
}

/// e^x of one number, by the vector function.
#[inline(always)]
fn exp1<S: Simd>(s: S, x: f32) -> f32 {
    let mut e = [0.0];
    s.to_part(&mut e, simd::exp(s, s.splat(x)));
    e[0]
}

impl Work<'_> {
    /// The state of a head of a sequence.
    #[inline(always)]
    fn state(&self, seq: &StateSpan, head: usize) -> *mut f32 {
        let each = self.shape.key_dim * self.shape.value_dim;
        self.state.get().wrapping_add((seq.slot * self.shape.heads + head) * each)
    }

    /// The key and query of a head.
    #[inline(always)]
    fn key(&self, row: usize, head: usize) -> (&[f32], &[f32]) {
        let dim = self.shape.key_dim;
        let at = head / (self.shape.heads / self.shape.key_heads) * dim;
        (&self.operands.k.row(row)[at..at + dim], &self.operands.q.row(row)[at..at + dim])
    }

    /// Columns of one head from `column` on, at most a block of them.
    ///
    /// # Safety
    /// The head and column are in range and no other thread has these columns.
    #[inline(always)]
    unsafe fn columns<S: Simd>(&self, s: S, seq: &StateSpan, head: usize, column: usize) {
        let dim = self.shape.value_dim;
        let end = dim.min(column + COLUMNS * S::L);
        let mut at = column;
        // SAFETY: passed on; `at` and the columns after it are below `end`.
        unsafe {
            if at + 4 * S::L <= end {
                self.block::<S, 4>(s, seq, head, at, S::L);
                at += 4 * S::L;
            }
            if at + 2 * S::L <= end {
                self.block::<S, 2>(s, seq, head, at, S::L);
                at += 2 * S::L;
            }
            if at + S::L <= end {
                self.block::<S, 1>(s, seq, head, at, S::L);
                at += S::L;
            }
            if at < end {
                self.block::<S, 1>(s, seq, head, at, end - at);
            }
        }
    }

    /// `N` vectors of columns; of the last, `lanes` lanes.
    ///
    /// # Safety
    /// As for [`Work::columns`]. `lanes` is less than `L` only if `N` is 1.
    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize>(&self, s: S, seq: &StateSpan, head: usize, column: usize, lanes: usize) {
        let (key_dim, dim) = (self.shape.key_dim, self.shape.value_dim);
        let state = self.state(seq, head).wrapping_add(column);
        if seq.fresh {
            for i in 0..key_dim {
                for n in 0..N {
                    // SAFETY: row i of the head's state, columns of this block.
                    unsafe { put(s, state.add(i * dim + n * S::L), s.splat(0.0), lanes) };
                }
            }
        }
        let mut decays = [0.0f32; DECAYS];
        for row in seq.first_row..seq.first_row + seq.rows {
            let (k, q) = self.key(row, head);
            let v = self.operands.v.row(row)[head * dim + column..].as_ptr();
            let mut u = [s.splat(0.0); N];
            for n in 0..N {
                // SAFETY: columns of this block.
                u[n] = unsafe { get(s, v.add(n * S::L), lanes) };
            }
            let one = if self.shape.per_channel { 0.0 } else { exp1(s, self.operands.decay.row(row)[head]) };
            if let Some(beta) = self.operands.beta {
                // First what the decayed state says of this key; then u is known.
                let mut known = [s.splat(0.0); N];
                for first in (0..key_dim).step_by(DECAYS) {
                    let some = first..key_dim.min(first + DECAYS);
                    self.exponentials(s, row, head, some.clone(), &mut decays);
                    for i in some {
                        let factor = s.splat(if self.shape.per_channel { decays[i - first] } else { one });
                        let x = s.splat(k[i]);
                        for n in 0..N {
                            let at = state.wrapping_add(i * dim + n * S::L);
                            // SAFETY: row i of the head's state, columns of this block.
                            unsafe {
                                let decayed = s.mul(get(s, at, lanes), factor);
                                put(s, at, decayed, lanes);
                                known[n] = s.fma(x, decayed, known[n]);
                            }
                        }
                    }
                }
                let beta = s.splat(beta.row(row)[head]);
                for n in 0..N {
                    u[n] = s.mul(beta, s.sub(u[n], known[n]));
                }
            }
            let mut y = [s.splat(0.0); N];
            for first in (0..key_dim).step_by(DECAYS) {
                let some = first..key_dim.min(first + DECAYS);
                let decayed = self.operands.beta.is_some();
                if !decayed {
                    self.exponentials(s, row, head, some.clone(), &mut decays);
                }
                for i in some {
                    let factor = s.splat(if self.shape.per_channel { decays[i - first] } else { one });
                    let (x, z) = (s.splat(k[i]), s.splat(q[i]));
                    for n in 0..N {
                        let at = state.wrapping_add(i * dim + n * S::L);
                        // SAFETY: row i of the head's state, columns of this block.
                        unsafe {
                            let old = get(s, at, lanes);
                            let old = if decayed { old } else { s.mul(old, factor) };
                            let new = s.fma(x, u[n], old);
                            put(s, at, new, lanes);
                            y[n] = s.fma(z, new, y[n]);
                        }
                    }
                }
            }
            // SAFETY: these outputs are this task's own.
            let out = unsafe { self.out.part(row, head * dim + column, (N - 1) * S::L + lanes) }.as_mut_ptr();
            for n in 0..N {
                // SAFETY: columns of this block.
                unsafe { put(s, out.add(n * S::L), y[n], lanes) };
            }
        }
    }

    /// e^decay of some elements of a head's key, if they have decays of their own.
    #[inline(always)]
    fn exponentials<S: Simd>(
        &self,
        s: S,
        row: usize,
        head: usize,
        some: std::ops::Range<usize>,
        out: &mut [f32; DECAYS],
    ) {
        if !self.shape.per_channel {
            return;
        }
        let from = &self.operands.decay.row(row)[head * self.shape.key_dim..][some];
        let to = &mut out[..from.len()];
        to.copy_from_slice(from);
        simd::map_in_place(s, to, &Exp {});
    }

    /// Heads `from..to` (at most [`HEADS`]) that have one column: vectors lie along the key.
    ///
    /// # Safety
    /// The heads are in range and no other thread has them.
    #[inline(always)]
    unsafe fn keys<S: Simd>(&self, s: S, seq: &StateSpan, from: usize, to: usize) {
        let key_dim = self.shape.key_dim;
        if seq.fresh {
            // SAFETY: the states of these heads lie one after the other.
            unsafe { self.state(seq, from).write_bytes(0, (to - from) * key_dim) };
        }
        for row in seq.first_row..seq.first_row + seq.rows {
            let mut sums = [s.splat(0.0); HEADS];
            for head in from..to {
                let state = self.state(seq, head);
                let (k, q) = self.key(row, head);
                let decay = self.operands.decay.row(row);
                let one = if self.shape.per_channel { s.splat(0.0) } else { simd::exp(s, s.splat(decay[head])) };
                let mut u = self.operands.v.row(row)[head];
                if let Some(beta) = self.operands.beta {
                    let mut known = s.splat(0.0);
                    for i in (0..key_dim).step_by(S::L) {
                        let lanes = S::L.min(key_dim - i);
                        // SAFETY: `lanes` elements of the head's state.
                        unsafe {
                            let factor = self.factor(s, decay, head, i, lanes, one);
                            let decayed = s.mul(get(s, state.add(i), lanes), factor);
                            put(s, state.add(i), decayed, lanes);
                            known = s.fma(get(s, k[i..].as_ptr(), lanes), decayed, known);
                        }
                    }
                    u = beta.row(row)[head] * (u - s.hsum(known));
                }
                let u = s.splat(u);
                let mut sum = s.splat(0.0);
                for i in (0..key_dim).step_by(S::L) {
                    let lanes = S::L.min(key_dim - i);
                    // SAFETY: `lanes` elements of the head's state, key and query.
                    unsafe {
                        let mut old = get(s, state.add(i), lanes);
                        if self.operands.beta.is_none() {
                            old = s.mul(old, self.factor(s, decay, head, i, lanes, one));
                        }
                        let new = s.fma(get(s, k[i..].as_ptr(), lanes), u, old);
                        put(s, state.add(i), new, lanes);
                        sum = s.fma(get(s, q[i..].as_ptr(), lanes), new, sum);
                    }
                }
                sums[head - from] = sum;
            }
            let y = s.hsum4(sums);
            // SAFETY: these heads are this task's own.
            unsafe { self.out.part(row, from, to - from) }.copy_from_slice(&y[..to - from]);
        }
    }

    /// e^decay of a vector of a head's key.
    ///
    /// # Safety
    /// `lanes` elements from `i` on are in the key.
    #[inline(always)]
    unsafe fn factor<S: Simd>(&self, s: S, decay: &[f32], head: usize, i: usize, lanes: usize, one: S::V) -> S::V {
        if !self.shape.per_channel {
            return one;
        }
        let from = &decay[head * self.shape.key_dim + i..][..lanes];
        simd::exp(s, s.of_part(from))
    }

    /// Heads `from..to` whose state is one number: vectors lie along the heads.
    ///
    /// # Safety
    /// The heads are in range and no other thread has them.
    #[inline(always)]
    unsafe fn elements<S: Simd>(&self, s: S, seq: &StateSpan, from: usize, to: usize) {
        for head in (from..to).step_by(S::L) {
            let lanes = S::L.min(to - head);
            let state = self.state(seq, head);
            // SAFETY: the states of these heads lie one after the other.
            let mut sum = if seq.fresh { s.splat(0.0) } else { unsafe { get(s, state, lanes) } };
            for row in seq.first_row..seq.first_row + seq.rows {
                let of = |x: &Rows<'_>| -> *const f32 { x.row(row)[head..head + lanes].as_ptr() };
                let shared = self.shape.key_heads == 1;
                let (k, q) = self.key(row, head);
                // SAFETY: one element for each of these heads.
                unsafe {
                    let k = if shared { s.splat(k[0]) } else { get(s, of(&self.operands.k), lanes) };
                    let q = if shared { s.splat(q[0]) } else { get(s, of(&self.operands.q), lanes) };
                    let mut u = get(s, of(&self.operands.v), lanes);
                    sum = s.mul(sum, simd::exp(s, get(s, of(&self.operands.decay), lanes)));
                    if let Some(beta) = &self.operands.beta {
                        u = s.mul(get(s, of(beta), lanes), s.sub(u, s.mul(k, sum)));
                    }
                    sum = s.fma(k, u, sum);
                    s.to_part(self.out.part(row, head, lanes), s.mul(q, sum));
                }
            }
            // SAFETY: as above.
            unsafe { put(s, state, sum, lanes) };
        }
    }
}

simd::function!(Exp {}, |self, s, a, _b, _c| simd::exp(s, a));

/// `lanes` elements, then zeros.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn get<S: Simd>(s: S, p: *const f32, lanes: usize) -> S::V {
    // SAFETY: passed on.
    unsafe { if lanes == S::L { s.load(p) } else { s.load_part(p, lanes) } }
}

/// The first `lanes` lanes.
///
/// # Safety
/// They are writable.
#[inline(always)]
unsafe fn put<S: Simd>(s: S, p: *mut f32, v: S::V, lanes: usize) {
    // SAFETY: passed on.
    unsafe { if lanes == S::L { s.store(p, v) } else { s.store_part(p, v, lanes) } }
}
