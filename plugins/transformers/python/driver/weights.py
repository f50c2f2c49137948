"""From parameters of the model to tensors of the checkpoint.

The checkpoint's names may be those of an older version of the model: transformers' own conversion mapping says which tensors are
renamed, stacked, split or transposed into which parameters. It is run here on tensors that are names only, so that the result
for each parameter is an expression over weight leaves. Then come ties and parameters that may be missing."""

import difflib
import re
from copy import deepcopy

import torch
from torch import _trace

from . import conversions
from .errors import ModelError

_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
# Types of quantised checkpoints, whose numbers mean nothing without scales.
_QUANTISED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


_EXPERT = re.compile(r"\.experts\.\d+\.")


class Leaf:
    """A tensor of the checkpoint."""

    def __init__(self, name, shape, dtype):
        self.name = name
        self.shape = tuple(shape)
        self.dtype = str(dtype).upper()
        self._tensor = None

    def __call__(self):
        if self._tensor is None:
            if self.dtype in _QUANTISED:
                raise ModelError("tensor %s of the checkpoint is quantised (%s)" % (self.name, self.dtype))
            kind = torch.int64 if self.dtype in _INTEGERS else torch.bfloat16
            self._tensor = _trace.weight(self.name, self.shape, kind)
        return self._tensor


def bind(model, tensors):
    """Gives every parameter and stored buffer of the model its expression. Before the first trace."""
    state = _state_of(model)
    leaves = {t["name"]: Leaf(t["name"], t["shape"], t["dtype"]) for t in tensors}
    found, unexpected = _convert(model, state, leaves)
    _tie(model, state, found)
    for name, target in state.items():
        if name in found:
            expression = found[name]
            if tuple(expression.shape) != tuple(target.shape):
                raise ModelError(
                    "parameter %s has shape %s, the checkpoint's tensors give %s"
                    % (name, list(target.shape), list(expression.shape))
                )
            _trace.bind(target, lambda value=expression: value)
        elif isinstance(target, torch.nn.Parameter) and not _computed(target):
            _trace.bind(target, lambda name=name: _missing(name, leaves))
    _report(model, unexpected)


def _computed(target):
    """Whether a parameter has a value of its own, which the checkpoint need not give."""
    return getattr(target, "_v", None) is not None and target._v.data is not None


def _missing(name, leaves):
    close = difflib.get_close_matches(name, list(leaves), 3, 0.6)
    hint = "; the nearest names are %s" % ", ".join(close) if close else ""
    raise ModelError("the checkpoint has no tensor for parameter %s%s" % (name, hint))


def _state_of(model):
    """Parameters and persistent buffers by name, as transformers' state dict."""
    state = {name: p for name, p in model.named_parameters(remove_duplicate=False)}
    for path, module in model.named_modules(remove_duplicate=False):
        transient = module._non_persistent_buffers_set
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in transient:
                state["%s.%s" % (path, name) if path else name] = buffer
    return state


def _convert(model, state, leaves):
    """({parameter: tensor expression}, names that no parameter takes)"""
    from transformers import core_model_loading

    mapping = conversions.for_model(model)
    renamings = [m for m in mapping if isinstance(m, core_model_loading.WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, core_model_loading.WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    rename = _Renamer(core_model_loading.rename_source_key, renamings, converters, model.base_model_prefix, state)
    jobs, unexpected = {}, []
    for name in sorted(leaves, key=core_model_loading.dot_natural_key):
        target, pattern = rename(name)
        if target not in state:
            unexpected.append(name)
        elif pattern is None:
            jobs.setdefault(target, leaves[name])
        else:
            job = jobs.get(target)
            if not isinstance(job, core_model_loading.WeightConverter):
                job = jobs[target] = deepcopy(by_pattern[pattern])
            job.add_tensor(target, name, pattern, leaves[name])
    found = {}
    for target, job in jobs.items():
        if isinstance(job, Leaf):
            found[target] = _flat(job(), state[target])
            continue
        for name, tensor in _run(job, target, model).items():
            found[name] = tensor[0] if isinstance(tensor, list) else tensor
    return found, unexpected


class _Renamer:
    """What a tensor's name becomes, and the pattern of the converter that takes it."""

    def __init__(self, rename, renamings, converters, prefix, state):
        self._rename = rename
        self._arguments = renamings, converters, prefix, state
        self._experts = {}

    def __call__(self, name):
        # Experts are many: where two of a layer become one parameter by one pattern, the others do.
        if ".experts." not in name:
            return self._one(name)
        seen = self._experts.setdefault(_EXPERT.sub(".experts.*.", name), [])
        if len(seen) == 2 and seen[0] == seen[1] and seen[0][1] is not None:
            return seen[0]
        found = self._one(name)
        if len(seen) < 2:
            seen.append(found)
        return found

    def _one(self, name):
        renamings, converters, prefix, state = self._arguments
        target, pattern = self._rename(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = self._rename(name, [], [], prefix, state)
        return target, pattern


def _run(job, target, model):
    try:
        return job.convert(target, model=model, config=model.config, loading_info=None)
    except ModelError:
        raise
    except Exception as error:
        sources = ", ".join(sorted(job.layer_targets.get(target, ()))[:3])
        raise ModelError("the tensors %s, ... do not make parameter %s: %s" % (sources, target, error)) from error


def _flat(tensor, target):
    """Checkpoints store some scalars as vectors of one element."""
    if tuple(tensor.shape) != tuple(target.shape) and tensor.numel() == 1 and target.numel() == 1:
        return tensor.reshape(target.shape)
    return tensor


def _tie(model, state, found):
    """Parameters that the checkpoint has under the name of the one they share."""
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    groups = {}
    for target, source in ties.items():
        groups.setdefault(source, [source]).append(target)
    for names in groups.values():
        given = next((n for n in names if n in found), None)
        if given is None:
            continue
        for name in names:
            if name not in found and name in state:
                found[name] = found[given]
    # One Parameter object under two names has one value.
    shared = {}
    for name, target in state.items():
        shared.setdefault(id(target), []).append(name)
    for names in shared.values():
        given = next((n for n in names if n in found), None)
        for name in names if given is not None else ():
            found.setdefault(name, found[given])


def _report(model, unexpected):
    import _host

    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    ignored += [re.compile(r"rotary_emb\.inv_freq"), re.compile(r"(^|\.)position_ids$")]
    odd = [n for n in unexpected if not any(p.search(n) for p in ignored)]
    if odd:
        more = ", ..." if len(odd) > 5 else ""
        _host.log("%d tensors of the checkpoint are not used: %s%s" % (len(odd), ", ".join(odd[:5]), more))
