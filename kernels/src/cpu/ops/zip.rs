//! Arithmetic of two operands, either of which may be stretched over the columns or be the same for every row.

use super::super::error::{check_eq, check_len};
use super::super::operands::SharedRows;
use super::super::simd::{Function, Simd, function};
use super::super::{Cpu, KernelError, RowsMut};
use super::{ByRow, by_row};

/// What is computed of a and b.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
}

/// An operand: row `r` begins at `r * stride`; 0: every row is the same.
#[derive(Debug, Clone, Copy)]
pub struct ZipOperand<'a> {
    /// From the first element of row 0 on.
    pub data: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
}

/// Which elements of a row of the operands make a row of the result. Made once, for many rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipRuns {
    runs: Vec<Run>,
    /// Columns of the result.
    cols: usize,
    /// Elements that a row of each operand has.
    reach: [usize; 2],
}

/// Consecutive columns of the result: from one place on, or of one element, in each operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    len: u32,
    at: [u32; 2],
    moves: [bool; 2],
}

impl ZipRuns {
    /// From the column of either operand that each column of the result reads.
    pub fn new(columns: impl IntoIterator<Item = [u32; 2]>) -> Self {
        let mut out = ZipRuns { runs: vec![], cols: 0, reach: [0; 2] };
        for at in columns {
            out.cols += 1;
            for i in 0..2 {
                out.reach[i] = out.reach[i].max(at[i] as usize + 1);
            }
            let grown = out.runs.last_mut().is_some_and(|run| run.take(at));
            if !grown {
                out.runs.push(Run { len: 1, at, moves: [false; 2] });
            }
        }
        out
    }
}

impl Run {
    /// Whether `at` are the operands' columns after the run's last; then it is one longer.
    fn take(&mut self, at: [u32; 2]) -> bool {
        let moves = [at[0] != self.at[0], at[1] != self.at[1]];
        let follows = |i: usize| at[i] == self.at[i] + if moves[i] { self.len } else { 0 };
        let fits = follows(0) && follows(1) && (self.len == 1 || moves == self.moves);
        if fits {
            self.moves = moves;
            self.len += 1;
        }
        fits
    }
}

function!(Add {}, |self, s, a, b, _c| s.add(a, b));
function!(Sub {}, |self, s, a, b, _c| s.sub(a, b));
function!(Mul {}, |self, s, a, b, _c| s.mul(a, b));
function!(Div {}, |self, s, a, b, _c| s.div(a, b));

/// `out = a op b`, row by row, with the columns that `runs` say.
pub fn zip(
    cpu: &Cpu,
    op: Binary,
    a: ZipOperand<'_>,
    b: ZipOperand<'_>,
    runs: &ZipRuns,
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    out.check("out")?;
    check_eq("runs", "columns", out.cols, runs.cols)?;
    for (name, operand, reach) in [("a", &a, runs.reach[0]), ("b", &b, runs.reach[1])] {
        let last = out.rows.saturating_sub(1).saturating_mul(operand.stride);
        check_len(name, if out.rows == 0 { 0 } else { last.saturating_add(reach) }, operand.data.len())?;
    }
    let (rows, cols, out) = (out.rows, out.cols, out.share());
    match op {
        Binary::Add => by_row(cpu, rows, cols, &Zip { f: Add {}, a, b, runs, out }),
        Binary::Sub => by_row(cpu, rows, cols, &Zip { f: Sub {}, a, b, runs, out }),
        Binary::Mul => by_row(cpu, rows, cols, &Zip { f: Mul {}, a, b, runs, out }),
        Binary::Div => by_row(cpu, rows, cols, &Zip { f: Div {}, a, b, runs, out }),
    }
    Ok(())
}

struct Zip<'a, F> {
    f: F,
    a: ZipOperand<'a>,
    b: ZipOperand<'a>,
    runs: &'a ZipRuns,
    out: SharedRows,
}

impl<F: Function> ByRow for Zip<'_, F> {
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: every row is given to one thread, once.
        let mut out = unsafe { self.out.row(row) };
        let (a, b) = (&self.a.data[row * self.a.stride..], &self.b.data[row * self.b.stride..]);
        for run in &self.runs.runs {
            let (now, rest) = out.split_at_mut(run.len as usize);
            out = rest;
            let (a, b) = (&a[run.at[0] as usize..], &b[run.at[1] as usize..]);
            let (x, y) = (s.splat(a[0]), s.splat(b[0]));
            let (n, mut i) = (now.len(), 0);
            while i + S::L <= n {
                let x = if run.moves[0] { s.of(&a[i..]) } else { x };
                let y = if run.moves[1] { s.of(&b[i..]) } else { y };
                s.to(&mut now[i..], self.f.call(s, x, y, x));
                i += S::L;
            }
            if i < n {
                let x = if run.moves[0] { s.of_part(&a[i..n]) } else { x };
                let y = if run.moves[1] { s.of_part(&b[i..n]) } else { y };
                s.to_part(&mut now[i..], self.f.call(s, x, y, x));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_runs() {
        let runs = |columns: &[[u32; 2]]| ZipRuns::new(columns.iter().copied());
        let one = |len, at, moves| Run { len, at, moves };
        assert_eq!(runs(&[[0, 5], [1, 5], [2, 5]]).runs, [one(3, [0, 5], [true, false])]);
        assert_eq!(
            runs(&[[0, 0], [0, 1], [1, 0], [1, 1]]).runs,
            [one(2, [0, 0], [false, true]), one(2, [1, 0], [false, true])]
        );
        assert_eq!(runs(&[[4, 4], [4, 4]]).runs, [one(2, [4, 4], [false; 2])]);
        let backwards = runs(&[[2, 0], [1, 1], [0, 2]]);
        assert_eq!((backwards.runs.len(), backwards.reach, backwards.cols), (3, [3, 3], 3));
    }
}
