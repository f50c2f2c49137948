"""Values and how they become nodes of the graph.

A `Value` is immutable. It is *concrete* (few numbers, known now), *lazy* (an op over other values, not in the graph), a
*leaf* (a parameter that the driver binds to weights), or *live*: it depends on the tokens or on weights. While a trace is
on, an op with a live input becomes a node at once; constants become nodes when they meet one, and large constant
expressions are never computed here. Tensors (`_tensor`) are handles on values; this module knows their two slots only.

Never evaluates anything itself (`_numbers` does). Used by every op of this package, and by the driver: `start`, `finish`,
`input`, `weight`, `bind`, `name_modules`, `record`, `emit`, `node`.
"""

import sys

import _graph

from . import _dtypes, _sym
from ._sym import GUARDS, Size, SymInt, is_static, product

_getframe = sys._getframe
_push = _graph.push

# Concrete values have at most this many elements; larger ones stay expressions.
LIMIT = 2048


class _State:
    __slots__ = ("on", "named", "epoch", "path", "tokens", "states", "scalars", "inputs", "weights", "symbols")


S = _State()
S.on, S.named, S.epoch, S.path, S.tokens, S.states = False, True, 0, "", None, 0
S.scalars, S.inputs, S.weights, S.symbols = {}, {}, {}, {}

# Set by the driver: called with (tensor, as_tuple) where the positions of true elements of a traced tensor are asked for.
on_nonzero = None

# Set by the driver: called with the node and value of an expression over [T, T] that depends on no token and no weight, which
# is a mask most of the time; gives another node for it, or None.
on_square = None


# ---- where in the model's code we are -----------------------------------------------------------------------------
_SHORT = {}


def _short(filename):
    """`modeling_llama.py` if the file is a model's, else ''."""
    model = filename.startswith(("transformers/models/", "model/")) or "/transformers/models/" in filename
    short = _SHORT[filename] = filename.rsplit("/", 1)[-1] if model else ""
    return short


def name():
    """`modeling_llama.py:231 layers.0.self_attn`: the innermost frame of the model's code, and the module; "" in a trace whose
    graph is only compared.

    Texts are put together as the interpreter does it fastest, here and in other places that run for every node.
    """
    if not S.named:
        return ""
    f = _getframe(3)  # ours: this function, `rec`, and the one that called it
    while f is not None:
        filename = f.f_code.co_filename
        short = _SHORT.get(filename)
        if short is None:
            short = _short(filename)
        if short:
            return f"{short}:{f.f_lineno} {S.path}"
        f = f.f_back
    return S.path


def where():
    """The place for an error: as `name`, but with the file's whole name."""
    f = _getframe(1)
    outer = None
    while f is not None:
        filename = f.f_code.co_filename
        if _SHORT.get(filename) or _short(filename):
            return "%s:%d" % (filename, f.f_lineno)
        if outer is None and not filename.startswith(("host/torch/", "<frozen")) and "/torch/" not in filename:
            outer = "%s:%d" % (filename, f.f_lineno)
        f = f.f_back
    return outer or "torch"


class TraceError(_graph.TraceError):
    """The model's code does what cannot be traced: says file, line, module, construct, and what to try."""

    def __init__(self, construct, hint=None):
        text = where() + (" (in %s)" % S.path if S.path else "") + ": " + construct
        super().__init__(text + ("; " + hint if hint else ""))


class MissingError(TraceError, AttributeError):
    """A function of torch that there is not. An AttributeError too, so that `hasattr` works."""


def data_dependent(construct):
    return TraceError(
        construct + " needs the value of a tensor that depends on the tokens or on weights",
        "a graph cannot depend on data: compute it with torch.where or a mask, or use a native plugin for this model",
    )


def trace_range(*bounds):
    """`range` for modules of models: a loop over tokens cannot be a graph for every length."""
    for b in bounds:
        if type(b) is SymInt:
            raise TraceError(
                "a loop over range(%s), which depends on the number of tokens" % ", ".join(map(str, bounds)),
                "such a loop must be a single op (cumsum, a causal convolution, linear attention)",
            )
    return range(*bounds)


class Least(int):
    """The constant in min(constant, T) where T is larger now."""

    guard = None


def _extreme(pick, sign):
    """`min` or `max` for modules of models. Of equals it does not matter which: the guard holds there too."""

    def f(*args, **kwargs):
        if kwargs or len(args) != 2 or (type(args[0]) is not SymInt and type(args[1]) is not SymInt):
            return pick(*args, **kwargs)
        a, b = args
        d = _sym._difference(a, b)
        if d is not None:
            return a if (d <= 0) == (sign < 0) else b
        chosen, other = (a, b) if (int(a) <= int(b)) == (sign < 0) else (b, a)
        if sign < 0:
            guard = _sym.note(chosen, "<=", other, True, lambda d: d <= 0)
        else:
            guard = _sym.note(chosen, ">=", other, True, lambda d: d >= 0)
        if sign > 0 or (type(a) is SymInt and type(b) is SymInt):
            return chosen
        # In `scores.topk(min(k, T))` the constant counts, whatever T is now: see _reduce.topk, which takes the guard back.
        if type(chosen) is SymInt:
            least = SymInt(int(chosen), chosen.poly, chosen.text)
            least.at_most = int(other)
        else:
            least = Least(chosen)
        least.guard = guard
        return least

    return f


trace_min, trace_max = _extreme(min, -1), _extreme(max, 1)

# Names that the importer puts into modules of models before their code runs.
GLOBALS = {"range": trace_range, "min": trace_min, "max": trace_max}


# ---- values --------------------------------------------------------------------------------------------------------
class Value:
    """Fields that most values do not have are the class's."""

    shape = ()
    ir = None
    live = False
    data = None  # numbers of a concrete value,
    op = ins = None  # or the op and its inputs, of a lazy one,
    make = None  # or () -> Tensor, of leaves and deferred values
    label = None
    node = None
    epoch = -1

    def __init__(self, shape, ir, live=False, data=None, op=None, ins=None, make=None, label=None):
        self.shape = shape
        self.ir = ir
        if live:
            self.live = True
        if data is not None:
            self.data = data
        if op is not None:
            self.op, self.ins = op, ins
        if make is not None:
            self.make = make
        if label is not None:
            self.label = label


def dim(n):
    """A size in the graph's text."""
    if type(n) is not SymInt:
        return str(int(n))
    if n.quoted is None:
        raise TraceError(
            "a size of %s, which is no polynomial in the number of tokens T" % n.text,
            "sizes may be sums and products of T and constants",
        )
    return n.quoted


def dims(shape):
    """A shape in the graph's text: `["T",64]`."""
    text = ""
    for n in shape:
        text += "," + (str(n) if type(n) is int else dim(n))
    return "[" + text[1:] + "]"


def node_of(v):
    """The node of a value in this trace, made if need be."""
    if v.epoch == S.epoch:
        return v.node
    if v.data is not None:
        n = _graph.const(v.ir, [int(d) for d in v.shape], v.data, "")[0]
    elif v.op is not None:
        n = _push(v.op, [node_of(i) for i in v.ins], v.label or name())[0]
        if on_square is not None and not v.live and len(v.shape) > 1 and v.shape[-1] is v.shape[-2] is S.tokens:
            n = on_square(n, v) or n
    elif v.make is not None:
        t = v.make()
        n = t if type(t) is int else node_of(value(t))
    else:
        raise TraceError(
            "%s was computed in another trace, or is a parameter that no weight of the checkpoint fills"
            % (v.label or "a tensor",),
            "",
        )
    v.node, v.epoch = n, S.epoch
    return n


def value(t):
    """The value of a tensor now (a view of a tensor that was written to since is read again)."""
    if t._base is not None:
        _sync(t)
    return t._v


def _sync(t):
    base = t._base
    if base._base is not None:
        _sync(base)
    if base._ver != t._seen:
        t._v = value(t._kind[0](base, t._arg))
        t._seen = base._ver
        t._ver += 1


def make(shape, dtype, v):
    t = _new(_Tensor)
    t.shape = shape
    t.dtype = dtype
    t._v = v
    return t


_new = object.__new__
_Tensor = None  # set by _tensor


def rec(op, ins, shape, dtype, evaluator=None, arguments=()):
    """The tensor that an op gives. `ins` are tensors; `evaluator(*arguments)` gives what computes small constants."""
    vals = []
    live = False
    concrete = evaluator is not None
    for t in ins:
        v = t._v if t._base is None else value(t)
        vals.append(v)
        if v.live:
            live = True
        if v.data is None:
            concrete = False
    if live and S.on:
        # A node needs no more than its number: this is where most of the time of a trace goes.
        out = _new(Value)
        out.live = True
        epoch = S.epoch
        out.node = _push(op, [v.node if v.epoch == epoch else node_of(v) for v in vals], name())[0]
        out.epoch = epoch
    elif live:
        out = Value(shape, dtype.ir, True, None, op, vals)
    elif concrete and is_static(shape) and product(shape) <= LIMIT:
        out = Value(shape, dtype.ir, False, evaluator(*arguments)(*vals))
    else:
        out = Value(shape, dtype.ir, False, None, op, vals)
    t = _new(_Tensor)
    t.shape = shape
    t.dtype = dtype
    t._v = out
    return t


def constant(shape, dtype, data):
    """A tensor of known numbers: a flat list."""
    shape = Size(shape)
    return make(shape, dtype, Value(shape, dtype.ir, False, data))


_SCALARS = {}


def scalar(x, dtype):
    """A number as a 0-dim tensor of this dtype."""
    ir = dtype.ir
    if type(x) is SymInt:
        return _symbolic_scalar(x, dtype)
    if ir == "bool":
        x = bool(x)
    elif ir == "i64":
        x = int(x)
    else:
        x = float(x)
    key = (ir, x if x != 0 else repr(x))
    v = _SCALARS.get(key)
    if v is None:
        if ir != "bool" and ir != "i64":
            from ._numbers import round_f32

            v = Value(_sym.EMPTY, ir, False, round_f32([x]))
        else:
            v = Value(_sym.EMPTY, ir, False, [x])
        if x == x:
            _SCALARS[key] = v
    return make(_sym.EMPTY, dtype, v)


def _symbolic_scalar(x, dtype):
    """A size that depends on T, as a tensor: T is counted as a sum of ones."""
    if x.poly is None:
        raise TraceError("the number %s, which is no polynomial in the number of tokens T" % x.text)
    int64 = _dtypes.int64
    t = S.tokens
    ones = rec("broadcast(shape:%s)" % dims((t,)), [scalar(1, int64)], Size((t,)), int64)
    count = rec("sum(axis:0,keep:false)", [ones], _sym.EMPTY, int64)
    out = None
    for power, c in x.poly:
        term = scalar(c, int64)
        for _ in range(power):
            term = count if term is None else rec("mul", [term, count], _sym.EMPTY, int64)
        out = term if out is None else rec("add", [out, term], _sym.EMPTY, int64)
    return out if dtype.ir == "i64" else rec("cast(dtype:%s)" % dtype.ir, [out], _sym.EMPTY, dtype)


# ---- for the driver ------------------------------------------------------------------------------------------------
def start(hint, named=True):
    """Begins a trace in which T has this value, and whether nodes get names; -> T."""
    S.on, S.named = True, named
    S.epoch += 1
    S.path = ""
    S.states = 0
    S.inputs, S.weights = {}, {}
    del GUARDS[:]
    S.tokens = _sym.symbol(hint)
    return S.tokens


def broken_guards(tokens):
    """Comparisons of sizes that come out otherwise at this number of tokens: the trace may be no graph for it.

    (At one token many do, since models tell decoding from reading a prompt by it; both mean the same.)
    """
    return [g for g in GUARDS if g.holds(tokens) is False]


def finish():
    S.on = False
    S.path = ""


def state():
    """An identity for what a node keeps, unique in this trace."""
    S.states += 1
    return S.states - 1


def leaf(op, shape, dtype):
    """A live value without inputs, made once in each trace."""
    v = Value(Size(shape), dtype.ir, True, None, op, ())
    return make(v.shape, dtype, v)


def input(kind):
    """What the host supplies, "token_ids" or "positions", as int64[1, T]."""
    t = S.inputs.get(kind)
    if t is None:
        n = S.tokens
        t = leaf("input(kind:%s)" % kind, (n,), _dtypes.int64)
        t = S.inputs[kind] = rec("reshape(shape:%s)" % dims((1, n)), [t], Size((1, n)), _dtypes.int64)
    return t


def weight(name, shape, dtype=None):
    """A tensor of the checkpoint, under its own name: float, or int64."""
    dtype = dtype or _dtypes.bfloat16
    key = (name, dtype.ir)
    t = S.weights.get(key)
    if t is None:
        quoted = '"%s"' % name.replace("\\", "\\\\").replace('"', '\\"')
        kind = ",dtype:i64" if dtype.ir == "i64" else ""
        t = leaf("weight(name:%s,shape:%s%s)" % (quoted, dims(shape), kind), shape, dtype)
        S.weights[key] = t
    return t


def bind(t, fn):
    """Says what a parameter or buffer is: fn() -> Tensor, called on first use in each trace."""

    def convert():
        x = fn()
        if type(x) is not int and x.dtype.ir != t.dtype.ir:
            x = x.to(t.dtype)
        return x

    old = t._v
    t._v = Value(Size(t.shape), t.dtype.ir, True, None, None, None, convert, old.label)


def name_modules(model):
    """Tells modules and parameters their names, for the names of nodes and for errors."""
    for path, m in model.named_modules():
        m.__dict__["_path"] = path
        for n, p in list(m._parameters.items()) + list(m._buffers.items()):
            v = getattr(p, "_v", None)
            if v is not None and v.label is None and v.data is None and v.op is None:
                v.label = (path + "." if path else "") + n


def record(op, ins, shape, dtype):
    """A node of any op, given as the graph's text."""
    return rec(op, ins, Size(shape), dtype)


_FROM_IR = {"float": _dtypes.bfloat16, "f32": _dtypes.float32, "i64": _dtypes.int64, "bool": _dtypes.bool_}


def _attribute(x):
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, (list, tuple)):
        return "[%s]" % ",".join([_attribute(i) for i in x])
    if isinstance(x, int):
        return dim(x)
    return repr(x) if isinstance(x, float) else x


def emit(op, ins, **attributes):
    """A node whose type the graph works out: `emit("take", [x, ids], axis=0)`. Strings are put as they are."""
    if attributes:
        op += "(%s)" % ",".join(["%s:%s" % (k, _attribute(x)) for k, x in attributes.items() if x is not None])
    n, ir, shape = _push(op, [node_of(value(t)) for t in ins], name())
    return from_node(n, ir, shape)


def from_node(n, ir, shape):
    """A tensor of a node, with its type as `_graph` gives it."""
    hint = int(S.tokens)
    sizes = []
    for d in shape:
        if type(d) is not int:
            total = sum([c * hint**p for p, c in d])
            d = _sym._make(total, dict(d))
        sizes.append(d)
    v = Value(Size(sizes), ir, True)
    v.node, v.epoch = n, S.epoch
    return make(v.shape, _FROM_IR[ir], v)


def at_node(n, v):
    """A tensor of a node that has the shape and type of this value."""
    out = Value(v.shape, v.ir, True)
    out.node, out.epoch = n, S.epoch
    return make(v.shape, _FROM_IR[v.ir], out)


def node(t):
    """The id of a tensor's node."""
    return node_of(value(t))


def concrete(t, construct):
    """The numbers of a tensor, a flat list, or the error that says what asked for them."""
    v = value(t)
    if v.data is not None:
        return v.data
    if v.live:
        raise data_dependent(construct)
    raise TraceError(
        "%s of a constant of shape %s" % (construct, list(t.shape)),
        "constants of more than %d elements, or that depend on T, have no value while tracing" % LIMIT,
    )
