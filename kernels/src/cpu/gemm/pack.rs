//! Packed X: the layouts that the inner loops read, and the space for them.
//!
//! Rows are grouped into panels; a panel of `r` rows is `[steps of k][r][K]`, zero-padded to whole steps, so that a tile
//! reads it in one stream. (With X row-major, rows at a power-of-two stride would fall into one set of the L1 cache.)

use std::ops::Range;

use super::super::simd::{Kernel, Simd};
use super::super::{Isa, KernelError, Rows, WeightDtype};
use super::Compute;
use super::quantised::{BLOCK, LANES, QuantCodes};

/// Elements of k that every step divides: k is padded to a multiple of it.
pub(super) const STEP_MAX: usize = 32;

/// What packed X holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// bf16 in order, for the dot-product instruction, which multiplies pairs.
    PairsBf16,
    /// f32 in order, for f32 and f16 weights (the field says which).
    Plain(WeightDtype),
    /// f32; of each step first the even elements, then the odd: bf16 weights are widened in that order.
    Alternate,
    /// As `Alternate`, rounded to bf16 first.
    AlternateRounded,
    /// Rounded to int8 in groups, for quantised weights; see [`IntPanel`].
    Integers(QuantCodes),
}

impl Form {
    pub(super) fn of(isa: Isa, dtype: WeightDtype, compute: Compute) -> Self {
        match (dtype, compute) {
            (WeightDtype::Bf16, Compute::Bf16) if isa == Isa::Avx512 => Form::PairsBf16,
            (WeightDtype::Bf16, Compute::Bf16) => Form::AlternateRounded,
            (WeightDtype::Bf16, _) => Form::Alternate,
            (WeightDtype::Int8 { group }, _) => Form::Integers(QuantCodes::Int8(group)),
            (WeightDtype::Int4 { group }, _) => Form::Integers(QuantCodes::Int4(group)),
            (other, _) => Form::Plain(other),
        }
    }

    /// Bytes that a row of `k` elements takes, padding included.
    fn row_bytes(self, k: usize) -> usize {
        let padded = k.next_multiple_of(STEP_MAX);
        match self {
            Form::PairsBf16 => padded * 2,
            Form::Plain(_) | Form::Alternate | Form::AlternateRounded => padded * 4,
            Form::Integers(QuantCodes::Int8(group)) => padded * 2 + scale_lanes(k, group) * 4,
            Form::Integers(QuantCodes::Int4(group)) => padded + scale_lanes(k, group) * 8,
        }
    }
}

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Space for packed X. Allocated once, for the largest step.
pub struct Scratch {
    lines: Vec<Line>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("bytes", &(self.lines.len() * 64)).finish()
    }
}

impl Scratch {
    /// Enough for any input of at most `max_m` rows and `max_k` columns: `max_m * max_k * 4` bytes and a little.
    pub fn with_capacity(max_m: usize, max_k: usize) -> Self {
        let bytes = max_m.saturating_mul(max_k.next_multiple_of(STEP_MAX)).saturating_mul(4);
        Self { lines: vec![Line([0; 64]); bytes.div_ceil(64)] }
    }

    /// The space for `[m, k]` in `form`, if it is large enough.
    pub(super) fn take(&mut self, m: usize, k: usize, form: Form) -> Result<Packed, KernelError> {
        let capacity = self.lines.len() * 64;
        let row_bytes = form.row_bytes(k);
        let needed = m.saturating_mul(row_bytes);
        if needed > capacity {
            return Err(KernelError::Scratch { needed, capacity });
        }
        Ok(Packed { data: self.lines.as_mut_ptr().cast(), row_bytes })
    }
}

/// Packed X while a call lasts: written by several threads in disjoint panels, then read by all.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    data: *mut u8,
    /// Bytes that one row takes, padding included.
    pub(super) row_bytes: usize,
}

// SAFETY: only a pointer; `row` asks its caller for what makes it sound.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// What is packed from row `row` on, as if it were all: a group of rows with panels of its own.
    pub(super) fn from(self, row: usize) -> Packed {
        Packed { data: self.data.wrapping_add(row * self.row_bytes), ..self }
    }

    /// Where the panel begins whose first row is `row`.
    ///
    /// # Safety
    /// `row` is below the `m` that this was taken for. The pointer may be used while the scratch is borrowed.
    #[inline(always)]
    pub(super) unsafe fn panel<T>(self, row: usize) -> *mut T {
        // SAFETY: inside the space, by `take`.
        unsafe { self.data.add(row * self.row_bytes).cast() }
    }
}

/// Which rows of X are packed.
pub(super) enum Source<'a> {
    /// All, in order.
    Same,
    /// Row `rows[i] / per_row` is the i-th.
    Chosen { rows: &'a [u32], per_row: usize },
}

/// How rows are cut into panels: as few as there can be, of sizes that differ by one at most, since a panel with a single
/// row costs almost as much as one with several.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    all: usize,
    count: usize,
    /// Rows of each, but that the first few have one more.
    each: usize,
    more: usize,
}

impl Panels {
    /// Panels of at most `most` rows.
    pub(super) fn of(rows: usize, most: usize) -> Self {
        let count = rows.div_ceil(most);
        let each = rows.checked_div(count).unwrap_or(0);
        Panels { all: rows, count, each, more: rows - each * count }
    }

    /// Rows of all panels.
    pub(super) fn all(self) -> usize {
        self.all
    }

    #[inline(always)]
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// The rows of a panel.
    #[inline(always)]
    pub(super) fn rows(self, panel: usize) -> Range<usize> {
        let start = panel * self.each + panel.min(self.more);
        start..start + self.each + usize::from(panel < self.more)
    }
}

/// Packs some panels of X.
pub(super) struct Pack<'a> {
    pub(super) x: Rows<'a>,
    pub(super) source: Source<'a>,
    pub(super) form: Form,
    pub(super) panels: Panels,
    /// Which of them.
    pub(super) which: Range<usize>,
    pub(super) to: Packed,
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for index in self.which.clone() {
            let (first, rows) = (self.panels.rows(index).start, self.panels.rows(index).len());
            for i in 0..rows {
                let row = self.x.row(match self.source {
                    Source::Same => first + i,
                    Source::Chosen { rows, per_row } => rows[first + i] as usize / per_row,
                });
                // SAFETY: the panel is inside the packed space, 64-byte aligned, and no other thread packs it; its size
                // is rows * padded k elements.
                unsafe {
                    match (self.form, S::L) {
                        (Form::PairsBf16, _) => pack_row::<Rounded, 32>(row, self.to.panel(first), rows, i),
                        (Form::Plain(_), 16) => pack_row::<Same, 32>(row, self.to.panel(first), rows, i),
                        (Form::Plain(_), _) => pack_row::<Same, 16>(row, self.to.panel(first), rows, i),
                        (Form::Alternate, 16) => pack_row::<Exact, 32>(row, self.to.panel(first), rows, i),
                        (Form::Alternate, _) => pack_row::<Exact, 16>(row, self.to.panel(first), rows, i),
                        // Only without the dot product, so never with 16 lanes; but right even then.
                        (Form::AlternateRounded, 16) => {
                            pack_row::<ExactRounded, 32>(row, self.to.panel(first), rows, i);
                        }
                        (Form::AlternateRounded, _) => {
                            pack_row::<ExactRounded, 16>(row, self.to.panel(first), rows, i);
                        }
                        (Form::Integers(codes @ QuantCodes::Int8(_)), _) => {
                            pack_integers::<i16>(row, codes, self.to.panel(first), rows, i);
                        }
                        (Form::Integers(codes @ QuantCodes::Int4(_)), _) => {
                            pack_integers::<i8>(row, codes, self.to.panel(first), rows, i);
                        }
                    }
                }
            }
        }
    }
}

/// How one step of a row is packed.
trait Convert {
    /// An element of the packed form.
    type E: Copy;
    /// Must be `#[inline(always)]`.
    fn convert<const K: usize>(from: &[f32; K], to: &mut [Self::E; K]);
}

struct Same;
impl Convert for Same {
    type E = f32;
    #[inline(always)]
    fn convert<const K: usize>(from: &[f32; K], to: &mut [f32; K]) {
        *to = *from;
    }
}

struct Rounded;
impl Convert for Rounded {
    type E = u16;
    #[inline(always)]
    fn convert<const K: usize>(from: &[f32; K], to: &mut [u16; K]) {
        for i in 0..K {
            to[i] = round_bf16(from[i]);
        }
    }
}

struct Exact;
impl Convert for Exact {
    type E = f32;
    #[inline(always)]
    fn convert<const K: usize>(from: &[f32; K], to: &mut [f32; K]) {
        for i in 0..K / 2 {
            to[i] = from[2 * i];
            to[K / 2 + i] = from[2 * i + 1];
        }
    }
}

struct ExactRounded;
impl Convert for ExactRounded {
    type E = f32;
    #[inline(always)]
    fn convert<const K: usize>(from: &[f32; K], to: &mut [f32; K]) {
        Exact::convert(from, to);
        for x in to {
            *x = f32::from_bits(u32::from(round_bf16(*x)) << 16);
        }
    }
}

/// Writes row `i` of a panel of `rows`, `K` elements at a time.
///
/// # Safety
/// `to` is the panel, aligned for its elements, with room for `rows` rows of k rounded up to `K`.
#[inline(always)]
unsafe fn pack_row<C: Convert, const K: usize>(row: &[f32], to: *mut C::E, rows: usize, i: usize) {
    let (steps, tail) = row.as_chunks::<K>();
    for (step, from) in steps.iter().enumerate() {
        // SAFETY: step and row are inside the panel. Any bit pattern is a valid element.
        C::convert(from, unsafe { &mut *to.add((step * rows + i) * K).cast::<[C::E; K]>() });
    }
    if !tail.is_empty() {
        let mut padded = [0.0; K];
        padded[..tail.len()].copy_from_slice(tail);
        // SAFETY: as above; the panel is padded to whole steps.
        C::convert(&padded, unsafe { &mut *to.add((steps.len() * rows + i) * K).cast::<[C::E; K]>() });
    }
}

/// Groups of a row, padded to whole vectors.
fn scale_lanes(k: usize, group: usize) -> usize {
    k.div_ceil(group).next_multiple_of(LANES)
}

/// A panel of X rounded to int8 for quantised weights: elements `[blocks][rows][32]`, then the scales of the groups
/// `[rows][groups]`, then, for int4 weights, the sums of the groups as floats `[rows][groups]`; groups are padded to
/// whole vectors. int8 weights want the elements as int16.
#[derive(Clone, Copy)]
pub(super) struct IntPanel<X> {
    pub(super) data: *mut X,
    scales: *mut f32,
    rows: usize,
    lanes: usize,
}

impl<X> IntPanel<X> {
    #[inline(always)]
    pub(super) fn of(start: *const u8, k: usize, codes: QuantCodes, rows: usize) -> Self {
        let data = start.cast_mut().cast::<X>();
        let scales = data.wrapping_add(k.next_multiple_of(BLOCK) * rows).cast();
        IntPanel { data, scales, rows, lanes: scale_lanes(k, codes.group()) }
    }

    /// The scales of a row from the first group of a chunk of [`LANES`] on.
    #[inline(always)]
    pub(super) fn scales(&self, row: usize, chunk: usize) -> *mut f32 {
        self.scales.wrapping_add(row * self.lanes + chunk * LANES)
    }

    /// The same for the sums.
    #[inline(always)]
    pub(super) fn sums(&self, row: usize, chunk: usize) -> *mut f32 {
        self.scales.wrapping_add((self.rows + row) * self.lanes + chunk * LANES)
    }
}

/// How int8 is held.
trait Narrow: Copy + Into<i32> {
    const WITH_SUMS: bool;
    /// From a number that is in range.
    fn narrow(x: i32) -> Self;
}
impl Narrow for i8 {
    const WITH_SUMS: bool = true;
    #[inline(always)]
    fn narrow(x: i32) -> i8 {
        x as i8
    }
}
impl Narrow for i16 {
    const WITH_SUMS: bool = false;
    #[inline(always)]
    fn narrow(x: i32) -> i16 {
        x as i16
    }
}

/// 1.5 * 2^23: adding it to a small float leaves the nearest integer, ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Below this a group counts as zero: the inverse of its scale would not be finite.
const LEAST: f32 = 1e-30;

/// Writes row `i` of an [`IntPanel`] of `rows`. A group with a value that is not finite gets NaN as its scale.
///
/// # Safety
/// `to` is the panel, aligned for f32, with room for `rows` rows.
#[inline(always)]
unsafe fn pack_integers<X: Narrow>(row: &[f32], codes: QuantCodes, to: *mut u8, rows: usize, i: usize) {
    let panel = IntPanel::<X>::of(to, row.len(), codes, rows);
    let group = codes.group();
    for g in 0..panel.lanes {
        let values = row.get(g * group..).unwrap_or_default();
        let values = &values[..group.min(values.len())];
        // Of magnitudes as bits, infinity and NaN are the largest.
        let mut largest = 0;
        for x in values {
            largest = x.abs().to_bits().max(largest);
        }
        let largest = f32::from_bits(largest);
        let used = largest > LEAST;
        let inverse = if used { 127.0 / largest } else { 0.0 };
        let mut sum = 0;
        for (b, values) in values.chunks(BLOCK).enumerate() {
            let mut padded = [0.0; BLOCK];
            padded[..values.len()].copy_from_slice(values);
            let block = g * (group / BLOCK) + b;
            // SAFETY: block and row are inside of the panel; any bit pattern is a valid element.
            let to = unsafe { &mut *panel.data.add((block * rows + i) * BLOCK).cast::<[X; BLOCK]>() };
            for (to, x) in to.iter_mut().zip(padded) {
                *to = X::narrow((x * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32);
            }
            if X::WITH_SUMS {
                for x in to {
                    sum += (*x).into();
                }
            }
        }
        let scale = match largest.is_finite() {
            true if used => largest / 127.0,
            true => 0.0,
            false => f32::NAN,
        };
        // SAFETY: the row's lanes are inside of the panel, and this thread alone writes it.
        unsafe {
            *panel.scales(i, 0).add(g) = scale;
            if X::WITH_SUMS {
                *panel.sums(i, 0).add(g) = scale * sum as f32;
            }
        }
    }
}

/// Bits of the nearest bf16, ties to even; NaN stays NaN. Branch-free, so that the compiler makes vectors of it.
#[inline(always)]
fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if x.is_nan() { quiet } else { rounded }) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        let mut bits = 0x12345_u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0 + f32::EPSILON] {
            assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(half::bf16::from_bits(round_bf16(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn too_small_a_scratch_is_an_error() {
        let mut scratch = Scratch::with_capacity(2, 33);
        assert!(scratch.take(2, 64, Form::Alternate).is_ok());
        assert!(scratch.take(4, 64, Form::PairsBf16).is_ok());
        let error = scratch.take(3, 33, Form::Alternate).err();
        assert_eq!(error, Some(KernelError::Scratch { needed: 3 * 64 * 4, capacity: 2 * 64 * 4 }));
    }
}
