"""Layers that modelling code computes in a loop over tokens or over blocks of them, as what they compute.

A loop whose length depends on the sequence is no graph. What these loops compute is a linear recurrence (an op of the host) or has
a form without a loop; each function here is that form, written from the papers. It takes the place of code that is known, word for
word: methods are found by a digest of their text, in whatever class of whatever model. Code that differs in anything keeps its loop,
and the trace ends in an error that points at it: what a changed loop computes nobody has checked. Called by `build` once the model's
module is imported."""

import hashlib
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


# The methods that make up the computation, the last of them the loop; arguments of the loop; the digest of their text; what takes the
# loop's place. To add one: `digest` of the methods, after comparing the function with the loop on numbers.
LOOPS = (
    (("decay_factors", "forward"), ("hidden_states", "past_key_values"), "8a01b3ed171e4a5b", lightning_attention),
    (("_rnn_scan",), ("hidden_states", "recurrent_gate", "reset"), "6abdb412c18dcfe1", gated_recurrence),
    (("__init__", "forward"), ("query", "key", "value", "igate", "fgate"), "e29c6393dbc3311b", matrix_lstm),
)


# Settings of configurations that cut a long prompt into pieces and carry the state over: a graph is of the whole prompt.
PIECES = ("max_inference_chunksize",)


def install(model_class, config):
    """Puts the functions into the classes of the module of a model's class."""
    for name in PIECES:
        if hasattr(config, name):
            setattr(config, name, 2**40)
    module = sys.modules.get(model_class.__module__)
    for cls in list(vars(module).values()):
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            _replace(cls)


def _replace(cls):
    for names, arguments, text, function in LOOPS:
        methods = [cls.__dict__.get(name) for name in names]
        if all(hasattr(m, "__code__") for m in methods):
            code = methods[-1].__code__
            if set(arguments) <= set(code.co_varnames[: code.co_argcount]) and digest(methods) == text:
                setattr(cls, names[-1], function)


def digest(functions):
    """Of the bodies of functions: their lines without comments, blank lines and the indentation of the whole."""
    lines = [line for function in functions for line in _body(function)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _body(function):
    module = sys.modules[function.__module__]
    lines = module.__spec__.loader.get_source(module.__name__).splitlines()
    # The interpreter's first line lies somewhere in the signature.
    at = function.__code__.co_firstlineno
    while not lines[at].lstrip().startswith("def %s(" % function.__name__):
        at -= 1
    margin = len(lines[at]) - len(lines[at].lstrip())
    # The signature ends with a colon outside of all brackets.
    depth = 0
    while True:
        line = lines[at].split("#")[0].rstrip()
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        at += 1
        if depth == 0 and line.endswith(":"):
            break
    for line in lines[at:]:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if len(line) - len(line.lstrip()) <= margin:
            return
        yield line[margin:].rstrip()
