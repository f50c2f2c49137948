"""How a graph depends on the number of tokens.

Branches. Modelling code may compare the length with a limit. If the two traces differ, one of these comparisons came out differently. The
graph of the long sequence is right for short ones too where the branch only leaves out a choice of the k best of T tokens for
T <= k, since the recorded choice then takes all of them. Any other branch is an error that names it.

Blocks. Code that cuts a sequence into blocks has sizes such as T // 4, which no graph has. But a causal model gives the first T
tokens the same results whatever follows them: run over m * T tokens, with a multiple m of all block sizes, it has only sizes
that are multiples of T, and the first T rows are what is asked for. It is m times the work and keeps no state, so it is done
only for models that cannot be recorded otherwise; composites, which are over T tokens, are then written out."""

import math
import re

import _host
import torch
from torch import _sym, _trace
from torch._tensor import FUNCTIONS, Tensor

from .errors import ModelError

# The k of every choice of the k best of T tokens, in this trace.
_choices = set()


class Traced:
    def __init__(self, size, text):
        self.size = size
        self.text = text
        self.guards = {(guard.place, guard.text): guard.result for guard in _trace.GUARDS}
        self.choices = set(_choices)


class Blocks:
    """The multiple of this trace."""

    multiple = 1
    largest = 4096


def reset(multiple=1):
    _choices.clear()
    Blocks.multiple = multiple


def block_multiple(error, multiple):
    """A multiple with which the size that this error names would be a multiple of T, or None."""
    text = str(error)
    if "no polynomial" not in text:
        return None
    sizes = [int(n) for n in re.findall(r"(?://|%) \((\d+)\)", text)]
    wanted = math.lcm(multiple, *sizes)
    return wanted if sizes and multiple < wanted <= Blocks.largest else None


def _topk(x, k, dim=-1, *args, plain=FUNCTIONS["topk"], **options):
    if type(x.shape[dim]) is _sym.SymInt:
        _choices.add(int(k))
    return plain(x, k, dim, *args, **options)


def install():
    if FUNCTIONS["topk"] is not _topk:
        FUNCTIONS["topk"] = Tensor.topk = torch.topk = _topk


def check(short, long):
    """Whether the graph of the long trace means short sequences too, or the error."""
    for (where, what), outcome in long.guards.items():
        if short.guards.get((where, what), outcome) == outcome:
            continue
        limit = _limit(what)
        if limit is not None and limit in long.choices:
            continue
        raise ModelError(
            "%s: the model takes one path for sequences of %d tokens and another for %d (%s); compute both paths with "
            "torch.where, or use a native plugin for this model" % (where, short.size, long.size, what)
        )


def usable(longest, traced):
    """How long a sequence may be: the longest, if every comparison of the last trace comes out there as it did in the trace."""
    for length in (longest, longest - 1):
        broken = [g for g in _trace.broken_guards(length) if _limit(g.text) not in _choices]
        if not broken:
            return length
    why = "since the model takes another path for longer ones (%s)" % broken[0].text
    _host.log("%s: sequences are limited to %d tokens, %s" % (broken[0].place, traced, why))
    return traced


def _limit(what):
    """The number in `T gt 16` and the like."""
    words = what.split()
    numbers = [w for w in words if w.isdigit()]
    return int(numbers[0]) if len(numbers) == 1 and "T" in words else None
