"""The parts of `transformers.integrations` that modelling code uses. The real package imports every training library there is."""

from .hub_kernels import (
    use_kernel_forward_from_hub,
    use_kernel_func_from_hub,
    use_kernel_func_from_hub_with_fallback,
    use_kernelized_func,
)
from .moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation


def is_deepspeed_zero3_enabled():
    return False


def is_fsdp_managed_module(_module):
    return False


def is_deepspeed_available():
    return False
