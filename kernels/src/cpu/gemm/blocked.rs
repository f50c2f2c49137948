//! Many rows of X: W is widened to f32 once for all of them, in blocks of columns and of k that stay in the L1 cache.
//!
//! A block is `COLUMNS` rows of W by `DEPTH` elements of k. While it is there, all panels of X pass by, and the vectors that
//! an output is summed in wait in memory for the next block of k. They take the elements of k in the same order as in
//! `tile`, so an output has the same bits, however it is computed: how many rows a call has only decides which is faster.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};

use super::super::WeightRef;
use super::super::simd::{Kernel, Simd};
use super::Segment;
use super::pack::STEP_MAX;
use super::step::{Step, V, Wide};
use super::tile::{Part, Strip, UNIT};

/// From this many rows of X on, widening W by itself is worth it.
pub(super) const LEAST_ROWS: usize = 4;

/// Rows of W in a block.
const COLUMNS: usize = 16;

/// Rows of W that are computed for one block of k before the next: X is read from the L2 cache for all of them but the first.
const GROUP: usize = 64;

/// Elements of k in a block: a multiple of every step.
const DEPTH: usize = 256;

/// The most rows of X in a block.
const ROWS: usize = 96;

/// Weights widened to f32, many rows of X.
pub(super) struct Blocked<'a>(pub(super) Part<'a>);

impl Kernel for Blocked<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Blocks of about the same size.
        let panels = self.0.panels.count();
        let blocks = panels.div_ceil(ROWS / S::PANEL).max(1);
        self.0.walk(s, &self, panels.div_ceil(blocks));
    }
}

impl Strip for Blocked<'_> {
    #[inline(always)]
    fn strip<S: Simd>(&self, s: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>) {
        // SAFETY: as in `tile::Widen`.
        unsafe {
            match segment.weight {
                WeightRef::F32(w) => strip(&self.0, Wide::<S, f32>(s, PhantomData), w, segment, columns, panels),
                WeightRef::F16(w) => strip(&self.0, Wide::<S, f16>(s, PhantomData), w, segment, columns, panels),
                WeightRef::Bf16(w) => strip(&self.0, Wide::<S, bf16>(s, PhantomData), w, segment, columns, panels),
                // `run_part` sends these to `integer`.
                WeightRef::Quantised(_) => {}
            }
        }
    }
}

/// A block of W, widened: units `[UNIT rows of W]`, each `[steps][UNIT][K]`.
#[repr(C, align(64))]
struct Space(MaybeUninit<[f32; COLUMNS * DEPTH]>);

/// What outputs are summed in between blocks of k: for each panel of X, for each unit of a group, rows by `UNIT`.
type Sums<T> = MaybeUninit<[[V<T>; UNIT]; ROWS * GROUP / UNIT]>;

/// Rows `columns` of W against some panels of X, with at most `ROWS` rows.
///
/// # Safety
/// As for [`Part::strip`]; X is packed as f32 in the order of `T`.
#[inline(always)]
unsafe fn strip<T>(
    part: &Part<'_>,
    t: T,
    w: &[T::W],
    segment: &Segment<'_>,
    columns: Range<usize>,
    panels: Range<usize>,
) where
    T: Step<X = f32, Operand = V<T>>,
{
    let whole = columns.start + columns.len() / UNIT * UNIT;
    let mut space = Space(MaybeUninit::uninit());
    let mut sums: Sums<T> = MaybeUninit::uninit();
    let (space, sums) = (space.0.as_mut_ptr().cast::<f32>(), sums.as_mut_ptr().cast::<[V<T>; UNIT]>());
    let blocks = part.k.div_ceil(DEPTH).max(1);
    // Blocks of about the same size.
    let depth = part.k.div_ceil(blocks).next_multiple_of(STEP_MAX);
    for group in (columns.start..whole).step_by(GROUP) {
        let group = group..whole.min(group + GROUP);
        for block in 0..blocks {
            let inner = block * depth..part.k.min((block + 1) * depth);
            for column in group.clone().step_by(COLUMNS) {
                let units = COLUMNS.min(group.end - column) / UNIT;
                let next = match () {
                    () if column + COLUMNS < group.end => (column + COLUMNS, inner.start),
                    () if inner.end < part.k => (group.start, inner.end),
                    () => (group.end, 0),
                };
                let block = Block {
                    t,
                    w: space,
                    sums: sums.wrapping_add((column - group.start) / UNIT * T::S::PANEL),
                    inner: inner.clone(),
                    column,
                    units,
                    ahead: Ahead::new(w, part.k, next, whole),
                };
                // SAFETY: the rows and elements are inside of W; the space has room for `COLUMNS` rows of `DEPTH`
                // elements, the sums for `ROWS` rows and `GROUP` columns.
                unsafe {
                    for unit in 0..units {
                        let rows = w.as_ptr().add((column + unit * UNIT) * part.k + inner.start);
                        widen(t, rows, part.k, inner.len(), space.add(unit * UNIT * DEPTH));
                    }
                    block.run(part, segment, panels.clone());
                }
            }
        }
    }
    if whole < columns.end {
        // SAFETY: passed on.
        unsafe { part.strip(t, w, segment, whole..columns.end, panels) }
    }
}

/// Widens `depth` elements of `UNIT` rows of W, padded with zeros to whole steps.
///
/// # Safety
/// The elements are readable in every row, rows being `k` elements apart; `to` has room for `UNIT * DEPTH`.
#[inline(always)]
unsafe fn widen<T>(t: T, w: *const T::W, k: usize, depth: usize, to: *mut f32)
where
    T: Step<X = f32, Operand = V<T>>,
{
    let s = t.simd();
    let (steps, tail) = (depth / T::K, depth % T::K);
    for j in 0..UNIT {
        // SAFETY: whole steps are inside of the row, and the last one of a copy padded with zeros.
        unsafe {
            let row = w.add(j * k);
            for step in 0..steps {
                let to = to.add((step * UNIT + j) * T::K);
                for p in 0..T::PARTS {
                    s.store(to.add(p * T::S::L), t.load_w(row.add(step * T::K), p));
                }
            }
            if tail > 0 {
                let mut padded = [T::ZERO; STEP_MAX];
                row.add(steps * T::K).copy_to_nonoverlapping(padded.as_mut_ptr(), tail);
                let to = to.add((steps * UNIT + j) * T::K);
                for p in 0..T::PARTS {
                    s.store(to.add(p * T::S::L), t.load_w(padded.as_ptr(), p));
                }
            }
        }
    }
}

/// The cache lines of W that the next block needs, or about those: asked for while this one is computed.
struct Ahead {
    start: *const u8,
    /// Of a row, as a power of two.
    lines: u32,
    row_bytes: usize,
    next: usize,
    end: usize,
}

impl Ahead {
    #[inline(always)]
    fn new<W>(w: &[W], k: usize, (row, from): (usize, usize), rows: usize) -> Self {
        let start = w.as_ptr().wrapping_add(row * k + from).cast();
        let lines = (DEPTH.min(k - from) * size_of::<W>()).div_ceil(64).next_power_of_two().ilog2();
        let end = rows.saturating_sub(row).min(COLUMNS) << lines;
        Ahead { start, lines, row_bytes: k * size_of::<W>(), next: 0, end }
    }

    /// The next few. There may be fewer: then it asks for what nobody needs, rather than to look.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, lines: usize) {
        for line in self.next..self.next + lines {
            let row = self.start.wrapping_add((line >> self.lines) * self.row_bytes);
            s.prefetch_far(row.wrapping_add((line & ((1 << self.lines) - 1)) * 64));
        }
        self.next += lines;
    }
}

/// A block of W, widened, and what it is multiplied into.
struct Block<T: Step> {
    t: T,
    w: *const f32,
    /// Those of the first panel.
    sums: *mut [V<T>; UNIT],
    /// Elements of k.
    inner: Range<usize>,
    /// First row of W.
    column: usize,
    units: usize,
    ahead: Ahead,
}

impl<T> Block<T>
where
    T: Step<X = f32, Operand = V<T>>,
{
    /// Against some panels of X.
    ///
    /// # Safety
    /// As in [`strip`]: the sums of every panel are set unless `inner` begins at 0.
    #[inline(always)]
    unsafe fn run(mut self, part: &Part<'_>, segment: &Segment<'_>, panels: Range<usize>) {
        let each = self.ahead.end.div_ceil(panels.len() * self.units);
        for (index, panel) in panels.enumerate() {
            let rows = part.panels.rows(panel);
            // SAFETY: passed on; a panel has at most as many rows as the instruction set's panel.
            unsafe {
                let sums = self.sums.add(index * (GROUP / UNIT) * T::S::PANEL);
                match rows.len() {
                    1 => self.panel::<1>(part, segment, rows.start, sums, each),
                    2 => self.panel::<2>(part, segment, rows.start, sums, each),
                    3 if T::S::PANEL >= 3 => self.panel::<3>(part, segment, rows.start, sums, each),
                    4 if T::S::PANEL >= 4 => self.panel::<4>(part, segment, rows.start, sums, each),
                    5 if T::S::PANEL >= 5 => self.panel::<5>(part, segment, rows.start, sums, each),
                    6 if T::S::PANEL >= 6 => self.panel::<6>(part, segment, rows.start, sums, each),
                    _ => {}
                }
            }
        }
    }

    /// # Safety
    /// The panel at `first` has `M` rows, and `sums` are its own; otherwise as for [`Block::run`].
    #[inline(always)]
    unsafe fn panel<const M: usize>(
        &mut self,
        part: &Part<'_>,
        segment: &Segment<'_>,
        first: usize,
        sums: *mut [V<T>; UNIT],
        each: usize,
    ) {
        let (t, s) = (self.t, self.t.simd());
        let steps = self.inner.start / T::K..self.inner.end.div_ceil(T::K);
        // The same elements of the next panel, if it is as large.
        let next = M * part.packed.row_bytes / size_of::<f32>();
        for unit in 0..self.units {
            self.ahead.ask(s, each);
            // SAFETY: passed on.
            unsafe {
                let kept = sums.add(unit * T::S::PANEL).cast::<[[V<T>; UNIT]; M]>();
                let mut sums = if self.inner.start > 0 { kept.read() } else { [[s.splat(0.0); UNIT]; M] };
                let mut x = part.packed.panel::<f32>(first).add(steps.start * M * T::K).cast_const();
                let mut w = self.w.add(unit * UNIT * DEPTH);
                let mut after = x.wrapping_add(next + unit * steps.len() * LINE);
                for _ in steps.clone() {
                    s.prefetch(after);
                    after = after.wrapping_add(LINE);
                    accumulate::<T, M>(t, &mut sums, x, w);
                    x = x.add(M * T::K);
                    w = w.add(UNIT * T::K);
                }
                if self.inner.end < part.k {
                    kept.write(sums);
                    continue;
                }
                let mut out = [[0.0; UNIT]; M];
                for i in 0..M {
                    out[i] = s.hsum4(sums[i]);
                }
                part.put(out, segment, self.column + unit * UNIT, first);
            }
        }
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

/// One step: `M` rows of X by the rows of a unit.
///
/// # Safety
/// `M` rows of a step are readable at `x`, `UNIT` at `w`.
#[inline(always)]
unsafe fn accumulate<T, const M: usize>(t: T, sums: &mut [[V<T>; UNIT]; M], x: *const f32, w: *const f32)
where
    T: Step<X = f32, Operand = V<T>>,
{
    let s = t.simd();
    for part in 0..T::PARTS {
        // SAFETY: passed on.
        unsafe {
            let mut xs = [t.load_x(x, part); M];
            for i in 1..M {
                xs[i] = t.load_x(x.add(i * T::K), part);
            }
            for j in 0..UNIT {
                let wide = s.load(w.add(j * T::K + part * T::S::L));
                for i in 0..M {
                    sums[i][j] = t.mac(sums[i][j], xs[i], wide);
                }
            }
        }
    }
}
