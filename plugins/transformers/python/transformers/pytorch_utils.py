"""Helpers of older models. The real module reaches into tensor storage and distributed tensors."""

import torch
from torch import nn

ALL_LAYERNORM_LAYERS = [nn.LayerNorm]


class Conv1D(nn.Module):
    """A linear layer whose weight is stored transposed, as in GPT and GPT-2: weight[in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return nn.functional.linear(x, self.weight.t(), self.bias)


def apply_chunking_to_forward(forward, _chunk_size, _dim, *tensors):
    """Chunking saves memory and changes nothing."""
    return forward(*tensors)


def meshgrid(*tensors, indexing=None):
    return torch.meshgrid(*tensors, indexing=indexing or "ij")


def compile_compatible_method_lru_cache(*_, **__):
    """Without the cache: a value of one trace must not be used in another."""
    return lambda function: function


def isin_mps_friendly(elements, test_elements):
    return torch.isin(elements, test_elements)


def find_pruneable_heads_and_indices(*_):
    raise RuntimeError("heads are not pruned while a model is traced")


prune_linear_layer = prune_conv1d_layer = prune_layer = find_pruneable_heads_and_indices


def __getattr__(name):
    if name.startswith("is_torch_greater_or_equal"):
        return True
    raise AttributeError(name)
