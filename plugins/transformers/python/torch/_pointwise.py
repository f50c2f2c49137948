"""Elementwise functions: arithmetic, comparisons, choices. Each is one op of the graph, or a few.

Operands are promoted as in torch and cast where they differ. A power of 2, 3, 1/2, -1/2 or -1 is written as products,
roots and quotients, as torch computes it. Never looks at a value except to compute constants. Methods of Tensor, functions
of torch.
"""

import math

from . import _dtypes, _numbers, _trace
from ._dtypes import bool_, float32, int64, promote
from ._sym import same_shape
from ._tensor import FUNCTIONS, Tensor, assign, broadcast_shapes, convert, export, in_place
from ._trace import TraceError, rec, scalar

_NUMBERS = (int, float)


# ---- one operand ---------------------------------------------------------------------------------------------------
def _floating(x):
    """Integers and bools become float32 where a function needs floats."""
    return x if x.dtype.category >= 2 else convert(x, _dtypes.default[0])


def unary(op, x):
    return rec(op, [x], x.shape, x.dtype, _numbers.unary, (op, x.dtype.ir))


def _define_unary(name, op, integers=False):
    def f(x, *, out=None):
        if not isinstance(x, Tensor):
            x = FUNCTIONS["tensor"](x)
        if x.dtype.category < 2:
            if integers and x.dtype is not bool_:
                return unary(op, x) if op in ("neg", "abs", "sign") else x
            x = _floating(x)
        return unary(op, x)

    f.__name__ = name
    export(name, inplace=True)(f)


for _n in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf"):
    _define_unary(_n, _n)
for _n, _o in (("neg", "neg"), ("abs", "abs"), ("sign", "sign"), ("floor", "floor"), ("ceil", "ceil")):
    _define_unary(_n, _o, True)
for _n, _o in dict(negative="neg", absolute="abs", sgn="sign").items():
    export(_n, inplace=True)(FUNCTIONS[_o])


@export(inplace=True)
def round(x, *, decimals=0):
    if x.dtype.category < 2:
        return x
    if decimals:
        return div(unary("round", mul(x, 10.0**decimals)), 10.0**decimals)
    return unary("round", x)


@export(inplace=True)
def logical_not(x):
    x = convert(x, bool_)
    return unary("not", x)


@export(inplace=True)
def bitwise_not(x):
    return unary("not", x) if x.dtype is bool_ else sub(neg(x), 1)


neg, exp, log, sqrt, sigmoid, floor = (FUNCTIONS[_n] for _n in ("neg", "exp", "log", "sqrt", "sigmoid", "floor"))


def _define(name, f):
    f.__name__ = name
    export(name, inplace=True)(f)


_define("square", lambda x: mul(x, x))
_define("reciprocal", lambda x: div(1.0, _floating(x)))
_define("log1p", lambda x: log(add(x, 1.0)))
_define("expm1", lambda x: sub(exp(x), 1.0))
_define("exp2", lambda x: exp(mul(x, math.log(2.0))))
_define("log2", lambda x: div(log(x), math.log(2.0)))
_define("log10", lambda x: div(log(x), math.log(10.0)))
_define("tan", lambda x: div(FUNCTIONS["sin"](x), FUNCTIONS["cos"](x)))
_define("sinh", lambda x: mul(sub(exp(x), exp(neg(x))), 0.5))
_define("cosh", lambda x: mul(add(exp(x), exp(neg(x))), 0.5))
_define("erfc", lambda x: sub(1.0, FUNCTIONS["erf"](x)))
_define("trunc", lambda x: mul(FUNCTIONS["sign"](x), floor(FUNCTIONS["abs"](x))))
_define("frac", lambda x: sub(x, FUNCTIONS["trunc"](x)))
_define("logit", lambda x, eps=None: _logit(x, eps))
_define("relu", lambda x: activation(x, "relu", lambda v: max(v, 0.0)))
_define("silu", lambda x: activation(x, "silu", lambda v: v * _numbers._sigmoid(v)))
export("expit", method=False)(sigmoid)
export("fix", inplace=True)(FUNCTIONS["trunc"])


def _logit(x, eps):
    x = x if eps is None else clamp(x, eps, 1 - eps)
    return log(div(x, sub(1.0, x)))


def activation(x, kind, f=None):
    """A named activation function of the graph."""
    if x.dtype.category < 2:
        x = _floating(x)
    each = (lambda: lambda v: _numbers.round_f32([f(i) for i in v.data])) if f else None
    return rec("activation(kind:%s)" % kind, [x], x.shape, x.dtype, each)


@export()
def isnan(x):
    return ne(x, x)


@export()
def isinf(x):
    return eq(FUNCTIONS["abs"](x), math.inf)


@export()
def isfinite(x):
    return lt(FUNCTIONS["abs"](x), math.inf)


@export(inplace=True)
def nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    limit = _dtypes.finfo(x.dtype).max
    x = where(isnan(x), nan, x)
    return clamp(x, -limit if neginf is None else neginf, limit if posinf is None else posinf)


# ---- two operands --------------------------------------------------------------------------------------------------
def operands(x, y, floats=False):
    """Both as tensors of one dtype, that dtype, and the shape to which they broadcast."""
    if type(x) is Tensor or isinstance(x, Tensor):
        d = x.dtype
        if type(y) is Tensor or isinstance(y, Tensor):
            if y.dtype is not d:
                d = promote((x, y))
            if floats and d.category < 2:
                d = float32
            if x.dtype is not d:
                x = convert(x, d)
            if y.dtype is not d:
                y = convert(y, d)
            shape = x.shape
            return x, y, d, shape if shape is y.shape else broadcast_shapes(shape, y.shape)
        if not isinstance(y, _NUMBERS):
            return None
        if d.category < 2:
            d = float32 if floats else promote((x, y))
            x = convert(x, d)
        return x, scalar(y, d), d, x.shape
    if not isinstance(y, Tensor):
        if isinstance(x, _NUMBERS) and isinstance(y, _NUMBERS):
            return operands(FUNCTIONS["tensor"](x), FUNCTIONS["tensor"](y), floats)
        return None
    if not isinstance(x, _NUMBERS):
        return None
    d = y.dtype
    if d.category < 2:
        d = float32 if floats else promote((x, y))
        y = convert(y, d)
    return scalar(x, d), y, d, y.shape


_BOOL = {"add": "or", "mul": "and", "max": "or", "min": "and"}


def arithmetic(op, x, y, floats=False):
    both = operands(x, y, floats)
    if both is None:
        return NotImplemented
    x, y, d, shape = both
    if d is bool_:
        if op not in _BOOL:
            x, y, d = convert(x, int64), convert(y, int64), int64
        else:
            op = _BOOL[op]
    return rec(op, [x, y], shape, d, _numbers.binary, (op, shape, d.ir))


def comparison(op, x, y):
    both = operands(x, y)
    if both is None:
        return NotImplemented
    x, y, d, shape = both
    if d is bool_ and op not in ("eq", "ne"):
        x, y = convert(x, int64), convert(y, int64)
    return rec(op, [x, y], shape, bool_, _numbers.binary, (op, shape, "bool"))


def _result(value, out):
    if value is NotImplemented:
        raise TypeError("operands must be tensors or numbers")
    return value if out is None else assign(out, value)


@export("add", inplace=True)
def add(x, y, *, alpha=1, out=None):
    return _result(arithmetic("add", x, y if alpha == 1 else mul(y, alpha)), out)


@export("sub", "subtract", inplace=True)
def sub(x, y, *, alpha=1, out=None):
    return _result(arithmetic("sub", x, y if alpha == 1 else mul(y, alpha)), out)


@export("mul", "multiply", inplace=True)
def mul(x, y, *, out=None):
    return _result(arithmetic("mul", x, y), out)


@export("div", "divide", "true_divide", inplace=True)
def div(x, y, *, rounding_mode=None, out=None):
    if rounding_mode == "floor":
        return _result(_floor_divide(x, y), out)
    if rounding_mode == "trunc":
        q = FUNCTIONS["trunc"](_divide(x, y))
        return _result(q if operands(x, y)[2].category == 2 else convert(q, int64), out)
    return _result(_divide(x, y), out)


def _divide(x, y):
    # torch divides a number by a tensor as number times reciprocal.
    if isinstance(y, Tensor) and not isinstance(x, Tensor) and x != 1 and y._v.data is not None and y.dtype.category == 2:
        return arithmetic("mul", arithmetic("div", 1.0, y, True), x)
    return arithmetic("div", x, y, True)


def _floor_divide(x, y):
    both = operands(x, y)
    if both is None:
        return NotImplemented
    q = arithmetic("div", both[0], both[1])
    return floor(q) if both[2].category == 2 else q


@export("floor_divide", inplace=True)
def floor_divide(x, y):
    return _result(_floor_divide(x, y), None)


@export("remainder", inplace=True)
def remainder(x, y):
    return _result(arithmetic("rem", x, y), None)


@export("fmod", inplace=True)
def fmod(x, y):
    r = arithmetic("rem", FUNCTIONS["abs"](x), abs(y) if isinstance(y, _NUMBERS) else FUNCTIONS["abs"](y))
    return mul(FUNCTIONS["sign"](x), r)


@export("pow", inplace=True)
def pow(x, y, *, out=None):
    return _result(_pow(x, y), out)


def _pow(x, y):
    if isinstance(y, Tensor) and y._v.data is not None and not y.shape and isinstance(x, Tensor) and y._base is None:
        y = y._v.data[0]
    if isinstance(x, Tensor) and isinstance(y, _NUMBERS):
        if y == 2:
            return mul(x, x)
        if y == 1:
            return convert(x, promote((x, y)))
        if y == 3:
            return mul(mul(x, x), x)
        if y == 0.5:
            return FUNCTIONS["sqrt"](x)
        if y == -0.5:
            return FUNCTIONS["rsqrt"](x)
        if y == -1:
            return div(1.0, x)
        if y == -2:
            return div(1.0, mul(x, x))
    both = operands(x, y)
    if both is None:
        return NotImplemented
    x, y, d, _ = both
    if d.category == 2:
        return arithmetic("pow", x, y)
    if x._v.data is not None and y._v.data is not None:
        shape = both[3]
        return rec("pow", [x, y], shape, int64, _numbers.binary, ("pow", shape, "i64"))
    p = arithmetic("pow", convert(x, float32), convert(y, float32))
    return convert(unary("round", p), int64)


def _maximum(x, y):
    return _result(arithmetic("max", x, y), None)


def _minimum(x, y):
    return _result(arithmetic("min", x, y), None)


export("maximum", "fmax")(_maximum)
export("minimum", "fmin")(_minimum)


@export("atan2", "hypot", "logaddexp")
def _unsupported(x, y):
    raise TraceError("torch.atan2, hypot or logaddexp, for which the graph has no op", "use other functions of torch")


def _compare(op, *names):
    def f(x, y, *, out=None):
        return _result(comparison(op, x, y), out)

    f.__name__ = names[0]
    export(*names, inplace=True)(f)
    return f


eq = _compare("eq", "eq")
ne = _compare("ne", "ne", "not_equal")
lt = _compare("lt", "lt", "less")
le = _compare("le", "le", "less_equal")
gt = _compare("gt", "gt", "greater")
ge = _compare("ge", "ge", "greater_equal")


def _logical(op):
    def f(x, y):
        x = convert(x, bool_)
        y = convert(y if isinstance(y, Tensor) else FUNCTIONS["tensor"](y), bool_)
        return arithmetic_bool(op, x, y)

    return f


def arithmetic_bool(op, x, y):
    shape = broadcast_shapes(x.shape, y.shape)
    return rec(op, [x, y], shape, bool_, _numbers.binary, (op, shape, "bool"))


for _n, _o in (("logical_and", "and"), ("logical_or", "or"), ("logical_xor", "ne")):
    _f = _logical(_o)
    _f.__name__ = _n
    export(_n, inplace=True)(_f)


def _bitwise(op, compute):
    def f(x, y):
        x, y = (i if isinstance(i, Tensor) else FUNCTIONS["tensor"](i) for i in (x, y))
        if x.dtype is bool_ and y.dtype is bool_:
            return arithmetic_bool(op, x, y)
        shape = broadcast_shapes(x.shape, y.shape)
        if x._v.data is not None and y._v.data is not None:
            a, b = (_numbers.stretch(_trace.value(i).data, i.shape, shape) for i in (x, y))
            return _trace.constant(shape, promote((x, y)), [compute(i, j) for i, j in zip(a, b)])
        raise TraceError("a bitwise operation on integers", "the graph has it for bools only")

    return f


for _n, _o, _g in (
    ("bitwise_and", "and", lambda a, b: a & b),
    ("bitwise_or", "or", lambda a, b: a | b),
    ("bitwise_xor", "ne", lambda a, b: a ^ b),
):
    _f = _bitwise(_o, _g)
    _f.__name__ = _n
    export(_n, inplace=True)(_f)


@export("bitwise_left_shift")
def bitwise_left_shift(x, n):
    return mul(x, 2**n)


@export("bitwise_right_shift")
def bitwise_right_shift(x, n):
    return floor_divide(x, 2**n)


# ---- choices -------------------------------------------------------------------------------------------------------
@export("where")
def where(condition, x=None, y=None, *, out=None):
    if x is None:
        return FUNCTIONS["nonzero"](condition, as_tuple=True)
    d = promote((x, y))
    x, y = (convert(i, d) if isinstance(i, Tensor) else scalar(i, d) for i in (x, y))
    condition = convert(condition, bool_)
    shape = broadcast_shapes(condition.shape, x.shape, y.shape)
    return _result(rec("select", [condition, x, y], shape, d, _numbers.select, (shape,)), out)


def _tensor_where(x, condition, other):
    return where(condition, x, other)


Tensor.where = _tensor_where


@export("masked_fill", inplace=True)
def masked_fill(x, mask, value):
    value = convert(value, x.dtype) if isinstance(value, Tensor) else scalar(value, x.dtype)
    shape = broadcast_shapes(mask.shape, x.shape)
    mask = convert(mask, bool_)
    return rec("select", [mask, value, x], shape, x.dtype, _numbers.select, (shape,))


@export("clamp", "clip", inplace=True)
def clamp(x, min=None, max=None, *, out=None):
    if min is not None:
        x = _maximum(x, min)
    if max is not None:
        x = _minimum(x, max)
    return _result(x, out)


@export("clamp_min", inplace=True)
def clamp_min(x, min):
    return _maximum(x, min)


@export("clamp_max", inplace=True)
def clamp_max(x, max):
    return _minimum(x, max)


@export("heaviside")
def heaviside(x, values):
    return where(eq(x, 0), values, convert(gt(x, 0), x.dtype))


# ---- combinations --------------------------------------------------------------------------------------------------
@export("addcmul", inplace=True)
def addcmul(x, a, b, *, value=1):
    p = mul(a, b)
    return add(x, p if value == 1 else mul(p, value))


@export("addcdiv", inplace=True)
def addcdiv(x, a, b, *, value=1):
    q = div(a, b)
    return add(x, q if value == 1 else mul(q, value))


@export("lerp", inplace=True)
def lerp(x, y, weight):
    return add(x, mul(weight, sub(y, x)))


@export("rsub")
def rsub(x, y):
    return sub(y, x)


@export("isin", method=False)
def isin(x, values, **kwargs):
    values = values if isinstance(values, Tensor) else FUNCTIONS["tensor"](values)
    return FUNCTIONS["any"](eq(x.unsqueeze(-1), values.reshape(-1)), -1)


@export("equal")
def equal(x, y):
    if not same_shape(x.shape, y.shape):
        return False
    return _trace.concrete(x, "torch.equal") == _trace.concrete(y, "torch.equal")


@export("allclose")
def allclose(x, y, rtol=1e-5, atol=1e-8, equal_nan=False):
    a, b = _trace.concrete(x, "torch.allclose"), _trace.concrete(y, "torch.allclose")
    return all(abs(i - j) <= atol + rtol * abs(j) for i, j in zip(a, b))


# ---- operators -----------------------------------------------------------------------------------------------------
def _operator(name, f, reflected=True, assigning=True):
    setattr(Tensor, "__%s__" % name, f)
    if reflected:
        setattr(Tensor, "__r%s__" % name, lambda x, y: f(y, x))
    if assigning:
        setattr(Tensor, "__i%s__" % name, in_place(f))


_operator("add", lambda x, y: arithmetic("add", x, y))
_operator("sub", lambda x, y: arithmetic("sub", x, y))
_operator("mul", lambda x, y: arithmetic("mul", x, y))
_operator("truediv", _divide)
_operator("floordiv", _floor_divide)
_operator("mod", lambda x, y: arithmetic("rem", x, y))
_operator("pow", _pow)
for _n in ("and", "or", "xor"):
    _operator(_n, FUNCTIONS["bitwise_" + _n])
_operator("lshift", bitwise_left_shift)
_operator("rshift", bitwise_right_shift)
for _n in ("lt", "le", "gt", "ge", "eq", "ne"):
    _operator(_n, lambda x, y, _n=_n: comparison(_n, x, y), False, False)
Tensor.__hash__ = lambda x: id(x)
Tensor.__neg__ = neg
Tensor.__pos__ = lambda x: x
Tensor.__abs__ = FUNCTIONS["abs"]
Tensor.__invert__ = bitwise_not
