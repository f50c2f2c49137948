"""Attention masks as specifications. The real module builds boolean tensors from padding, packing and cache lengths; the host
runs one sequence at a time from position 0, so a mask is one of: causal, causal within a window, causal within chunks. Each is
a lazy tensor (`torch._composite.causal_mask`) whose `.spec` the recorded attention reads. Mask functions that a model adds are
evaluated over index tensors, as the real module does."""

import torch
from driver import lengths
from torch import _composite, _trace

from .utils.generic import GeneralInterface


class BlockMask:
    """The mask type of flex attention, which is never used; for `isinstance` and annotations."""


def and_masks(*functions):
    def inner(batch, head, query, key):
        result = functions[0](batch, head, query, key)
        for function in functions[1:]:
            result = result & function(batch, head, query, key)
        return result

    return inner


def or_masks(*functions):
    def inner(batch, head, query, key):
        result = functions[0](batch, head, query, key)
        for function in functions[1:]:
            result = result | function(batch, head, query, key)
        return result

    return inner


def causal_mask_function(_batch, _head, query, key):
    return key <= query


def bidirectional_mask_function(_batch, _head, query, key):
    return (key >= 0) & (query >= 0)


def sliding_window_overlay(window):
    return lambda _batch, _head, query, key: key > query - window


def chunked_overlay(size, _left_padding=None):
    return lambda _batch, _head, query, key: key // size == query // size


def sliding_window_bidirectional_overlay(window):
    return lambda _batch, _head, query, key: abs(query - key) <= window


def sliding_window_causal_mask_function(window):
    return and_masks(sliding_window_overlay(window), causal_mask_function)


def chunked_causal_mask_function(size, left_padding=None):
    return and_masks(chunked_overlay(size, left_padding), causal_mask_function)


def blockwise_overlay(block_sequence_ids):
    def inner(batch, _head, query, key):
        query_block = block_sequence_ids[batch, query]
        key_block = block_sequence_ids[batch, key]
        return (query_block == key_block) & (query_block >= 0)

    return inner


def packed_sequence_mask_function(sequence_ids):
    return lambda batch, _head, query, key: sequence_ids[batch, query] == sequence_ids[batch, key]


def maybe_pad_block_sequence_ids(block_sequence_ids, *_):
    return block_sequence_ids


def find_packed_sequence_indices(_position_ids):
    """One sequence, never packed."""
    return None


def _indices(length):
    rows = torch.arange(length)
    return rows[None, None, :, None], rows[None, None, None, :]


def _apply(function, length):
    query, key = _indices(length)
    zero = torch.arange(1)[:, None, None, None]
    mask = function(zero, zero, query, key)
    return mask.expand(1, mask.shape[1], length, length)


def _additive(mask, dtype):
    zero = torch.zeros((), dtype=dtype)
    return torch.where(mask, zero, torch.full((), torch.finfo(dtype).min, dtype=dtype))


def _make(config, inputs_embeds, attention_mask, or_mask_function, and_mask_function, blocks, window=None, chunk=None):
    if attention_mask is not None and getattr(attention_mask, "ndim", 0) == 4:
        return attention_mask
    if not getattr(config, "is_causal", True):
        raise _trace.TraceError("attention in both directions", "only causal language models can be served")
    eager = config._attn_implementation == "eager"
    dtype = inputs_embeds.dtype if eager else torch.bool
    plain = or_mask_function is None and and_mask_function is None and blocks is None
    if plain and lengths.Blocks.multiple == 1:
        return _composite.causal_mask(window=window, chunk=chunk, dtype=dtype)
    function = causal_mask_function
    if window is not None:
        function = sliding_window_causal_mask_function(window)
    if chunk is not None:
        function = chunked_causal_mask_function(chunk)
    if or_mask_function is not None:
        function = or_masks(function, or_mask_function)
    if and_mask_function is not None:
        function = and_masks(function, and_mask_function)
    if blocks is not None:
        function = or_masks(function, blockwise_overlay(blocks))
    mask = _apply(function, inputs_embeds.shape[1])
    return _additive(mask, dtype) if eager else mask


def create_causal_mask(
    config,
    inputs_embeds=None,
    attention_mask=None,
    past_key_values=None,
    position_ids=None,
    or_mask_function=None,
    and_mask_function=None,
    block_sequence_ids=None,
    input_embeds=None,
    **_,
):
    embeds = inputs_embeds if inputs_embeds is not None else input_embeds
    return _make(config, embeds, attention_mask, or_mask_function, and_mask_function, block_sequence_ids)


def create_sliding_window_causal_mask(
    config,
    inputs_embeds=None,
    attention_mask=None,
    past_key_values=None,
    position_ids=None,
    or_mask_function=None,
    and_mask_function=None,
    block_sequence_ids=None,
    input_embeds=None,
    **_,
):
    window = getattr(config, "sliding_window", None)
    if window is None:
        raise ValueError("Could not find a `sliding_window` argument in the config, or it is not set")
    embeds = inputs_embeds if inputs_embeds is not None else input_embeds
    return _make(
        config, embeds, attention_mask, or_mask_function, and_mask_function, block_sequence_ids, window=int(window)
    )


def create_chunked_causal_mask(
    config,
    inputs_embeds=None,
    attention_mask=None,
    past_key_values=None,
    position_ids=None,
    or_mask_function=None,
    and_mask_function=None,
    block_sequence_ids=None,
    input_embeds=None,
    **_,
):
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is None:
        raise ValueError("Could not find an `attention_chunk_size` argument in the config, or it is not set")
    embeds = inputs_embeds if inputs_embeds is not None else input_embeds
    return _make(
        config, embeds, attention_mask, or_mask_function, and_mask_function, block_sequence_ids, chunk=int(chunk)
    )


def create_bidirectional_mask(config=None, inputs_embeds=None, *_, encoder_hidden_states=None, **__):
    """Sees everything: `None`, as the real function returns without padding. Attention that gets it is refused, unless it is
    causal by itself."""
    return None


def create_bidirectional_sliding_window_mask(*_, **__):
    raise _trace.TraceError("attention in both directions", "only causal language models can be served")


def create_recurrent_attention_mask(config=None, inputs_embeds=None, attention_mask=None, *_, **__):
    """The mask of padding for recurrent layers: there is no padding."""
    return None


LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
    "chunked_attention": create_chunked_causal_mask,
    "compressed_sparse_attention": create_sliding_window_causal_mask,
    "heavily_compressed_attention": create_sliding_window_causal_mask,
    "minimax_m3_sparse": create_causal_mask,
    "indexed_attention": create_causal_mask,
    "linear_attention": create_recurrent_attention_mask,
    "conv": create_recurrent_attention_mask,
    "hybrid": {"full_attention": create_causal_mask, "linear_attention": create_recurrent_attention_mask},
    "hybrid_sliding": {"sliding_attention": create_causal_mask, "linear_attention": create_recurrent_attention_mask},
}


def create_masks_for_generate(config, inputs_embeds=None, attention_mask=None, past_key_values=None, **arguments):
    config = config.get_text_config()
    arguments = dict(arguments, config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    arguments["past_key_values"] = past_key_values
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        masks = {}
        for kind in dict.fromkeys(kinds):
            function = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.get(kind)
            if function is None:
                return attention_mask
            for name, make in function.items() if isinstance(function, dict) else [(kind, function)]:
                if name not in masks:
                    masks[name] = make(**arguments)
        return masks
    if getattr(config, "sliding_window", None) is not None:
        return create_sliding_window_causal_mask(**arguments)
    if getattr(config, "attention_chunk_size", None) is not None:
        return create_chunked_causal_mask(**arguments)
    return create_causal_mask(**arguments)


def _preprocess_mask_arguments(config, inputs_embeds, attention_mask, past_key_values, position_ids, layer_idx, *_):
    length = inputs_embeds.shape[1]
    return False, attention_mask, None, length, length, 0, 0


def _mask_interface(batch_size=1, q_length=None, kv_length=None, mask_function=causal_mask_function, config=None, dtype=None, **_):
    """What the interface of masks is called with by models that build their own mask function."""
    mask = _apply(mask_function, q_length)
    if config is not None and config._attn_implementation == "eager":
        return _additive(mask, dtype if dtype is not None else torch.float32)
    return mask


sdpa_mask = eager_mask = _mask_interface


class AttentionMaskInterface(GeneralInterface):
    _global_mapping = {
        "sdpa": _mask_interface,
        "eager": _mask_interface,
        "flash_attention_2": _mask_interface,
        "flex_attention": _mask_interface,
    }


ALL_MASK_ATTENTION_FUNCTIONS = AttentionMaskInterface()
