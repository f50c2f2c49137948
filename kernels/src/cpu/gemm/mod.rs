//! Linear layers: `Y = X · Wᵀ`, several weights with the same input in one call.
//!
//! Checks, packing of X and the split over threads are here; `tile` and, for many rows, `blocked` hold the inner loops,
//! `step` what one step over k does for each weight dtype and instruction set, `pack` the layouts of packed X. W is read as stored, once for each
//! block of rows of X.
//!
//! Batch invariance: an output is one vector accumulator over k in order, then one fixed horizontal sum. Tile shapes,
//! rows in the call and threads only choose *which* outputs are computed together.

mod blocked;
mod grouped;
mod integer;
mod pack;
mod quantised;
mod step;
mod tile;

use super::error::{check_eq, check_len};
use super::operands::SharedRows;
use super::simd::{self, Activation};
use super::{Cpu, Isa, KernelError, Rows, RowsMut, WeightDtype, WeightRef, split};

pub use grouped::{Groups, grouped_linear};
pub use pack::Scratch;
use pack::{Form, Panels};
pub use quantised::{CodeRow, QuantCodes, QuantFormat, Quantised, QuantisedRef};
use tile::{Part, Target};

/// In which precision products are formed. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Weights are widened exactly to f32.
    F32,
    /// X is rounded to bf16 (to nearest even), products of bf16 pairs are summed in f32. For bf16 weights only.
    Bf16,
    /// X is rounded to int8 in groups along k, each with a scale of its own; sums of a group's products are exact. For
    /// quantised weights only, and the only one for them.
    Int8,
}

impl Compute {
    /// The fast choice on this processor that loses no more than the weights' own dtype. Where the bf16 dot product is
    /// slow (Intel's runs at a quarter of the rate of f32 FMAs: half the arithmetic) or missing, that is f32.
    pub fn best_for(dtype: WeightDtype) -> Self {
        if dtype.is_quantised() {
            return Compute::Int8;
        }
        let dot = dtype == WeightDtype::Bf16 && super::features::has_fast_bf16_dot();
        if dot { Compute::Bf16 } else { Compute::F32 }
    }
}

/// One weight of a call, and the columns of the output that it gives.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// `[n, k]`, row-major.
    pub weight: WeightRef<'a>,
    /// `[n]`
    pub bias: Option<&'a [f32]>,
    /// Rows of the weight: columns of the output.
    pub n: usize,
    /// The first of its columns in the output.
    pub out_offset: usize,
    /// Applied after the bias. Only with [`Epilogue::None`].
    pub activation: Option<Activation>,
}

/// What happens to a result after bias and activation.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// It is stored.
    None,
    /// It is added to what the output holds: the residual stream, in place.
    Accumulate,
    /// It is added to the element at the same row and column of another matrix (same shape as the output), and stored.
    Add(Rows<'a>),
}

/// From this many elements of X on, packing is worth a hand-over to the other threads.
const PACK_IN_PARALLEL: usize = 1 << 16;

/// `out[.., s.out_offset..][..s.n] = x · s.weightᵀ + s.bias` for every segment `s`.
///
/// `x` is `[m, k]`; `out` is `[m, columns]` with columns for every segment; segments have the same dtype and disjoint
/// columns. Columns of no segment are left as they are. Allocates nothing.
pub fn linear(
    cpu: &Cpu,
    scratch: &mut Scratch,
    x: Rows<'_>,
    segments: &[Segment<'_>],
    compute: Compute,
    epilogue: Epilogue<'_>,
    mut out: RowsMut<'_>,
) -> Result<(), KernelError> {
    check(&x, segments, compute, &epilogue, &out)?;
    let (m, k) = (x.rows, x.cols);
    let Some(first) = segments.first() else {
        return Ok(());
    };
    if m == 0 {
        return Ok(());
    }
    let isa = isa_for(cpu, first.weight.dtype());
    let form = Form::of(isa, first.weight.dtype(), compute);
    let panels = Panels::of(m, simd::panel_rows(isa));
    let packed = scratch.take(m, k, form)?;

    let one = |part, parts| {
        let which = split(panels.count(), part, parts);
        simd::dispatch(isa, pack::Pack { x, source: pack::Source::Same, form, panels, which, to: packed });
    };
    if m * k < PACK_IN_PARALLEL {
        one(0, 1)
    } else {
        cpu.pool().run(&one)
    }

    let target = Target { out: out.share(), epilogue };
    let units: usize = segments.iter().map(|s| s.n.div_ceil(tile::UNIT)).sum();
    cpu.pool().run(&|part, parts| {
        let part = Part { packed, panels, k, segments, target, rows: None, units: split(units, part, parts) };
        run_part(isa, form, part);
    });
    Ok(())
}

/// The instruction set for weights of a dtype: sums of integers are not made with AVX-512.
fn isa_for(cpu: &Cpu, dtype: WeightDtype) -> Isa {
    match cpu.isa() {
        Isa::Avx512 if dtype.is_quantised() => Isa::Avx2,
        isa => isa,
    }
}

/// Runs one thread's share with the inner loop for this dtype and instruction set.
fn run_part(isa: Isa, form: Form, part: Part<'_>) {
    #[cfg(target_arch = "x86_64")]
    if form == Form::PairsBf16 {
        debug_assert_eq!(isa, Isa::Avx512);
        // SAFETY: this form is chosen only for Isa::Avx512, which `Cpu` has checked.
        return unsafe { simd::avx512::run(tile::Dot(part)) };
    }
    match (form, isa) {
        // SAFETY: the processor has AVX2: `Cpu` has checked it, or AVX-512, which includes it.
        #[cfg(target_arch = "x86_64")]
        (Form::Integers(_), Isa::Avx2) => unsafe { simd::avx2::run(integer::Wide(part)) },
        (Form::Integers(_), _) => simd::dispatch(Isa::Portable, integer::Plain(part)),
        _ if part.panels.all() >= blocked::LEAST_ROWS => simd::dispatch(isa, blocked::Blocked(part)),
        _ => simd::dispatch(isa, tile::Widen(part)),
    }
}

fn check(
    x: &Rows<'_>,
    segments: &[Segment<'_>],
    compute: Compute,
    epilogue: &Epilogue<'_>,
    out: &RowsMut<'_>,
) -> Result<(), KernelError> {
    x.check("x")?;
    out.check_shape("out", x.rows, out.cols)?;
    if let Epilogue::Add(other) = epilogue {
        other.check_shape("epilogue.other", x.rows, out.cols)?;
    }
    check_segments(x.cols, segments, compute, epilogue, out.cols)
}

/// Checks the weights of `k` columns each, and their places in an output of `columns`.
fn check_segments(
    k: usize,
    segments: &[Segment<'_>],
    compute: Compute,
    epilogue: &Epilogue<'_>,
    columns: usize,
) -> Result<(), KernelError> {
    for (index, segment) in segments.iter().enumerate() {
        let elements = segment.n.saturating_mul(k);
        check_eq("segment.weight", "number of elements (n * k)", elements, segment.weight.len())?;
        if let Some(bias) = segment.bias {
            check_eq("segment.bias", "length", segment.n, bias.len())?;
        }
        let end = segment.out_offset.saturating_add(segment.n);
        check_len("out", end, columns)?;
        let dtype = segment.weight.dtype();
        if dtype != segments[0].weight.dtype() {
            let why = "all segments of one call have the same dtype";
            return Err(KernelError::Dtype { argument: "segment.weight", got: dtype.name(), why });
        }
        if compute == Compute::Bf16 && dtype != WeightDtype::Bf16 {
            let why = "Compute::Bf16 needs bf16 weights; use Compute::F32";
            return Err(KernelError::Dtype { argument: "segment.weight", got: dtype.name(), why });
        }
        if (compute == Compute::Int8) != dtype.is_quantised() {
            let why = "Compute::Int8 is for quantised weights, and they need it";
            return Err(KernelError::Dtype { argument: "segment.weight", got: dtype.name(), why });
        }
        if let WeightRef::Quantised(w) = segment.weight {
            check_eq("segment.weight", "number of columns", k, w.k())?;
        }
        if segment.activation.is_some() && !matches!(epilogue, Epilogue::None) {
            let why = "needs Epilogue::None";
            return Err(KernelError::Option { argument: "segment.activation", got: "another epilogue".into(), why });
        }
        let clash = |other: &Segment<'_>| {
            other.n > 0 && segment.n > 0 && other.out_offset < end && segment.out_offset < other.out_offset + other.n
        };
        if let Some(first) = segments[..index].iter().position(clash) {
            return Err(KernelError::Overlap { argument: "segments", first, second: index });
        }
    }
    Ok(())
}

/// Where outputs go, and what is added on the way.
impl Target<'_> {
    /// Stores `sums` (bias added) at `row`, from `column` on.
    ///
    /// # Safety
    /// As for [`SharedRows::part`].
    #[inline(always)]
    unsafe fn put(&self, row: usize, column: usize, sums: &[f32]) {
        let shared: &SharedRows = &self.out;
        // SAFETY: passed on.
        let to = unsafe { shared.part(row, column, sums.len()) };
        match &self.epilogue {
            Epilogue::None => to.copy_from_slice(sums),
            Epilogue::Accumulate => to.iter_mut().zip(sums).for_each(|(to, y)| *to += y),
            Epilogue::Add(other) => {
                let other = &other.row(row)[column..][..sums.len()];
                to.iter_mut().zip(sums.iter().zip(other)).for_each(|(to, (y, o))| *to = o + y);
            }
        }
    }
}
