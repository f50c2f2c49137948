"""Attention at the place where transformers dispatches it.

`recorder(default)` is what `ALL_ATTENTION_FUNCTIONS` gives to a model: it records one `attention` op if the call means one, and
otherwise runs the model's own eager function, whose arithmetic is then recorded step by step. A keyword that it does not know
is an error: one that is dropped would change the result without a word."""

import torch
from driver import lengths, masks
from torch import _composite, _sym, _trace
from torch.nn import functional as F

# Keywords that do not change what one sequence from position 0 without padding computes.
_IRRELEVANT = {
    "dropout",
    "position_ids",
    "cache_position",
    "past_key_values",
    "past_key_value",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "num_items_in_batch",
    "logits_to_keep",
    "labels",
    "deterministic",
    "target_dtype",
    "implementation",
    "use_top_left_mask",
    "position_embeddings",
    "layer_idx",
    "is_causal",
    "enable_gqa",
    "seq_idx",
    "input_ids",
    "inputs_embeds",
    # Chosen blocks and keys, for kernels that skip the rest: the mask says the same.
    "indices",
    "block_indices",
    # The window is in the mask; implementations that build no mask read it from here.
    "sliding_window",
}
# Names in the eager functions of transformers that compute softmax attention with a scale, a soft cap and sinks.
_PLAIN_NAMES = set(
    "torch nn functional F matmul einsum transpose permute softmax float32 float dtype to type type_as dropout training size "
    "shape contiguous reshape view expand cat max values unsqueeze tanh sigmoid logsumexp repeat_kv repeat_interleave "
    "num_key_value_groups head_dim scaling sinks maybe_autocast device query is_causal".split()
)


def recorder(default=None, plain=True):
    """`plain`: the library says that the model's own function computes what SDPA does."""
    usual = plain or _is_plain(default)

    def attend(
        module,
        query,
        key,
        value,
        attention_mask=None,
        scaling=None,
        softcap=None,
        s_aux=None,
        position_bias=None,
        sinks=None,
        **keywords,
    ):
        """q[1, H, T, D], k[1, Hkv, T, D], v[1, Hkv, T, Dv] -> [1, T, H, Dv], None"""
        unknown = [k for k, v in keywords.items() if v is not None and k not in _IRRELEVANT]
        if unknown:
            raise _trace.TraceError(
                "attention with the argument `%s`" % unknown[0], "the host's attention has no such input"
            )
        scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
        own_sinks = _module_sinks(module, default) if s_aux is None and sinks is None else None
        vector = s_aux if s_aux is not None else own_sinks
        over_blocks = lengths.Blocks.multiple > 1
        mask = None if over_blocks else _understood(module, attention_mask, keywords, int(query.shape[1]))
        simple = usual and mask is not None and position_bias is None and isinstance(scale, (int, float))
        if simple and (sinks is None or _is_vector(sinks)):
            vector = vector if vector is not None else sinks
            if vector is not None:
                vector = vector.reshape(-1)
            options = dict(window=mask.window, chunk=mask.chunk, slopes=mask.slopes, mask=mask.allowed)
            out = _composite.attention(query, key, value, float(scale), softcap=softcap, sinks=vector, **options)
            return out, None
        return _by_hand(default, module, query, key, value, attention_mask, scale, softcap, s_aux, position_bias, sinks)

    attend.__name__ = "attention"
    return attend


def _is_vector(sinks):
    return sinks.ndim == 1 or all(int(n) == 1 for n in sinks.shape[2:])


def _names(default):
    code = getattr(default, "__code__", None)
    return set(code.co_names) if code is not None else set()


def _is_plain(default):
    """Whether the model's own function is what the op says, as far as its names tell: everything that it reads from the module
    and calls must be part of softmax attention."""
    names = _names(default)
    return not names or names <= _PLAIN_NAMES


def _module_sinks(module, default):
    """Eager functions of models with sinks read them from the module, where other implementations get an argument."""
    return getattr(module, "sinks", None) if "sinks" in _names(default) else None


def _understood(module, attention_mask, keywords, heads):
    if attention_mask is None:
        causal = keywords.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if not causal:
            raise _trace.TraceError("attention in both directions", "only causal language models can be served")
        return masks.Mask()
    return masks.understand(attention_mask, heads)


def _by_hand(default, module, query, key, value, attention_mask, scale, softcap, s_aux, position_bias, sinks):
    """The model's own eager function, or softmax attention written out, over an additive mask."""
    if attention_mask is None:
        if lengths.Blocks.multiple > 1:
            raise _trace.TraceError("attention without a mask in a model that works in blocks", "pass a causal mask")
        attention_mask = _composite.causal_mask(dtype=query.dtype)
    elif attention_mask.dtype is torch.bool:
        lowest = torch.full((), torch.finfo(query.dtype).min, dtype=query.dtype)
        attention_mask = torch.where(attention_mask, torch.zeros((), dtype=query.dtype), lowest)
    if default is not None and getattr(default, "__name__", "") != "attention":
        extra = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias, "sinks": sinks}
        extra = {k: v for k, v in extra.items() if v is not None}
        return default(module, query, key, value, attention_mask, scaling=scale, dropout=0.0, **extra)
    if s_aux is not None or sinks is not None:
        raise _trace.TraceError("attention with sinks and a mask that is not understood", "use a mask of masking_utils")
    groups = int(query.shape[1]) // int(key.shape[1])
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    weights = F.softmax(scores + attention_mask, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2), None


def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """torch's own function, called by models without the dispatch: q[1, H, T, D] -> [1, H, T, Dv]"""
    if attn_mask is None and not is_causal:
        return _small(query, key, value, scale)
    out, _ = recorder()(None, query, key, value, attn_mask, scaling=scale, is_causal=True)
    return out.transpose(1, 2)


def _small(query, key, value, scale):
    """Attention over a few things of each token, such as the blocks of a residual stream: not along the sequence."""
    if type(key.shape[-2]) is _sym.SymInt:
        raise _trace.TraceError("attention in both directions", "only causal language models can be served")
    scores = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.matmul(F.softmax(scores, dim=-1), value)


def install():
    """Puts this function in the place of torch's."""
    F.scaled_dot_product_attention = scaled_dot_product_attention
