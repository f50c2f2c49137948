//! What closures would be for, if they could be `#[inline(always)]`: functions of vectors as values; and elements of
//! several types that load as vectors of f32.

use half::{bf16, f16};

use super::Simd;

/// A function of up to three vectors. Its scalars are its fields.
pub(crate) trait Function: Sync {
    /// Must be `#[inline(always)]`.
    fn call<S: Simd>(&self, s: S, a: S::V, b: S::V, c: S::V) -> S::V;
}

/// Defines a [`Function`]: name and fields, then its value for `|self, s, a, b, c|`.
macro_rules! function {
    ($(#[$meta:meta])* $visibility:vis $name:ident { $($field:ident: $type:ty),* },
     |$self:ident, $s:ident, $a:ident, $b:ident, $c:ident| $body:expr) => {
        $(#[$meta])*
        $visibility struct $name { $($visibility $field: $type),* }
        impl $crate::cpu::simd::Function for $name {
            #[inline(always)]
            fn call<S: $crate::cpu::simd::Simd>(&$self, $s: S, $a: S::V, $b: S::V, $c: S::V) -> S::V {
                $body
            }
        }
    };
}
pub(crate) use function;

/// `x[i] = f(x[i])`. (The other arguments of `f` are `x[i]` too.)
#[inline(always)]
pub(crate) fn map_in_place<S: Simd>(s: S, x: &mut [f32], f: &impl Function) {
    let mut chunks = x.chunks_exact_mut(S::L);
    for chunk in &mut chunks {
        let v = s.of(chunk);
        s.to(chunk, f.call(s, v, v, v));
    }
    let tail = chunks.into_remainder();
    if !tail.is_empty() {
        let v = s.of_part(tail);
        s.to_part(tail, f.call(s, v, v, v));
    }
}

/// An element of a weight or of the cache: widened to f32 exactly.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    const ZERO: Self;
    /// # Safety
    /// `L` elements are readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    fn widen(self) -> f32;
}

macro_rules! element {
    ($type:ty, $zero:expr, $load:ident) => {
        impl Element for $type {
            const ZERO: Self = $zero;
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
                // SAFETY: passed on.
                unsafe { s.$load(p) }
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                f32::from(self)
            }
        }
    };
}

element!(f32, 0.0, load);
element!(bf16, bf16::ZERO, load_bf16);
element!(f16, f16::ZERO, load_f16);
element!(i8, 0, load_i8);
