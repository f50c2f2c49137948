"""Which libraries there are: torch, and nothing else. The real module asks the Python environment, which this interpreter has
not."""

import torch


def is_torch_available():
    return True


# Annotations name flex attention's BlockMask. It is never used: attention is recorded.
is_torch_flex_attn_available = is_torch_available


def is_torchdynamo_compiling():
    return False


is_torchdynamo_exporting = is_torch_fx_proxy = is_tracing = is_jit_tracing = is_mlx_available = is_cuda_stream_capturing = (
    lambda *_, **__: False
)


def is_torch_greater_or_equal(_version, **_):
    return True


def is_torch_less_or_equal(_version, **_):
    return False


def requires(*_, **__):
    return lambda it: it


def requires_backends(*_, **__):
    return None


def resolve_internal_import(*_, **__):
    return None


def torch_compilable_check(condition, message=None, error_type=ValueError):
    """The real one raises on data; a condition over traced values cannot be known here, one over numbers can."""
    if isinstance(condition, torch.Tensor) or condition:
        return
    raise error_type(message() if callable(message) else message)


class OptionalDependencyNotAvailable(BaseException):
    pass


def __getattr__(name):
    if name.startswith("is_"):
        return lambda *_, **__: False
    raise AttributeError("module 'transformers.utils.import_utils' has no attribute %r" % name)
