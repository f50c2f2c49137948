"""Functions that make tensors: tensor, zeros, ones, full, arange, linspace, eye, random numbers.

Small ones are known numbers. Large ones, and those whose size depends on T, are expressions of the graph (a broadcast
number, an iota) that are never computed here. Random numbers stand for initial values of parameters, which the checkpoint
replaces: they are zeros. Functions of torch, and Tensor.new_*.
"""

from . import _dtypes, _numbers, _trace
from ._dtypes import as_dtype, bool_, float32, int64, promote
from ._pointwise import add, mul
from ._shape import stack
from ._sym import Size, SymInt, is_static, product
from ._tensor import Tensor, assign, convert, export, sizes_of
from ._trace import TraceError, constant, dim, dims, rec, scalar


def _flatten(data, shape, depth, out):
    if isinstance(data, (list, tuple)):
        if depth == len(shape):
            shape.append(len(data))
        elif shape[depth] != len(data):
            raise ValueError("expected sequence of length %d at dim %d (got %d)" % (shape[depth], depth, len(data)))
        for x in data:
            _flatten(x, shape, depth + 1, out)
    else:
        out.append(data)


@export("tensor", method=False)
def tensor(data, *, dtype=None, device=None, requires_grad=False, pin_memory=False):
    dtype = as_dtype(dtype)
    if isinstance(data, Tensor):
        return data.clone() if dtype is None else convert(data, dtype).clone()
    if not isinstance(data, (list, tuple)):
        if hasattr(data, "tolist"):
            return tensor(data.tolist(), dtype=dtype)
        if isinstance(data, range):
            return tensor(list(data), dtype=dtype)
        return scalar(data, dtype or _dtypes.of_number(data)).clone()
    shape, flat = [], []
    _flatten(data, shape, 0, flat)
    if any([isinstance(x, Tensor) or type(x) is SymInt for x in flat]):
        parts = [x if isinstance(x, Tensor) else scalar(x, _dtypes.of_number(x)) for x in flat]
        d = dtype or promote([p.reshape(1) for p in parts])
        return stack([convert(p.reshape(()), d) for p in parts]).reshape(shape)
    if dtype is None:
        d = bool_ if flat else _dtypes.default[0]
        for x in flat:
            d = _dtypes.wider(d, _dtypes.of_number(x))
        dtype = d
    return constant(shape, dtype, _numbers.finish(flat, dtype.ir))


@export("as_tensor", "asarray", "from_numpy", "scalar_tensor", method=False)
def as_tensor(data, dtype=None, device=None, **kwargs):
    if isinstance(data, Tensor):
        return data if dtype is None else convert(data, dtype)
    return tensor(data, dtype=dtype)


def filled(shape, x, dtype):
    """A tensor full of one number."""
    shape = Size(shape)
    if isinstance(x, Tensor):
        x = convert(x.reshape(()), dtype)
    else:
        x = scalar(x, dtype)
    if not shape:
        return x.clone()
    return rec("broadcast(shape:%s)" % dims(shape), [x], shape, dtype, _numbers.broadcast, (shape,))


def _fill(x):
    def f(*size, dtype=None, out=None, **kwargs):
        size = kwargs["size"] if "size" in kwargs else sizes_of(size)
        size = (size,) if isinstance(size, int) else size
        size = [int(n) if isinstance(n, Tensor) else n for n in size]
        return filled(size, x, as_dtype(dtype) or _dtypes.default[0])

    return f


for _name, _x in (("zeros", 0), ("ones", 1), ("empty", 0), ("rand", 0), ("randn", 0)):
    export(_name, method=False)(_fill(_x))
    if _name[0] != "r":

        def _new(self, *size, dtype=None, _x=_x, **kwargs):
            size = kwargs["size"] if "size" in kwargs else sizes_of(size)
            return filled((size,) if isinstance(size, int) else size, _x, as_dtype(dtype) or self.dtype)

        setattr(Tensor, "new_" + _name, _new)


def _like(x):
    def f(other, *, dtype=None, **kwargs):
        return filled(other.shape, x, as_dtype(dtype) or other.dtype)

    return f


for _name, _x in (("zeros_like", 0), ("ones_like", 1), ("empty_like", 0), ("rand_like", 0), ("randn_like", 0)):
    export(_name, method=False)(_like(_x))


@export("full", method=False)
def full(size, fill_value, *, dtype=None, **kwargs):
    size = (size,) if isinstance(size, int) else size
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, Tensor) else _dtypes.of_number(fill_value)
    return filled(size, fill_value, as_dtype(dtype))


@export("full_like", method=False)
def full_like(other, fill_value, *, dtype=None, **kwargs):
    return filled(other.shape, fill_value, as_dtype(dtype) or other.dtype)


def new_full(self, size, fill_value, *, dtype=None, **kwargs):
    return full(size, fill_value, dtype=dtype or self.dtype)


def new_tensor(self, data, *, dtype=None, **kwargs):
    return tensor(data, dtype=dtype or self.dtype)


Tensor.new_full, Tensor.new_tensor = new_full, new_tensor


@export("empty_strided", method=False)
def empty_strided(size, stride, *, dtype=None, **kwargs):
    return filled(size, 0, as_dtype(dtype) or _dtypes.default[0])


@export("normal", "bernoulli", "multinomial", "poisson", method=False)
def normal(mean=0.0, std=1.0, size=None, *, generator=None, dtype=None, out=None, **kwargs):
    shape = size if size is not None else (mean if isinstance(mean, Tensor) else std).shape
    made = filled(shape, 0, as_dtype(dtype) or _dtypes.default[0])
    return made if out is None else assign(out, made)


@export("randint", method=False)
def randint(low, high=None, size=None, *, dtype=None, **kwargs):
    return filled(size if size is not None else high, 0, as_dtype(dtype) or int64)


@export("randperm", method=False)
def randperm(n, *, dtype=None, **kwargs):
    return arange(n, dtype=dtype or int64)


# From this many on, 0, 1, 2, ... are the graph's iota and not known numbers.
PLACES = 256


def _number(x):
    return x.item() if isinstance(x, Tensor) else x


@export("arange", method=False)
def arange(start=0, end=None, step=1, *, dtype=None, out=None, **kwargs):
    if end is None:
        start, end = 0, start
    start, end, step = _number(start), _number(end), _number(step)
    floats = any([isinstance(x, float) for x in (start, end, step)])
    dtype = as_dtype(dtype) or (_dtypes.default[0] if floats else int64)
    if any([type(x) is SymInt for x in (start, end, step)]):
        start, end, step = [int(x) if isinstance(x, float) and x == int(x) else x for x in (start, end, step)]
        return _symbolic_arange(start, end, step, dtype)
    n = -int(-(end - start) // step) if step else 0
    n = max(0, n)
    # Places in a long table stay visible as such: taking rows of the table by position is then computing them there.
    places = step == 1 and start == 0 and n > PLACES and not floats
    if n <= _trace.LIMIT and not places:
        return constant((n,), dtype, _numbers.finish([start + i * step for i in range(n)], dtype.ir))
    return _symbolic_arange(start, end if not floats else start + n * step, step, dtype, n)


def _symbolic_arange(start, end, step, dtype, n=None):
    if n is None:
        if type(step) is int and step == 1:
            n = end - start
        elif type(step) is int and step == -1:
            n = start - end
        else:
            n = -((start - end) // step)
    if isinstance(n, float) or int(n) < 0:
        raise TraceError("torch.arange(%s, %s, %s)" % (start, end, step), "bounds that depend on T must be integers")
    v = rec("iota(len:%s)" % dim(n), [], Size((n,)), int64)
    # An iota over T is a value of this trace, not a constant of the checkpoint.
    if not (type(step) is int and step == 1):
        v = mul(convert(v, float32) if isinstance(step, float) else v, step)
    if not (type(start) is int and start == 0):
        v = add(v, start)
    return convert(v, dtype)


@export("range", method=False)
def closed_range(start, end, step=1, **kwargs):
    return arange(start, end + step, step, dtype=kwargs.get("dtype") or float32)


@export("linspace", method=False)
def linspace(start, end, steps, *, dtype=None, **kwargs):
    start, end = float(_number(start)), float(_number(end))
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    step = _numbers.round_f32([step])[0]
    half = steps // 2
    data = [start + step * i if i < half else end - step * (steps - 1 - i) for i in range(steps)]
    dtype = as_dtype(dtype) or _dtypes.default[0]
    return constant((steps,), dtype, _numbers.finish(data if steps > 1 else [start] * steps, dtype.ir))


@export("logspace", method=False)
def logspace(start, end, steps, base=10.0, *, dtype=None, **kwargs):
    exponents = linspace(start, end, steps)._v.data
    dtype = as_dtype(dtype) or _dtypes.default[0]
    return constant((steps,), dtype, _numbers.finish([base**e for e in exponents], dtype.ir))


@export("eye", method=False)
def eye(n, m=None, *, dtype=None, **kwargs):
    m = n if m is None else m
    dtype = as_dtype(dtype) or _dtypes.default[0]
    shape = Size((n, m))
    if is_static(shape) and product(shape) <= _trace.LIMIT:
        return constant(shape, dtype, _numbers.finish([i == j for i in range(n) for j in range(m)], dtype.ir))
    return convert(arange(n).unsqueeze(-1) == arange(m), dtype)


@export("one_hot", function=False, method=False)
def one_hot(x, num_classes=-1):
    if num_classes < 0:
        num_classes = int(max(_trace.concrete(x, "one_hot without num_classes"))) + 1
    return convert(x.unsqueeze(-1) == arange(num_classes), int64)


@export("complex", method=False)
def complex(real, imag):
    from ._complex import ComplexTensor

    return ComplexTensor(real, imag)
