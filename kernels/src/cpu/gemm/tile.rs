//! The inner loops: tiles of a few rows of X by four rows of W, and the walk over them.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use super::super::WeightRef;
use super::super::operands::SharedRows;
use super::super::simd::{self, Kernel, Simd};
use super::pack::{self, Packed, Panels};
use super::step::{Step, Wide};
use super::{Epilogue, Segment};

/// Rows of W in a tile: what threads share out.
pub(super) const UNIT: usize = 4;

/// Up to this many rows of X the kernels prefetch W.
pub(super) const PREFETCH_ROWS: usize = 2;

/// How much packed X is kept in the L2 cache while W streams by.
pub(super) const BLOCK_BYTES: usize = 512 * 1024;

/// Where outputs go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) out: SharedRows,
    pub(super) epilogue: Epilogue<'a>,
}

/// One thread's share of a call: some units of W, all rows of X.
pub(super) struct Part<'a> {
    pub(super) packed: Packed,
    pub(super) panels: Panels,
    pub(super) k: usize,
    pub(super) segments: &'a [Segment<'a>],
    pub(super) target: Target<'a>,
    /// The row of the output for each row of X; `None`: the same.
    pub(super) rows: Option<&'a [u32]>,
    /// Units counted through all segments.
    pub(super) units: Range<usize>,
}

/// Computes some rows of one weight against some panels of X.
pub(super) trait Strip {
    /// Must be `#[inline(always)]`.
    fn strip<S: Simd>(&self, s: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>);
}

/// Weights widened to f32.
pub(super) struct Widen<'a>(pub(super) Part<'a>);

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.walk(s, &self, self.0.cached_panels::<S>());
    }
}

impl Strip for Widen<'_> {
    #[inline(always)]
    fn strip<S: Simd>(&self, s: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>) {
        // SAFETY: the slices have n * k elements (checked), `columns` is a range of segment rows and `panels` of panels
        // of X; this thread alone writes these outputs.
        unsafe {
            match segment.weight {
                WeightRef::F32(w) => self.0.strip(Wide::<S, f32>(s, PhantomData), w, segment, columns, panels),
                WeightRef::F16(w) => self.0.strip(Wide::<S, f16>(s, PhantomData), w, segment, columns, panels),
                WeightRef::Bf16(w) => self.0.strip(Wide::<S, bf16>(s, PhantomData), w, segment, columns, panels),
                // `run_part` sends these to `integer`.
                WeightRef::Quantised(_) => {}
            }
        }
    }
}

/// bf16 weights with the dot-product instruction. Only ever run through `avx512::run`.
#[cfg(target_arch = "x86_64")]
pub(super) struct Dot<'a>(pub(super) Part<'a>);

#[cfg(target_arch = "x86_64")]
impl Kernel for Dot<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.walk(s, &self, self.0.cached_panels::<S>());
    }
}

#[cfg(target_arch = "x86_64")]
impl Strip for Dot<'_> {
    #[inline(always)]
    fn strip<S: Simd>(&self, _: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>) {
        // SAFETY: this kernel is run through `avx512::run` only, whose caller vouches for the processor.
        let step = super::step::Pairs(unsafe { simd::avx512::Avx512::assume() });
        if let WeightRef::Bf16(w) = segment.weight {
            // SAFETY: as in `Widen`.
            unsafe { self.0.strip(step, w, segment, columns, panels) }
        }
    }
}

impl Part<'_> {
    /// The row of the output of a row of X.
    #[inline(always)]
    fn place(&self, row: usize) -> usize {
        if let Some(rows) = self.rows { rows[row] as usize } else { row }
    }

    /// Panels of X that stay in the L2 cache while W streams by.
    #[inline(always)]
    pub(super) fn cached_panels<S: Simd>(&self) -> usize {
        (BLOCK_BYTES / (S::PANEL * self.packed.row_bytes).max(1)).max(1)
    }

    /// Calls `strip` for every segment's part of this thread's units and every `block` panels of X; then activates.
    #[inline(always)]
    pub(super) fn walk<S: Simd>(&self, s: S, strip: &impl Strip, block: usize) {
        for first in (0..self.panels.count()).step_by(block) {
            let panels = first..(first + block).min(self.panels.count());
            let rows = self.panels.rows(first).start..self.panels.rows(panels.end - 1).end;
            let mut before = 0;
            for segment in self.segments {
                let units = segment.n.div_ceil(UNIT);
                let from = self.units.start.clamp(before, before + units) - before;
                let to = self.units.end.clamp(before, before + units) - before;
                before += units;
                let columns = from * UNIT..(to * UNIT).min(segment.n);
                if columns.is_empty() {
                    continue;
                }
                strip.strip(s, segment, columns.clone(), panels.clone());
                let Some(activation) = segment.activation else {
                    continue;
                };
                for row in rows.clone() {
                    let start = segment.out_offset + columns.start;
                    // SAFETY: these outputs are this thread's own, and written already.
                    let y = unsafe { self.target.out.part(self.place(row), start, columns.len()) };
                    simd::map_in_place(s, y, &simd::Apply { activation });
                }
            }
        }
    }

    /// Rows `columns` of W against some panels of X.
    ///
    /// # Safety
    /// `w` has `n * k` elements, the ranges are inside the segment and X, which is packed in the form of `T`, and no
    /// other thread writes these outputs.
    #[inline(always)]
    pub(super) unsafe fn strip<T: Step>(
        &self,
        t: T,
        w: &[T::W],
        segment: &Segment<'_>,
        columns: Range<usize>,
        panels: Range<usize>,
    ) {
        let mut column = columns.start;
        while column < columns.end {
            let width = if columns.end - column >= UNIT { UNIT } else { 1 };
            for panel in panels.clone() {
                let (first, rows) = (self.panels.rows(panel).start, self.panels.rows(panel).len());
                // SAFETY: `column + width <= n`; the panel's rows are below m.
                unsafe {
                    let at = At { w: w.as_ptr().add(column * self.k), x: self.packed.panel(first), k: self.k };
                    if width == UNIT {
                        self.tiles::<T, UNIT>(t, at, segment, column, first, rows);
                    } else {
                        self.tiles::<T, 1>(t, at, segment, column, first, rows);
                    }
                }
            }
            column += width;
        }
    }

    /// One tile of `rows` by `N`, with the loop made for its shape.
    ///
    /// # Safety
    /// As for [`Part::strip`], for the tile at `at`.
    #[inline(always)]
    unsafe fn tiles<T: Step, const N: usize>(
        &self,
        t: T,
        at: At<T>,
        segment: &Segment<'_>,
        column: usize,
        first: usize,
        rows: usize,
    ) {
        // SAFETY: passed on; a panel has at most as many rows as the instruction set's panel.
        unsafe {
            match rows {
                1 => self.put::<1, N>(tile::<T, 1, N>(t, at), segment, column, first),
                2 => self.put::<2, N>(tile::<T, 2, N>(t, at), segment, column, first),
                3 if T::S::PANEL >= 3 => self.put::<3, N>(tile::<T, 3, N>(t, at), segment, column, first),
                4 if T::S::PANEL >= 4 => self.put::<4, N>(tile::<T, 4, N>(t, at), segment, column, first),
                5 if T::S::PANEL >= 5 => self.put::<5, N>(tile::<T, 5, N>(t, at), segment, column, first),
                6 if T::S::PANEL >= 6 => self.put::<6, N>(tile::<T, 6, N>(t, at), segment, column, first),
                _ => {}
            }
        }
    }

    /// # Safety
    /// This thread alone writes these outputs.
    #[inline(always)]
    pub(super) unsafe fn put<const M: usize, const N: usize>(
        &self,
        mut sums: [[f32; N]; M],
        segment: &Segment<'_>,
        column: usize,
        first: usize,
    ) {
        for i in 0..M {
            if let Some(bias) = segment.bias {
                sums[i].iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
            }
            // SAFETY: passed on.
            unsafe { self.target.put(self.place(first + i), segment.out_offset + column, &sums[i]) }
        }
    }
}

/// Operands of one tile.
struct At<T: Step> {
    /// First row of W; rows are `k` elements apart.
    w: *const T::W,
    /// The packed panel.
    x: *const T::X,
    k: usize,
}

/// `M` rows of X by `N` rows of W: dot products over all of k.
///
/// # Safety
/// `at.w` has `N` rows of k elements; `at.x` is a panel of `M` rows packed for `T`.
#[inline(always)]
unsafe fn tile<T: Step, const M: usize, const N: usize>(t: T, at: At<T>) -> [[f32; N]; M] {
    let s = t.simd();
    let At { w, x, k } = at;
    let mut sums = [[s.splat(0.0); N]; M];
    let steps = k / T::K;
    for step in 0..steps {
        // SAFETY: the step is inside of every row of W and of the panel.
        unsafe {
            let mut rows = [w.add(step * T::K); N];
            for j in 1..N {
                rows[j] = rows[0].add(j * k);
            }
            if M <= PREFETCH_ROWS {
                // With few rows of X the memory is the limit: ask for what the next tile will read here.
                for j in 0..N {
                    s.prefetch(rows[j].wrapping_add(N * k));
                }
            }
            accumulate::<T, M, N>(t, &mut sums, x.add(step * M * T::K), rows);
        }
    }
    let tail = k % T::K;
    if tail > 0 {
        // The same operation on copies padded with zeros: nothing beyond the weight's last element is read.
        let mut padded = [[T::ZERO; pack::STEP_MAX]; N];
        // SAFETY: `tail` elements remain in every row; the panel is padded to whole steps.
        unsafe {
            for j in 0..N {
                w.add(j * k + steps * T::K).copy_to_nonoverlapping(padded[j].as_mut_ptr(), tail);
            }
            let mut rows = [padded[0].as_ptr(); N];
            for j in 1..N {
                rows[j] = padded[j].as_ptr();
            }
            accumulate::<T, M, N>(t, &mut sums, x.add(steps * M * T::K), rows);
        }
    }
    // Plain loops rather than closures over vectors: a closure would be compiled without the instruction set.
    let mut out = [[0.0; N]; M];
    for i in 0..M {
        let mut four = [s.splat(0.0); 4];
        four[..N].copy_from_slice(&sums[i]);
        out[i].copy_from_slice(&s.hsum4(four)[..N]);
    }
    out
}

/// One step of a tile.
///
/// # Safety
/// `T::K` elements are readable in every row of W, `M * T::K` at `x`.
#[inline(always)]
unsafe fn accumulate<T: Step, const M: usize, const N: usize>(
    t: T,
    sums: &mut [[super::step::V<T>; N]; M],
    x: *const T::X,
    w: [*const T::W; N],
) {
    for part in 0..T::PARTS {
        // SAFETY: passed on.
        unsafe {
            let mut xs = [t.load_x(x, part); M];
            for i in 1..M {
                xs[i] = t.load_x(x.add(i * T::K), part);
            }
            for j in 0..N {
                let wide = t.load_w(w[j], part);
                for i in 0..M {
                    sums[i][j] = t.mac(sums[i][j], xs[i], wide);
                }
            }
        }
    }
}
