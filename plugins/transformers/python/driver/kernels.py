"""Sequence kernels at the names by which transformers dispatches them: convolutions, state space models and linear attention.

Each function takes the arguments of the fallback in the modelling files, by name, and records the composite op with ordinary
ops around it. An argument that asks for something else (an initial state, packed sequences) is an error that names it. Called
from the shim of `transformers.integrations.hub_kernels`."""

import math

import torch
from torch import _composite, _trace
from torch.nn import functional as F

F32 = torch.float32
# Arguments that change what a kernel computes and that no op of the host has. Kernels also get whatever keywords were passed
# down to the layer; the functions in the modelling files ignore those, and so does this.
_UNKNOWN_TO_THE_HOST = ("initial_state", "initial_states", "seq_idx", "cu_seqlens", "cu_seq_lens_q", "z", "lower_bound")


def _refuse(kernel, arguments):
    for name in _UNKNOWN_TO_THE_HOST:
        if arguments.get(name) is not None:
            raise _trace.TraceError("%s with the argument `%s`" % (kernel, name), "the host's op has no such input")


def causal_conv1d_fn(hidden_states, weight, bias=None, activation=None, **rest):
    """x[1, C, T], weight[C, W] or [C, 1, W]"""
    _refuse("causal_conv1d_fn", rest)
    dtype = hidden_states.dtype
    out = _composite.causal_conv1d(hidden_states.to(weight.dtype), weight, bias)
    if activation is not None:
        from transformers.activations import ACT2FN

        out = ACT2FN[activation](out)
    return out.to(dtype)


def _step_sizes(dt, bias, softplus, per_channel):
    if bias is not None:
        bias = bias.to(dt.dtype)
        dt = dt + (bias[..., None] if per_channel else bias)
    return F.softplus(dt) if softplus else dt


def selective_scan_fn(
    hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False, **rest
):
    """Mamba: x[1, C, T], dt[1, C, T], A[C, N], B[1, N, T], C[1, N, T] -> [1, C, T]"""
    _refuse("selective_scan_fn", rest)
    dt = _step_sizes(dt, delta_bias, delta_softplus, True)
    steps = dt.to(F32).transpose(1, 2)
    decay = steps.unsqueeze(-1) * A.to(F32)
    x = hidden_states.to(F32).transpose(1, 2)
    values = (steps * x).unsqueeze(-1)
    key = B.to(F32).transpose(1, 2).unsqueeze(2)
    query = C.to(F32).transpose(1, 2).unsqueeze(2)
    out = _composite.linear_attention(query, key, values, decay)
    out = out.squeeze(-1).transpose(1, 2).to(hidden_states.dtype)
    if D is not None:
        out = out + hidden_states * D[None, :, None]
    if z is not None:
        out = out * F.silu(z)
    return (out, None) if return_last_state else out


def mamba_chunk_scan_combined(
    hidden_states,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    initial_states=None,
    dt_softplus=False,
    dt_limit=(0.0, math.inf),
    return_final_states=False,
    **rest,
):
    """Mamba 2: x[1, T, H, P], dt[1, T, H], A[H], B[1, T, G, N], C[1, T, G, N] -> [1, T, H, P]"""
    _refuse("mamba_chunk_scan_combined", dict(rest, initial_states=initial_states, z=z))
    dt = _step_sizes(dt, dt_bias, dt_softplus, False)
    low, high = dt_limit
    if low > 0.0 or high < math.inf:
        dt = torch.clamp(dt, min=low, max=None if high == math.inf else high)
    steps = dt.to(F32)
    x = hidden_states.to(F32)
    decay = steps * A.to(F32)
    out = _composite.linear_attention(C.to(F32), B.to(F32), x * steps[..., None], decay)
    if D is not None:
        out = out + D[..., None] * x
    return (out, None) if return_final_states else out


def _delta_rule(kernel, query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, rest):
    _refuse(kernel, dict(rest, initial_state=initial_state))
    dtype = query.dtype
    query, key, value, g, beta = (x.to(F32) for x in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6) for x in (query, key))
    query = query * query.shape[-1] ** -0.5
    out = _composite.linear_attention(query, key, value, g, beta)
    return out.to(dtype), None


def chunk_gated_delta_rule(
    query,
    key,
    value,
    g,
    beta,
    chunk_size=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    **rest,
):
    """q, k[1, T, Hk, Dk], v[1, T, H, Dv], g[1, T, H] (logarithms), beta[1, T, H] -> [1, T, H, Dv]"""
    arguments = (query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, rest)
    return _delta_rule("chunk_gated_delta_rule", *arguments)


def chunk_kda(
    query,
    key,
    value,
    g,
    beta,
    chunk_size=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    **rest,
):
    """As the gated delta rule, with a decay for each channel of the key: g[1, T, H, Dk]"""
    arguments = (query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel, rest)
    return _delta_rule("chunk_kda", *arguments)


KERNELS = {
    "causal_conv1d_fn": causal_conv1d_fn,
    "selective_scan_fn": selective_scan_fn,
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "chunk_gated_delta_rule": chunk_gated_delta_rule,
    "fused_recurrent_gated_delta_rule": chunk_gated_delta_rule,
    "chunk_kda": chunk_kda,
    "fused_recurrent_kda": chunk_kda,
}
