"""Layers that modelling code computes in a loop over tokens or over blocks of them, as what they compute.

A loop whose length depends on the sequence is no graph. What these loops compute is a linear recurrence (an op of the host) or has
a form without a loop; each function here is that form, written from the papers, in place of one method of one class. They are
found by the names of class and method, and only where the method has the arguments that are expected. Called by `build` once the
model's module is imported."""

import inspect
import sys

import torch
from torch import _composite
from torch.nn import functional as F

F32 = torch.float32


def lightning_attention(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
    """Linear attention with one decay for each head (Qin et al., arXiv:2405.17381): S = exp(-slope) S + k v^T, y = q S."""
    batch, tokens, _ = hidden_states.shape
    heads, size = self.num_attention_heads, self.head_dim
    qkv = self.act_fn(self.qkv_proj(hidden_states)).reshape(batch, tokens, heads, 3 * size)
    q, k, v = torch.split(qkv, size, dim=3)
    decay = (-self.slope_rate.to(F32)).reshape(1, 1, heads).expand(batch, tokens, heads)
    y = _composite.linear_attention(q, k, v, decay).reshape(batch, tokens, heads * size)
    y = torch.sigmoid(self.output_gate(hidden_states)) * self.norm(y)
    return self.out_proj(y), None


def gated_recurrence(self, hidden_states, recurrent_gate, reset, recurrent_states=None, acc_dtype=F32):
    """Each channel by itself (De et al., arXiv:2402.19427): s = a s + x. A sequence starts at zero, so that nothing is reset."""
    batch, tokens, channels = hidden_states.shape
    decay = torch.log(recurrent_gate.to(F32).clamp(min=torch.finfo(F32).tiny))
    one = torch.ones(batch, tokens, 1, 1, dtype=hidden_states.dtype)
    y = _composite.linear_attention(one, one, hidden_states[..., None], decay)
    return y.reshape(batch, tokens, channels), None


def matrix_lstm(self, query, key, value, igate, fgate, c_initial=None, n_initial=None, m_initial=None, **kwargs):
    """The parallel form of mLSTM (Beck et al., arXiv:2405.04517, appendix): every pair of tokens at once.

    The weight of token j for token i is exp(sum of log f from j + 1 to i, + log i of j), relative to the largest so far."""
    forget = torch.cumsum(F.logsigmoid(fgate.to(F32)), -1)
    weights = forget[..., :, None] - forget[..., None, :] + igate.to(F32)[..., None, :]
    weights = torch.where(_composite.causal_mask(rank=4), weights, float("-inf"))
    # The state starts as zero, with a largest exponent of zero that decays like the state.
    largest = torch.maximum(weights.amax(-1), forget)[..., None]
    scores = (query @ key.transpose(-1, -2)).to(F32) * query.shape[-1] ** -0.5 * torch.exp(weights - largest)
    below = torch.maximum(scores.sum(-1, keepdim=True).abs(), torch.exp(-largest)) + self.config.eps
    return (scores @ value.to(F32) / below).to(query.dtype), None


# class, method, the arguments that it must have -> what takes its place
LOOPS = (
    ("MiniMaxLightningAttention", "forward", ("hidden_states", "past_key_values"), lightning_attention),
    ("RecurrentGemmaRglru", "_rnn_scan", ("hidden_states", "recurrent_gate", "reset"), gated_recurrence),
    ("xLSTMBackend", "forward", ("query", "key", "value", "igate", "fgate"), matrix_lstm),
)


# Settings of configurations that cut a long prompt into pieces and carry the state over: a graph is of the whole prompt.
PIECES = ("max_inference_chunksize",)


def install(model_class, config):
    """Puts the functions into the module of a model's class."""
    for name in PIECES:
        if hasattr(config, name):
            setattr(config, name, 2**40)
    module = sys.modules.get(model_class.__module__)
    for name, method, arguments, function in LOOPS:
        cls = getattr(module, name, None)
        looping = None if cls is None else cls.__dict__.get(method)
        if looping is not None and set(arguments) <= set(inspect.signature(looping).parameters):
            setattr(cls, method, function)
