"""One forward pass of the model, recorded."""

import inspect

import _graph
import torch
from torch import _trace

from . import dispatch, lengths, masks
from .errors import ModelError

def run(model, tokens, multiple=1, named=True):
    """Records the pass over `tokens` tokens, with or without names; the id of the logits [R, vocabulary]. With `multiple`, the model runs over so many
    times T tokens (`lengths.Blocks` says why); what comes after the first T changes nothing before."""
    _trace.start(tokens, named)
    masks.reset()
    dispatch.reset()
    lengths.reset(multiple)
    try:
        output = model(**_arguments(model, multiple))
        logits = _logits(output)
        dispatch.check()
        return _selected(logits)
    finally:
        _trace.finish()


def _arguments(model, multiple):
    parameters = inspect.signature(type(model).forward).parameters
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    ids, positions = _trace.input("token_ids"), _trace.input("positions")
    if multiple > 1:
        tokens = _trace.S.tokens
        ids = torch.cat([ids, torch.zeros((1, tokens * (multiple - 1)), dtype=torch.int64)], dim=1)
        positions = torch.arange(tokens * multiple).unsqueeze(0)
    arguments = {"input_ids": ids}
    for name, value in (("position_ids", positions), ("use_cache", False)):
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
    logits = logits[: _trace.S.tokens]
    node = _trace.node(logits)
    return _graph.push("select_outputs", [node], "logits")[0]
