"""Rotary frequencies that change with the length of the sequence.

transformers recomputes them in the forward pass from the largest position, which it reads: `dynamic_rope_update`, a decorator
of every rotary embedding. Here the length is the host's op `context_length`, which also says when results change, and the
frequencies are chosen by it. `install` puts this decorator in the place of the real one, in the real module."""

from functools import wraps

import torch
from torch import _trace


def _length(above, growing):
    """The length of the sequence for each token: i64[T, 1]"""
    growing = ",growing:true" if growing else ""
    node = _trace.leaf("context_length(above:%d%s)" % (above, growing), (_trace.S.tokens,), torch.int64)
    return node.unsqueeze(-1)


def _settings(module, layer_type):
    """(parameters, prefix of attributes) of one kind of layer."""
    parameters = module.config.rope_parameters
    return (parameters, "") if layer_type is None else (parameters[layer_type], layer_type + "_")


def _dynamic(module, functions, rope_type, layer_type, options):
    """NTK: a base that grows with the length, beyond the length that the model was trained for."""
    _, prefix = _settings(module, layer_type)
    limit = module.original_max_seq_len
    length = _length(limit, True)
    grown, scaling = functions[rope_type](module.config, None, seq_len=length, **options)
    module.attention_scaling = scaling
    return torch.where(length > limit, grown, getattr(module, prefix + "original_inv_freq"))


def _longrope(module, functions, rope_type, layer_type, options):
    """One set of frequencies up to the original length, another beyond."""
    parameters, prefix = _settings(module, layer_type)
    limit = parameters["original_max_position_embeddings"]
    long, _ = functions[rope_type](module.config, None, seq_len=limit + 1, **options)
    return torch.where(_length(limit, False) > limit, long, getattr(module, prefix + "original_inv_freq"))


def install(module):
    """Replaces the decorator in transformers.modeling_rope_utils, before any model is imported."""
    functions = module.ROPE_INIT_FUNCTIONS

    def dynamic_rope_update(forward):
        @wraps(forward)
        def wrapper(self, x, position_ids, layer_type=None):
            rope_type = self.rope_type if layer_type is None else self.rope_type[layer_type]
            options = {} if layer_type is None else {"layer_type": layer_type}
            change = _dynamic if "dynamic" in rope_type else _longrope if rope_type == "longrope" else None
            if change is None:
                return forward(self, x, position_ids, **options)
            name = _settings(self, layer_type)[1] + "inv_freq"
            before = getattr(self, name)
            setattr(self, name, change(self, functions, rope_type, layer_type, options))
            try:
                return forward(self, x, position_ids, **options)
            finally:
                setattr(self, name, before)

        return wrapper

    module.dynamic_rope_update = dynamic_rope_update
