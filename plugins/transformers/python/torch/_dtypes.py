"""Element types, devices, and torch's rules of type promotion.

The graph knows four element types. bfloat16 and float16 both stand for `float`, the model's own type, whatever it is;
float32 and float64 are `f32`; integers are `i64`. A trace is always made as if the model were bfloat16, so that a
conversion to float32 in the code is seen. Never touches values. Used by everything in this package.
"""


class dtype:
    def __init__(self, name, ir, category, order, itemsize, signed=True):
        self.name = name
        self.ir = ir
        self.category = category  # 0 bool, 1 integer, 2 float, 3 complex
        self.order = order
        self.itemsize = itemsize
        self.is_floating_point = category == 2
        self.is_complex = category == 3
        self.is_signed = signed

    def __repr__(self):
        return "torch." + self.name

    def __deepcopy__(self, memo):
        return self

    def __copy__(self):
        return self

    def __reduce__(self):
        return "torch." + self.name

    def to_real(self):
        return float32 if self.is_complex else self


bool_ = dtype("bool", "bool", 0, 0, 1, False)
uint8 = dtype("uint8", "i64", 1, 1, 1, False)
int8 = dtype("int8", "i64", 1, 2, 1)
int16 = dtype("int16", "i64", 1, 3, 2)
uint16 = dtype("uint16", "i64", 1, 3, 2, False)
int32 = dtype("int32", "i64", 1, 4, 4)
uint32 = dtype("uint32", "i64", 1, 4, 4, False)
int64 = dtype("int64", "i64", 1, 5, 8)
uint64 = dtype("uint64", "i64", 1, 5, 8, False)
float8_e4m3fn = dtype("float8_e4m3fn", "float", 2, 6, 1)
float8_e5m2 = dtype("float8_e5m2", "float", 2, 6, 1)
float8_e8m0fnu = dtype("float8_e8m0fnu", "float", 2, 6, 1)
float16 = dtype("float16", "float", 2, 7, 2)
bfloat16 = dtype("bfloat16", "float", 2, 8, 2)
float32 = dtype("float32", "f32", 2, 9, 4)
float64 = dtype("float64", "f32", 2, 10, 8)
complex64 = dtype("complex64", "f32", 3, 11, 8)
complex128 = dtype("complex128", "f32", 3, 12, 16)

PYTHON_TYPES = {bool: bool_, int: int64, float: float32, complex: complex64}

default = [float32]


def as_dtype(d):
    """A dtype from a dtype or from Python's bool, int, float."""
    return d if type(d) is dtype else PYTHON_TYPES.get(d, d)


def of_number(x):
    """What a Python number is as a tensor."""
    if isinstance(x, bool):
        return bool_
    if isinstance(x, int):
        return int64
    return complex64 if isinstance(x, complex) else default[0]


def wider(a, b):
    if a is b:
        return a
    if a.order == b.order:
        return a
    low, high = (a, b) if a.order < b.order else (b, a)
    if low is float16 and high is bfloat16:
        return float32
    return high


def promote(operands):
    """The dtype of an operation on tensors (with .dtype and .shape) and Python numbers."""
    best = scalar = number = None
    for x in operands:
        d = getattr(x, "dtype", None)
        if d is None:
            d = of_number(x)
            number = d if number is None else wider(number, d)
        elif len(x.shape):
            best = d if best is None else wider(best, d)
        else:
            scalar = d if scalar is None else wider(scalar, d)
    for other in (scalar, number):
        if other is not None and (best is None or other.category > best.category):
            best = other
    return best


class finfo:
    def __init__(self, d=None):
        d = as_dtype(d or default[0])
        self.dtype = d.name
        self.bits = d.itemsize * 8
        mantissa, least, self.max = {
            "float16": (10, -14, 65504.0),
            "bfloat16": (7, -126, 3.3895313892515355e38),
            "float64": (52, -1022, 1.7976931348623157e308),
            "float8_e4m3fn": (3, -6, 448.0),
            "float8_e5m2": (2, -14, 57344.0),
        }.get(d.name, (23, -126, 3.4028234663852886e38))
        self.min = -self.max
        self.eps = self.resolution = 2.0**-mantissa
        self.tiny = self.smallest_normal = 2.0**least


class iinfo:
    def __init__(self, d):
        d = as_dtype(d)
        self.dtype = d.name
        self.bits = d.itemsize * 8
        self.max = 2 ** (self.bits - 1) - 1 if d.is_signed else 2**self.bits - 1
        self.min = -(2 ** (self.bits - 1)) if d.is_signed else 0


class device:
    """Every tensor says that it is on the CPU; other names are accepted and mean nothing."""

    def __init__(self, type="cpu", index=None):
        if isinstance(type, device):
            type, index = type.type, type.index
        elif isinstance(type, int):
            type, index = "cpu", type
        name, _, number = str(type).partition(":")
        self.type = name
        self.index = int(number) if number else index

    def __repr__(self):
        return "device(type='%s')" % self.type

    def __str__(self):
        return self.type if self.index is None else "%s:%d" % (self.type, self.index)

    def __eq__(self, other):
        if isinstance(other, str):
            other = device(other)
        return isinstance(other, device) and other.type == self.type

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash(self.type)

    def __deepcopy__(self, memo):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *a):
        return False


CPU = device("cpu")
