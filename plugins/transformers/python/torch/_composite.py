"""Composite ops of the graph, in torch's layouts, for the shims of transformers and for `nn.functional`.

Tokens are the second dimension or, with heads before them, the third; the batch is one sequence. Each function brings its
operands into the graph's layout ([T, heads, size]) with reshapes and permutations, records one node, and brings the result
back. `causal_mask` makes a tensor that knows which mask it is (`spec`), as long as nothing is computed from it.

Never recognises anything: what a model computes by hand stays as it is, for the host's passes.
"""

from collections import namedtuple

from . import _dtypes, _trace
from ._dtypes import bool_, float32, int64
from ._shape import permute_to, reshape_to
from ._sym import Size, same, same_shape
from ._tensor import FUNCTIONS, convert
from ._trace import TraceError, Value, make, rec

# Which keys a query may see: j <= i, i - j < window, i // chunk == j // chunk.
MaskSpec = namedtuple("MaskSpec", "window chunk")


def _shaped(x, shape):
    shape = Size(shape)
    return x if same_shape(x.shape, shape) else reshape_to(x, shape)


def _permuted(x, axes):
    return permute_to(x, axes)


def _options(**options):
    return ",".join(["%s:%s" % (k, x) for k, x in options.items() if x is not None])


def _call(name, options):
    return "%s(%s)" % (name, options)


def _some(n):
    return None if n is None else "Some(%d)" % n


def causal_mask(window=None, chunk=None, dtype=bool_, rank=4):
    """[1, 1, T, T]: bool, or 0 where a query sees a key and the dtype's least number where not."""
    t = _trace.S.tokens
    shape = Size((1,) * (rank - 2) + (t, t))
    op = _call("causal_mask", _options(window=_some(window), chunk=_some(chunk)))

    def build():
        m = _shaped(_trace.leaf(op, (t, t), bool_), shape)
        if dtype.ir == "bool":
            return m
        return FUNCTIONS["where"](m, _trace.scalar(0.0, dtype), _trace.scalar(_dtypes.finfo(dtype).min, dtype))

    mask = make(shape, dtype, Value(shape, dtype.ir, True, make=build))
    mask.spec = MaskSpec(window, chunk)
    return mask


def attention(q, k, v, scale, window=None, chunk=None, softcap=None, sinks=None, slopes=None, mask=None):
    """Causal attention. q[1, H, T, D], k[1, Hkv, T, D], v[1, Hkv, T, Dv] -> [1, T, H, Dv]."""
    d = q.dtype
    heads, t = q.shape[1], q.shape[2]
    for x in (q, k, v):
        if len(x.shape) != 4 or not same(x.shape[0], 1) or not same(x.shape[2], t):
            raise TraceError(
                "attention between shapes %s, %s and %s" % (list(q.shape), list(k.shape), list(v.shape)),
                "queries, keys and values must be those of one sequence",
            )
    ins = []
    for x in (q, k, v):
        x = convert(x, d)
        x = _permuted(x, [0, 2, 1, 3])
        ins.append(reshape_to(x, Size(x.shape[1:])))
    if sinks is not None:
        ins.append(_shaped(convert(sinks, d), (heads,)))
    if slopes is not None:
        ins.append(_shaped(convert(slopes, float32), (heads,)))
    if mask is not None:
        ins.append(_mask_operand(mask, heads, t))
    options = _options(
        state=_trace.state(),
        scale=repr(float(scale)),
        window=_some(window),
        chunk=_some(chunk),
        softcap=None if softcap is None else "Some(%r)" % float(softcap),
        sinks=None if sinks is None else "true",
        alibi=None if slopes is None else "true",
        masked=None if mask is None else "true",
    )
    y = rec("attention(%s)" % options, ins, Size((t, heads, v.shape[3])), d)
    return reshape_to(y, Size((1, t, heads, v.shape[3])))


def _mask_operand(mask, heads, t):
    """A bool mask as [T, T] or [H, T, T]."""
    if mask.dtype is not bool_:
        raise TraceError("attention with a mask of %s" % mask.dtype, "the graph takes masks of bools")
    n = mask.shape[-3] if len(mask.shape) > 2 else 1
    lead = (t, t) if same(n, 1) else (heads, t, t)
    if not same(n, 1) and not same(n, heads):
        raise TraceError("attention of %s heads with a mask of shape %s" % (heads, list(mask.shape)))
    mask = _shaped(mask, mask.shape[-2:] if same(n, 1) else mask.shape[-3:])
    return mask if same_shape(mask.shape, lead) else FUNCTIONS["broadcast_to"](mask, lead)


def plain_attention(q, k, v, scale, mask=None):
    """softmax(scale * q k^T + mask) v, in primitive ops: attention that is not causal, or not over one sequence."""
    if not same(q.shape[-3], k.shape[-3]):
        n = q.shape[-3] // k.shape[-3]
        k, v = (FUNCTIONS["repeat_interleave"](x, n, -3) for x in (k, v))
    scores = FUNCTIONS["matmul"](q, k.transpose(-1, -2)) * float(scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is bool_ else scores + mask
    weights = convert(FUNCTIONS["softmax"](scores, -1, float32), q.dtype)
    return FUNCTIONS["matmul"](weights, v)


def grouped_linear(x, ids, weight, bias=None):
    """A linear map chosen for each token: x[N, D] or [N, K, D], ids[N, K], weight[E, out, in] -> [N, K, out]."""
    d = x.dtype
    ins = [x, convert(ids, int64), convert(weight, d)]
    if bias is not None:
        ins.append(convert(bias, d))
    return rec("grouped_linear", ins, Size((ids.shape[0], ids.shape[1], weight.shape[1])), d)


def causal_conv1d(x, weight, bias=None):
    """Each channel by itself, zeros before the sequence: x[1, C, T], weight[C, W] or [C, 1, W] -> [1, C, T]."""
    d = x.dtype
    c, t = x.shape[-2], x.shape[-1]
    w = convert(weight, d)
    ins = [_permuted(_shaped(x, (c, t)), [1, 0]), _shaped(w, (w.shape[0], w.shape[-1]))]
    if bias is not None:
        ins.append(convert(bias, d))
    y = rec("causal_conv1d(state:%d)" % _trace.state(), ins, Size((t, c)), d)
    return reshape_to(_permuted(y, [1, 0]), x.shape)


def linear_attention(q, k, v, decay, beta=None):
    """q, k [1, T, Hk, Dk], v [1, T, H, Dv], decay [1, T, H] or [1, T, H, Dk], beta [1, T, H] -> [1, T, H, Dv]."""
    d = v.dtype
    ins = [reshape_to(convert(x, d), Size(x.shape[1:])) for x in (q, k, v)]
    for x in (decay, beta):
        if x is not None:
            ins.append(reshape_to(convert(x, float32), Size(x.shape[1:])))
    options = _options(state=_trace.state(), delta=None if beta is None else "true")
    y = rec("linear_attention(%s)" % options, ins, Size(v.shape[1:]), d)
    return reshape_to(y, v.shape)
