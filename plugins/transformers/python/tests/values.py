"""Numbers of recorded nodes, for tests: each op of the graph by the program that computes small constants.

`live(data)` makes a tensor that counts as a weight with these numbers; `numbers(t)` walks the recorded nodes. `both` runs a
function on known numbers and on such tensors, and checks that what is computed at once and what is recorded agree.
"""

import math
import re

import _graph
import torch
from torch import _numbers, _trace

WEIGHTS = {}


class Array:
    """What the evaluators of `_numbers` read of a value."""

    def __init__(self, shape, ir, data):
        self.shape, self.ir, self.data = tuple(shape), ir, data


def begin(tokens=5):
    _graph.reset()
    _graph.begin(tokens)
    WEIGHTS.clear()
    return _trace.start(tokens)


def live(data, dtype=None):
    """A tensor of known numbers that the tracer takes for a weight."""
    known = torch.tensor(data, dtype=dtype)
    name = "w%d" % len(WEIGHTS)
    kind = torch.int64 if known.dtype.ir in ("i64", "bool") else None
    WEIGHTS[name] = known._v.data
    t = _trace.weight(name, tuple(known.shape), kind)
    return t.to(known.dtype) if t.dtype is not known.dtype else t


def _attributes(text):
    """The attributes of an op's text, as strings."""
    out, depth, key, start = {}, 0, None, 0
    for i, c in enumerate(text + ","):
        if c in "([":
            depth += 1
        elif c in ")]":
            depth -= 1
        elif c == ":" and depth == 0 and key is None:
            key, start = text[start:i], i + 1
        elif c == "," and depth == 0 and key is not None:
            out[key], key, start = text[start:i], None, i + 1
    return out


def _list(text, tokens):
    return [int(eval(x.strip('" '), {"T": tokens})) for x in text.strip("[]").split(",") if x.strip()]  # noqa: S307


def _dims(shape, tokens):
    return [d if type(d) is int else sum(c * tokens**p for p, c in d) for d in shape]


def numbers(t, tokens=5):
    """The flat list of a tensor's numbers."""
    done = {}
    last = _trace.node(t)
    for n in range(last + 1):
        op, ins, _ = _graph.node(n)
        ir, shape = _graph.type(n)
        shape = _dims(shape, tokens)
        name, _, rest = op.partition("(")
        done[n] = Array(shape, ir, _compute(name, _attributes(rest[:-1]), [done[i] for i in ins], shape, ir, tokens))
        assert len(done[n].data) == math.prod(shape), "%s gives %d numbers for %s" % (op, len(done[n].data), shape)
    return done[last].data


def _compute(name, a, ins, shape, ir, tokens):
    if name in _numbers.UNARY:
        return _numbers.unary(name, ir)(*ins)
    if name in _numbers.BINARY:
        return _numbers.binary(name, shape, ir)(*ins)
    if name in ("sum", "reduce_max", "reduce_min", "argmax"):
        return _numbers.reduction(name, int(a["axis"]), ir)(*ins)
    if name == "weight":
        return WEIGHTS[a["name"].strip('"')]
    if name == "const":
        return _constant(a["data"], ir)
    if name in ("iota", "input"):
        return list(range(shape[0]))
    return _OPS[name](a, ins, shape, ir, tokens)


def _constant(text, ir):
    items = [x.strip() for x in re.sub(r"^[a-z0-9]+\(\[|\]\)$", "", text).split(",") if x]
    if ir == "bool":
        return [x == "true" for x in items]
    return [int(x) for x in items] if ir == "i64" else [float(x) for x in items]


def _axis(f):
    return lambda a, ins, shape, ir, tokens: f(int(a["axis"]))(*ins)


def _slice(a, ins, shape, ir, tokens):
    start, end = _list(a["start"], tokens)[0], _list(a["end"], tokens)[0]
    return _numbers.slice_axis(int(a["axis"]), start, end, int(a["step"]))(*ins)


def _linear(a, ins, shape, ir, tokens):
    x, w = ins[:2]
    k = w.shape[1]
    out = []
    for r in range(len(x.data) // k):
        row = x.data[r * k : (r + 1) * k]
        for n in range(w.shape[0]):
            y = math.fsum(p * q for p, q in zip(row, w.data[n * k : (n + 1) * k]))
            out.append(y + (ins[2].data[n] if len(ins) > 2 else 0.0))
    return _numbers.round_f32(out)


def _softmax(a, ins, shape, ir, tokens):
    lists, outer, inner = _numbers.rows(ins[0], len(shape) - 1)
    out = []
    for r in lists:
        e = [math.exp(x - max(r)) for x in r]
        out.append([x / math.fsum(e) for x in e])
    return _numbers.round_f32(_numbers.unrows(out, outer, inner))


def _activation(a, ins, shape, ir, tokens):
    f = {
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1 + math.exp(-x)),
        "softplus": lambda x: math.log1p(math.exp(x)),
        "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }[a["kind"]]
    return _numbers.round_f32([f(x) for x in ins[0].data])


def _layer_norm(a, ins, shape, ir, tokens):
    lists, outer, inner = _numbers.rows(ins[0], len(shape) - 1)
    out = []
    for r in lists:
        mean = sum(r) / len(r)
        scale = (sum((x - mean) ** 2 for x in r) / len(r) + float(a["eps"])) ** -0.5
        row = [(x - mean) * scale for x in r]
        row = [x * w for x, w in zip(row, ins[1].data)] if len(ins) > 1 else row
        out.append([x + b for x, b in zip(row, ins[2].data)] if len(ins) > 2 else row)
    return _numbers.round_f32(_numbers.unrows(out, outer, inner))


_OPS = {
    "select": lambda a, ins, shape, ir, tokens: _numbers.select(shape)(*ins),
    "cast": lambda a, ins, shape, ir, tokens: _numbers.cast(ir)(*ins),
    "reshape": lambda a, ins, shape, ir, tokens: ins[0].data,
    "broadcast": lambda a, ins, shape, ir, tokens: _numbers.broadcast(shape)(*ins),
    "permute": lambda a, ins, shape, ir, tokens: _numbers.permute(_list(a["axes"], tokens))(*ins),
    "slice": _slice,
    "concat": _axis(_numbers.concat),
    "take": _axis(_numbers.take),
    "gather": _axis(_numbers.gather),
    "cumsum": lambda a, ins, shape, ir, tokens: _numbers.cumsum(int(a["axis"]), ir)(*ins),
    "scatter": lambda a, ins, shape, ir, tokens: _numbers.scatter(int(a["axis"]), False, ir)(*ins),
    "scatter_add": lambda a, ins, shape, ir, tokens: _numbers.scatter(int(a["axis"]), True, ir)(*ins),
    "argsort": lambda a, ins, shape, ir, tokens: _numbers.argsort(a["descending"] == "true")(*ins),
    "top_k": lambda a, ins, shape, ir, tokens: _numbers.top_k(int(a["k"]))(*ins),
    "matmul": lambda a, ins, shape, ir, tokens: _numbers.matmul(shape, ir)(*ins),
    "linear": _linear,
    "embedding": lambda a, ins, shape, ir, tokens: _numbers.take(0)(ins[1], ins[0]),
    "softmax": _softmax,
    "activation": _activation,
    "layer_norm": _layer_norm,
}


def near(a, b, tolerance=1e-5):
    return len(a) == len(b) and all(
        x == y or abs(x - y) <= tolerance * max(1.0, abs(x), abs(y)) or (x != x and y != y) for x, y in zip(a, b)
    )


def flat(data):
    return [x for part in data for x in flat(part)] if isinstance(data, (list, tuple)) else [data]


def both(f, *inputs, expect=None, dtype=None):
    """f on known numbers, and on tensors that are recorded: the same, and as expected. -> the recorded tensor"""
    begin()
    known = f(*[torch.tensor(i, dtype=dtype) if isinstance(i, list) else i for i in inputs])
    begin()
    recorded = f(*[live(i, dtype) if isinstance(i, list) else i for i in inputs])
    found = numbers(recorded)
    if expect is not None:
        assert list(recorded.shape) == _shape(expect), "shape %s, expected %s" % (list(recorded.shape), _shape(expect))
        assert near(found, flat(expect)), "recorded %s, expected %s" % (found, flat(expect))
    if known._v.data is not None:
        assert near(known._v.data, found), "computed %s, recorded %s" % (known._v.data, found)
        assert tuple(known.shape) == tuple(recorded.shape) and known.dtype.ir == recorded.dtype.ir
    return recorded


def _shape(data):
    return [len(data)] + _shape(data[0]) if isinstance(data, (list, tuple)) else []
