"""Numbers of expressions that depend on positions and constants only, for a few tokens.

Used to see what a mask or a bias means that modelling code computed by hand. Values are (shape, flat list); a node that
depends on tokens or weights has none. Never records anything."""

import math
import re

import _graph

_CALL = re.compile(r"^([a-z_0-9]+)(?:\((.*)\))?$", re.S)
_INT = r"\b%s:(\d+)"
_SHAPE = re.compile(r"shape:\[([^\]]*)\]")
_DATA = re.compile(r"data:[a-z0-9]+\(\[([^\]]*)\]\)")
MAX_ELEMENTS = 1 << 16
# Few, since every pair of them is computed; more than the windows and blocks of small test models.
TOKENS = 13


class Unknown(Exception):
    """The node depends on more than positions."""


def op_of(node):
    """(name, text of the attributes) of a node."""
    name, attributes = _CALL.match(_graph.node(node)[0]).groups()
    return name, attributes or ""


def option(attributes, name):
    """An integer attribute, also within Some(..), or None."""
    found = re.search(r"\b%s:(?:Some\()?(\d+)" % name, attributes)
    return int(found.group(1)) if found else None


def flag(attributes, name):
    return "%s:true" % name in attributes


def size(dim):
    """The number of a dimension as `_graph` gives it."""
    return dim if isinstance(dim, int) else sum(c * TOKENS**p for p, c in dim)


def polynomial(text):
    """The number of a dimension in an op's text: `7` or `"2*T+1"`."""
    total = 0
    for term in text.strip('"').replace("-", "+-").split("+"):
        if term:
            product = -1 if term[0] == "-" else 1
            for factor in term.lstrip("-").split("*"):
                product *= TOKENS if factor == "T" else int(factor)
            total += product
    return total


def shape_of(node):
    return [size(d) for d in _graph.type(node)[1]]


class Evaluator:
    """Evaluates nodes, each once."""

    def __init__(self):
        self.known = {}

    def __call__(self, node):
        found = self.known.get(node)
        if found is None:
            try:
                found = self._node(node)
            except Unknown:
                found = False
            self.known[node] = found
        if found is False:
            raise Unknown
        return found

    def _node(self, node):
        name, attributes = op_of(node)
        shape = shape_of(node)
        count = math.prod(shape)
        if count > MAX_ELEMENTS:
            raise Unknown
        inputs = _graph.node(node)[1]
        if name == "iota" or (name == "input" and "positions" in attributes):
            return shape, list(range(count))
        if name == "const":
            return shape, _constant(attributes)
        if name == "causal_mask":
            return shape, causal(shape[0], option(attributes, "window"), option(attributes, "chunk"))
        if name in _SHAPES:
            return shape, _SHAPES[name](shape, attributes, [self(i) for i in inputs])
        if name == "cast":
            return shape, _cast(self(inputs[0])[1], attributes)
        function = _FUNCTIONS.get(name)
        if function is None:
            raise Unknown
        arguments = [_stretch(self(i), shape) for i in inputs]
        if name == "div" and _graph.type(node)[0] == "i64":
            function = _floor_divide
        return shape, [function(*values) for values in zip(*arguments)]


def causal(tokens, window=None, chunk=None):
    rows = range(tokens)
    return [
        j <= i and (window is None or i - j < window) and (chunk is None or i // chunk == j // chunk)
        for i in rows
        for j in rows
    ]


def _constant(attributes):
    found = _DATA.search(attributes)
    if found is None:
        raise Unknown
    return [_number(x) for x in found.group(1).split(",") if x.strip()]


def _number(text):
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text)


def _cast(values, attributes):
    if "i64" in attributes:
        return [int(v) for v in values]
    if "bool" in attributes:
        return [bool(v) for v in values]
    return [float(v) for v in values]


def _strides(shape):
    steps = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        steps[i] = steps[i + 1] * shape[i + 1]
    return steps


def _walk(shape, steps, start=0):
    """Offsets of all elements in order."""
    at = [start]
    for n, step in zip(shape, steps):
        at = [base + i * step for base in at for i in range(n)]
    return at


def _stretch(value, shape):
    own, data = value
    if own == shape:
        return data
    if len(data) == 1:
        return data * math.prod(shape)
    lead = len(shape) - len(own)
    steps = [0] * lead + [s if n != 1 else 0 for s, n in zip(_strides(own), own)]
    return [data[i] for i in _walk(shape, steps)]


def _permute(shape, attributes, inputs):
    axes = [int(a) for a in re.search(r"axes:\[([^\]]*)\]", attributes).group(1).split(",") if a.strip()]
    own, data = inputs[0]
    steps = _strides(own)
    return [data[i] for i in _walk(shape, [steps[a] for a in axes])]


def _slice(shape, attributes, inputs):
    own, data = inputs[0]
    axis = option(attributes, "axis")
    start = re.search(r"start:(\"[^\"]*\"|\d+)", attributes)
    steps = _strides(own)
    step = option(attributes, "step") or 1
    first = polynomial(start.group(1)) * steps[axis]
    steps[axis] *= step
    return [data[i] for i in _walk(shape, steps, first)]


def _concat(shape, attributes, inputs):
    axis = option(attributes, "axis")
    outer = math.prod(shape[:axis])
    out = []
    for i in range(outer):
        for own, data in inputs:
            size = math.prod(own[axis:])
            out.extend(data[i * size : (i + 1) * size])
    return out


def _cumsum(shape, attributes, inputs):
    data = list(inputs[0][1])
    step = _strides(shape)[option(attributes, "axis")]
    n = shape[option(attributes, "axis")]
    for i in range(len(data)):
        if (i // step) % n:
            data[i] += data[i - step]
    return data


def _sum(shape, attributes, inputs):
    own, data = inputs[0]
    axis = option(attributes, "axis")
    inner = math.prod(own[axis + 1 :])
    n = own[axis]
    outer = math.prod(own[:axis])
    return [sum(data[(o * n + k) * inner + i] for k in range(n)) for o in range(outer) for i in range(inner)]


def _floor_divide(a, b):
    if b == 0:
        raise Unknown
    return a // b


def _divide(a, b):
    if b == 0:
        raise Unknown
    return a / b


def _power(a, b):
    try:
        return float(a) ** b
    except (ZeroDivisionError, OverflowError):
        raise Unknown from None


_SHAPES = {
    "reshape": lambda shape, attributes, inputs: inputs[0][1],
    "broadcast": lambda shape, attributes, inputs: _stretch(inputs[0], shape),
    "permute": _permute,
    "slice": _slice,
    "concat": _concat,
    "cumsum": _cumsum,
    "sum": _sum,
}

_FUNCTIONS = {
    "neg": lambda a: -a,
    "abs": abs,
    "sign": lambda a: (a > 0) - (a < 0),
    "exp": math.exp,
    "log": lambda a: math.log(a) if a > 0 else -math.inf,
    "sqrt": lambda a: math.sqrt(a) if a >= 0 else math.nan,
    "rsqrt": lambda a: 1 / math.sqrt(a) if a > 0 else math.inf,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "not": lambda a: not a,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _divide,
    "rem": lambda a, b: a % b if b else math.nan,
    "pow": _power,
    "max": max,
    "min": min,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "select": lambda c, a, b: a if c else b,
}
