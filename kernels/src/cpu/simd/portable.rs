//! Plain Rust: 8 lanes in an array, which the compiler maps to what the target's baseline has (SSE2, NEON, ...).

use half::{bf16, f16};

use super::Simd;

/// Needs nothing from the processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Eight lanes.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(crate) struct V8([f32; 8]);

#[inline(always)]
fn map2(a: V8, b: V8, f: impl Fn(f32, f32) -> f32) -> V8 {
    V8(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

/// Where the baseline has no fused instruction, the fused function would be a slow library call.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// 1.5 * 2^23: adding it to a small float leaves the nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

impl Simd for Portable {
    type V = V8;
    const L: usize = 8;
    const PANEL: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> V8 {
        V8([x; 8])
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V8 {
        // SAFETY: the caller vouches for 8 elements; f32 arrays have the alignment of f32.
        V8(unsafe { p.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> V8 {
        // SAFETY: the caller vouches for `n` elements.
        V8(std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V8) {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { p.cast::<[f32; 8]>().write(v.0) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, v: V8, n: usize) {
        for (i, x) in v.0.into_iter().take(n).enumerate() {
            // SAFETY: the caller vouches for `n` elements.
            unsafe { p.add(i).write(x) }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> V8 {
        // SAFETY: the caller vouches for 8 elements.
        V8(std::array::from_fn(|i| unsafe { *p.add(i) }.to_f32()))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> V8 {
        // SAFETY: the caller vouches for 8 elements.
        V8(std::array::from_fn(|i| f32::from(unsafe { *p.add(i) })))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> V8 {
        // SAFETY: the caller vouches for 8 elements; bytes have no alignment.
        let bytes = unsafe { p.cast::<[i8; 8]>().read() };
        V8(std::array::from_fn(|i| f32::from(bytes[i])))
    }
    #[inline(always)]
    unsafe fn load_bf16_alternate<const ODD: bool>(self, p: *const bf16) -> V8 {
        V8(std::array::from_fn(|i| {
            // SAFETY: the caller vouches for 16 elements.
            let bits = unsafe { *p.add(2 * i + usize::from(ODD)) }.to_bits();
            f32::from_bits(u32::from(bits) << 16)
        }))
    }
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    #[inline(always)]
    fn prefetch_far<T>(self, _: *const T) {}
    #[inline(always)]
    fn add(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: V8, b: V8, c: V8) -> V8 {
        V8(std::array::from_fn(|i| mul_add(a.0[i], b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: V8, b: V8) -> V8 {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: V8) -> V8 {
        V8(a.0.map(f32::abs))
    }
    #[inline(always)]
    fn copysign(self, a: V8, b: V8) -> V8 {
        map2(a, b, f32::copysign)
    }
    #[inline(always)]
    fn round(self, a: V8) -> V8 {
        // From 2^22 on the trick fails, but there the callers' arguments are clamped or their results unused.
        V8(a.0.map(|x| if x.abs() < 4_194_304.0 { (x + MAGIC) - MAGIC } else { x }))
    }
    #[inline(always)]
    fn pow2(self, n: V8) -> V8 {
        V8(n.0.map(|n| {
            let low = (n + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits());
            f32::from_bits(low.wrapping_add(127) << 23)
        }))
    }
    #[inline(always)]
    fn if_gt(self, a: V8, b: V8, yes: V8, no: V8) -> V8 {
        V8(std::array::from_fn(|i| if a.0[i] > b.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn keep(self, a: V8, from: usize, to: usize, b: V8) -> V8 {
        V8(std::array::from_fn(|i| if (from..to).contains(&i) { a.0[i] } else { b.0[i] }))
    }
    #[inline(always)]
    fn hsum4(self, v: [V8; 4]) -> [f32; 4] {
        v.map(|V8(x)| {
            let h: [f32; 4] = std::array::from_fn(|i| x[i] + x[i + 4]);
            (h[0] + h[2]) + (h[1] + h[3])
        })
    }
    #[inline(always)]
    fn hmax(self, v: V8) -> f32 {
        v.0.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}
