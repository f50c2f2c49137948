//! Rows by index, and what is done to logits: softmax and argmax.

use super::super::error::{check_eq, check_len};
use super::super::operands::SharedRows;
use super::super::simd::{self, Element, Simd, map_in_place};
use super::super::{Cpu, KernelError, Rows, RowsMut, WeightRef};
use super::elementwise::Scale;
use super::{ByRow, by_row};

fn check_index(argument: &'static str, index: &[u32], limit: usize) -> Result<(), KernelError> {
    match index.iter().position(|&i| i as usize >= limit) {
        None => Ok(()),
        Some(place) => Err(KernelError::Index { argument, place, index: index[place].into(), limit }),
    }
}

struct Embed<'a> {
    table: WeightRef<'a>,
    ids: &'a [u32],
    dim: usize,
    out: SharedRows,
}

impl ByRow for Embed<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let out = unsafe { self.out.row(row) };
        let from = self.ids[row] as usize * self.dim;
        match self.table {
            WeightRef::F32(w) => out.copy_from_slice(&w[from..][..self.dim]),
            WeightRef::Bf16(w) => widen(s, &w[from..][..self.dim], out),
            WeightRef::F16(w) => widen(s, &w[from..][..self.dim], out),
            // Refused by `embed`.
            WeightRef::Quantised(_) => {}
        }
    }
}

/// Widens a row; exact, so vector body and scalar tail agree.
#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, x: &[E], out: &mut [f32]) {
    let mut from = x.chunks_exact(S::L);
    let mut to = out.chunks_exact_mut(S::L);
    for (x, y) in (&mut from).zip(&mut to) {
        // SAFETY: the chunk has L elements.
        s.to(y, unsafe { E::load(s, x.as_ptr()) });
    }
    for (x, y) in from.remainder().iter().zip(to.into_remainder()) {
        *y = x.widen();
    }
}

/// `out[i] = table[ids[i]]`: `table` is `[vocab, out.cols]`, `out` is `[ids.len(), dim]`.
pub fn embed(cpu: &Cpu, table: WeightRef<'_>, ids: &[u32], mut out: RowsMut<'_>) -> Result<(), KernelError> {
    out.check_shape("out", ids.len(), out.cols)?;
    let dim = out.cols;
    if dim == 0 || !table.len().is_multiple_of(dim) {
        let why = "must divide the elements of table";
        return Err(KernelError::Option { argument: "out.cols", got: dim.to_string(), why });
    }
    if table.dtype().is_quantised() {
        let why = "a table is not quantised";
        return Err(KernelError::Dtype { argument: "table", got: table.dtype().name(), why });
    }
    check_index("ids", ids, table.len() / dim)?;
    by_row(cpu, ids.len(), dim, &Embed { table, ids, dim, out: out.share() });
    Ok(())
}

struct Gather<'a> {
    x: Rows<'a>,
    index: &'a [u32],
    out: SharedRows,
}

impl ByRow for Gather<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, _: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        unsafe { self.out.row(row) }.copy_from_slice(self.x.row(self.index[row] as usize));
    }
}

/// `out[i] = x[index[i]]`
pub fn gather_rows(cpu: &Cpu, x: Rows<'_>, index: &[u32], mut out: RowsMut<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    out.check_shape("out", index.len(), x.cols)?;
    check_index("index", index, x.rows)?;
    by_row(cpu, index.len(), x.cols, &Gather { x, index, out: out.share() });
    Ok(())
}

struct Softmax<'a> {
    /// Copied to `out` first.
    x: Option<Rows<'a>>,
    width: usize,
    out: SharedRows,
}

impl ByRow for Softmax<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let out = unsafe { self.out.row(row) };
        if let Some(x) = self.x {
            out.copy_from_slice(x.row(row));
        }
        for part in out.chunks_exact_mut(self.width) {
            Self::part(s, part);
        }
    }
}

impl Softmax<'_> {
    #[inline(always)]
    fn part<S: Simd>(s: S, x: &mut [f32]) {
        let low = s.splat(f32::NEG_INFINITY);
        let mut max = low;
        let mut chunks = x.chunks_exact(S::L);
        for chunk in &mut chunks {
            max = s.max(max, s.of(chunk));
        }
        let tail = chunks.remainder();
        if !tail.is_empty() {
            max = s.max(max, s.keep(s.of_part(tail), 0, tail.len(), low));
        }
        let max = s.splat(s.hmax(max));
        let mut sum = s.splat(0.0);
        let mut chunks = x.chunks_exact_mut(S::L);
        for chunk in &mut chunks {
            let e = simd::exp(s, s.sub(s.of(chunk), max));
            sum = s.add(sum, e);
            s.to(chunk, e);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let e = simd::exp(s, s.sub(s.of_part(tail), max));
            sum = s.add(sum, s.keep(e, 0, tail.len(), s.splat(0.0)));
            s.to_part(tail, e);
        }
        map_in_place(s, x, &Scale { factor: 1.0 / s.hsum(sum) });
    }
}

/// Softmax over the columns of every row, in place. A row needs at least one finite element.
pub fn softmax(cpu: &Cpu, mut x: RowsMut<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    let (rows, cols) = (x.rows, x.cols);
    if cols > 0 {
        by_row(cpu, rows, cols, &Softmax { x: None, width: cols, out: x.share() });
    }
    Ok(())
}

/// `out = softmax(x)` over every `width` columns of every row.
pub fn softmax_to(cpu: &Cpu, x: Rows<'_>, width: usize, mut out: RowsMut<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    out.check_shape("out", x.rows, x.cols)?;
    if x.cols == 0 {
        return Ok(());
    }
    super::check_parts(width, x.cols)?;
    by_row(cpu, x.rows, x.cols, &Softmax { x: Some(x), width, out: out.share() });
    Ok(())
}

struct Argmax<'a> {
    x: Rows<'a>,
    out: *mut u32,
}

// SAFETY: `out` is written by each row at its own index only.
unsafe impl Sync for Argmax<'_> {}

impl ByRow for Argmax<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        let x = self.x.row(row);
        // First the largest value, then where it stands first.
        let low = s.splat(f32::NEG_INFINITY);
        let mut max = low;
        let mut chunks = x.chunks_exact(S::L);
        for chunk in &mut chunks {
            max = s.max(s.of(chunk), max);
        }
        let mut best = s.hmax(max);
        for &v in chunks.remainder() {
            best = if v > best { v } else { best };
        }
        let at = x.iter().position(|&v| v == best).unwrap_or(0);
        // SAFETY: one element for every row (checked by the entry), each written once.
        unsafe { self.out.add(row).write(at as u32) }
    }
}

/// The column of the largest element of every row; the first of equal ones. NaNs are passed over; a row of nothing but
/// NaN gives 0.
pub fn argmax(cpu: &Cpu, x: Rows<'_>, out: &mut [u32]) -> Result<(), KernelError> {
    x.check("x")?;
    check_eq("out", "length", x.rows, out.len())?;
    check_len("x", usize::from(x.rows > 0), x.cols)?;
    by_row(cpu, x.rows, x.cols, &Argmax { x, out: out.as_mut_ptr() });
    Ok(())
}
