//! Elementwise functions of one or two inputs.

use super::super::operands::SharedRows;
use super::super::simd::{self, Activation, Apply, Function, Simd, function};
use super::super::{Cpu, KernelError, Rows, RowsMut};
use super::{ByRow, by_row};

/// `out = f(a, b)`; without `a`, in place: `out = f(out, b)`. Without `b`, that is `a` too.
struct Map<'a, F> {
    f: F,
    a: Option<Rows<'a>>,
    b: Option<Rows<'a>>,
    out: SharedRows,
}

impl<F: Function> ByRow for Map<'_, F> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let out = unsafe { self.out.row(row) };
        let a = self.a.map(|a| a.row(row));
        let b = self.b.map(|b| b.row(row));
        let n = out.len();
        let mut i = 0;
        while i + S::L <= n {
            let x = match a {
                Some(a) => s.of(&a[i..]),
                None => s.of(&out[i..]),
            };
            let y = if let Some(b) = b { s.of(&b[i..]) } else { x };
            s.to(&mut out[i..], self.f.call(s, x, y, x));
            i += S::L;
        }
        if i < n {
            let x = match a {
                Some(a) => s.of_part(&a[i..]),
                None => s.of_part(&out[i..]),
            };
            let y = if let Some(b) = b { s.of_part(&b[i..]) } else { x };
            s.to_part(&mut out[i..], self.f.call(s, x, y, x));
        }
    }
}

fn map<F: Function>(
    cpu: &Cpu,
    f: F,
    a: Option<(&'static str, Rows<'_>)>,
    b: Option<(&'static str, Rows<'_>)>,
    name: &'static str,
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    out.check(name)?;
    for (name, operand) in [a, b].into_iter().flatten() {
        operand.check_shape(name, out.rows, out.cols)?;
    }
    let (rows, cols) = (out.rows, out.cols);
    by_row(cpu, rows, cols, &Map { f, a: a.map(|a| a.1), b: b.map(|b| b.1), out: out.share() });
    Ok(())
}

function!(Gate { activation: Activation }, |self, s, a, b, _c| s.mul(simd::apply(s, self.activation, a), b));
function!(Add {}, |self, s, a, b, _c| s.add(a, b));
function!(Mul {}, |self, s, a, b, _c| s.mul(a, b));
function!(pub(super) Scale { factor: f32 }, |self, s, a, _b, _c| s.mul(a, s.splat(self.factor)));
function!(Softcap { cap: f32 }, |self, s, a, _b, _c| {
    let cap = s.splat(self.cap);
    s.mul(cap, simd::tanh(s, s.div(a, cap)))
});

/// `x = act(x)`
pub fn activate(cpu: &Cpu, activation: Activation, x: RowsMut<'_>) -> Result<(), KernelError> {
    map(cpu, Apply { activation }, None, None, "x", x)
}

/// `out = act(x)`
pub fn activate_to(cpu: &Cpu, activation: Activation, x: Rows<'_>, out: RowsMut<'_>) -> Result<(), KernelError> {
    map(cpu, Apply { activation }, Some(("x", x)), None, "out", out)
}

/// `out = act(gate) * up`
pub fn gated(
    cpu: &Cpu,
    activation: Activation,
    gate: Rows<'_>,
    up: Rows<'_>,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    map(cpu, Gate { activation }, Some(("gate", gate)), Some(("up", up)), "out", out)
}

/// `out = a + b`
pub fn add(cpu: &Cpu, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>) -> Result<(), KernelError> {
    map(cpu, Add {}, Some(("a", a)), Some(("b", b)), "out", out)
}

/// `out = a * b`
pub fn mul(cpu: &Cpu, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>) -> Result<(), KernelError> {
    map(cpu, Mul {}, Some(("a", a)), Some(("b", b)), "out", out)
}

/// `x += y`
pub fn add_assign(cpu: &Cpu, x: RowsMut<'_>, y: Rows<'_>) -> Result<(), KernelError> {
    map(cpu, Add {}, None, Some(("y", y)), "x", x)
}

/// `x *= factor`
pub fn scale(cpu: &Cpu, factor: f32, x: RowsMut<'_>) -> Result<(), KernelError> {
    map(cpu, Scale { factor }, None, None, "x", x)
}

/// `x = cap * tanh(x / cap)`
pub fn softcap(cpu: &Cpu, cap: f32, x: RowsMut<'_>) -> Result<(), KernelError> {
    if !(cap > 0.0 && cap.is_finite()) {
        let why = "must be positive and finite";
        return Err(KernelError::Option { argument: "cap", got: cap.to_string(), why });
    }
    map(cpu, Softcap { cap }, None, None, "x", x)
}
