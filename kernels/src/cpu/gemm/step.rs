//! What one step over k does, for each weight dtype and instruction set: load, widen, multiply, add.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::super::simd::Simd;

/// One step over `K` elements of k, in `PARTS` parts of one vector each. An accumulator is one vector of the instruction
/// set; it takes the parts in order.
pub(super) trait Step: Copy {
    /// The instruction set.
    type S: Simd;
    /// An element of W.
    type W: Copy;
    /// An element of packed X.
    type X: Copy;
    /// A vector of X or (widened) W.
    type Operand: Copy;
    /// Elements of k.
    const K: usize;
    /// Vectors of each operand.
    const PARTS: usize;
    /// A zero element of W, for padding.
    const ZERO: Self::W;

    fn simd(self) -> Self::S;
    /// # Safety
    /// `K` elements are readable at `p`; `part < PARTS`.
    unsafe fn load_w(self, p: *const Self::W, part: usize) -> Self::Operand;
    /// # Safety
    /// `K` elements are readable at `p`; `part < PARTS`.
    unsafe fn load_x(self, p: *const Self::X, part: usize) -> Self::Operand;
    fn mac(self, sum: V<Self>, x: Self::Operand, w: Self::Operand) -> V<Self>;
}

/// The accumulator of a step.
pub(super) type V<T> = <<T as Step>::S as Simd>::V;

/// Weights widened to f32. `E` is their element.
pub(super) struct Wide<S, E>(pub(super) S, pub(super) PhantomData<E>);

impl<S: Copy, E> Copy for Wide<S, E> {}
impl<S: Copy, E> Clone for Wide<S, E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

macro_rules! wide {
    ($element:ty, $zero:expr, |$s:ident, $p:ident, $part:ident| $load:expr) => {
        impl<S: Simd> Step for Wide<S, $element> {
            type S = S;
            type W = $element;
            type X = f32;
            type Operand = S::V;
            const K: usize = 2 * S::L;
            const PARTS: usize = 2;
            const ZERO: $element = $zero;

            #[inline(always)]
            fn simd(self) -> S {
                self.0
            }
            #[inline(always)]
            unsafe fn load_w(self, $p: *const $element, $part: usize) -> S::V {
                let $s = self.0;
                // SAFETY: the caller vouches for K = 2 L elements.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_x(self, p: *const f32, part: usize) -> S::V {
                // SAFETY: the caller vouches for K = 2 L elements.
                unsafe { self.0.load(p.add(part * S::L)) }
            }
            #[inline(always)]
            fn mac(self, sum: S::V, x: S::V, w: S::V) -> S::V {
                self.0.fma(x, w, sum)
            }
        }
    };
}

wide!(f32, 0.0, |s, p, part| s.load(p.add(part * S::L)));
wide!(f16, f16::ZERO, |s, p, part| s.load_f16(p.add(part * S::L)));
wide!(bf16, bf16::ZERO, |s, p, part| if part == 0 {
    s.load_bf16_alternate::<false>(p)
} else {
    s.load_bf16_alternate::<true>(p)
});

/// bf16 pairs with the dot-product instruction of AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Pairs(pub(super) super::super::simd::avx512::Avx512);

#[cfg(target_arch = "x86_64")]
impl Step for Pairs {
    type S = super::super::simd::avx512::Avx512;
    type W = bf16;
    type X = u16;
    type Operand = std::arch::x86_64::__m512bh;
    const K: usize = 32;
    const PARTS: usize = 1;
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    fn simd(self) -> Self::S {
        self.0
    }
    #[inline(always)]
    unsafe fn load_w(self, p: *const bf16, _: usize) -> Self::Operand {
        // SAFETY: 32 elements of 2 bytes are readable; the read may be unaligned. The bits are the same type's.
        unsafe { p.cast::<Self::Operand>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_x(self, p: *const u16, _: usize) -> Self::Operand {
        // SAFETY: as above.
        unsafe { p.cast::<Self::Operand>().read_unaligned() }
    }
    #[inline(always)]
    fn mac(self, sum: V<Self>, x: Self::Operand, w: Self::Operand) -> V<Self> {
        // SAFETY: the token says that the processor has AVX512-BF16.
        unsafe { std::arch::x86_64::_mm512_dpbf16_ps(sum, x, w) }
    }
}
