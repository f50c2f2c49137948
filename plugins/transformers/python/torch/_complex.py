"""Complex numbers, as pairs of real tensors: what rotary embeddings written with torch.polar need.

Knows products, sums, indexing and rearranging. Used by models through torch.polar, view_as_complex and view_as_real.
"""

from . import _dtypes
from ._dtypes import complex64
from ._pointwise import add, mul, neg, sub
from ._shape import stack
from ._tensor import FUNCTIONS, export
from ._trace import MissingError


class ComplexTensor:
    dtype = complex64
    device = _dtypes.CPU
    requires_grad = False

    def __init__(self, real, imag):
        self.real = real
        self.imag = imag
        self.shape = real.shape

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingError("%s of a complex tensor, which the tracer does not know" % name)

    ndim = property(lambda c: len(c.shape))

    def dim(self):
        return len(self.shape)

    def size(self, dim=None):
        return self.shape if dim is None else self.shape[dim]

    def is_complex(self):
        return True

    def to(self, *args, **kwargs):
        return self

    cpu = cuda = contiguous = detach = clone = to

    def type_as(self, other):
        return self

    def conj(self):
        return ComplexTensor(self.real, neg(self.imag))

    def abs(self):
        return FUNCTIONS["sqrt"](add(mul(self.real, self.real), mul(self.imag, self.imag)))

    __abs__ = abs

    def __mul__(self, other):
        if isinstance(other, ComplexTensor):
            a, b, c, d = self.real, self.imag, other.real, other.imag
            return ComplexTensor(sub(mul(a, c), mul(b, d)), add(mul(a, d), mul(b, c)))
        return ComplexTensor(mul(self.real, other), mul(self.imag, other))

    __rmul__ = __mul__

    def __add__(self, other):
        if isinstance(other, ComplexTensor):
            return ComplexTensor(add(self.real, other.real), add(self.imag, other.imag))
        return ComplexTensor(add(self.real, other), self.imag)

    __radd__ = __add__

    def __neg__(self):
        return ComplexTensor(neg(self.real), neg(self.imag))

    def __sub__(self, other):
        return self + (-other)

    def __getitem__(self, index):
        return ComplexTensor(self.real[index], self.imag[index])


def _both(name):
    def f(self, *args, **kwargs):
        return ComplexTensor(getattr(self.real, name)(*args, **kwargs), getattr(self.imag, name)(*args, **kwargs))

    setattr(ComplexTensor, name, f)


for _n in (
    "unsqueeze", "squeeze", "reshape", "view", "transpose", "permute", "flatten", "expand", "repeat",
    "repeat_interleave", "index_select", "movedim", "narrow",
):  # fmt: skip
    _both(_n)


@export("polar", method=False)
def polar(abs, angle):
    return ComplexTensor(mul(abs, FUNCTIONS["cos"](angle)), mul(abs, FUNCTIONS["sin"](angle)))


@export("view_as_complex")
def view_as_complex(x):
    return ComplexTensor(x[..., 0], x[..., 1])


@export("view_as_real")
def view_as_real(c):
    return stack([c.real, c.imag], -1)


ComplexTensor.view_as_real = view_as_real
ComplexTensor.float = lambda c: c


@export("is_complex", method=False)
def is_complex(x):
    return isinstance(x, ComplexTensor)
