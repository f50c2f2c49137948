"""Parameters and buffers.

A parameter is a shape: its initial value, which the checkpoint replaces, is dropped, and floating ones are of the model's
own type. A buffer keeps its value unless the driver binds it to a weight (`_trace.bind`). Used by `module` and by models.
"""

from .. import _dtypes
from .._sym import Size
from .._tensor import Tensor
from .._trace import S, TraceError, Value


class Parameter(Tensor):
    requires_grad = True

    def __init__(self, data=None, requires_grad=True):
        if data is None:
            shape, dtype = Size((0,)), _dtypes.bfloat16
        else:
            shape, dtype = data.shape, data.dtype
            if dtype.category == 2:
                dtype = _dtypes.bfloat16
        self.shape = shape
        self.dtype = dtype
        self._v = Value(shape, dtype.ir, True)

    def __deepcopy__(self, memo):
        return Parameter(self)

    # Initial values are not kept, whichever way they are written.
    def _ignore(self, *args, **kwargs):
        if S.on:
            raise TraceError("a write to a parameter", "a graph reads weights, it does not write them")
        return self

    copy_ = fill_ = zero_ = normal_ = uniform_ = trunc_normal_ = set_ = _ignore
    mul_ = add_ = div_ = sub_ = clamp_ = __setitem__ = _ignore

    @property
    def data(self):
        return self

    @data.setter
    def data(self, other):
        self.shape = other.shape
        old = self._v
        self._v = Value(other.shape, self.dtype.ir, True, label=old.label, make=old.make)


class Buffer(Tensor):
    """nn.Buffer(data, persistent=...): a tensor that a module registers when it is assigned."""

    def __new__(cls, data=None, *, persistent=True):
        # A complex buffer, which is no tensor here, becomes an ordinary attribute.
        return object.__new__(cls) if data is None or isinstance(data, Tensor) else data

    def __init__(self, data=None, *, persistent=True):
        data = Tensor(0) if data is None else data
        self.shape, self.dtype, self._v = data.shape, data.dtype, data._v
        self.persistent = persistent


class UninitializedParameter(Parameter):
    pass
