//! Everything that works row by row: norms, rotary embedding, activations, lookups, softmax.
//!
//! Rows are split over the pool when there is enough to do; a row is always computed by one thread in one order.

mod elementwise;
mod lookup;
mod norm;
mod rope;
mod zip;

pub use elementwise::{activate, activate_to, add, add_assign, gated, mul, scale, softcap};
pub use lookup::{argmax, embed, gather_rows, softmax, softmax_to};
pub use norm::{
    LayerNorm, RmsNorm, add_layer_norm, add_rms_norm, layer_norm, layer_norm_parts, rms_norm, rms_norm_parts,
};
pub use rope::{Rope, RopeStyle, rope, rope_to};
pub use zip::{Binary, ZipOperand, ZipRuns, zip};

use super::simd::{self, Kernel, Simd};
use super::{Cpu, KernelError, split};

/// Fewer elements than this are not worth a hand-over to other threads.
const PARALLEL: usize = 1 << 14;

/// Checks that rows of `cols` columns are parts of `width`.
fn check_parts(width: usize, cols: usize) -> Result<(), KernelError> {
    if width > 0 && cols.is_multiple_of(width) {
        return Ok(());
    }
    let why = "must divide the columns of x";
    Err(KernelError::Option { argument: "width", got: width.to_string(), why })
}

/// Something to do for each row on its own.
trait ByRow: Sync {
    /// Must be `#[inline(always)]`. Writes to this row's outputs only.
    fn row<S: Simd>(&self, s: S, row: usize);
}

/// Runs `work` for every row; `cols` says how much a row is.
fn by_row<W: ByRow>(cpu: &Cpu, rows: usize, cols: usize, work: &W) {
    let isa = cpu.isa();
    let part = |part, parts| simd::dispatch(isa, Rowwise { work, rows: split(rows, part, parts) });
    if rows < 2 || rows.saturating_mul(cols) < PARALLEL { part(0, 1) } else { cpu.pool().run(&part) }
}

struct Rowwise<'w, W> {
    work: &'w W,
    rows: std::ops::Range<usize>,
}

impl<W: ByRow> Kernel for Rowwise<'_, W> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows {
            self.work.row(s, row);
        }
    }
}
