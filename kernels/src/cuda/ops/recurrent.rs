//! Kernels of `recurrent.cu`.

use super::rows::number;
use super::*;
use crate::cpu::{Activation, CausalConv, LinearAttention, MAX_CONV_WIDTH};

/// `y[t, c] = activation(bias[c] + sum over w of weight[c, w] * x[t - width + 1 + w, c])`
#[derive(Debug, Clone, Copy)]
pub struct DeviceConv<'a> {
    /// `[channels, width]`
    pub weight: Vector<'a, f32>,
    /// `[channels]`
    pub bias: Option<Vector<'a, f32>>,
    /// Rows that an output sees, itself included.
    pub width: usize,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

/// Operands of a linear attention, as those of `cpu::LinearAttentionOperands`.
#[derive(Debug, Clone, Copy)]
pub struct DeviceScan<'a> {
    /// `[T, key_heads * key_dim]`
    pub q: View<'a, f32>,
    /// `[T, key_heads * key_dim]`
    pub k: View<'a, f32>,
    /// `[T, heads * value_dim]`
    pub v: View<'a, f32>,
    /// Logarithms: `[T, heads]`, or `[T, heads * key_dim]` if they are per channel.
    pub decay: View<'a, f32>,
    /// `[T, heads]`, for the delta rule.
    pub beta: Option<View<'a, f32>>,
}

/// The convolution of the rows of the batch's states: `x` and `out` are `[T, channels]`, `weight` is `[channels, width]`,
/// `state` is `[slots, width - 1, channels]` and goes on where the last rows left it.
pub fn causal_conv1d(
    cuda: &Cuda,
    conv: &DeviceConv<'_>,
    x: View<'_, f32>,
    batch: &Batch,
    state: &Memory,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let DeviceConv { weight, bias, width, activation } = *conv;
    if width == 0 || width > MAX_CONV_WIDTH {
        return Err(option("conv.width", width, "must be 1 to 16"));
    }
    let channels = x.cols;
    x.check_shape("x", batch.rows(), channels)?;
    out.check_out("out", batch.rows(), channels)?;
    check_eq("conv.weight", "length (channels * width)", channels.saturating_mul(width), weight.len)?;
    let bias = optional("conv.bias", bias, channels)?;
    let (spans, count, slots) = batch.spans();
    let each = CausalConv::state_elements(width, channels);
    check_len("state", slots.saturating_mul(each), state.bytes() / 4)?;
    let args = push(Args::default(), &x).address(spans).address(weight.memory.address()).address(bias);
    let args = args.int(width as i32).int(int("x.cols", channels)?).int(activation.is_some().into());
    let args = push(args.int(activation.map_or(0, number)).address(state.address()), &out);
    let threads = threads_for(channels);
    let grid = [channels.div_ceil(threads), count, 1];
    let launch = Launch { module: Module::Recurrent, kernel: "causal_conv", grid, threads, shared: 0, args };
    // SAFETY: the batch's spans lie in its rows, the state has their slots, the rest was checked.
    unsafe { cuda.launch(launch) }
}

/// Linear attention for the rows of the batch's states, as `cpu::linear_attention`; `state` is
/// `[slots, heads, key_dim, value_dim]`.
pub fn linear_attention(
    cuda: &Cuda,
    shape: &LinearAttention,
    operands: &DeviceScan<'_>,
    batch: &Batch,
    state: &Memory,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let LinearAttention { key_heads, heads, key_dim, value_dim, per_channel } = *shape;
    let DeviceScan { q, k, v, decay, beta } = *operands;
    if key_heads == 0 || heads == 0 || key_dim == 0 || value_dim == 0 || !heads.is_multiple_of(key_heads) {
        let why = "sizes must be positive, and heads a multiple of key_heads";
        return Err(option("shape", format!("{shape:?}"), why));
    }
    let rows = batch.rows();
    q.check_shape("q", rows, key_heads * key_dim)?;
    k.check_shape("k", rows, key_heads * key_dim)?;
    v.check_shape("v", rows, heads * value_dim)?;
    decay.check_shape("decay", rows, if per_channel { heads * key_dim } else { heads })?;
    out.check_out("out", rows, heads * value_dim)?;
    let (spans, count, slots) = batch.spans();
    check_len("state", slots.saturating_mul(shape.state_elements()), state.bytes() / 4)?;
    let args = push(push(push(push(Args::default(), &q), &k), &v), &decay);
    let args = match &beta {
        Some(beta) => {
            beta.check_shape("beta", rows, heads)?;
            push(args, beta)
        }
        None => args.address(0).long(0),
    };
    int("shape", shape.state_elements())?;
    let args = args.address(spans).int(key_heads as i32).int(heads as i32).int(key_dim as i32).int(value_dim as i32);
    let args = push(args.int(per_channel.into()).address(state.address()), &out);
    let threads = threads_for(heads * value_dim);
    let grid = [(heads * value_dim).div_ceil(threads), count, 1];
    let launch = Launch { module: Module::Recurrent, kernel: "linear_attention", grid, threads, shared: 0, args };
    // SAFETY: the batch's spans lie in its rows, the state has their slots, the rest was checked.
    unsafe { cuda.launch(launch) }
}
