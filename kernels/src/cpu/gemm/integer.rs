//! The inner loops for quantised weights: sums of products of integers, exact, and their scaling.
//!
//! X is rounded to int8 in the groups of the weights (see `pack`). The products of a group are summed as integers; the
//! sum of a lane is then widened and multiplied by both scales into one f32 accumulator over the groups, in order. So an
//! output has one order of summation, as everywhere here. AVX-512 processors run the AVX2 loops; a version with VNNI
//! would be one more [`Dot`].

use std::ops::Range;

use half::f16;

use super::super::WeightRef;
use super::super::simd::{self, Kernel, Simd, portable::Portable};
use super::Segment;
use super::pack::IntPanel;
use super::quantised::{BLOCK, LANES, QuantCodes, QuantisedRef};
use super::tile::{PREFETCH_ROWS, Part, Strip, UNIT};

/// Products of 32 codes with 32 elements of X.
trait Dot: Copy {
    /// Its instruction set, with [`LANES`] lanes.
    type S: Simd;
    /// An element of packed X: int8, or the same widened.
    type X: Copy;
    /// 32 codes, ready to be multiplied.
    type W: Copy;
    /// Sums of products, as many as fit into those of a group without overflow.
    type Sum: Copy;
    /// Bytes of 32 codes.
    const BYTES: usize;
    /// Whether codes are relative to a zero.
    const ZEROS: bool;

    fn simd(self) -> Self::S;
    fn zero(self) -> Self::Sum;
    /// # Safety
    /// `BYTES` bytes are readable.
    unsafe fn load(self, p: *const u8) -> Self::W;
    /// # Safety
    /// 32 elements are readable.
    unsafe fn dot(self, sum: Self::Sum, x: *const Self::X, w: Self::W) -> Self::Sum;
    fn widen(self, sum: Self::Sum) -> <Self::S as Simd>::V;
}

/// The share of one thread with quantised weights, without instructions that need a check.
pub(super) struct Plain<'a>(pub(super) Part<'a>);

impl Kernel for Plain<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.0.walk(Portable, &self, self.0.cached_panels::<Portable>());
    }
}

impl Strip for Plain<'_> {
    #[inline(always)]
    fn strip<S: Simd>(&self, _: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>) {
        if let WeightRef::Quantised(w) = segment.weight {
            // SAFETY: as in `tile::Widen`.
            unsafe {
                match w.layout.format.codes {
                    QuantCodes::Int8(_) => strip(&self.0, plain::Int8, w, segment, columns, panels),
                    QuantCodes::Int4(_) => strip(&self.0, plain::Int4, w, segment, columns, panels),
                }
            }
        }
    }
}

/// The same with AVX2. Only ever run through `avx2::run`.
#[cfg(target_arch = "x86_64")]
pub(super) struct Wide<'a>(pub(super) Part<'a>);

#[cfg(target_arch = "x86_64")]
impl Kernel for Wide<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.walk(s, &self, self.0.cached_panels::<S>());
    }
}

#[cfg(target_arch = "x86_64")]
impl Strip for Wide<'_> {
    #[inline(always)]
    fn strip<S: Simd>(&self, _: S, segment: &Segment<'_>, columns: Range<usize>, panels: Range<usize>) {
        // SAFETY: this kernel is run through `avx2::run` only, whose caller vouches for the processor.
        let avx2 = unsafe { simd::avx2::Avx2::assume() };
        if let WeightRef::Quantised(w) = segment.weight {
            // SAFETY: as in `tile::Widen`.
            unsafe {
                match w.layout.format.codes {
                    QuantCodes::Int8(_) => strip(&self.0, avx2::Int8(avx2), w, segment, columns, panels),
                    QuantCodes::Int4(_) => strip(&self.0, avx2::Int4(avx2), w, segment, columns, panels),
                }
            }
        }
    }
}

/// Rows `columns` of W against some panels of X.
///
/// # Safety
/// The ranges are inside the segment and X, which is packed for `Q` and the weight's group, and no other thread writes
/// these outputs.
#[inline(always)]
unsafe fn strip<Q: Dot>(
    part: &Part<'_>,
    q: Q,
    w: QuantisedRef<'_>,
    segment: &Segment<'_>,
    columns: Range<usize>,
    panels: Range<usize>,
) {
    let mut column = columns.start;
    while column < columns.end {
        let width = if columns.end - column >= UNIT { UNIT } else { 1 };
        for panel in panels.clone() {
            let (first, rows) = (part.panels.rows(panel).start, part.panels.rows(panel).len());
            // SAFETY: `column + width <= n`; the panel's rows are below m.
            unsafe {
                match (width == UNIT, w.layout.format.codes.group() == BLOCK) {
                    (true, true) => tiles::<Q, UNIT, true>(part, q, w, segment, column, first, rows),
                    (true, false) => tiles::<Q, UNIT, false>(part, q, w, segment, column, first, rows),
                    (false, true) => tiles::<Q, 1, true>(part, q, w, segment, column, first, rows),
                    (false, false) => tiles::<Q, 1, false>(part, q, w, segment, column, first, rows),
                }
            }
        }
        column += width;
    }
}

/// One tile of `rows` by `N`, with the loop made for its shape. `ONE`: a group is one block.
///
/// # Safety
/// As for [`strip`], for the tile at `column` and `first`.
#[inline(always)]
unsafe fn tiles<Q: Dot, const N: usize, const ONE: bool>(
    part: &Part<'_>,
    q: Q,
    w: QuantisedRef<'_>,
    segment: &Segment<'_>,
    column: usize,
    first: usize,
    rows: usize,
) {
    // SAFETY: passed on; a panel has at most as many rows as the instruction set's panel.
    unsafe {
        let x = part.packed.panel::<u8>(first);
        match rows {
            1 => part.put::<1, N>(tile::<Q, 1, N, ONE>(q, w, column, x), segment, column, first),
            2 => part.put::<2, N>(tile::<Q, 2, N, ONE>(q, w, column, x), segment, column, first),
            3 if Q::S::PANEL >= 3 => part.put::<3, N>(tile::<Q, 3, N, ONE>(q, w, column, x), segment, column, first),
            _ => {}
        }
    }
}

/// `M` rows of X by the `N` rows of W from `column` on: dot products over all of k.
///
/// # Safety
/// `x` is a panel of `M` rows packed for `Q` and the weight's group; W has the rows.
#[inline(always)]
unsafe fn tile<Q: Dot, const M: usize, const N: usize, const ONE: bool>(
    q: Q,
    w: QuantisedRef<'_>,
    column: usize,
    x: *const u8,
) -> [[f32; N]; M] {
    let (s, layout) = (q.simd(), w.layout);
    let group_blocks = layout.format.codes.group() / BLOCK;
    let (row_bytes, scales) = (layout.code_bytes(), layout.scales());
    let panel = IntPanel::<Q::X>::of(x, layout.k, layout.format.codes, M);
    let mut sums = [[s.splat(0.0); N]; M];
    let mut block = 0;
    for chunk in 0..layout.groups().div_ceil(LANES) {
        // SAFETY: rows of scales are padded to whole chunks; blocks are inside of every row of W and of the panel.
        unsafe {
            let codes = w.codes.as_ptr().add(column * row_bytes);
            let of_w = group_scales::<Q, N>(q, w, column, chunk, scales);
            // Both scales of every group of the chunk; and what the zeros of the codes take away.
            let mut both = [[[0.0; LANES]; N]; M];
            for i in 0..M {
                let of_x = s.load(panel.scales(i, chunk));
                for j in 0..N {
                    s.store(both[i][j].as_mut_ptr(), s.mul(of_x, of_w.0[j]));
                    if Q::ZEROS {
                        sums[i][j] = s.fma(of_w.1[j], s.load(panel.sums(i, chunk)), sums[i][j]);
                    }
                }
            }
            let groups = LANES.min(layout.groups() - chunk * LANES);
            if M <= PREFETCH_ROWS {
                // As in `tile::tile`: what the next tile will read here.
                let next = codes.wrapping_add(N * row_bytes + block * Q::BYTES);
                for j in 0..N {
                    for line in (0..groups * group_blocks * Q::BYTES).step_by(64) {
                        s.prefetch(next.wrapping_add(j * row_bytes + line));
                    }
                }
            }
            for group in 0..groups {
                if ONE {
                    // Each sum of integers is used up at once: the sums of floats keep the registers.
                    let at = codes.add(block * Q::BYTES);
                    for j in 0..N {
                        let wide = q.load(at.add(j * row_bytes));
                        for i in 0..M {
                            let exact = q.dot(q.zero(), panel.data.add((block * M + i) * BLOCK), wide);
                            sums[i][j] = s.fma(q.widen(exact), s.splat(both[i][j][group]), sums[i][j]);
                        }
                    }
                    block += 1;
                    continue;
                }
                let end = (block + group_blocks).min(layout.blocks());
                let mut exact = [[q.zero(); N]; M];
                while block < end {
                    let at = codes.add(block * Q::BYTES);
                    for j in 0..N {
                        let wide = q.load(at.add(j * row_bytes));
                        for i in 0..M {
                            exact[i][j] = q.dot(exact[i][j], panel.data.add((block * M + i) * BLOCK), wide);
                        }
                    }
                    block += 1;
                }
                for i in 0..M {
                    for j in 0..N {
                        sums[i][j] = s.fma(q.widen(exact[i][j]), s.splat(both[i][j][group]), sums[i][j]);
                    }
                }
            }
        }
    }
    let mut out = [[0.0; N]; M];
    for i in 0..M {
        let mut four = [s.splat(0.0); 4];
        four[..N].copy_from_slice(&sums[i]);
        out[i].copy_from_slice(&s.hsum4(four)[..N]);
        for j in 0..N {
            out[i][j] *= w.row_scales[column + j];
        }
    }
    out
}

/// The scales of a chunk of groups in `N` rows of W, and those times minus the zeros.
///
/// # Safety
/// W has the rows, their scales the chunk.
#[inline(always)]
#[allow(clippy::type_complexity, reason = "two arrays of vectors")]
unsafe fn group_scales<Q: Dot, const N: usize>(
    q: Q,
    w: QuantisedRef<'_>,
    column: usize,
    chunk: usize,
    scales: usize,
) -> ([<Q::S as Simd>::V; N], [<Q::S as Simd>::V; N]) {
    let s = q.simd();
    let (mut plain, mut zeroed) = ([s.splat(1.0); N], [s.splat(0.0); N]);
    for j in 0..N {
        let at = (column + j) * scales + chunk * LANES;
        // SAFETY: passed on.
        unsafe {
            if w.layout.format.grouped {
                plain[j] = s.load_f16(w.scales.as_ptr().cast::<f16>().add(at));
            }
            if Q::ZEROS {
                let zero = if w.layout.format.zeros { s.load_f16(w.zeros.as_ptr().add(at)) } else { s.splat(8.0) };
                zeroed[j] = s.mul(plain[j], s.sub(s.splat(0.0), zero));
            }
        }
    }
    (plain, zeroed)
}

/// In plain Rust.
mod plain {
    use super::*;

    #[derive(Clone, Copy)]
    pub(super) struct Int8;

    impl Dot for Int8 {
        type S = Portable;
        type X = i16;
        type W = [i8; BLOCK];
        type Sum = [i32; LANES];
        const BYTES: usize = BLOCK;
        const ZEROS: bool = false;

        #[inline(always)]
        fn simd(self) -> Portable {
            Portable
        }
        #[inline(always)]
        fn zero(self) -> [i32; LANES] {
            [0; LANES]
        }
        #[inline(always)]
        unsafe fn load(self, p: *const u8) -> [i8; BLOCK] {
            // SAFETY: the caller vouches for 32 bytes.
            unsafe { p.cast::<[i8; BLOCK]>().read() }
        }
        #[inline(always)]
        unsafe fn dot(self, mut sum: [i32; LANES], x: *const i16, w: [i8; BLOCK]) -> [i32; LANES] {
            // SAFETY: the caller vouches for 32 elements.
            let x = unsafe { x.cast::<[i16; BLOCK]>().read() };
            for i in 0..BLOCK {
                sum[i % LANES] += i32::from(x[i]) * i32::from(w[i]);
            }
            sum
        }
        #[inline(always)]
        fn widen(self, sum: [i32; LANES]) -> <Portable as Simd>::V {
            Portable.of(&sum.map(|x| x as f32))
        }
    }

    #[derive(Clone, Copy)]
    pub(super) struct Int4;

    impl Dot for Int4 {
        type S = Portable;
        type X = i8;
        type W = [u8; BLOCK];
        type Sum = [i32; LANES];
        const BYTES: usize = BLOCK / 2;
        const ZEROS: bool = true;

        #[inline(always)]
        fn simd(self) -> Portable {
            Portable
        }
        #[inline(always)]
        fn zero(self) -> [i32; LANES] {
            [0; LANES]
        }
        #[inline(always)]
        unsafe fn load(self, p: *const u8) -> [u8; BLOCK] {
            // SAFETY: the caller vouches for 16 bytes.
            let both = unsafe { p.cast::<[u8; BLOCK / 2]>().read() };
            std::array::from_fn(|i| both[i % (BLOCK / 2)] >> (i / (BLOCK / 2) * 4) & 15)
        }
        #[inline(always)]
        unsafe fn dot(self, mut sum: [i32; LANES], x: *const i8, w: [u8; BLOCK]) -> [i32; LANES] {
            // SAFETY: the caller vouches for 32 elements.
            let x = unsafe { x.cast::<[i8; BLOCK]>().read() };
            for i in 0..BLOCK {
                sum[i % LANES] += i32::from(x[i]) * i32::from(w[i]);
            }
            sum
        }
        #[inline(always)]
        fn widen(self, sum: [i32; LANES]) -> <Portable as Simd>::V {
            Portable.of(&sum.map(|x| x as f32))
        }
    }
}

/// With AVX2.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::super::super::simd::avx2::Avx2;
    use super::*;

    /// Products of int16 pairs: those of int8 pairs would not fit into 16 bits.
    #[derive(Clone, Copy)]
    pub(super) struct Int8(pub(super) Avx2);

    impl Dot for Int8 {
        type S = Avx2;
        type X = i16;
        type W = [__m256i; 2];
        type Sum = __m256i;
        const BYTES: usize = BLOCK;
        const ZEROS: bool = false;

        #[inline(always)]
        fn simd(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        fn zero(self) -> __m256i {
            // SAFETY: `Avx2` vouches for the processor.
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const u8) -> [__m256i; 2] {
            // SAFETY: `Avx2` vouches for the processor, the caller for `BYTES` bytes.
            unsafe {
                [
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())),
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(16).cast())),
                ]
            }
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m256i, x: *const i16, w: [__m256i; 2]) -> __m256i {
            // SAFETY: `Avx2` vouches for the processor, the caller for 32 elements.
            unsafe {
                let low = _mm256_madd_epi16(_mm256_loadu_si256(x.cast()), w[0]);
                let high = _mm256_madd_epi16(_mm256_loadu_si256(x.add(16).cast()), w[1]);
                _mm256_add_epi32(_mm256_add_epi32(sum, low), high)
            }
        }
        #[inline(always)]
        fn widen(self, sum: __m256i) -> __m256 {
            // SAFETY: `Avx2` vouches for the processor.
            unsafe { _mm256_cvtepi32_ps(sum) }
        }
    }

    /// Products of unsigned nibbles and int8, whose pairs are at most 15 * 127 * 2: 8 of them fit into 16 bits, a group
    /// has at most 4.
    #[derive(Clone, Copy)]
    pub(super) struct Int4(pub(super) Avx2);

    impl Dot for Int4 {
        type S = Avx2;
        type X = i8;
        type W = __m256i;
        type Sum = __m256i;
        const BYTES: usize = BLOCK / 2;
        const ZEROS: bool = true;

        #[inline(always)]
        fn simd(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        fn zero(self) -> __m256i {
            // SAFETY: `Avx2` vouches for the processor.
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const u8) -> __m256i {
            // SAFETY: `Avx2` vouches for the processor, the caller for `BYTES` bytes.
            unsafe {
                let both = _mm_loadu_si128(p.cast());
                let all = _mm256_set_m128i(_mm_srli_epi16::<4>(both), both);
                _mm256_and_si256(all, _mm256_set1_epi8(15))
            }
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m256i, x: *const i8, w: __m256i) -> __m256i {
            // SAFETY: `Avx2` vouches for the processor, the caller for 32 elements.
            unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, _mm256_loadu_si256(x.cast()))) }
        }
        #[inline(always)]
        fn widen(self, sum: __m256i) -> __m256 {
            // SAFETY: `Avx2` vouches for the processor.
            unsafe { _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1))) }
        }
    }
}
