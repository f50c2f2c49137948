//! RMS norm and layer norm, alone or fused with the addition to the residual stream.

use super::super::error::check_eq;
use super::super::operands::SharedRows;
use super::super::simd::{Function, Simd, function};
use super::super::{Cpu, KernelError, Rows, RowsMut};
use super::{ByRow, by_row};

/// `x / sqrt(mean(x²) + eps) * (weight + weight_offset)`
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// As long as a row. `None`: ones (and `weight_offset` is ignored).
    pub weight: Option<&'a [f32]>,
    /// 0, or 1 for models that store `weight - 1` (Gemma).
    pub weight_offset: f32,
    /// Keeps the root away from 0.
    pub eps: f32,
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm<'a> {
    /// As long as a row. `None`: ones.
    pub weight: Option<&'a [f32]>,
    /// As long as a row. `None`: zeros.
    pub bias: Option<&'a [f32]>,
    /// Keeps the root away from 0.
    pub eps: f32,
}

function!(Sum {}, |self, s, sum, x, _c| s.add(sum, x));
function!(SumOfSquares {}, |self, s, sum, x, _c| s.fma(x, x, sum));
function!(SumOfDeviations { mean: f32 }, |self, s, sum, x, _c| {
    let deviation = s.sub(x, s.splat(self.mean));
    s.fma(deviation, deviation, sum)
});
function!(Rms { factor: f32, offset: f32 }, |self, s, x, weight, _bias| {
    s.mul(s.mul(x, s.splat(self.factor)), s.add(weight, s.splat(self.offset)))
});
function!(Layer { mean: f32, factor: f32 }, |self, s, x, weight, bias| {
    s.fma(s.mul(s.sub(x, s.splat(self.mean)), s.splat(self.factor)), weight, bias)
});
function!(AddThird {}, |self, s, a, _b, c| s.add(a, c));

/// Sums by `sum = f(sum, x[i])`: four accumulators over whole vectors, then the tail, in one order that depends on the length alone.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: &[f32], f: &impl Function) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let mut chunks = x.chunks_exact(4 * S::L);
    for chunk in &mut chunks {
        for i in 0..4 {
            let v = s.of(&chunk[i * S::L..]);
            sums[i] = f.call(s, sums[i], v, v);
        }
    }
    let mut rest = chunks.remainder().chunks_exact(S::L);
    for chunk in &mut rest {
        let v = s.of(chunk);
        sums[0] = f.call(s, sums[0], v, v);
    }
    let tail = rest.remainder();
    if !tail.is_empty() {
        // Lanes beyond the tail keep their sums.
        let v = s.of_part(tail);
        sums[1] = s.keep(f.call(s, sums[1], v, v), 0, tail.len(), sums[1]);
    }
    let [a, b, c, d] = s.hsum4(sums);
    (a + b) + (c + d)
}

/// `out[i] = f(x[i], weight[i], bias[i])`, with x in `out` already if `x` is `None`.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    x: Option<&[f32]>,
    weight: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
    f: &impl Function,
) {
    let (one, zero, n) = (s.splat(1.0), s.splat(0.0), out.len());
    let mut i = 0;
    while i + S::L <= n {
        let w = if let Some(w) = weight { s.of(&w[i..]) } else { one };
        let b = if let Some(b) = bias { s.of(&b[i..]) } else { zero };
        let v = if let Some(x) = x { s.of(&x[i..]) } else { s.of(&out[i..]) };
        s.to(&mut out[i..], f.call(s, v, w, b));
        i += S::L;
    }
    if i < n {
        let w = if let Some(w) = weight { s.of_part(&w[i..n]) } else { one };
        let b = if let Some(b) = bias { s.of_part(&b[i..n]) } else { zero };
        let v = if let Some(x) = x { s.of_part(&x[i..n]) } else { s.of_part(&out[i..n]) };
        s.to_part(&mut out[i..], f.call(s, v, w, b));
    }
}

impl RmsNorm<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, x: Option<&[f32]>, out: &mut [f32]) {
        let n = out.len() as f32;
        let squares = reduce(s, if let Some(x) = x { x } else { out }, &SumOfSquares {});
        let factor = 1.0 / (squares / n + self.eps).sqrt();
        let offset = if self.weight.is_some() { self.weight_offset } else { 0.0 };
        finish(s, x, self.weight, None, out, &Rms { factor, offset });
    }

    fn check(&self, cols: usize) -> Result<(), KernelError> {
        self.weight.map_or(Ok(()), |w| check_eq("norm.weight", "length", cols, w.len()))
    }
}

impl LayerNorm<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, x: Option<&[f32]>, out: &mut [f32]) {
        let n = out.len() as f32;
        let source = if let Some(x) = x { x } else { &*out };
        let mean = reduce(s, source, &Sum {}) / n;
        let squares = reduce(s, source, &SumOfDeviations { mean });
        let factor = 1.0 / (squares / n + self.eps).sqrt();
        finish(s, x, self.weight, self.bias, out, &Layer { mean, factor });
    }

    fn check(&self, cols: usize) -> Result<(), KernelError> {
        self.weight.map_or(Ok(()), |w| check_eq("norm.weight", "length", cols, w.len()))?;
        self.bias.map_or(Ok(()), |b| check_eq("norm.bias", "length", cols, b.len()))
    }
}

/// A norm of one row; `x` is `None` if the row is in `out`.
trait Norm: Sync {
    fn norm<S: Simd>(&self, s: S, x: Option<&[f32]>, out: &mut [f32]);
}

impl Norm for RmsNorm<'_> {
    #[inline(always)]
    fn norm<S: Simd>(&self, s: S, x: Option<&[f32]>, out: &mut [f32]) {
        self.row(s, x, out);
    }
}

impl Norm for LayerNorm<'_> {
    #[inline(always)]
    fn norm<S: Simd>(&self, s: S, x: Option<&[f32]>, out: &mut [f32]) {
        self.row(s, x, out);
    }
}

struct Plain<'a, N> {
    norm: &'a N,
    /// Columns that are normalised together.
    width: usize,
    x: Rows<'a>,
    out: SharedRows,
}

impl<N: Norm> ByRow for Plain<'_, N> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let out = unsafe { self.out.row(row) };
        for (x, out) in self.x.row(row).chunks_exact(self.width).zip(out.chunks_exact_mut(self.width)) {
            self.norm.norm(s, Some(x), out);
        }
    }
}

struct Fused<'a, N> {
    norm: &'a N,
    residual: SharedRows,
    x: Rows<'a>,
    out: SharedRows,
}

impl<N: Norm> ByRow for Fused<'_, N> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let (residual, out) = unsafe { (self.residual.row(row), self.out.row(row)) };
        finish(s, None, None, Some(self.x.row(row)), residual, &AddThird {});
        self.norm.norm(s, Some(residual), out);
    }
}

fn plain<N: Norm>(cpu: &Cpu, norm: &N, width: usize, x: Rows<'_>, mut out: RowsMut<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    out.check_shape("out", x.rows, x.cols)?;
    if x.cols == 0 {
        return Ok(());
    }
    super::check_parts(width, x.cols)?;
    by_row(cpu, x.rows, x.cols, &Plain { norm, width, x, out: out.share() });
    Ok(())
}

fn fused<N: Norm>(
    cpu: &Cpu,
    norm: &N,
    mut residual: RowsMut<'_>,
    x: Rows<'_>,
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    x.check("x")?;
    residual.check_shape("residual", x.rows, x.cols)?;
    out.check_shape("out", x.rows, x.cols)?;
    let work = Fused { norm, residual: residual.share(), x, out: out.share() };
    by_row(cpu, x.rows, x.cols, &work);
    Ok(())
}

/// `out = rms_norm(x)` for every row.
pub fn rms_norm(cpu: &Cpu, x: Rows<'_>, norm: &RmsNorm<'_>, out: RowsMut<'_>) -> Result<(), KernelError> {
    rms_norm_parts(cpu, x, x.cols, norm, out)
}

/// `out = rms_norm(x)` for every `width` columns of every row, such as the heads of `[T, heads * width]`.
pub fn rms_norm_parts(
    cpu: &Cpu,
    x: Rows<'_>,
    width: usize,
    norm: &RmsNorm<'_>,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    norm.check(width)?;
    plain(cpu, norm, width, x, out)
}

/// `residual += x; out = rms_norm(residual)` for every row, in one pass.
pub fn add_rms_norm(
    cpu: &Cpu,
    residual: RowsMut<'_>,
    x: Rows<'_>,
    norm: &RmsNorm<'_>,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    norm.check(x.cols)?;
    fused(cpu, norm, residual, x, out)
}

/// `out = layer_norm(x)` for every row.
pub fn layer_norm(cpu: &Cpu, x: Rows<'_>, norm: &LayerNorm<'_>, out: RowsMut<'_>) -> Result<(), KernelError> {
    layer_norm_parts(cpu, x, x.cols, norm, out)
}

/// `out = layer_norm(x)` for every `width` columns of every row.
pub fn layer_norm_parts(
    cpu: &Cpu,
    x: Rows<'_>,
    width: usize,
    norm: &LayerNorm<'_>,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    norm.check(width)?;
    plain(cpu, norm, width, x, out)
}

/// `residual += x; out = layer_norm(residual)` for every row, in one pass.
pub fn add_layer_norm(
    cpu: &Cpu,
    residual: RowsMut<'_>,
    x: Rows<'_>,
    norm: &LayerNorm<'_>,
    out: RowsMut<'_>,
) -> Result<(), KernelError> {
    norm.check(x.cols)?;
    fused(cpu, norm, residual, x, out)
}
