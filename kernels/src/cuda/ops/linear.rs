//! Kernels of `linear.cu`.

use std::sync::Arc;

use super::rows::{by_dtype, number};
use super::*;
use crate::cpu::{Activation, Compute};

/// One weight of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// `[n, k]`.
    pub weight: Weight<'a>,
    /// `[n]`.
    pub bias: Option<Vector<'a, f32>>,
    /// Rows of the weight.
    pub n: usize,
    /// The first column of out.
    pub column: usize,
    /// Applied to the sum.
    pub activation: Activation,
}

/// What is done with the result beside writing it.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// Nothing.
    None,
    /// It is added to what is there.
    Accumulate,
    /// This, as wide as out, is added to it.
    Add(View<'a, f32>),
}

/// Up to this many rows, weights are read straight into registers.
const FEW: usize = 16;

/// The kernel, and rows and columns of a block, its threads and shared memory.
fn kernel(m: usize, dtype: WeightType, compute: Compute) -> (&'static str, [usize; 2], usize, usize) {
    match (compute, dtype, m) {
        (Compute::Bf16, WeightType::Bf16, 0..=8) => ("mma1_bf16", [8, 16], 128, 4 * 16 * 8 * 4),
        (Compute::Bf16, WeightType::Bf16, _) => ("mma4_bf16", [32, 16], 128, 4 * 16 * 32 * 4),
        (_, _, 0..=1) => (by_dtype(dtype, ["rows1_f32", "rows1_bf16", "rows1_f16"]), [1, 32], 256, 0),
        (_, _, 2..=FEW) => (by_dtype(dtype, ["rows4_f32", "rows4_bf16", "rows4_f16"]), [4, 32], 256, 0),
        _ => (by_dtype(dtype, ["tiled_f32", "tiled_bf16", "tiled_f16"]), [32, 64], 256, (32 + 64) * 36 * 4),
    }
}

/// `out[:, column..] = activation(x weightᵀ + bias)`, for every segment. The same bits for a row whatever the others are.
pub fn linear(
    cuda: &Cuda,
    x: View<'_, f32>,
    segments: &[Segment<'_>],
    compute: Compute,
    end: End<'_>,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    x.check("x")?;
    out.check_out("out", x.rows, out.cols)?;
    if let End::Add(other) = &end {
        other.check_shape("other", out.rows, out.cols)?;
    }
    let (m, k) = (int("x.rows", x.rows)?, int("x.cols", x.cols)?);
    for s in segments {
        check_eq("weight", "number of elements (n * k)", s.n.saturating_mul(x.cols), s.weight.len)?;
        check_len("out", s.column.saturating_add(s.n), out.cols)?;
        let (kernel, [rows, columns], threads, shared) = kernel(x.rows, s.weight.dtype, compute);
        let args = push(Args::default(), &x).int(m).int(k).address(s.weight.address()).int(int("segment.n", s.n)?);
        let args = args.address(optional("segment.bias", s.bias, s.n)?).int(number(s.activation));
        let to = View { offset: out.offset + s.column, ..out };
        let args = match &end {
            End::None => push(args.int(0), &to),
            End::Accumulate => push(args.int(1), &to),
            End::Add(other) => push(args.int(2), &View { offset: other.offset + s.column, ..*other }),
        };
        let grid = [x.rows.div_ceil(rows), s.n.div_ceil(columns), 1];
        let launch = Launch { module: Module::Linear, kernel, grid, threads, shared, args: push(args, &to) };
        // SAFETY: shapes were checked; the kernel writes rows below m and columns below n only.
        unsafe { cuda.launch(launch)? }
    }
    Ok(())
}

/// The weights of all experts of one layer: one or more matrices each, their rows together its own.
#[derive(Debug)]
pub struct ExpertWeights {
    experts: usize,
    dtype: WeightType,
    k: usize,
    /// Rows of each matrix of an expert.
    widths: Vec<usize>,
    /// By matrix: the addresses, one for each expert.
    tables: Vec<Memory>,
    /// What they point to.
    _parts: Vec<Arc<Memory>>,
}

/// Some rows of a matrix, from element `first` on.
#[derive(Debug, Clone)]
pub struct ExpertPart {
    /// The matrix.
    pub memory: Arc<Memory>,
    /// Its type.
    pub dtype: WeightType,
    /// Where the rows begin.
    pub first: usize,
}

impl ExpertWeights {
    /// `parts` are the matrices, by expert.
    pub fn new(
        cuda: &Cuda,
        experts: usize,
        k: usize,
        widths: &[usize],
        parts: &[ExpertPart],
    ) -> Result<ExpertWeights, CudaError> {
        check_eq("parts", "length", experts.saturating_mul(widths.len()), parts.len())?;
        int("experts", experts)?;
        let dtype = parts.first().map_or(WeightType::F32, |p| p.dtype);
        let mut addresses = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            if part.dtype != dtype {
                return Err(option("parts", format!("{:?}", part.dtype), "all weights of a call have one dtype"));
            }
            let len = widths[i % widths.len()].saturating_mul(k);
            addresses.push(Weight::new(&part.memory, dtype).elements(part.first, len)?.address());
        }
        let table = |which: usize| {
            let of_part: Vec<u8> =
                (0..experts).flat_map(|e| addresses[e * widths.len() + which].to_ne_bytes()).collect();
            cuda.upload(&of_part)
        };
        let tables = (0..widths.len()).map(table).collect::<Result<_, _>>()?;
        let _parts = parts.iter().map(|p| Arc::clone(&p.memory)).collect();
        Ok(ExpertWeights { experts, dtype, k, widths: widths.to_vec(), tables, _parts })
    }
}

/// One linear layer by expert.
#[derive(Debug, Clone, Copy)]
pub struct Grouped<'a> {
    /// The expert of each row of out.
    pub ids: Vector<'a, i64>,
    /// Weights by expert.
    pub weights: &'a ExpertWeights,
    /// `[experts, n]`.
    pub bias: Option<Vector<'a, f32>>,
    /// How products are formed.
    pub compute: Compute,
}

/// Linear layers by expert: `out` is `[tokens * choices, n]`, `ids` names the expert of each of its rows. `x` has a row for
/// each of them, or one for every `choices`. The bits are those of [`linear`] with the expert's weight.
pub fn grouped_linear(
    cuda: &Cuda,
    x: View<'_, f32>,
    grouped: &Grouped<'_>,
    out: View<'_, f32>,
    faults: &Faults,
) -> Result<(), CudaError> {
    let Grouped { ids, weights, bias, compute } = *grouped;
    let n: usize = weights.widths.iter().sum();
    x.check_shape("x", x.rows, weights.k)?;
    out.check_out("out", ids.len, n)?;
    if out.rows == 0 {
        return Ok(());
    }
    if x.rows == 0 || !out.rows.is_multiple_of(x.rows) {
        return Err(option("x.rows", x.rows, "must divide the number of choices"));
    }
    let bias = optional("bias", bias, weights.experts.saturating_mul(n))?;
    let dot = compute == Compute::Bf16 && weights.dtype == WeightType::Bf16;
    let (kernel, each, threads, shared) = match dot {
        true => ("grouped_mma_bf16", 16, 128, 4 * 16 * 8 * 4),
        false => (by_dtype(weights.dtype, ["grouped_f32", "grouped_bf16", "grouped_f16"]), 32, 256, 0),
    };
    let mut column = 0;
    for (&width, table) in weights.widths.iter().zip(&weights.tables) {
        let args = push(Args::default(), &x).int(int("choices", out.rows / x.rows)?).address(ids.memory.address());
        let args = args.int(weights.experts as i32).int(int("x.cols", x.cols)?).address(table.address());
        let bias = if bias == 0 { 0 } else { bias + column as u64 * 4 };
        let args = args.int(int("n", width)?).address(bias).long(n as i64);
        let args = push(args, &View { offset: out.offset + column, ..out }).address(faults.address());
        let grid = [out.rows, width.div_ceil(each), 1];
        // SAFETY: shapes were checked; the kernel compares ids with the number of experts, whose weights have these sizes.
        unsafe { cuda.launch(Launch { module: Module::Linear, kernel, grid, threads, shared, args })? }
        column += width;
    }
    Ok(())
}
