"""The layers of torch.nn: parameters of the right shapes, and a call of nn.functional.

Those that language models do not need while they generate (losses, pictures, recurrent cells) can be made, since models
make them, but not called. Used by models as torch.nn.
"""

from .. import _dtypes
from .._sym import Size
from .._tensor import FUNCTIONS
from .._trace import TraceError, Value
from . import functional as F
from .module import Module
from .parameter import Parameter


def _parameter(*shape):
    p = Parameter.__new__(Parameter)
    p.shape = Size(shape)
    p.dtype = _dtypes.bfloat16
    p._v = Value(p.shape, "float", True)
    return p


class Linear(Module):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._parameters["weight"] = _parameter(out_features, in_features)
        self._parameters["bias"] = _parameter(out_features) if bias else None

    def forward(self, input):
        return F.linear(input, self.weight, self.bias)


NonDynamicallyQuantizableLinear = Linear


class Bilinear(Module):
    def __init__(self, in1_features, in2_features, out_features, bias=True, device=None, dtype=None):
        super().__init__()
        self._parameters["weight"] = _parameter(out_features, in1_features, in2_features)
        self._parameters["bias"] = _parameter(out_features) if bias else None

    def forward(self, input1, input2):
        return F.bilinear(input1, input2, self.weight, self.bias)


class Embedding(Module):
    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, max_norm=None, norm_type=2.0, **kwargs):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = self.sparse = False
        self._parameters["weight"] = _parameter(num_embeddings, embedding_dim)

    def forward(self, input):
        return F.embedding(input, self.weight, self.padding_idx, self.max_norm)

    @classmethod
    def from_pretrained(cls, embeddings, freeze=True, padding_idx=None, **kwargs):
        made = cls(*embeddings.shape, padding_idx=padding_idx)
        made.weight = Parameter(embeddings)
        return made


def _shape(normalized_shape):
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


class LayerNorm(Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, device=None, dtype=None):
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._parameters["weight"] = _parameter(*self.normalized_shape) if elementwise_affine else None
        self._parameters["bias"] = _parameter(*self.normalized_shape) if elementwise_affine and bias else None

    def forward(self, input):
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    def __init__(self, normalized_shape, eps=None, elementwise_affine=True, device=None, dtype=None):
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._parameters["weight"] = _parameter(*self.normalized_shape) if elementwise_affine else None

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(Module):
    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, device=None, dtype=None):
        super().__init__()
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self._parameters["weight"] = _parameter(num_channels) if affine else None
        self._parameters["bias"] = _parameter(num_channels) if affine else None

    def forward(self, input):
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _tuple(x, n=1):
    return tuple(x) if isinstance(x, (tuple, list)) else (x,) * n


class Conv1d(Module):
    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, **kwargs
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _tuple(kernel_size), _tuple(stride), _tuple(dilation)
        self.padding = padding if isinstance(padding, str) else _tuple(padding)
        self.padding_mode = kwargs.get("padding_mode", "zeros")
        self._parameters["weight"] = _parameter(out_channels, in_channels // groups, self.kernel_size[0])
        self._parameters["bias"] = _parameter(out_channels) if bias else None

    def forward(self, input):
        return F.conv1d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _Same(Module):
    """Layers that do nothing when a model generates."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.p = args[0] if args else kwargs.get("p", 0.5)

    def forward(self, input, *args, **kwargs):
        return input


class Dropout(_Same):
    pass


class Dropout1d(_Same):
    pass


class Dropout2d(_Same):
    pass


class AlphaDropout(_Same):
    pass


class Identity(_Same):
    pass


class Flatten(Module):
    def __init__(self, start_dim=1, end_dim=-1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input):
        return input.flatten(self.start_dim, self.end_dim)


class Unflatten(Module):
    def __init__(self, dim, unflattened_size):
        super().__init__()
        self.dim, self.unflattened_size = dim, unflattened_size

    def forward(self, input):
        return input.unflatten(self.dim, self.unflattened_size)


class PReLU(Module):
    def __init__(self, num_parameters=1, init=0.25, **kwargs):
        super().__init__()
        self._parameters["weight"] = _parameter(num_parameters)

    def forward(self, input):
        return F.prelu(input, self.weight)


class _Pad(Module):
    def __init__(self, padding, value=0.0):
        super().__init__()
        self.padding, self.value = padding, value

    def forward(self, input):
        return F.pad(input, _tuple(self.padding, 2 * self.dimensions), value=self.value)


class ConstantPad1d(_Pad):
    dimensions = 1


class ConstantPad2d(_Pad):
    dimensions = 2


class ZeroPad1d(_Pad):
    dimensions = 1


class ZeroPad2d(_Pad):
    dimensions = 2


class CosineSimilarity(Module):
    def __init__(self, dim=1, eps=1e-8):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x1, x2):
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


# ---- activation functions ------------------------------------------------------------------------------------------
def _activation(name, fn, *parameters):
    """A module that calls a function with what it was made with."""

    class Activation(Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            kwargs.pop("inplace", None)
            self.options = dict(zip(parameters, args))
            self.options.update(kwargs)
            for k, x in self.options.items():
                object.__setattr__(self, k, x)

        def forward(self, input):
            return fn(input, **self.options)

    Activation.__name__ = Activation.__qualname__ = name
    Activation.__module__ = "torch.nn"
    return Activation


SiLU = _activation("SiLU", F.silu)
GELU = _activation("GELU", F.gelu, "approximate")
ReLU = _activation("ReLU", F.relu)
ReLU6 = _activation("ReLU6", F.relu6)
Tanh = _activation("Tanh", FUNCTIONS["tanh"])
Sigmoid = _activation("Sigmoid", FUNCTIONS["sigmoid"])
Softplus = _activation("Softplus", F.softplus, "beta", "threshold")
Mish = _activation("Mish", F.mish)
Hardswish = _activation("Hardswish", F.hardswish)
Hardsigmoid = _activation("Hardsigmoid", F.hardsigmoid)
Hardtanh = _activation("Hardtanh", F.hardtanh, "min_val", "max_val")
LeakyReLU = _activation("LeakyReLU", F.leaky_relu, "negative_slope")
LogSigmoid = _activation("LogSigmoid", F.logsigmoid)
ELU = _activation("ELU", F.elu, "alpha")
SELU = _activation("SELU", F.selu)
CELU = _activation("CELU", F.celu, "alpha")
GLU = _activation("GLU", F.glu, "dim")
Softsign = _activation("Softsign", F.softsign)
Softmax = _activation("Softmax", F.softmax, "dim")
LogSoftmax = _activation("LogSoftmax", F.log_softmax, "dim")


# ---- layers that can be made only ----------------------------------------------------------------------------------
class _NotTraced(Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        for name, shape in self._shapes(*args, **kwargs):
            self._parameters[name] = _parameter(*shape)

    def _shapes(self, *args, **kwargs):
        return ()

    def forward(self, *args, **kwargs):
        raise TraceError("a call of torch.nn.%s" % type(self).__name__, "this layer is not known to the tracer")


def _convolution(n, transposed=False):
    def shapes(self, in_channels, out_channels, kernel_size, *args, groups=1, bias=True, **kwargs):
        first, second = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        yield "weight", (first, second // groups) + _tuple(kernel_size, n)
        if bias:
            yield "bias", (out_channels,)

    return shapes


for _n in (
    "CrossEntropyLoss", "MSELoss", "BCELoss", "BCEWithLogitsLoss", "L1Loss", "SmoothL1Loss", "NLLLoss", "KLDivLoss",
    "CTCLoss", "CosineEmbeddingLoss", "AvgPool1d", "AvgPool2d", "MaxPool1d", "MaxPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d",
    "AdaptiveMaxPool1d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "InstanceNorm1d", "InstanceNorm2d",
    "MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer", "Transformer", "LSTM", "GRU", "RNN", "LSTMCell",
    "GRUCell", "Upsample", "UpsamplingNearest2d", "PixelShuffle", "Unfold", "Fold", "ReflectionPad1d", "ReflectionPad2d",
    "ReplicationPad1d", "ReplicationPad2d", "EmbeddingBag", "LocalResponseNorm", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "ConvTranspose3d",
):  # fmt: skip
    _members = {"__module__": "torch.nn"}
    if _n.startswith("Conv"):
        _members["_shapes"] = _convolution(int(_n[-2]), "Transpose" in _n)
    globals()[_n] = type(_n, (_NotTraced,), _members)
