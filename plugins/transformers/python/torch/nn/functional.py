"""torch.nn.functional: layers without parameters of their own.

linear, embedding, layer_norm, rms_norm, softmax, activation functions and causal attention are ops of the graph; the rest is
put together from functions of torch. A convolution is written out tap by tap, but a depthwise one of which only the first T
outputs are used is the graph's causal_conv1d. Losses are not traced.
"""

import math

from .. import _composite, _dtypes, _trace
from .._composite import MaskSpec
from .._create import filled, one_hot  # noqa: F401
from .._dtypes import bool_, float32, int64, promote
from .._index import slice_axis
from .._matrix import matmul
from .._pointwise import activation, add, clamp, div, mul, neg, sigmoid, where
from .._reduce import log_softmax, norm, softmax  # noqa: F401
from .._shape import cat, chunk, reshape_to, transpose
from .._sym import Size, product, same
from .._tensor import FUNCTIONS, assign, convert
from .._trace import TraceError, Value, make, rec

tanh = FUNCTIONS["tanh"]


# ---- layers --------------------------------------------------------------------------------------------------------
def linear(input, weight, bias=None):
    d = input.dtype
    if weight.dtype is not d or (bias is not None and bias.dtype is not d):
        d = promote([t.reshape(-1) for t in (input, weight) if t is not None])
        input, weight = convert(input, d), convert(weight, d)
        bias = None if bias is None else convert(bias, d)
    if len(weight.shape) == 1:
        y = matmul(input, weight)
        return y if bias is None else add(y, bias)
    if not same(input.shape[-1], weight.shape[1]):
        raise TraceError("a linear layer of weight %s on an input of shape %s" % (list(weight.shape), list(input.shape)))
    shape = Size(input.shape[:-1] + (weight.shape[0],))
    return rec("linear", [input, weight] if bias is None else [input, weight, bias], shape, d)


def bilinear(input1, input2, weight, bias=None):
    y = FUNCTIONS["einsum"]("...i,kij,...j->...k", input1, weight, input2)
    return y if bias is None else add(y, bias)


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    if max_norm is not None:
        raise TraceError("an embedding with max_norm", "the graph has plain tables")
    ids = convert(input, int64)
    return rec("embedding", [ids, weight], Size(ids.shape + (weight.shape[1],)), weight.dtype)


def _normalized(input, normalized_shape):
    """The input with the dimensions that are normalised together as one."""
    n = len(normalized_shape)
    return input if n == 1 else reshape_to(input, Size(input.shape[:-n] + (product(normalized_shape),)))


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    x = _normalized(input, normalized_shape)
    ins = [x]
    if weight is not None:
        ins.append(convert(weight, x.dtype).reshape(-1))
        if bias is not None:
            ins.append(convert(bias, x.dtype).reshape(-1))
    y = rec("layer_norm(eps:%r)" % float(eps), ins, x.shape, x.dtype)
    if weight is None and bias is not None:
        y = add(y, bias.reshape(-1))
    return y if x is input else reshape_to(y, input.shape)


def rms_norm(input, normalized_shape, weight=None, eps=None):
    # Without an eps torch takes that of the input's type; of the model's own type that is unknown here: single precision.
    eps = _dtypes.finfo(float32).eps if eps is None else eps
    x = _normalized(input, normalized_shape)
    ins = [x] if weight is None else [x, convert(weight, x.dtype).reshape(-1)]
    y = rec("rms_norm(eps:%r)" % float(eps), ins, x.shape, x.dtype)
    return y if x is input else reshape_to(y, input.shape)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    shape = input.shape
    n = product(shape[1:]) // num_groups
    y = layer_norm(reshape_to(input, Size((shape[0], num_groups, n))), (n,), None, None, eps)
    y = reshape_to(y, shape)
    tail = (shape[1],) + (1,) * (len(shape) - 2)
    y = y if weight is None else mul(y, weight.reshape(tail))
    return y if bias is None else add(y, bias.reshape(tail))


def normalize(input, p=2.0, dim=1, eps=1e-12, out=None):
    return div(input, clamp(norm(input, p, dim, True), min=eps))


def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    n = mul(clamp(norm(x1, 2, dim, True), min=eps), clamp(norm(x2, 2, dim, True), min=eps)).squeeze(dim)
    return div(FUNCTIONS["sum"](mul(x1, x2), dim), n)


def dropout(input, p=0.5, training=False, inplace=False):
    return input


dropout1d = dropout2d = dropout3d = alpha_dropout = feature_alpha_dropout = dropout


# ---- activation functions ------------------------------------------------------------------------------------------
def _out(x, y, inplace):
    return assign(x, y) if inplace else y


def relu(input, inplace=False):
    return _out(input, FUNCTIONS["relu"](input), inplace)


def relu_(input):
    return relu(input, True)


def silu(input, inplace=False):
    return _out(input, FUNCTIONS["silu"](input), inplace)


def gelu(input, approximate="none"):
    return activation(input, "gelu_tanh" if approximate == "tanh" else "gelu")


def softplus(input, beta=1, threshold=20):
    def value_of(v):
        return v if v > threshold else math.log1p(math.exp(v))

    if beta != 1:
        return div(activation(mul(input, beta), "softplus", value_of), beta)
    return activation(input, "softplus", value_of)


def relu6(input, inplace=False):
    return clamp(input, 0, 6)


def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    return clamp(input, min_val, max_val)


def hardsigmoid(input, inplace=False):
    return div(relu6(add(input, 3)), 6)


def hardswish(input, inplace=False):
    return mul(input, hardsigmoid(input))


def mish(input, inplace=False):
    return mul(input, tanh(softplus(input)))


def logsigmoid(input):
    return neg(softplus(neg(input)))


def leaky_relu(input, negative_slope=0.01, inplace=False):
    return where(input > 0, input, mul(input, negative_slope))


def prelu(input, weight):
    if len(weight.shape) and not same(weight.shape[0], 1):
        weight = weight.reshape((weight.shape[0],) + (1,) * (len(input.shape) - 2))
    return where(input > 0, input, mul(input, weight))


def elu(input, alpha=1.0, inplace=False):
    return where(input > 0, input, mul(FUNCTIONS["expm1"](FUNCTIONS["minimum"](input, filled((), 0, input.dtype))), alpha))


def selu(input, inplace=False):
    return mul(elu(input, 1.6732632423543772), 1.0507009873554805)


def celu(input, alpha=1.0, inplace=False):
    return where(input > 0, input, mul(FUNCTIONS["expm1"](div(clamp(input, max=0), alpha)), alpha))


def glu(input, dim=-1):
    a, b = chunk(input, 2, dim)
    return mul(a, sigmoid(b))


def softsign(input):
    return div(input, add(FUNCTIONS["abs"](input), 1))


def tanhshrink(input):
    return input - tanh(input)


def threshold(input, threshold, value, inplace=False):
    return where(input > threshold, input, value)


def softmin(input, dim=None, dtype=None):
    return softmax(neg(input), dim, dtype)


# ---- convolutions --------------------------------------------------------------------------------------------------
def _one(x):
    return x[0] if isinstance(x, (tuple, list)) else x


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    stride, dilation, padding = _one(stride), _one(dilation), _one(padding)
    width, channels = weight.shape[-1], input.shape[-2]
    if padding == "same":
        total = dilation * (width - 1)
        padded = pad(input, (total // 2, total - total // 2))
    elif padding in (0, "valid"):
        padded, padding = input, 0
    else:
        padded = None
    depthwise = int(groups) == int(channels) and same(weight.shape[0], channels) and same(weight.shape[1], 1)
    if padded is not None or not (depthwise and stride == 1 and dilation == 1 and padding == width - 1):
        padded = pad(input, (padding, padding)) if padded is None else padded
        return _conv1d(padded, weight, bias, stride, dilation, groups)
    # y[..., :T] of this is causal; it is only written out if something else is read of it.
    shape = Size(input.shape[:-1] + (input.shape[-1] + padding,))
    deferred = Value(
        shape, input.dtype.ir, True, make=lambda: _conv1d(pad(input, (padding, padding)), weight, bias, 1, 1, groups)
    )
    y = make(shape, input.dtype, deferred)

    def causal(y, index):
        last = index[-1] if type(index) is tuple else None
        others = index[:-1] if last is not None else ()
        if type(last) is not slice or last.start not in (None, 0) or last.step is not None or last.stop is None:
            return None
        if not all([i is Ellipsis or (type(i) is slice and i == slice(None)) for i in others]):
            return None
        if not same(last.stop, input.shape[-1]) and not (type(last.stop) is int and last.stop == -padding):
            return None
        return _composite.causal_conv1d(input, weight, bias)

    if same(input.shape[-1], _trace.S.tokens or 0) and same(input.shape[0], 1) and len(input.shape) == 3:
        y.conv = causal
    return y


def _conv1d(x, weight, bias, stride, dilation, groups):
    """A sum over the taps of the kernel."""
    weight = convert(weight, x.dtype)
    width, outputs = weight.shape[-1], weight.shape[0]
    n = x.shape[-1] - dilation * (width - 1)
    depthwise = same(weight.shape[1], 1) and same(groups, x.shape[-2])
    last = len(x.shape) - 1
    y = None
    for w in range(width):
        tap = weight[:, :, w]
        part = slice_axis(x, last, w * dilation, w * dilation + n, stride)
        if depthwise:
            if not same(outputs, groups):
                part = FUNCTIONS["repeat_interleave"](part, outputs // groups, -2)
            part = mul(part, tap.reshape(outputs, 1))
        elif groups == 1:
            part = transpose(linear(transpose(part, -1, -2), tap), -1, -2)
        else:
            cut = part.reshape(tuple(part.shape[:-2]) + (groups, part.shape[-2] // groups, part.shape[-1]))
            part = matmul(tap.reshape(groups, outputs // groups, -1), cut)
            part = part.reshape(tuple(x.shape[:-2]) + (outputs, part.shape[-1]))
        y = part if y is None else add(y, part)
    return y if bias is None else add(y, bias.reshape(outputs, 1))


def pad(input, pad, mode="constant", value=None):
    x = input
    if mode not in ("constant", "replicate"):
        raise TraceError("pad with mode %r" % mode, "the modes constant and replicate are known")
    for k in range(len(pad) // 2):
        axis = len(x.shape) - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        n = x.shape[axis]
        if int(before) < 0 or int(after) < 0:
            start = -before if int(before) < 0 else 0
            x = slice_axis(x, axis, start, n + after if int(after) < 0 else n)
            n = x.shape[axis]
        parts = [x]
        for size, end in ((before, False), (after, True)):
            if int(size) > 0:
                shape = Size(x.shape[:axis] + (size,) + x.shape[axis + 1 :])
                if mode == "constant":
                    piece = filled(shape, 0 if value is None else value, x.dtype)
                else:
                    edge = slice_axis(x, axis, n - 1, n) if end else slice_axis(x, axis, 0, 1)
                    piece = FUNCTIONS["broadcast_to"](edge, shape)
                parts = parts + [piece] if end else [piece] + parts
        if len(parts) > 1:
            x = cat(parts, axis)
    return x


# ---- attention -----------------------------------------------------------------------------------------------------
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    scale = float(query.shape[-1]) ** -0.5 if scale is None else scale
    spec = None if attn_mask is None else attn_mask.spec
    if is_causal and attn_mask is None:
        spec = MaskSpec(None, None)
    one_sequence = len(query.shape) == 4 and same(query.shape[0], 1) and same(query.shape[2], _trace.S.tokens)
    if spec is not None and one_sequence and same(key.shape[2], query.shape[2]):
        return transpose(_composite.attention(query, key, value, scale, spec.window, spec.chunk), 1, 2)
    if is_causal:
        t, s = query.shape[-2], key.shape[-2]
        attn_mask = FUNCTIONS["tril"](filled((t, s), True, bool_))
    return _composite.plain_attention(query, key, value, scale, attn_mask)


def _loss(name):
    def f(*args, **kwargs):
        raise TraceError("nn.functional.%s: a loss" % name, "a graph is for inference")

    return f


for _n in (
    "cross_entropy", "mse_loss", "nll_loss", "kl_div", "binary_cross_entropy", "l1_loss", "smooth_l1_loss",
    "binary_cross_entropy_with_logits", "ctc_loss", "margin_ranking_loss",
):  # fmt: skip
    globals()[_n] = _loss(_n)

FUNCTIONS["nn.functional.pad"] = pad


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise _trace.MissingError(
        "torch.nn.functional.%s, which the tracer does not know" % name, "use other functions of torch"
    )
