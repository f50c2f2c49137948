"""einops' functions against numbers worked out by hand."""

import einops
from tests import raises, run
from tests.values import both

X = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]


def test_rearrange():
    both(lambda x: einops.rearrange(x, "a (b c) -> b (a c)", b=2), X, expect=[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]])
    both(lambda x: einops.rearrange(x, "... c -> c ..."), X, expect=[list(c) for c in zip(*X)])
    both(lambda x: einops.rearrange(x, "a b -> a 1 b"), X, expect=[[X[0]], [X[1]]])
    both(lambda x: einops.rearrange(x, "a b -> (a b)"), X, expect=X[0] + X[1])
    assert "both sides" in raises(RuntimeError, both, lambda x: einops.rearrange(x, "a b -> a c"), X)


def test_others():
    both(lambda x: einops.repeat(x, "a -> a n", n=2), X[0][:2], expect=[[0.0, 0.0], [1.0, 1.0]])
    both(lambda x: einops.repeat(x, "a -> (n a)", n=2), X[0][:2], expect=[0.0, 1.0, 0.0, 1.0])
    both(lambda x: einops.reduce(x, "a (b c) -> b", "mean", c=2), X, expect=[2.5, 4.5])
    both(lambda x, y: einops.einsum(x, y, "row k, column k -> row column"), X, X[:1], expect=[[14.0], [38.0]])


run(globals())
