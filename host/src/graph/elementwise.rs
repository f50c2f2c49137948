//! What every elementwise op does to one element: the one place where the arithmetic is. Executors and the folding of
//! constants call it, so an expression gives the same bits whether it is computed at load or in a step. Shapes and
//! broadcasting are the callers'.

use candle_core::cpu::erf::erf_f32;
use plugin_api::Op;

/// The function of a one-input op on floats.
pub(crate) fn float_unary(op: &Op) -> Option<fn(f32) -> f32> {
    Some(match op {
        Op::Neg => |x| -x,
        Op::Abs => f32::abs,
        Op::Sign => |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x // zero keeps its sign, NaN stays
            }
        },
        Op::Exp => f32::exp,
        Op::Log => f32::ln,
        Op::Sqrt => f32::sqrt,
        Op::Rsqrt => |x| 1.0 / x.sqrt(),
        Op::Sin => f32::sin,
        Op::Cos => f32::cos,
        Op::Tanh => f32::tanh,
        Op::Sigmoid => |x| 1.0 / (1.0 + (-x).exp()),
        Op::Erf => erf_f32, // libm's erff: within one unit in the last place
        Op::Floor => f32::floor,
        Op::Ceil => f32::ceil,
        Op::Round => f32::round_ties_even,
        _ => return None,
    })
}

/// The function of a one-input op on integers; arithmetic wraps.
pub(crate) fn int_unary(op: &Op) -> Option<fn(i64) -> i64> {
    Some(match op {
        Op::Neg => i64::wrapping_neg,
        Op::Abs => i64::wrapping_abs,
        Op::Sign => i64::signum,
        _ => return None,
    })
}

/// The function of a two-input op on floats.
pub(crate) fn float_binary(op: &Op) -> Option<fn(f32, f32) -> f32> {
    Some(match op {
        Op::Add => |a, b| a + b,
        Op::Sub => |a, b| a - b,
        Op::Mul => |a, b| a * b,
        Op::Div => |a, b| a / b,
        Op::Pow => |a, b| f64::from(a).powf(f64::from(b)) as f32, // powf of f32 differs between C libraries
        Op::Max => max,
        Op::Min => min,
        Op::Rem => |a, b| {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
        },
        _ => return None,
    })
}

pub(crate) type IntBinary = fn(i64, i64) -> Result<i64, String>;

/// The function of a two-input op on integers; sums and products wrap.
pub(crate) fn int_binary(op: &Op) -> Option<IntBinary> {
    Some(match op {
        Op::Add => |a, b| Ok(a.wrapping_add(b)),
        Op::Sub => |a, b| Ok(a.wrapping_sub(b)),
        Op::Mul => |a, b| Ok(a.wrapping_mul(b)),
        Op::Div => floor_div,
        Op::Max => |a, b| Ok(a.max(b)),
        Op::Min => |a, b| Ok(a.min(b)),
        Op::Rem => |a, b| Ok(a.wrapping_sub(floor_div(a, b)?.wrapping_mul(b))),
        _ => return None,
    })
}

/// The larger one; NaN if one is.
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

/// The smaller one; NaN if one is.
pub(crate) fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() || a < b { a } else { b }
}

fn floor_div(a: i64, b: i64) -> Result<i64, String> {
    if b == 0 {
        return Err(format!("the integer {a} is divided by 0"));
    }
    let (quotient, rest) = (a.wrapping_div(b), a.wrapping_rem(b));
    Ok(if rest != 0 && (rest < 0) != (b < 0) { quotient - 1 } else { quotient })
}

/// The function of a comparison; every comparison with NaN is false but `ne`.
pub(crate) fn comparison<E: PartialOrd>(op: &Op) -> Option<fn(E, E) -> bool> {
    Some(match op {
        Op::Eq => |a, b| a == b,
        Op::Ne => |a, b| a != b,
        Op::Lt => |a, b| a < b,
        Op::Le => |a, b| a <= b,
        Op::Gt => |a, b| a > b,
        Op::Ge => |a, b| a >= b,
        _ => return None,
    })
}
