"""One forward pass of the model, recorded."""

import inspect

import _graph
import torch
from torch import _trace

from . import dispatch, lengths, masks
from .errors import ModelError

# Arguments of forward that every call gives, if forward takes them.
_ARGUMENTS = ("position_ids", "use_cache", "return_dict")


def run(model, tokens):
    """Records the pass over `tokens` tokens; the id of the logits [R, vocabulary]."""
    _trace.start(tokens)
    masks.reset()
    dispatch.reset()
    lengths.reset()
    try:
        output = model(**_arguments(model))
        logits = _logits(output)
        dispatch.check()
        return _selected(logits)
    finally:
        _trace.finish()


def _arguments(model):
    parameters = inspect.signature(type(model).forward).parameters
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    arguments = {"input_ids": _trace.input("token_ids")}
    for name, value in (("position_ids", _trace.input("positions")), ("use_cache", False)):
        if name in parameters or anything:
            arguments[name] = value
    return arguments


def _logits(output):
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)):
        logits = output[0]
    if not isinstance(logits, torch.Tensor):
        raise ModelError("the model's forward gives no `logits`: it is not a causal language model")
    return logits


def _selected(logits):
    """Rows chosen by the host: logits[1, T, V] -> [R, V]"""
    if logits.ndim == 3:
        logits = logits[0]
    node = _trace.node(logits)
    return _graph.push("select_outputs", [node], "logits")[0]
