"""Flash attention is one more name for attention: the recorder takes it. The real module probes for kernels."""

from typing import TypedDict

from torch import _trace

FLASH_ATTN_KERNEL_VERSIONS = {}


class FlashAttentionKwargs(TypedDict, total=False):
    pass


def _flash_attention_forward(*_, **__):
    raise _trace.TraceError(
        "a direct call of flash attention", "set `_attn_implementation` to sdpa or eager, or use ALL_ATTENTION_FUNCTIONS"
    )


def is_flash_attn_available(*_, **__):
    return False


flash_attn_supports_top_left_mask = is_flash_attn_greater_or_equal = is_flash_attn_available


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return is_flash_attn_available if name.startswith(("is_", "flash_")) else _flash_attention_forward
