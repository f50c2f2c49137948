"""Causal masks that modelling code computes by hand, as the mask that they are.

Such a mask is an expression of places only (comparisons of two iotas, `tril` of ones, -inf above a diagonal). Its numbers say
what it is (`masks.understand`); it then becomes the graph's `causal_mask`, which the host recognises in front of a softmax.
What it is not sure of stays as it is. `_trace` calls it for every such expression when it first meets a value of the tokens."""

from torch import _composite, _trace

from . import masks


def standard(node, value):
    """The node of a causal mask that means the same, or None."""
    if value.ir == "i64" or any(type(n) is not int or n != 1 for n in value.shape[:-2]):
        return None
    square = _trace.at_node(node, value)
    mask = _causal(square)
    if mask is None and value.ir == "bool":
        # What hides: the mask of what is not seen.
        hides = _causal(~square)
        mask = None if hides is None else ~hides
    return None if mask is None else _trace.node(mask)


def _causal(square):
    found = masks.understand(square, 1)
    if found is None or found.slopes is not None or found.allowed is not None:
        return None
    return _composite.causal_mask(found.window, found.chunk, square.dtype, len(square.shape))


def install():
    _trace.on_square = standard
