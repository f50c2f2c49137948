"""A stand-in for torch that records instead of computing.

Models of transformers import it as torch and run their own code over it; each function becomes nodes of a graph. It covers
what language models use to generate, in shapes and types exactly; it never computes with weights or tokens, and what it does
not know is an error that says so. The driver of the traces uses `torch._trace`; shims of transformers use `_composite`.
"""

from . import _dtypes, _trace
from ._dtypes import (  # noqa: F401
    CPU, bfloat16, complex64, complex128, device, dtype, finfo, float8_e4m3fn, float8_e5m2, float8_e8m0fnu, float16, float32,
    float64, iinfo, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
)  # fmt: skip
from ._sym import SymInt, TorchSize as Size  # noqa: F401
from ._tensor import FUNCTIONS, Tensor
from . import _pointwise, _shape, _index, _reduce, _matrix, _create, _complex, _composite  # noqa: F401,E402,I001
from . import nn  # noqa: F401,E402
from . import _namespaces

__version__ = "2.11.0"

for _name, _fn in FUNCTIONS.items():
    if "." not in _name:
        globals()[_name] = _fn

# The names of types hide Python's own from here on.
bool = _dtypes.bool_
int = int32
long = int64
short = int16
half = float16
float = float32
double = float64
cfloat = complex64
inf = _create._numbers.math.inf
nan = _create._numbers.math.nan
pi = _create._numbers.math.pi
e = _create._numbers.math.e
newaxis = None
strided = "strided"
sparse_coo = "sparse_coo"
contiguous_format = preserve_format = channels_last = channels_last_3d = None


def _typed(name, d):
    meta = type("TensorType", (type,), {"__instancecheck__": lambda cls, x: isinstance(x, Tensor) and x.dtype is d})
    return meta(name, (), {"__new__": lambda cls, *a, **k: Tensor(*a, dtype=d), "dtype": d})


for _name, _d in (
    ("FloatTensor", float32), ("DoubleTensor", float64), ("HalfTensor", float16), ("BFloat16Tensor", bfloat16),
    ("LongTensor", int64), ("IntTensor", int32), ("ShortTensor", int16), ("ByteTensor", uint8), ("CharTensor", int8),
    ("BoolTensor", bool),
):  # fmt: skip
    globals()[_name] = _typed(_name, _d)

no_grad = enable_grad = inference_mode = set_grad_enabled = autocast = _namespaces.Context
is_grad_enabled = is_autocast_enabled = is_inference_mode_enabled = is_autocast_cpu_enabled = _namespaces.no
is_autocast_cache_enabled = are_deterministic_algorithms_enabled = is_inference = _namespaces.no
manual_seed = seed = set_num_threads = use_deterministic_algorithms = set_printoptions = _namespaces.none
set_float32_matmul_precision = _assert_async = clear_autocast_cache = set_default_device = _namespaces.none
initial_seed = _namespaces.zero
Generator = _namespaces.nothing("Generator")
SymBool = _namespaces.nothing("SymBool")
SymFloat = _namespaces.nothing("SymFloat")
ScriptModule = _namespaces.nothing("ScriptModule")
memory_format = _namespaces.nothing("memory_format")
layout = _namespaces.nothing("layout")


def get_autocast_dtype(device_type):
    return bfloat16


get_autocast_gpu_dtype = get_autocast_cpu_dtype = get_autocast_dtype


def get_default_dtype():
    return _dtypes.default[0]


def set_default_dtype(d):
    _dtypes.default[0] = _dtypes.as_dtype(d)


def get_default_device():
    return CPU


def compile(model=None, **kwargs):
    return model if model is not None else (lambda f: f)


def vmap(func, *args, **kwargs):
    raise _trace.TraceError("torch.vmap", "write the function for whole tensors")


def is_tensor(x):
    return isinstance(x, Tensor)


def is_floating_point(x):
    return x.is_floating_point()


def numel(x):
    return x.numel()


def clone(x, **kwargs):
    return x.clone()


def detach(x):
    return x


def result_type(a, b):
    return _dtypes.promote((a, b))


def promote_types(a, b):
    return _dtypes.wider(a, b)


def can_cast(a, b):
    return a.category <= b.category


def get_rng_state():
    return zeros(1, dtype=uint8)  # noqa: F821


def set_rng_state(state):
    return None


def _check(condition, message=None):
    """torch._check: conditions on values are taken to hold."""
    return None


_check_value = _check_is_size = _check_with = _check_index = _check_type = _check


def _assert(condition, message=None):
    return None


def is_storage(x):
    return False


def save(*args, **kwargs):
    raise _trace.TraceError("torch.save", "models are traced without files")


load = save


cosine_similarity = nn.functional.cosine_similarity
layer_norm = nn.functional.layer_norm
rms_norm = nn.functional.rms_norm
embedding = nn.functional.embedding
dropout = nn.functional.dropout
conv1d = nn.functional.conv1d


def sym_max(a, b):
    return a if a >= b else b


def sym_min(a, b):
    return a if a <= b else b


def sym_int(x):
    return x if isinstance(x, SymInt) else x.__int__()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise _trace.MissingError("torch.%s, which the tracer does not know" % name, "use other functions of torch")


_namespaces.build()
