"""Mixtures of experts at the place where transformers dispatches them.

`record` is registered with `ALL_EXPERTS_FUNCTIONS`: two grouped linear maps with the module's own gate between them, and the
sum over the chosen experts, weighted. The layouts of weights are those of `use_experts_implementation`."""

import torch
from torch import _composite, _trace


def record(self, hidden_states, top_k_index, top_k_weights, *rest, **keywords):
    """x[N, D], ids[N, K], weights[N, K] -> [N, D]"""
    unknown = [str(a) for a in rest if a is not None] + [k for k, v in keywords.items() if v is not None]
    if unknown:
        raise _trace.TraceError("experts with the further argument %s" % unknown[0], "the interface takes three")
    dtype = hidden_states.dtype
    first = "gate_up_proj" if self.has_gate else "up_proj"
    x = _linear(self, first, hidden_states, top_k_index)
    x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
    x = _linear(self, "down_proj", x, top_k_index)
    if self.has_post_expert_norm:
        x = self.post_expert_norm(x)
    return (x * top_k_weights.unsqueeze(-1)).sum(dim=1).to(dtype)


def _linear(module, name, x, ids):
    weight = getattr(module, name)
    if module.is_transposed:
        weight = weight.transpose(1, 2)
    bias = getattr(module, name + "_bias") if module.has_bias else None
    return _composite.grouped_linear(x, ids.to(torch.int64), weight, bias)
