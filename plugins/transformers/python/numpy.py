"""A stand-in for numpy: what models compute while they are made.

Functions of numbers are Python's; arrays are tensors of our torch, in single precision. What it does not know is an error.
Used by modules of transformers and by models that import numpy.
"""

import math
import random as _random_numbers
import types

pi, e, inf, nan = math.pi, math.e, math.inf, math.nan
newaxis = None


def _torch():
    # torch's own modules may import numpy.
    import torch

    return torch


class generic:
    """A scalar type: called, it converts a number."""

    kind = float

    def __new__(cls, x=0):
        return cls.kind(x)


class number(generic):
    pass


class floating(number):
    pass


class integer(number):
    kind = int


class bool_(generic):
    kind = bool


class str_(generic):
    kind = str


def _type(name, base):
    return type(name, (base,), {"__module__": "numpy"})


float16, float32, float64, double = (_type(n, floating) for n in ("float16", "float32", "float64", "double"))
int8, int16, int32, int64, uint8, uint16, uint32, uint64 = (
    _type(n, integer) for n in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
intp = int64


def _dtype(d):
    t = _torch()
    if d is None or isinstance(d, t.dtype):
        return d
    if d in (bool, bool_):
        return t.bool
    return t.int64 if d is int or (isinstance(d, type) and issubclass(d, integer)) else t.float32


class _ArrayType(type):
    def __instancecheck__(cls, x):
        return False


class ndarray(metaclass=_ArrayType):
    """For annotations and isinstance: nothing here is one."""


def array(data, dtype=None, copy=True):
    return _torch().tensor(data, dtype=_dtype(dtype))


asarray = ascontiguousarray = array


def arange(*bounds, dtype=None):
    return _torch().arange(*bounds, dtype=_dtype(dtype))


def zeros(shape, dtype=None):
    return _torch().zeros(shape, dtype=_dtype(dtype))


def ones(shape, dtype=None):
    return _torch().ones(shape, dtype=_dtype(dtype))


def full(shape, value, dtype=None):
    return _torch().full(shape if isinstance(shape, (tuple, list)) else (shape,), value, dtype=_dtype(dtype))


def linspace(start, stop, num=50, dtype=None):
    return _torch().linspace(start, stop, num, dtype=_dtype(dtype))


def _is_tensor(x):
    return isinstance(x, _torch().Tensor)


def _tensor(x):
    return array(x) if isinstance(x, (list, tuple)) else x


def _function(name, of_number, of_tensor=None):
    def f(x):
        x = _tensor(x)
        return getattr(_torch(), of_tensor or name)(x) if _is_tensor(x) else of_number(x)

    f.__name__ = name
    return f


sqrt = _function("sqrt", math.sqrt)
exp = _function("exp", math.exp)
log = _function("log", math.log)
log2 = _function("log2", math.log2)
log10 = _function("log10", math.log10)
sin = _function("sin", math.sin)
cos = _function("cos", math.cos)
tanh = _function("tanh", math.tanh)
floor = _function("floor", math.floor)
ceil = _function("ceil", math.ceil)
abs = absolute = _function("abs", math.fabs)
rint = _function("rint", round, "round")


def power(x, y):
    return _tensor(x) ** _tensor(y)


def prod(x, axis=None):
    return x.prod() if _is_tensor(x) else math.prod(x)


def sum(x, axis=None, **kwargs):
    x = _tensor(x)
    return x.sum() if axis is None else x.sum(axis)


def cumsum(x, axis=0):
    return _tensor(x).cumsum(axis)


def mean(x, axis=None):
    return _tensor(x).mean(axis)


def max(x, axis=None):
    return _tensor(x).amax() if axis is None else _tensor(x).amax(axis)


def min(x, axis=None):
    return _tensor(x).amin() if axis is None else _tensor(x).amin(axis)


def clip(x, low, high):
    return _tensor(x).clamp(low, high)


def concatenate(arrays, axis=0):
    return _torch().cat([_tensor(a) for a in arrays], axis)


def stack(arrays, axis=0):
    return _torch().stack([_tensor(a) for a in arrays], axis)


def broadcast_to(x, shape):
    return _tensor(x).expand(shape)


def reshape(x, shape):
    return _tensor(x).reshape(shape)


def where(condition, x, y):
    return _torch().where(condition, x, y)


def lcm(a, b):
    return math.lcm(a, b)


def ndim(x):
    return x.ndim if _is_tensor(x) else 0


def size(x):
    return x.numel() if _is_tensor(x) else len(x)


# Random numbers choose layers to drop in training; the stream is the same in every trace.
_numbers = _random_numbers.Random(0)
random = types.SimpleNamespace(
    rand=lambda *shape: _numbers.random(),
    random=lambda *shape: _numbers.random(),
    uniform=lambda a=0.0, b=1.0, size=None: _numbers.uniform(a, b),
    randint=lambda a, b=None, size=None: _numbers.randrange(*((a,) if b is None else (a, b))),
    seed=lambda *args: None,
)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from torch._trace import MissingError

    raise MissingError("numpy.%s, which the tracer does not know" % name, "use functions of torch")
