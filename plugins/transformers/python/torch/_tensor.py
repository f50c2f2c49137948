"""The Tensor class: a handle on a value, with shape and dtype, that may be a view of another tensor.

Values never change; a tensor that is written to gets another value. A view remembers its base and how to read and write
it: writing goes through to the base, and a view whose base was written to is read again before use. Shapes and dtypes are
real; storage, devices and gradients are not.

Never holds an op: the other modules of this package attach theirs with `export`. Used by models in place of torch.Tensor.
"""

from . import _dtypes, _numbers, _trace
from ._dtypes import CPU, as_dtype
from ._sym import Size, SymInt, TorchSize, is_static, product, same, same_shape
from ._trace import MissingError, TraceError, concrete, make, rec, value

# Functions of the module `torch`, by name.
FUNCTIONS = {}


def export(*names, function=True, method=True, inplace=False):
    """Makes a function an attribute of torch, a method of Tensor, and a method `name_` that writes to the tensor."""

    def add(fn):
        for n in names or (fn.__name__,):
            if function:
                FUNCTIONS[n] = fn
            if method:
                setattr(Tensor, n, fn)
            if inplace:
                setattr(Tensor, n + "_", in_place(fn))
        return fn

    return add


def in_place(fn):
    def write(self, *args, **kwargs):
        return assign(self, fn(self, *args, **kwargs))

    return write


class Tensor:
    _base = None  # the tensor that this is a view of,
    _kind = None  # (read(base, arg) -> tensor, write(base, view, arg) -> new value of base),
    _arg = None
    _seen = 0  # and the base's version when this was read
    _ver = 0
    _packed = True  # laid out in row-major order: reshape gives a view
    spec = None  # of causal masks: what they are (see _composite)
    conv = None  # of convolutions: their inputs (see nn.functional.conv1d)
    requires_grad = False
    grad = None
    grad_fn = None
    is_leaf = True
    is_cuda = is_meta = is_sparse = is_quantized = is_nested = is_mps = is_xpu = False
    layout = "strided"
    names = ()

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *sizes, dtype=None, device=None):
        """torch.Tensor(3, 4): uninitialised; torch.Tensor([1, 2]): these numbers."""
        if len(sizes) == 1 and isinstance(sizes[0], (list, tuple, Tensor)):
            other = FUNCTIONS["tensor"](sizes[0], dtype=dtype or _dtypes.default[0])
        else:
            other = FUNCTIONS["zeros"](*sizes, dtype=dtype)
        self.shape, self.dtype, self._v = other.shape, other.dtype, value(other)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError("'Tensor' object has no attribute '%s'" % name)
        raise MissingError("torch.Tensor.%s, which the tracer does not know" % name, "use other functions of torch")

    # ---- what it is
    device = CPU

    @property
    def ndim(self):
        return len(self.shape)

    def dim(self):
        return len(self.shape)

    ndimension = dim

    def size(self, dim=None):
        return TorchSize(self.shape) if dim is None else self.shape[dim]

    def numel(self):
        return product(self.shape)

    nelement = numel

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    @property
    def itemsize(self):
        return self.dtype.itemsize

    def element_size(self):
        return self.dtype.itemsize

    @property
    def nbytes(self):
        return self.numel() * self.dtype.itemsize

    def is_floating_point(self):
        return self.dtype.is_floating_point

    def is_complex(self):
        return False

    def is_contiguous(self, **kwargs):
        return self._packed

    def stride(self, dim=None):
        steps, n = [], 1
        for s in reversed(self.shape):
            steps.insert(0, n)
            n = n * s
        return tuple(steps) if dim is None else steps[dim]

    def storage_offset(self):
        return 0

    def data_ptr(self):
        return id(self)

    def get_device(self):
        return -1

    def __hash__(self):
        return id(self)

    def __repr__(self):
        v = self._v
        what = " = %s" % v.data if v.data is not None and len(v.data) <= 8 else ""
        return "tensor(%s, %s%s)" % (list(self.shape), self.dtype, what)

    def __format__(self, spec):
        v = self._v
        return format(v.data[0], spec) if v.data is not None and not self.shape else repr(self)

    def __deepcopy__(self, memo):
        return self.clone()

    def __reduce_ex__(self, protocol):
        raise TraceError("pickling of a tensor")

    # ---- its numbers
    def item(self):
        data = concrete(self, "item()")
        if len(data) != 1:
            raise RuntimeError("a Tensor with %d elements cannot be converted to Scalar" % len(data))
        return data[0]

    def __bool__(self):
        if self.shape and (not is_static(self.shape) or self.numel() != 1):
            raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
        return bool(concrete(self, "`if`, `and`, `or`, `not` or bool()")[0])

    def __int__(self):
        return int(concrete(self, "int()")[0])

    def __float__(self):
        return float(concrete(self, "float()")[0])

    def __index__(self):
        return int(concrete(self, "use as an index")[0])

    def __round__(self, n=None):
        return round(concrete(self, "round()")[0], n)

    def tolist(self):
        data = concrete(self, "tolist()")

        def nest(at, sizes, steps):
            if not sizes:
                return data[at]
            return [nest(at + i * steps[0], sizes[1:], steps[1:]) for i in range(sizes[0])]

        sizes = [int(n) for n in self.shape]
        return nest(0, sizes, _numbers.strides(sizes))

    def numpy(self, **kwargs):
        return self

    def __array__(self, *args, **kwargs):
        raise TraceError("conversion of a tensor to numpy", "use functions of torch")

    def __iter__(self):
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        n = self.shape[0]
        if type(n) is SymInt:
            raise TraceError(
                "a loop over a tensor of shape %s, whose first size depends on the number of tokens" % list(self.shape),
                "such a loop must be a single op",
            )
        return iter([self[i] for i in range(n)])

    def __contains__(self, x):
        data = concrete(self, "`in`")
        return (x.item() if isinstance(x, Tensor) else x) in data

    # ---- other types
    def to(self, *args, dtype=None, device=None, copy=False, non_blocking=False, memory_format=None):
        for a in args:
            if isinstance(a, Tensor):
                dtype = a.dtype
            elif type(a) is _dtypes.dtype or a in (bool, int, float):
                dtype = a
        return self if dtype is None else convert(self, dtype)

    def type_as(self, other):
        return convert(self, other.dtype)

    def type(self, dtype=None, **kwargs):
        if dtype is None:
            return "torch.%sTensor" % {"float32": "Float", "int64": "Long", "bool": "Bool"}.get(self.dtype.name, "Half")
        return convert(self, _TYPES.get(dtype, dtype))

    def float(self, **kwargs):
        return convert(self, _dtypes.float32)

    def double(self, **kwargs):
        return convert(self, _dtypes.float64)

    def half(self, **kwargs):
        return convert(self, _dtypes.float16)

    def bfloat16(self, **kwargs):
        return convert(self, _dtypes.bfloat16)

    def int(self, **kwargs):
        return convert(self, _dtypes.int32)

    def long(self, **kwargs):
        return convert(self, _dtypes.int64)

    def bool(self, **kwargs):
        return convert(self, _dtypes.bool_)

    def cpu(self, *args, **kwargs):
        return self

    cuda = xpu = npu = cpu

    # ---- gradients and memory, which there are none of
    def detach(self):
        return self

    def requires_grad_(self, requires_grad=True):
        return self

    detach_ = requires_grad_
    retain_grad = backward = share_memory_ = pin_memory = record_stream = register_hook = requires_grad_

    def contiguous(self, **kwargs):
        return self if self._packed else self.clone()

    def clone(self, **kwargs):
        t = make(self.shape, self.dtype, value(self))
        t.spec = self.spec
        return t

    @property
    def data(self):
        return self

    @data.setter
    def data(self, other):
        assign_all(self, other)

    @property
    def real(self):
        return self

    # ---- writing
    def copy_(self, other, non_blocking=False):
        return assign(self, other if isinstance(other, Tensor) else FUNCTIONS["tensor"](other))

    def fill_(self, x):
        x = x if isinstance(x, Tensor) else _trace.scalar(x, self.dtype)
        return assign(self, x)

    def zero_(self):
        return self.fill_(0)

    def set_(self, other):
        return assign_all(self, other)

    def _random(self, *args, **kwargs):
        """Random initial values: the checkpoint's replace them."""
        return self

    normal_ = uniform_ = trunc_normal_ = random_ = exponential_ = bernoulli_ = log_normal_ = _random


_TYPES = {
    "torch.FloatTensor": _dtypes.float32,
    "torch.LongTensor": _dtypes.int64,
    "torch.BoolTensor": _dtypes.bool_,
    "torch.IntTensor": _dtypes.int32,
    "torch.HalfTensor": _dtypes.float16,
    "torch.BFloat16Tensor": _dtypes.bfloat16,
}

_trace._Tensor = Tensor


def convert(t, dtype):
    """The tensor in another dtype; itself if it has it."""
    old = t.dtype
    if dtype is old:
        return t
    if type(dtype) is not _dtypes.dtype:
        dtype = as_dtype(dtype)
        if type(dtype) is not _dtypes.dtype:
            raise TypeError("%r is not a dtype" % (dtype,))
        if dtype is old:
            return t
    if dtype.is_complex:
        return FUNCTIONS["complex"](convert(t, _dtypes.float32), FUNCTIONS["zeros_like"](t, dtype=_dtypes.float32))
    if dtype.ir == old.ir:
        out = make(t.shape, dtype, value(t))
    else:
        out = rec("cast(dtype:" + dtype.ir + ")", [t], t.shape, dtype, _numbers.cast, (dtype.ir,))
    if t.spec is not None:
        out.spec = t.spec
    return out


def view(t, base, kind, arg):
    """Makes a fresh tensor a view."""
    if t is not base:
        t._base, t._kind, t._arg, t._seen = base, kind, arg, base._ver
    return t


def assign(t, new):
    """Writes to a tensor: its shape and dtype stay. Views write through to their base."""
    if new.dtype is not t.dtype:
        new = convert(new, t.dtype)
    if new.shape is not t.shape and not same_shape(new.shape, t.shape):
        new = FUNCTIONS["broadcast_to"](new, t.shape)
    v = value(new)
    if t._base is not None:
        value(t)
    t._v = v
    t._ver += 1
    t.spec = t.conv = None
    base = t._base
    if base is not None:
        write = t._kind[1]
        if write is None:
            raise TraceError("a write to an expanded tensor, of which several elements are one", "clone() it first")
        # The write must see this tensor's new value, not refresh it from the base.
        t._base = None
        assign(base, write(base, t, t._arg))
        t._base = base
        t._seen = base._ver
    return t


def assign_all(t, new):
    """`t.data = new`: shape and dtype change too. It is a tensor of its own from then on."""
    t._base = t.spec = t.conv = None
    t.shape, t.dtype, t._v = new.shape, new.dtype, value(new)
    t._ver += 1
    return t


def broadcast_shapes(*shapes):
    """The shape to which all broadcast."""
    if len(shapes) == 2 and len(shapes[0]) == len(shapes[1]):
        for m, n in zip(*shapes):
            if m is not n and m != n if type(m) is int and type(n) is int else m is not n:
                break
        else:
            return shapes[0]
    out = list(shapes[0])
    for s in shapes[1:]:
        if len(s) > len(out):
            out = [1] * (len(s) - len(out)) + out
        lead = len(out) - len(s)
        for i, n in enumerate(s):
            m = out[lead + i]
            if m is n:
                continue
            if type(m) is int and m == 1:
                out[lead + i] = n
            elif not (type(n) is int and n == 1) and not same(m, n):
                raise TraceError(
                    "shapes %s do not broadcast" % " and ".join(str(list(x)) for x in shapes),
                    "sizes must agree for every number of tokens",
                )
    return Size(out)


def axis_of(dim, rank):
    """A dimension counted from the front."""
    n = dim + rank if dim < 0 else dim
    if not 0 <= n < max(rank, 1):
        raise IndexError("Dimension out of range (expected to be in range of [%d, %d], but got %d)" % (-rank, rank - 1, dim))
    return int(n)


def sizes_of(args):
    """Sizes given as (2, 3) or as 2, 3."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
