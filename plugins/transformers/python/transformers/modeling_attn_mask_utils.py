"""The mask helpers of transformers 4, which custom code still imports: each gives the causal mask as a specification."""

import torch
from torch import _composite


class AttentionMaskConverter:
    def __init__(self, is_causal, sliding_window=None):
        self.is_causal = is_causal
        self.sliding_window = sliding_window

    def to_causal_4d(self, batch_size, query_length, key_value_length, dtype, device=None):
        return _composite.causal_mask(window=self.sliding_window, dtype=dtype)

    def to_4d(self, attention_mask_2d, query_length, dtype, key_value_length=None):
        return _composite.causal_mask(window=self.sliding_window, dtype=dtype)

    @staticmethod
    def _unmask_unattended(expanded_mask, min_dtype):
        return expanded_mask


def _prepare_4d_causal_attention_mask(
    attention_mask, input_shape, inputs_embeds, past_key_values_length=0, sliding_window=None
):
    return _composite.causal_mask(window=sliding_window, dtype=inputs_embeds.dtype)


def _prepare_4d_causal_attention_mask_for_sdpa(
    attention_mask, input_shape, inputs_embeds, past_key_values_length=0, sliding_window=None
):
    return _composite.causal_mask(window=sliding_window, dtype=inputs_embeds.dtype)


def _create_4d_causal_attention_mask(input_shape, dtype, device=None, past_key_values_length=0, sliding_window=None):
    return _composite.causal_mask(window=sliding_window, dtype=dtype)


def _prepare_4d_attention_mask(mask, dtype, tgt_len=None):
    """Padding only: nothing is padded."""
    return torch.zeros((1, 1, 1, 1), dtype=dtype)


_prepare_4d_attention_mask_for_sdpa = _prepare_4d_attention_mask
