"""Causal masks written by hand become `causal_mask`; what is none stays as it is."""

import _graph
import torch
from driver import masks, squares
from tests import run
from tests.values import begin
from torch import _trace


def _scores():
    x = _trace.input("positions").to(torch.bfloat16)
    return x.reshape(1, 1, 1, -1) * x.reshape(1, 1, -1, 1)


def _recorded(f):
    """Ops that the last node depends on."""
    T = begin(5)
    masks.reset()
    squares.install()
    last = _trace.node(f(_scores(), T))
    _trace.on_square = None
    ops, todo, seen = [], [last], set()
    while todo:
        n = todo.pop()
        if n not in seen:
            seen.add(n)
            op, ins, _ = _graph.node(n)
            ops.append(op)
            todo.extend(ins)
    return " ".join(ops)


def test_masks_by_hand():
    def below(x, T):
        return x.masked_fill(~torch.tril(torch.ones(T, T, dtype=torch.bool)), float("-inf"))

    def above(x, T):
        return x + torch.triu(torch.full((T, T), float("-inf")), diagonal=1).to(x.dtype)

    def compared(x, T):
        i = torch.arange(T)
        mask = torch.full((T, T), torch.finfo(x.dtype).min)
        mask.masked_fill_(i < (i + 1).view(T, 1), 0)
        return x + mask.to(x.dtype)[None, None]

    def windowed(x, T):
        i = torch.arange(T)
        gap = i[:, None] - i[None, :]
        return x.masked_fill(((gap < 0) | (gap >= 3))[None, None], float("-inf"))

    for f in (below, above, compared, windowed):
        ops = _recorded(f)
        assert "causal_mask" in ops and "iota" not in ops, ops
    assert "causal_mask(window:Some(3))" in _recorded(windowed)


def test_what_is_no_mask():
    def distance(x, T):
        i = torch.arange(T)
        return x - (i[:, None] - i[None, :]).abs().float()

    def both_ways(x, T):
        i = torch.arange(T)
        return x.masked_fill((i[:, None] - i[None, :]).abs() > 2, float("-inf"))

    assert "causal_mask" not in _recorded(distance) and "causal_mask" not in _recorded(both_ways)


run(globals())
