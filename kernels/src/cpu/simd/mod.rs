//! Vectors of f32 for every instruction set behind one trait, so that a kernel is written once.
//!
//! A value of a type that implements [`Simd`] is a token: it can only be made where the processor has the instruction
//! set, so arithmetic through it is safe. A kernel is a struct that implements [`Kernel`]; [`dispatch`] compiles its
//! `run` once for each instruction set. Everything between `dispatch` and an intrinsic must be `#[inline(always)]`, which
//! closures cannot be: where a kernel takes a function of vectors, that is a [`Function`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod math;
pub(crate) mod portable;

mod function;

pub(crate) use function::{Element, Function, function, map_in_place};
pub use math::Activation;
pub(crate) use math::{Apply, apply, exp, tanh};

use half::{bf16, f16};

use super::Isa;

/// One instruction set. `L` lanes; a *partial* load or store touches the first `n <= L` elements only, and a partial load
/// gives zero in the other lanes.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;
    /// Its number of lanes: 8 or 16.
    const L: usize;
    /// Rows of X in a tile of a matrix product (by four rows of W): as many accumulators as the registers hold.
    const PANEL: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `L` elements are readable.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `n` elements are readable.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `L` elements are writable.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `n` elements are writable.
    unsafe fn store_part(self, p: *mut f32, v: Self::V, n: usize);
    /// # Safety
    /// `L` elements are readable.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// # Safety
    /// `L` elements are readable.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// `L` elements are readable.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    /// Lane i takes element `2 i + ODD` of `2 L` elements.
    /// # Safety
    /// `2 L` elements are readable.
    unsafe fn load_bf16_alternate<const ODD: bool>(self, p: *const bf16) -> Self::V;

    /// Asks for the cache line at `p`, which may be any address.
    fn prefetch<T>(self, p: *const T);
    /// The same, for the L2 cache only.
    fn prefetch_far<T>(self, p: *const T);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, in one rounding where the processor can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for integral `n` in -126..=127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// `yes` where `a > b` (false for NaN), else `no`.
    fn if_gt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// Lanes `from..to` keep `a`, the others become `b`.
    fn keep(self, a: Self::V, from: usize, to: usize, b: Self::V) -> Self::V;
    /// The sums of four vectors. Each is summed in halves: lane i + lane i+L/2, and so on down to one.
    fn hsum4(self, v: [Self::V; 4]) -> [f32; 4];
    /// The largest lane. No lane is NaN, or the result is some lane.
    fn hmax(self, v: Self::V) -> f32;

    /// The sum of one vector, in the order of [`Simd::hsum4`].
    #[inline(always)]
    fn hsum(self, v: Self::V) -> f32 {
        let zero = self.splat(0.0);
        self.hsum4([v, zero, zero, zero])[0]
    }

    /// `L` elements from the start of a slice.
    #[inline(always)]
    fn of(self, x: &[f32]) -> Self::V {
        assert!(x.len() >= Self::L);
        // SAFETY: checked.
        unsafe { self.load(x.as_ptr()) }
    }

    /// The elements of a slice shorter than a vector, then zeros.
    #[inline(always)]
    fn of_part(self, x: &[f32]) -> Self::V {
        assert!(x.len() <= Self::L);
        // SAFETY: reads exactly the slice.
        unsafe { self.load_part(x.as_ptr(), x.len()) }
    }

    /// To the first `L` elements of a slice.
    #[inline(always)]
    fn to(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() >= Self::L);
        // SAFETY: checked.
        unsafe { self.store(x.as_mut_ptr(), v) }
    }

    /// The first lanes to a slice shorter than a vector.
    #[inline(always)]
    fn to_part(self, x: &mut [f32], v: Self::V) {
        assert!(x.len() <= Self::L);
        // SAFETY: writes exactly the slice.
        unsafe { self.store_part(x.as_mut_ptr(), v, x.len()) }
    }
}

/// Something to run on one instruction set.
pub(crate) trait Kernel {
    /// Must be `#[inline(always)]`.
    fn run<S: Simd>(self, s: S);
}

/// [`Simd::PANEL`] of an instruction set.
pub(crate) fn panel_rows(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::Avx512::PANEL,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::Avx2::PANEL,
        _ => portable::Portable::PANEL,
    }
}

/// Runs a kernel with the instructions of `isa`, which must be available (every [`super::Cpu`] checks its own).
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        // SAFETY: the processor has these features: `Cpu` refuses an instruction set that is not available.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        _ => kernel.run(portable::Portable),
    }
}
