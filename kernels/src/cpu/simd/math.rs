//! exp, tanh, erf and the activations, on vectors. Branch-free, so a lane's result depends on its input alone: the same
//! in a full vector and in a tail. Errors are within about 2 units in the last place of f32.

use super::{Simd, function};

/// An elementwise function between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x
    Identity,
    /// max(x, 0)
    Relu,
    /// max(x, 0)²
    Relu2,
    /// x / (1 + e^-x)
    Silu,
    /// x/2 (1 + erf(x/√2))
    GeluErf,
    /// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
    GeluTanh,
    /// x / (1 + e^-1.702x)
    QuickGelu,
    /// tanh(x)
    Tanh,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// e^x
    Exp,
    /// ln(1 + e^x)
    Softplus,
}

/// A polynomial by Horner's rule, highest coefficient first.
#[inline(always)]
fn poly<S: Simd>(s: S, x: S::V, coefficients: &[f32]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// e^x; 0 below -104 and infinity above 88.73; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Constants first: min and max give their second operand for a NaN.
    let clamped = s.max(s.splat(-150.0), s.min(s.splat(130.0), x));
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first short enough for an exact product.
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let p = poly(s, r, &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_5e-2, 1.666_666_5e-1, 0.5]);
    let one = s.splat(1.0);
    let e = s.add(s.fma(p, s.mul(r, r), r), one);
    // In two steps, so that neither factor overflows or is denormal (n is between -217 and 188).
    let half = s.round(s.mul(n, s.splat(0.5)));
    s.mul(s.mul(e, s.pow2(half)), s.pow2(s.sub(n, half)))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// tanh(x).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let magnitude = s.abs(x);
    let square = s.mul(x, x);
    let p = poly(s, square, &[-5.704_988_7e-3, 2.063_903_6e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let small = s.fma(s.mul(p, square), x, x);
    let e = exp(s, s.add(magnitude, magnitude));
    let large = s.copysign(s.sub(one, s.div(s.splat(2.0), s.add(e, one))), x);
    s.if_gt(magnitude, s.splat(0.625), large, small)
}

/// The error function, after N. Juffa: a polynomial near zero, 1 - e^(polynomial) elsewhere.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    // erf is 1 in f32 from 4 on; beyond about 10 the polynomial would turn round.
    let t = s.min(s.splat(5.0), s.abs(x));
    let square = s.mul(t, t);
    let high = s.fma(s.splat(-1.728_534_7e-5), t, s.splat(3.831_971_3e-4));
    let low = s.fma(s.splat(-3.883_964_4e-3), t, s.splat(2.425_462_2e-2));
    let r = s.fma(high, square, low);
    let r = s.fma(r, t, s.splat(-1.067_778_8e-1));
    let r = s.fma(r, t, s.splat(-6.348_467_5e-1));
    let r = s.fma(r, t, s.splat(-1.287_175_1e-1));
    let r = s.fma(r, t, s.sub(s.splat(0.0), t));
    let large = s.copysign(s.sub(s.splat(1.0), exp(s, r)), x);
    let p = poly(
        s,
        square,
        &[-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let small = s.fma(p, x, x);
    s.if_gt(s.abs(x), s.splat(0.927_734_4), large, small)
}

/// ln(1 + e^x) without overflow: max(x, 0) + ln1p(e^-|x|).
#[inline(always)]
fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let z = exp(s, s.sub(zero, s.abs(x)));
    // ln(1 + z) = 2 atanh(z / (2 + z)), z/(2+z) <= 1/3.
    let q = s.div(z, s.add(s.splat(2.0), z));
    let square = s.mul(q, q);
    let p = poly(
        s,
        square,
        &[1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0, 1.0],
    );
    let positive = s.if_gt(x, zero, x, zero);
    s.fma(s.add(q, q), p, positive)
}

/// One activation.
#[inline(always)]
pub(crate) fn apply<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let half = s.mul(x, s.splat(0.5));
    match activation {
        Activation::Identity => x,
        Activation::Relu => s.max(zero, x),
        Activation::Relu2 => {
            let positive = s.max(zero, x);
            s.mul(positive, positive)
        }
        Activation::Silu => s.div(x, s.add(s.splat(1.0), exp(s, s.sub(zero, x)))),
        Activation::QuickGelu => s.div(x, s.add(s.splat(1.0), exp(s, s.mul(x, s.splat(-1.702))))),
        Activation::GeluErf => {
            let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            s.fma(half, e, half)
        }
        Activation::GeluTanh => {
            let cube = s.mul(s.mul(x, x), x);
            let inner = s.mul(s.splat(0.797_884_6), s.fma(cube, s.splat(0.044715), x));
            s.fma(half, tanh(s, inner), half)
        }
        Activation::Tanh => tanh(s, x),
        Activation::Sigmoid => sigmoid(s, x),
        Activation::Exp => exp(s, x),
        Activation::Softplus => softplus(s, x),
    }
}

function!(
    /// An activation as a function.
    pub(crate) Apply { activation: Activation },
    |self, s, a, _b, _c| apply(s, self.activation, a)
);
