"""Arithmetic on small constants: flat lists of Python numbers, row-major, rounded as torch rounds.

Floats are kept in single precision: every function computes in double precision and rounds once, which gives torch's bits
for + - * / sqrt exactly and for exp, pow, sin, cos wherever torch rounds correctly. The model's own type is treated as
single precision too, as the graph's constants are. Never touches the graph; called by `_trace.rec` with values.
"""

import math
from array import array

from ._sym import product


def round_f32(data):
    """Each number rounded to single precision."""
    return array("f", data).tolist()


def is_float(ir):
    return ir == "f32" or ir == "float"


def finish(data, ir):
    """Numbers as a value of this element type holds them."""
    if ir == "i64":
        return [_to_int(x) for x in data]
    if ir == "bool":
        return [bool(x) for x in data]
    return array("f", data).tolist()


def _to_int(x):
    if type(x) is int:
        # As a register of 64 bits holds it: hashes overflow on purpose.
        return x if -(2**63) <= x < 2**63 else (x + 2**63) % 2**64 - 2**63
    if isinstance(x, float) and (x != x or x in (math.inf, -math.inf)):
        return -(2**63)
    return int(x)


def strides(shape):
    out = [0] * len(shape)
    n = 1
    for i in range(len(shape) - 1, -1, -1):
        out[i] = n
        n *= int(shape[i])
    return out


def pick(data, sizes, steps, offset=0):
    """The elements at offset + i0*steps[0] + i1*steps[1] + ..., in row-major order."""
    at = [offset]
    for n, step in zip(sizes, steps):
        at = [a + i * step for a in at for i in range(n)]
    return [data[a] for a in at]


def stretch(data, shape, to):
    """Broadcasts to a shape."""
    if len(data) == 1:
        return data * int(product(to))
    if tuple(shape) == tuple(to):
        return data
    lead = len(to) - len(shape)
    steps = strides(shape)
    steps = [0] * lead + [0 if int(shape[i]) == 1 else steps[i] for i in range(len(shape))]
    return pick(data, [int(n) for n in to], steps)


# ---- elementwise ---------------------------------------------------------------------------------------------------
def guarded(f, domain=math.nan, overflow=math.inf):
    """f with IEEE results where Python raises."""

    def g(x):
        try:
            return f(x)
        except OverflowError:
            return overflow
        except (ValueError, ZeroDivisionError):
            return domain

    return g


def _log(x):
    return math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan)


def _rsqrt(x):
    if x > 0:
        return 1.0 / round_f32([math.sqrt(x)])[0]
    return math.inf if x == 0 else math.nan


def _sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0


UNARY = {
    "neg": lambda x: -x,
    "abs": abs,
    "sign": lambda x: (x > 0) - (x < 0) if x == x else x,
    "exp": guarded(math.exp),
    "log": _log,
    "sqrt": guarded(math.sqrt),
    "rsqrt": _rsqrt,
    "sin": guarded(math.sin),
    "cos": guarded(math.cos),
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
    "erf": math.erf,
    "floor": guarded(lambda x: float(math.floor(x))),
    "ceil": guarded(lambda x: float(math.ceil(x))),
    "round": guarded(lambda x: float(round(x))),
    "not": lambda x: not x,
}


def unary(op, ir):
    f = UNARY[op]
    return lambda v: finish([f(x) for x in v.data], ir)


def divide(a, b):
    if b == 0:
        if a == 0 or a != a:
            return math.nan
        return math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def _power(a, b):
    try:
        x = a**b
        return math.nan if isinstance(x, complex) else x
    except ZeroDivisionError:
        return math.inf
    except OverflowError:
        return math.inf


def _rem(a, b):
    if b == 0:
        return math.nan
    return a % b


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": divide,
    "pow": _power,
    "max": lambda a, b: b if b > a or b != b else a,
    "min": lambda a, b: b if b < a or b != b else a,
    "rem": _rem,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def binary(op, shape, ir):
    f = BINARY[op]
    if op == "div" and ir == "i64":
        f = lambda a, b: a // b  # noqa: E731

    def evaluate(x, y):
        a, b = x.data, y.data
        if len(b) == 1 and len(a) > 1:
            k = b[0]
            if len(shape) == len(x.shape):
                return finish([f(i, k) for i in a], ir)
        a = stretch(a, x.shape, shape)
        b = stretch(b, y.shape, shape)
        return finish([f(i, j) for i, j in zip(a, b)], ir)

    return evaluate


def select(shape):
    def evaluate(c, x, y):
        c, a, b = (stretch(v.data, v.shape, shape) for v in (c, x, y))
        return [j if i else k for i, j, k in zip(c, a, b)]

    return evaluate


def cast(ir):
    return lambda v: finish(v.data, ir)


# ---- along an axis -------------------------------------------------------------------------------------------------
def rows(v, axis):
    """The numbers along the axis, for every place of the other axes in order, and how to put such lists back."""
    sizes = [int(n) for n in v.shape]
    inner = product(sizes[axis + 1 :])
    n = sizes[axis]
    outer = product(sizes[:axis])
    out = [v.data[o * n * inner + i : (o + 1) * n * inner : inner] for o in range(outer) for i in range(inner)]
    return out, outer, inner


def unrows(lists, outer, inner):
    """The flat list of an array from its numbers along the axis."""
    out = []
    for o in range(outer):
        part = lists[o * inner : (o + 1) * inner]
        for column in zip(*part):
            out.extend(column)
    return out


def reduction(op, axis, ir):
    f = {
        "sum": math.fsum if is_float(ir) else sum,
        "reduce_max": max,
        "reduce_min": min,
        "argmax": lambda r: r.index(max(r)),
    }[op]
    return lambda v: finish([f(r) for r in rows(v, axis)[0]], ir)


def cumsum(axis, ir):
    def evaluate(v):
        lists, outer, inner = rows(v, axis)
        summed = []
        for r in lists:
            total, line = 0, []
            for x in r:
                total += x
                line.append(total)
            summed.append(line)
        return finish(unrows(summed, outer, inner), ir)

    return evaluate


def argsort(descending):
    def evaluate(v):
        out = []
        for r in rows(v, len(v.shape) - 1)[0]:
            out.extend(sorted(range(len(r)), key=(lambda i: -r[i]) if descending else r.__getitem__))
        return out

    return evaluate


def top_k(k):
    def evaluate(v):
        out = []
        for r in rows(v, len(v.shape) - 1)[0]:
            out.extend(sorted(range(len(r)), key=lambda i: -r[i])[:k])
        return out

    return evaluate


# ---- shapes --------------------------------------------------------------------------------------------------------
def same(v):
    return v.data


def permute(axes):
    def evaluate(v):
        steps = strides(v.shape)
        return pick(v.data, [int(v.shape[a]) for a in axes], [steps[a] for a in axes])

    return evaluate


def broadcast(shape):
    return lambda v: stretch(v.data, v.shape, shape)


def slice_axis(axis, start, end, step):
    def evaluate(v):
        sizes = [int(n) for n in v.shape]
        steps = strides(sizes)
        offset = start * steps[axis]
        sizes[axis] = max(0, (end - start + step - 1) // step)
        steps[axis] *= step
        return pick(v.data, sizes, steps, offset)

    return evaluate


def concat(axis):
    def evaluate(*vals):
        outer = product(int(n) for n in vals[0].shape[:axis])
        parts = [(v.data, len(v.data) // outer if outer else 0) for v in vals]
        out = []
        for o in range(outer):
            for data, n in parts:
                out.extend(data[o * n : (o + 1) * n])
        return out

    return evaluate


def take(axis):
    def evaluate(v, index):
        sizes = [int(n) for n in v.shape]
        inner = product(sizes[axis + 1 :])
        n = sizes[axis]
        out = []
        for o in range(product(sizes[:axis])):
            for i in index.data:
                start = (o * n + i) * inner
                out.extend(v.data[start : start + inner])
        return out

    return evaluate


def gather(axis):
    def evaluate(v, index):
        steps = strides(v.shape)
        out = []
        at = [0]
        for i, n in enumerate(index.shape):
            at = [a + k * (0 if i == axis else steps[i]) for a in at for k in range(int(n))]
        for a, i in zip(at, index.data):
            out.append(v.data[a + i * steps[axis]])
        return out

    return evaluate


def scatter(axis, add, ir):
    def evaluate(v, index, source):
        steps = strides(v.shape)
        out = list(v.data)
        at = [0]
        for i, n in enumerate(index.shape):
            at = [a + k * (0 if i == axis else steps[i]) for a in at for k in range(int(n))]
        for a, i, x in zip(at, index.data, source.data):
            p = a + i * steps[axis]
            out[p] = out[p] + x if add else x
        return finish(out, ir)

    return evaluate


def matmul(shape, ir):
    def evaluate(x, y):
        m, k, n = int(x.shape[-2]), int(x.shape[-1]), int(y.shape[-1])
        lead = tuple(int(s) for s in shape[:-2])
        a = stretch(x.data, x.shape, lead + (m, k))
        b = stretch(y.data, y.shape, lead + (k, n))
        out = []
        for o in range(product(lead)):
            columns = [b[o * k * n + j : (o + 1) * k * n : n] for j in range(n)]
            for i in range(m):
                row = a[(o * m + i) * k : (o * m + i + 1) * k]
                out.extend([math.fsum(p * q for p, q in zip(row, c)) for c in columns])
        return finish(out, ir)

    return evaluate
