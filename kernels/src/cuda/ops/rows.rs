//! Kernels of `rows.cu`.

use super::*;
use crate::cpu::{Activation, RopeStyle};

/// `out[i] = table[ids[i]]`: `table` is `[vocabulary, out.cols]`. An id that it does not have is a fault, and gives zeros.
pub fn embed(
    cuda: &Cuda,
    table: Weight<'_>,
    ids: Vector<'_, i64>,
    out: View<'_, f32>,
    faults: &Faults,
) -> Result<(), CudaError> {
    out.check_out("out", ids.len, out.cols)?;
    if out.cols == 0 || !table.len.is_multiple_of(out.cols) {
        return Err(option("out.cols", out.cols, "must divide the elements of table"));
    }
    let kernel = by_dtype(table.dtype, ["embed_f32", "embed_bf16", "embed_f16"]);
    let args =
        Args::default().address(table.address()).long((table.len / out.cols) as i64).address(ids.memory.address());
    let args = push(args, &out).int(int("out.cols", out.cols)?).address(faults.address());
    let launch = Launch {
        module: Module::Rows,
        kernel,
        grid: [out.rows, 1, 1],
        threads: threads_for(out.cols),
        shared: 0,
        args,
    };
    // SAFETY: ids and out have `out.rows` rows, the kernel compares ids with the table's length.
    unsafe { cuda.launch(launch) }
}

pub(super) fn by_dtype(dtype: WeightType, names: [&'static str; 3]) -> &'static str {
    match dtype {
        WeightType::F32 => names[0],
        WeightType::Bf16 => names[1],
        WeightType::F16 => names[2],
    }
}

/// Checks a call that takes every `width` columns of a row together; gives the parts of a row.
fn parts(x: &View<'_, f32>, width: usize, out: &View<'_, f32>) -> Result<usize, CudaError> {
    x.check("x")?;
    out.check_out("out", x.rows, x.cols)?;
    int("width", width)?;
    if x.cols == 0 {
        return Ok(0);
    }
    if width == 0 || !x.cols.is_multiple_of(width) {
        return Err(option("width", width, "must divide the columns of x"));
    }
    Ok(x.cols / width)
}

/// A launch with a block for each part of each row.
fn by_part(kernel: &'static str, rows: usize, parts: usize, width: usize, args: Args) -> Launch {
    // Sums depend on the number of threads, and this on the width alone.
    let threads = width.clamp(1, 256).next_multiple_of(32);
    Launch { module: Module::Rows, kernel, grid: [rows, parts, 1], threads, shared: threads / 32 * 4, args }
}

/// `x / sqrt(mean(x²) + eps) * (weight + offset)` over every `width` columns; without a weight, times 1.
pub fn rms_norm(
    cuda: &Cuda,
    x: View<'_, f32>,
    width: usize,
    weight: Option<Vector<'_, f32>>,
    offset: f32,
    eps: f32,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let parts = parts(&x, width, &out)?;
    let args = push(Args::default(), &x).address(optional("norm.weight", weight, width)?).float(offset).float(eps);
    let args = push(args.int(width as i32), &out);
    // SAFETY: x and out have these rows and parts, the weight is as long as a part.
    unsafe { cuda.launch(by_part("rms_norm", x.rows, parts, width, args)) }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over every `width` columns.
pub fn layer_norm(
    cuda: &Cuda,
    x: View<'_, f32>,
    width: usize,
    weight: Option<Vector<'_, f32>>,
    bias: Option<Vector<'_, f32>>,
    eps: f32,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let parts = parts(&x, width, &out)?;
    let args = push(Args::default(), &x).address(optional("norm.weight", weight, width)?);
    let args = args.address(optional("norm.bias", bias, width)?).float(eps).int(width as i32);
    // SAFETY: x and out have these rows and parts, weight and bias are as long as a part.
    unsafe { cuda.launch(by_part("layer_norm", x.rows, parts, width, push(args, &out))) }
}

/// Softmax over every `width` columns; `out` may be `x`.
pub fn softmax(cuda: &Cuda, x: View<'_, f32>, width: usize, out: View<'_, f32>) -> Result<(), CudaError> {
    let parts = parts(&x, width, &out)?;
    let args = push(push(Args::default(), &x).int(width as i32), &out);
    // SAFETY: x and out have these rows and parts.
    unsafe { cuda.launch(by_part("softmax", x.rows, parts, width, args)) }
}

/// Rotates the first `2 * cos.cols` elements of every head of `head_dim`; `cos` and `sin` are `[rows, half]` without gaps,
/// `out` may be `x`.
pub fn rope(
    cuda: &Cuda,
    x: View<'_, f32>,
    head_dim: usize,
    style: RopeStyle,
    cos: View<'_, f32>,
    sin: View<'_, f32>,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    x.check("x")?;
    out.check_out("out", x.rows, x.cols)?;
    let half = cos.cols;
    for (name, table) in [("cos", &cos), ("sin", &sin)] {
        table.check_shape(name, x.rows, half)?;
        check_eq(name, "stride", half, table.stride)?;
    }
    if head_dim == 0 || !x.cols.is_multiple_of(head_dim) || 2 * half > head_dim {
        return Err(option(
            "head_dim",
            head_dim,
            "must divide the columns of x, and be no less than the rotated elements",
        ));
    }
    let args = push(Args::default(), &x).address(cos.address()).address(sin.address());
    let args = args.int(int("x.cols", x.cols / head_dim)?).int(int("head_dim", head_dim)?).int(half as i32);
    let args = push(args.int((style == RopeStyle::Interleaved).into()), &out);
    let threads = threads_for(x.cols / 2);
    let launch = Launch { module: Module::Rows, kernel: "rope", grid: [x.rows, 1, 1], threads, shared: 0, args };
    // SAFETY: all have these rows; pairs lie inside of heads, heads inside of rows.
    unsafe { cuda.launch(launch) }
}

/// The number by which kernels know an activation.
pub(super) fn number(kind: Activation) -> i32 {
    match kind {
        Activation::Identity => 0,
        Activation::Relu => 1,
        Activation::Relu2 => 2,
        Activation::Silu => 3,
        Activation::GeluErf => 4,
        Activation::GeluTanh => 5,
        Activation::QuickGelu => 6,
        Activation::Tanh => 7,
        Activation::Sigmoid => 8,
        Activation::Exp => 9,
        Activation::Softplus => 10,
    }
}

/// `out = activation(x)`; `out` may be `x`.
pub fn activate(cuda: &Cuda, kind: Activation, x: View<'_, f32>, out: View<'_, f32>) -> Result<(), CudaError> {
    x.check_shape("x", out.rows, out.cols)?;
    out.check_out("out", out.rows, out.cols)?;
    let args = push(push(Args::default().int(number(kind)), &x), &out).int(int("out.cols", out.cols)?);
    // SAFETY: both have this shape.
    unsafe { cuda.launch(by_element(Module::Rows, "activate", out.rows, out.cols, args)) }
}

/// `out = activation(gate) * up`
pub fn gated(
    cuda: &Cuda,
    kind: Activation,
    gate: View<'_, f32>,
    up: View<'_, f32>,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    gate.check_shape("gate", out.rows, out.cols)?;
    up.check_shape("up", out.rows, out.cols)?;
    out.check_out("out", out.rows, out.cols)?;
    let args = push(push(push(Args::default().int(number(kind)), &gate), &up), &out);
    let args = args.int(int("out.cols", out.cols)?);
    // SAFETY: all have this shape.
    unsafe { cuda.launch(by_element(Module::Rows, "gated", out.rows, out.cols, args)) }
}

/// `out = a + b`
pub fn add(cuda: &Cuda, a: View<'_, f32>, b: View<'_, f32>, out: View<'_, f32>) -> Result<(), CudaError> {
    a.check_shape("a", out.rows, out.cols)?;
    b.check_shape("b", out.rows, out.cols)?;
    out.check_out("out", out.rows, out.cols)?;
    let args = push(push(push(Args::default(), &a), &b), &out).int(int("out.cols", out.cols)?);
    // SAFETY: all have this shape.
    unsafe { cuda.launch(by_element(Module::Rows, "add", out.rows, out.cols, args)) }
}

fn copy_rows<E: Element>(cuda: &Cuda, x: &View<'_, E>, rows: u64, out: &View<'_, E>) -> Result<(), CudaError> {
    let args = push(push(Args::default(), x).address(rows), out).int(int("out.cols", out.cols)?);
    let kernel = by_size::<E>(["copy_1", "copy_4", "copy_8"]);
    // SAFETY: the callers have checked that both have these rows and columns.
    unsafe { cuda.launch(by_element(Module::Rows, kernel, out.rows, out.cols, args)) }
}

/// `out = x`
pub fn copy<E: Element>(cuda: &Cuda, x: View<'_, E>, out: View<'_, E>) -> Result<(), CudaError> {
    x.check_shape("x", out.rows, out.cols)?;
    out.check_out("out", out.rows, out.cols)?;
    copy_rows(cuda, &x, 0, &out)
}

/// The rows of x whose logits are wanted.
pub fn select_rows<E: Element>(cuda: &Cuda, x: View<'_, E>, batch: &Batch, out: View<'_, E>) -> Result<(), CudaError> {
    x.check("x")?;
    out.check_out("out", batch.selected(), x.cols)?;
    check_len("x", batch.selected_limit(), x.rows)?;
    copy_rows(cuda, &x, batch.selected_address(), &out)
}

/// The column of the largest element of each row, the first of equals.
pub fn argmax(cuda: &Cuda, x: View<'_, f32>, out: Vector<'_, i64>) -> Result<(), CudaError> {
    x.check("x")?;
    check_eq("out", "length", x.rows, out.len)?;
    if x.cols == 0 {
        return Err(option("x.cols", 0, "must be positive"));
    }
    let threads = 256;
    let args = push(Args::default(), &x).int(int("x.cols", x.cols)?).address(out.memory.address());
    let launch =
        Launch { module: Module::Rows, kernel: "argmax", grid: [x.rows, 1, 1], threads, shared: threads * 8, args };
    // SAFETY: x has these rows and columns, out one for each row.
    unsafe { cuda.launch(launch) }
}
