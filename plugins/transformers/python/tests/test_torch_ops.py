"""Functions of torch: what is recorded and what is computed at once, against numbers worked out by hand."""

import math

import torch
import torch.nn.functional as F
from tests import raises, run
from tests.values import both

X = [[1.0, -2.0, 3.0], [0.5, 4.0, -1.5]]


def test_arithmetic():
    both(lambda x: x + 1, X, expect=[[2.0, -1.0, 4.0], [1.5, 5.0, -0.5]])
    both(lambda x: 2 - x, X, expect=[[1.0, 4.0, -1.0], [1.5, -2.0, 3.5]])
    both(lambda x: x * x.new_tensor([1.0, 2.0, 3.0]), X, expect=[[1.0, -4.0, 9.0], [0.5, 8.0, -4.5]])
    both(lambda x: 1 / x, X, expect=[[1.0, -0.5, 1 / 3], [2.0, 0.25, -1 / 1.5]])
    both(lambda x: x**2 + x**3 + x**-1, [[2.0, 4.0]], expect=[[12.5, 80.25]])
    both(lambda x: (x.abs() ** 0.5).rsqrt(), [[16.0, 81.0]], expect=[[0.5, 1 / 3]])
    both(lambda x: x // 2, [[7, -7]], expect=[[3, -4]])
    both(lambda x: x % 3, [[7, -7]], expect=[[1, 2]])
    both(lambda x: x / 2, [[7, -7]], expect=[[3.5, -3.5]])
    both(lambda x: torch.sub(x, x, alpha=3), X, expect=[[-2.0, 4.0, -6.0], [-1.0, -8.0, 3.0]])
    both(lambda x: x.clamp(-1, 1), X, expect=[[1.0, -1.0, 1.0], [0.5, 1.0, -1.0]])
    both(lambda x: torch.maximum(x, -x), X, expect=[[1.0, 2.0, 3.0], [0.5, 4.0, 1.5]])


def test_functions_of_one_operand():
    for name, f in dict(exp=math.exp, tanh=math.tanh, sin=math.sin, cos=math.cos, erf=math.erf).items():
        both(lambda x, name=name: getattr(torch, name)(x), X, expect=[[f(i) for i in r] for r in X])
    both(lambda x: torch.log1p(x.abs()), X, expect=[[math.log1p(abs(i)) for i in r] for r in X])
    both(torch.expm1, X, expect=[[math.expm1(i) for i in r] for r in X])
    both(torch.round, [0.5, 1.5, -2.5], expect=[0.0, 2.0, -2.0])
    both(torch.trunc, [1.7, -1.7], expect=[1.0, -1.0])


def test_types_are_promoted_as_in_torch():
    def kind(f, *args):
        return f(*args).dtype

    i, h, f = torch.tensor([1, 2]), torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0])
    assert kind(lambda: i + 1) is torch.int64 and kind(lambda: i + 1.5) is torch.float32
    assert kind(lambda: h + 1.5) is torch.bfloat16 and kind(lambda: h + f) is torch.float32
    assert kind(lambda: h * torch.tensor(2.0)) is torch.bfloat16, "a 0-dim tensor does not promote"
    assert kind(lambda: i * h) is torch.bfloat16 and kind(lambda: (i > 1) * h) is torch.bfloat16
    assert kind(lambda: i / 2) is torch.float32 and kind(lambda: i == 1) is torch.bool
    assert kind(lambda: torch.where(i > 1, h, 0.0)) is torch.bfloat16
    assert kind(lambda: (i > 1).sum()) is torch.int64 and kind(lambda: i.sum(dtype=torch.float32)) is torch.float32


def test_single_precision():
    # As torch: 1 / 10000 ** (i / 8), each step rounded.
    inv = 1.0 / (10000.0 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8))
    assert inv.tolist() == [1.0, 0.10000000149011612, 0.009999999776482582, 0.0010000000474974513]
    assert (torch.tensor(0.1) + torch.tensor(0.2)).item() == 0.30000001192092896
    assert torch.tensor(16777217.0).item() == 16777216.0
    assert torch.linspace(0, 1, 3).tolist() == [0.0, 0.5, 1.0]


def test_reductions():
    both(lambda x: x.sum(-1), X, expect=[2.0, 3.0])
    both(lambda x: x.mean(dim=(0, 1), keepdim=True), X, expect=[[5 / 6]])
    both(lambda x: x.var(-1, unbiased=False), [[1.0, 3.0]], expect=[1.0])
    both(lambda x: x.std(-1), [[1.0, 3.0]], expect=[math.sqrt(2)])
    both(lambda x: x.max(-1).values, X, expect=[3.0, 4.0])
    both(lambda x: x.max(-1).indices, X, expect=[2, 1])
    both(lambda x: x.min(), X, expect=-2.0)
    both(lambda x: x.argmin(-1), X, expect=[1, 2])
    both(lambda x: x.norm(dim=-1), [[3.0, 4.0]], expect=[5.0])
    both(lambda x: (x > 0).any(0), X, expect=[True, True, True])
    both(lambda x: (x > 0).all(0), X, expect=[True, False, False])
    both(lambda x: x.prod(-1), X, expect=[-6.0, -3.0])
    both(lambda x: x.cumsum(-1), X, expect=[[1.0, -1.0, 2.0], [0.5, 4.5, 3.0]])
    both(lambda x: x.cumprod(-1), X, expect=[[1.0, -2.0, -6.0], [0.5, 2.0, -3.0]])
    both(lambda x: x.logsumexp(-1), [[0.0, 0.0]], expect=[math.log(2)])
    both(lambda x: torch.log_softmax(x, -1), [[0.0, 0.0]], expect=[[-math.log(2)] * 2])
    both(lambda x: x.softmax(0), [[0.0], [math.log(3)]], expect=[[0.25], [0.75]])


def test_sorting():
    both(lambda x: x.sort(-1, descending=True).values, X, expect=[[3.0, 1.0, -2.0], [4.0, 0.5, -1.5]])
    both(lambda x: x.argsort(0), X, expect=[[1, 0, 1], [0, 1, 0]])
    both(lambda x: x.topk(2, -1)[0], X, expect=[[3.0, 1.0], [4.0, 0.5]])
    both(lambda x: torch.topk(x, 1, dim=0, largest=False).indices, X, expect=[[1, 0, 1]])
    both(lambda x: F.one_hot(x, 3), [2, 0], expect=[[0, 0, 1], [1, 0, 0]])
    both(lambda x: torch.bincount(x, minlength=3), [2, 0, 2], expect=[1, 0, 2])
    both(lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0])), [-1.0, 0.5, 2.0], expect=[0, 1, 2])


def test_products_of_matrices():
    A, B = [[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]
    both(torch.matmul, A, B, expect=[[19.0, 22.0], [43.0, 50.0]])
    both(lambda a, v: a @ v, A, [1.0, -1.0], expect=[-1.0, -1.0])
    both(torch.outer, [1.0, 2.0], [3.0, 4.0], expect=[[3.0, 4.0], [6.0, 8.0]])
    both(lambda a, b: torch.einsum("ij,kj->ik", a, b), A, B, expect=[[17.0, 23.0], [39.0, 53.0]])
    both(lambda a, b: torch.einsum("i,j->ij", a, b), [1.0, 2.0], [3.0, 4.0], expect=[[3.0, 4.0], [6.0, 8.0]])
    both(lambda a: torch.einsum("ij->j", a), A, expect=[4.0, 6.0])
    both(lambda a: torch.einsum("ii->i", a), A, expect=[1.0, 4.0])
    both(lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), [A], [B], expect=[[[19.0, 22.0], [43.0, 50.0]]])
    both(lambda c, a, b: torch.addmm(c, a, b), [1.0, 2.0], A, B, expect=[[20.0, 24.0], [44.0, 52.0]])
    both(lambda a, b: F.linear(a, b), A, B, expect=[[17.0, 23.0], [39.0, 53.0]])
    both(lambda a: torch.tril(a), A, expect=[[1.0, 0.0], [3.0, 4.0]])
    both(lambda a: torch.triu(a, 1), A, expect=[[0.0, 2.0], [0.0, 0.0]])
    both(lambda a: a.diagonal(), A, expect=[1.0, 4.0])


def test_layers():
    both(lambda x: F.silu(x), [[1.0]], expect=[[1 / (1 + math.exp(-1))]])
    both(lambda x: F.layer_norm(x, (2,), eps=0.0), [[1.0, 3.0]], expect=[[-1.0, 1.0]])
    both(lambda x: F.normalize(x, dim=-1), [[3.0, 4.0]], expect=[[0.6, 0.8]])
    both(lambda x: F.leaky_relu(x, 0.1), [[-1.0, 2.0]], expect=[[-0.1, 2.0]])
    both(lambda x: F.pad(x, (1, 0, 0, 1), value=9.0), [[1.0, 2.0]], expect=[[9.0, 1.0, 2.0], [9.0, 9.0, 9.0]])
    both(lambda x: F.pad(x, (-1, 0)), [[1.0, 2.0]], expect=[[2.0]])
    both(lambda x: F.glu(x), [[2.0, 0.0]], expect=[[1.0]])
    both(lambda x, w: F.conv1d(x, w, padding=1), [[[1.0, 2.0, 3.0]]], [[[1.0, 0.0, -1.0]]], expect=[[[-2.0, -2.0, 2.0]]])
    both(
        lambda x, w: F.conv1d(x, w, padding=1, groups=2),
        [[[1.0, 2.0], [3.0, 4.0]]],
        [[[1.0, 1.0]], [[0.0, 2.0]]],
        expect=[[[1.0, 3.0, 2.0], [6.0, 8.0, 0.0]]],
    )
    both(lambda i, w: F.embedding(i, w), [1, 0], [[1.0, 2.0], [3.0, 4.0]], expect=[[3.0, 4.0], [1.0, 2.0]])


def test_bools():
    both(lambda x: (x > 0) & (x < 2), X, expect=[[True, False, False], [True, False, False]])
    both(lambda x: ~(x > 0) | (x == 3), X, expect=[[False, True, True], [False, False, True]])
    both(lambda x: x.masked_fill(x < 0, 7.0), X, expect=[[1.0, 7.0, 3.0], [0.5, 4.0, 7.0]])
    both(lambda x: torch.isin(x, torch.tensor([1, 5])), [1, 2], expect=[True, False])
    assert "bitwise" in raises(RuntimeError, both, lambda x: x & 1, [1, 2])


def test_complex_numbers():
    def turn(x):
        pairs = torch.view_as_complex(x.reshape(1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones(1), torch.tensor([math.pi / 2]))).flatten()

    both(turn, [1.0, 2.0], expect=[-2.0, 1.0])


run(globals())
