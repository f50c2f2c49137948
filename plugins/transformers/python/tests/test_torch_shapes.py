"""Views, indices and writes: shapes, numbers, and what a write to a view does to its base."""

import math

import _graph
import torch
import torch.nn.functional as F
from tests import raises, run
from tests.values import begin, both, near, numbers
from torch import _trace

X = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_rearranging():
    both(lambda x: x.view(3, -1), X, expect=[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    both(lambda x: x.t().reshape(2, 3), X, expect=[[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]])
    both(lambda x: x.unsqueeze(1).transpose(0, 2).squeeze(1), X, expect=[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])
    both(lambda x: x[None].movedim(0, -1).flatten(), X, expect=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    both(lambda x: torch.cat([x, x[:1]], 0), X, expect=[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [0.0, 1.0, 2.0]])
    both(lambda x: torch.stack([x[0], x[1]], -1), X, expect=[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])
    both(lambda x: x.chunk(2, -1)[1], X, expect=[[2.0], [5.0]])
    both(lambda x: x.split([1, 2], -1)[1], X, expect=[[1.0, 2.0], [4.0, 5.0]])
    both(lambda x: x[0].repeat(2, 1), X, expect=[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    both(lambda x: x[0].repeat_interleave(2), X, expect=[0.0, 0.0, 1.0, 1.0, 2.0, 2.0])
    both(lambda x: x[:, :1].expand(2, 2), X, expect=[[0.0, 0.0], [3.0, 3.0]])
    both(lambda x: x.roll(1, -1), X, expect=[[2.0, 0.0, 1.0], [5.0, 3.0, 4.0]])
    both(lambda x: x.flip(-1), X, expect=[[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]])
    both(lambda x: x[0].unfold(0, 2, 1), X, expect=[[0.0, 1.0], [1.0, 2.0]])


def test_indices():
    both(lambda x: x[..., -1], X, expect=[2.0, 5.0])
    both(lambda x: x[1:, ::2], X, expect=[[3.0, 5.0]])
    both(lambda x: x[:, None, 1], X, expect=[[1.0], [4.0]])
    both(lambda x: x[:, [2, 0]], X, expect=[[2.0, 0.0], [5.0, 3.0]])
    both(lambda x, i: x[i], X, [[1, 0]], expect=[[X[1], X[0]]])
    both(lambda x, i: x[i, i], X, [1, 0], expect=[4.0, 0.0])
    both(lambda x, i: x[None][:, i, :, None], X, [1], expect=[[[[3.0], [4.0], [5.0]]]])
    both(lambda x, i: x.unsqueeze(1)[i, :, i], X, [1, 0], expect=[[4.0], [0.0]])
    both(lambda x: x[torch.tensor([True, False])], X, expect=[X[0]])
    both(lambda x, i: x.gather(1, i), X, [[2], [0]], expect=[[2.0], [3.0]])
    both(lambda x, i: torch.take_along_dim(x, i, 1), X, [[1], [1]], expect=[[1.0], [4.0]])
    both(lambda x, i: x.index_select(1, i), X, [2], expect=[[2.0], [5.0]])
    both(lambda x, i: x.scatter(1, i, 9.0), X, [[2], [0]], expect=[[0.0, 1.0, 9.0], [9.0, 4.0, 5.0]])
    both(lambda x, i: x.scatter_add(0, i, x), X, [[0, 0, 0]], expect=[[0.0, 2.0, 4.0], [3.0, 4.0, 5.0]])
    both(lambda x, i: x.index_add(0, i, x[:1]), X, [1], expect=[[0.0, 1.0, 2.0], [3.0, 5.0, 7.0]])


def _written(write):
    def f(x):
        x = x.clone()
        write(x)
        return x

    return f


def test_writes():
    def check(write, expect):
        both(_written(write), X, expect=expect)

    check(lambda x: x.__setitem__((0, 1), 9.0), [[0.0, 9.0, 2.0], [3.0, 4.0, 5.0]])
    check(lambda x: x.__setitem__((slice(None), slice(1, None)), 9.0), [[0.0, 9.0, 9.0], [3.0, 9.0, 9.0]])
    check(lambda x: x.__setitem__((Ellipsis, slice(0, None, 2)), x[..., 1:]), [[1.0, 1.0, 2.0], [4.0, 4.0, 5.0]])
    check(lambda x: x.__setitem__(x > 3, 0.0), [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    check(lambda x: x.__setitem__(torch.tensor([1]), x[:1]), [X[0], X[0]])
    check(lambda x: x[0].add_(1), [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    check(lambda x: x.t()[1].zero_(), [[0.0, 0.0, 2.0], [3.0, 0.0, 5.0]])
    check(lambda x: x.view(-1)[1:3].copy_(torch.tensor([7.0, 8.0])), [[0.0, 7.0, 8.0], [3.0, 4.0, 5.0]])
    check(lambda x: x.masked_fill_(x == 1, 5.0), [[0.0, 5.0, 2.0], [3.0, 4.0, 5.0]])
    check(lambda x: x.transpose_(0, 1).unsqueeze_(0), [[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]])
    check(lambda x: torch.mul(x, 2, out=x), [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]])


def test_views_and_bases():
    def through(x):
        """A view taken before a write sees it; a copy does not."""
        x = x.clone()
        row, copy = x[1], x.t().contiguous()
        x += 1
        row *= 10
        copy += 100
        return torch.cat([x.flatten(), row, copy.flatten()[:1]])

    both(through, X, expect=[1.0, 2.0, 3.0, 40.0, 50.0, 60.0, 40.0, 50.0, 60.0, 100.0])

    def halves(x):
        x = x.clone()
        a, b = x.chunk(2, -1)
        a.copy_(b.expand(2, 2))
        return x

    both(halves, X, expect=[[2.0, 2.0, 2.0], [5.0, 5.0, 5.0]])


def test_sizes_depend_on_tokens():
    T = begin(5)
    x = _trace.input("token_ids")
    assert [int(n) for n in x.shape] == [1, 5] and str(x.shape[1]) == "T"
    y = x[:, 1:].float()
    assert str(y.shape[1]) == "T-1"
    z = torch.cat([y, y[:, :2]], 1).reshape(-1, 1)
    assert str(z.shape[0]) == "T+1"
    assert str((x.shape[1] * 8 + 3) // 8) == "T"
    assert _graph.type(_trace.node(z)) == ("f32", (((1, 1), (0, 1)), 1))
    assert numbers(torch.arange(T) + 1) == [1, 2, 3, 4, 5]
    assert numbers(torch.ones(T).mean(), 5) == [1.0]
    assert not _trace.GUARDS
    assert (T > 3) is True and len(_trace.GUARDS) == 1
    assert T <= 100 and T != 1 and T + 1 > T
    assert [g.text for g in _trace.broken_guards(2)] == ["T > 3"]
    assert [g.text for g in _trace.broken_guards(101)] == ["T <= 100"]
    assert str(_trace.trace_max(0, 8 - T)) == "-T+8"
    assert _trace.broken_guards(8) == [] and [g.text for g in _trace.broken_guards(9)] == ["-T+8 >= 0"]


def test_what_cannot_be_traced():
    T = begin(5)
    x = _trace.input("token_ids")
    assert "value of a tensor" in raises(_trace.TraceError, bool, x.sum() > 0)
    assert "item()" in raises(_trace.TraceError, x.max().item)
    assert "depends on the number of tokens" in raises(_trace.TraceError, _trace.trace_range, T)
    assert "depends on the number of tokens" in raises(_trace.TraceError, lambda: list(x[0]))
    assert "no polynomial" in raises(_trace.TraceError, lambda: _trace.node(torch.zeros(T // 2)))
    assert "nonzero" in raises(_trace.TraceError, lambda: x[x > 1])
    assert "torch.fancy" in raises(_trace.TraceError, lambda: torch.fancy)
    assert not hasattr(torch, "fancy") and not hasattr(x, "fancy") and hasattr(x, "sum")
    assert "a loss" in raises(_trace.TraceError, lambda: F.cross_entropy(x, x))


def test_top_of_tokens():
    T = begin(5)
    scores = (_trace.input("positions") * 3 % 5).float()  # 0 3 1 4 2
    assert numbers(scores.topk(_trace.trace_min(2, T)).indices) == [3, 1]
    # More than there are: all of them, and the first place again.
    assert numbers(scores.topk(_trace.trace_min(7, T)).indices) == [3, 1, 4, 2, 0, 0, 0]
    assert not _trace.GUARDS, "it is right for every T"


def test_large_constants_stay_expressions():
    begin()
    causal = torch.tril(torch.ones(4096, 4096, dtype=torch.bool)).view(1, 1, 4096, 4096)
    assert causal._v.data is None and len(causal._v.ins) == 1
    before = _graph.len()
    part = causal[:, :, :3, :3]
    assert _graph.len() == before, "nothing is recorded until it is used"
    assert "value" in raises(_trace.TraceError, part.tolist)
    table = torch.outer(torch.arange(512).float(), torch.tensor([1.0, 0.5])).cos()
    assert table._v.data is None and near(numbers(table[3:4]), [math.cos(3.0), math.cos(1.5)])


run(globals())
