"""What an attention mask means.

Modelling code hands a mask to attention as a tensor: a specification (`.spec`, from the shims of masking helpers), or one that
it computed itself. `understand` sees in the second kind, by its numbers where it depends on positions only: a causal mask, a
window or chunks that occur in it, linear biases (ALiBi), or else a set of visible keys. What has no such form gives `None`, and
attention is then written out."""

import _graph
import torch
from torch import _trace

from .evaluate import TOKENS, Evaluator, Unknown, causal, op_of, option

# Additive masks hide keys by a number at most this: finfo.min of any dtype, or what older code writes by hand.
HIDDEN = -9000.0


class Mask:
    """Fields of the attention op: window, chunk, slopes (a list, one for each head) and a tensor of visible keys."""

    def __init__(self, window=None, chunk=None, slopes=None, allowed=None):
        self.window = window
        self.chunk = chunk
        self.slopes = slopes
        self.allowed = allowed


_memory = {}


def reset():
    """Forgets the masks of the last trace."""
    _memory.clear()
    _memory["evaluate"] = Evaluator()


def understand(mask, heads):
    """The Mask of a tensor [1, 1 or H, T, T], or None."""
    if mask.spec is not None:
        return Mask(mask.spec.window, mask.spec.chunk)
    node = _trace.node(mask)
    key = (node, heads)
    if key not in _memory:
        _memory[key] = _understand(mask, node, heads)
    return _memory[key]


def _understand(mask, node, heads):
    evaluate = _memory["evaluate"]
    try:
        shape, values = evaluate(node)
    except Unknown:
        return _by_structure(mask, node, heads)
    tokens = TOKENS
    rows = [n for n in shape if n != 1 or len(shape) <= 2]
    if shape[-2:] != [tokens, tokens] or len(values) % (tokens * tokens):
        return None
    square = tokens * tokens
    count = len(values) // square
    if count not in (1, heads) or len(rows) > 4:
        return None
    additive = mask.dtype is not torch.bool
    visible = [v > HIDDEN for v in values] if additive else values
    first = visible[:square]
    if any(visible[h * square : (h + 1) * square] != first for h in range(count)):
        return None if additive else _allowed(mask, heads)
    if any(first[i * tokens + j] for i in range(tokens) for j in range(i + 1, tokens)):
        return None
    spec = _specification(first, node, tokens)
    slopes = _slopes(values, tokens, count, heads, first) if additive else None
    if additive and slopes is None:
        return None
    if spec is None:
        return None if additive else _allowed(mask, heads)
    slopes = torch.tensor(slopes, dtype=torch.float32) if any(slopes or ()) else None
    return Mask(spec[0], spec[1], slopes)


def _specification(visible, node, tokens):
    """(window, chunk) that make these keys visible: of the numbers that occur in the mask's own expression."""
    if visible == causal(tokens):
        # A window that is longer than the trace would not be seen: it must not occur either.
        return (None, None) if not _numbers_beyond(node, tokens) else None
    if not all(any(visible[i * tokens : (i + 1) * tokens]) for i in range(tokens)):
        return None
    windows = {max(i - j for j in range(tokens) if visible[i * tokens + j]) + 1 for i in range(tokens)}
    window = max(windows)
    if visible == causal(tokens, window):
        return window, None
    for chunk in range(1, tokens):
        if visible == causal(tokens, None, chunk):
            return None, chunk
    return None


def _numbers_beyond(node, tokens):
    """Whether positions are compared with a constant that this trace is too short to reach."""
    seen, todo = set(), [node]
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        name, attributes = op_of(n)
        if name == "causal_mask" and (option(attributes, "window") or option(attributes, "chunk")):
            return True
        inputs = _graph.node(n)[1]
        if _graph.type(n)[0] == "i64" and name == "const":
            try:
                values = _memory["evaluate"](n)[1]
            except Unknown:
                return True
            if any(abs(v) >= tokens for v in values):
                return True
        todo.extend(inputs)
    return False


def _slopes(values, tokens, count, heads, visible):
    """The slope of each head if the bias of visible keys is slope * (j - i) up to a number for each row, else None."""
    square = tokens * tokens
    slopes = []
    for h in range(count):
        at = h * square
        last = at + (tokens - 1) * tokens
        slope = values[last + tokens - 1] - values[last + tokens - 2] if tokens > 1 else 0.0
        bound = 1e-5 * max(1.0, abs(slope) * tokens)
        for i in range(tokens):
            row = at + i * tokens
            for j in range(i + 1):
                if visible[i * tokens + j] and abs(values[row + j] - values[row + i] - slope * (j - i)) > bound:
                    return None
        slopes.append(slope)
    return slopes * (heads // count)


def _allowed(mask, heads):
    """The mask as a further input of attention."""
    shape = mask.shape
    if len(shape) != 4 or int(shape[0]) != 1 or int(shape[1]) not in (1, heads):
        return None
    return Mask(allowed=mask)


def _by_structure(mask, node, heads):
    """A mask that depends on tokens: which keys are visible, if that is all it says, and if it is causal."""
    if not _has_causal(node):
        return None
    if mask.dtype is torch.bool:
        return _allowed(mask, heads)
    return _allowed(mask > HIDDEN, heads) if _hides_only(node, {}) else None


# Ops whose result holds elements of their inputs and nothing else, with the inputs that are elements.
_MOVES = {
    "reshape": (0,),
    "permute": (0,),
    "broadcast": (0,),
    "slice": (0,),
    "cast": (0,),
    "take": (0,),
    "gather": (0,),
    "select": (1, 2),
    "scatter": (0, 2),
    "add": (0, 1),
    "max": (0, 1),
    "min": (0, 1),
}


def _hides_only(node, known):
    """Whether every element of an additive mask is 0 or hides its key."""
    if node not in known:
        known[node] = False
        name, _ = op_of(node)
        inputs = _graph.node(node)[1]
        if name == "concat":
            known[node] = all(_hides_only(i, known) for i in inputs)
        elif name in _MOVES:
            known[node] = all(_hides_only(inputs[i], known) for i in _MOVES[name])
        else:
            try:
                known[node] = all(v == 0 or v <= HIDDEN for v in _memory["evaluate"](node)[1])
            except Unknown:
                pass
    return known[node]


def _has_causal(node):
    seen, todo = set(), [node]
    while todo:
        n = todo.pop()
        if n in seen:
            continue
        seen.add(n)
        if op_of(n)[0] == "causal_mask":
            return True
        todo.extend(_graph.node(n)[1])
    return False
