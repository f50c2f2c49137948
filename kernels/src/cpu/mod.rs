//! CPU kernels: linear layers, paged attention, norms, rotary embedding, activations.
//!
//! What it does: computes on f32 row-major activations (with a row stride) and on weights as stored in the checkpoint
//! (f32, bf16, f16) or quantised at load (int8, int4), using the best instruction set found at run time and one persistent thread pool. Every entry checks
//! shapes, strides and dtypes, and returns a [`KernelError`] that names the argument.
//!
//! What it never does: allocate, log or decide policy in a call; and it never lets the value of one output depend on
//! what else is in the batch. For one [`Isa`], each output element has one fixed order of summation: it is bitwise the
//! same alone or in a batch, whole or in chunks, with one thread or many. (The sign and payload of NaNs excepted.)
//!
//! Who calls it: `host::exec::cpu`, and nothing else.

mod attention;
mod context;
mod error;
mod features;
mod gemm;
pub mod logits;
mod operands;
mod ops;
mod pool;
mod recurrent;
mod simd;

pub use attention::{
    AttentionParams, BLOCK, KvCache, KvCacheMut, KvMut, KvRef, KvShape, NO_BLOCK, SeqSpan, attention, write_kv,
};
pub use context::{Cpu, CpuOptions};
pub use error::KernelError;
pub use features::{Isa, cpu_features, default_threads};
pub use gemm::{
    CodeRow, Compute, Epilogue, Groups, QuantCodes, QuantFormat, Quantised, QuantisedRef, Scratch, Segment,
    grouped_linear, linear,
};
pub use operands::{Rows, RowsMut, WeightDtype, WeightRef};
pub use ops::{
    Binary, LayerNorm, RmsNorm, Rope, RopeStyle, ZipOperand, ZipRuns, activate, activate_to, add, add_assign,
    add_layer_norm, add_rms_norm, argmax, embed, gated, gather_rows, layer_norm, layer_norm_parts, mul, rms_norm,
    rms_norm_parts, rope, rope_to, scale, softcap, softmax, softmax_to, zip,
};
pub use pool::{Pool, split};
pub use recurrent::{
    CausalConv, LinearAttention, LinearAttentionOperands, MAX_WIDTH as MAX_CONV_WIDTH, StateSpan, causal_conv1d,
    linear_attention,
};
pub use simd::Activation;
