//! Rotary position embedding. The tables are the caller's: one row for each token, already gathered by position and
//! scaled as the model asks.

use super::super::error::check_eq;
use super::super::operands::SharedRows;
use super::super::simd::Simd;
use super::super::{Cpu, KernelError, Rows, RowsMut};
use super::{ByRow, by_row};

/// Which two dimensions make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// i and i + rotary_dims / 2 (Llama as in transformers, GPT-NeoX).
    Half,
    /// 2 i and 2 i + 1 (GPT-J, Cohere).
    Interleaved,
}

/// What to rotate by how much.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Elements of a head.
    pub head_dim: usize,
    /// The first dimensions of each head, which are rotated: even, at most `head_dim`. The others are kept.
    pub rotary_dims: usize,
    /// The pairs.
    pub style: RopeStyle,
    /// `[T, rotary_dims / 2]`
    pub cos: &'a [f32],
    /// `[T, rotary_dims / 2]`
    pub sin: &'a [f32],
}

impl Rope<'_> {
    fn check(&self, rows: usize, cols: usize) -> Result<(), KernelError> {
        let option = |argument, got: usize, why| Err(KernelError::Option { argument, got: got.to_string(), why });
        if self.head_dim == 0 || !cols.is_multiple_of(self.head_dim) {
            return option("rope.head_dim", self.head_dim, "must divide the columns of x");
        }
        if !self.rotary_dims.is_multiple_of(2) || self.rotary_dims > self.head_dim {
            return option("rope.rotary_dims", self.rotary_dims, "must be even and at most head_dim");
        }
        let table = rows.saturating_mul(self.rotary_dims / 2);
        check_eq("rope.cos", "length (rows * rotary_dims / 2)", table, self.cos.len())?;
        check_eq("rope.sin", "length (rows * rotary_dims / 2)", table, self.sin.len())
    }

    /// Rotates one head in place.
    #[inline(always)]
    fn head<S: Simd>(&self, s: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = self.rotary_dims / 2;
        match self.style {
            RopeStyle::Half => {
                let (low, rest) = head.split_at_mut(half);
                let high = &mut rest[..half];
                let mut i = 0;
                while i + S::L <= half {
                    let (a, b) = rotate(s, s.of(&low[i..]), s.of(&high[i..]), s.of(&cos[i..]), s.of(&sin[i..]));
                    s.to(&mut low[i..], a);
                    s.to(&mut high[i..], b);
                    i += S::L;
                }
                if i < half {
                    let (c, z) = (s.of_part(&cos[i..]), s.of_part(&sin[i..]));
                    let (a, b) = rotate(s, s.of_part(&low[i..]), s.of_part(&high[i..]), c, z);
                    s.to_part(&mut low[i..], a);
                    s.to_part(&mut high[i..], b);
                }
            }
            RopeStyle::Interleaved => {
                for (pair, (c, z)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * c - b * z;
                    pair[1] = b * c + a * z;
                }
            }
        }
    }
}

/// (a cos - b sin, b cos + a sin)
#[inline(always)]
fn rotate<S: Simd>(s: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.add(s.mul(b, cos), s.mul(a, sin)))
}

struct Rotate<'a> {
    rope: &'a Rope<'a>,
    /// `None`: in place.
    x: Option<Rows<'a>>,
    out: SharedRows,
}

impl ByRow for Rotate<'_> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let out = unsafe { self.out.row(row) };
        if let Some(x) = &self.x {
            out.copy_from_slice(x.row(row));
        }
        let half = self.rope.rotary_dims / 2;
        let (cos, sin) = (&self.rope.cos[row * half..][..half], &self.rope.sin[row * half..][..half]);
        for head in out.chunks_exact_mut(self.rope.head_dim) {
            self.rope.head(s, head, cos, sin);
        }
    }
}

/// Rotates every head of `x`, `[T, heads * head_dim]`, in place.
pub fn rope(cpu: &Cpu, mut x: RowsMut<'_>, rope: &Rope<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    rope.check(x.rows, x.cols)?;
    let (rows, cols) = (x.rows, x.cols);
    by_row(cpu, rows, cols, &Rotate { rope, x: None, out: x.share() });
    Ok(())
}

/// As [`rope`], from `x` to `out`.
pub fn rope_to(cpu: &Cpu, x: Rows<'_>, rope: &Rope<'_>, mut out: RowsMut<'_>) -> Result<(), KernelError> {
    x.check("x")?;
    out.check_shape("out", x.rows, x.cols)?;
    rope.check(x.rows, x.cols)?;
    by_row(cpu, x.rows, x.cols, &Rotate { rope, x: Some(x), out: out.share() });
    Ok(())
}
