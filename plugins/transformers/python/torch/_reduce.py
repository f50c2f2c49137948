"""Functions along dimensions: sums, means, extremes, norms, softmax, running sums, sorting.

The graph reduces one axis at a time; several are reduced one after the other. A mean is a sum divided by the size; where the
size depends on T, by the sum of ones, as in the graph's own definitions. Methods of Tensor, functions of torch.
"""

import math

from . import _create, _dtypes, _numbers, _trace
from ._dtypes import bool_, int64
from ._pointwise import add, clamp, convert, div, eq, exp, log, mul, ne, neg, sub, where
from ._shape import cat, flatten, movedim, narrow, reshape_to, transpose, unbind
from ._sym import Size, SymInt
from ._tensor import FUNCTIONS, Tensor, assign, axis_of, export
from ._trace import TraceError, rec


class Pair(tuple):
    """values, indices: what max, min, sort, topk and others return."""

    values = property(lambda p: p[0])
    indices = property(lambda p: p[1])


def _axes(dim, rank):
    """The axes to reduce, last first."""
    if dim is None or dim == () or dim == []:
        return list(range(rank))[::-1]
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    return sorted([axis_of(d, rank) for d in dims], reverse=True)


def reduce_axis(op, x, axis, keep, dtype=None):
    shape = x.shape
    shape = Size(shape[:axis] + ((1,) if keep else ()) + shape[axis + 1 :])
    dtype = dtype or x.dtype
    text = f"{op}(axis:{axis},keep:{'true' if keep else 'false'})"
    return rec(text, [x], shape, dtype, _numbers.reduction, (op, axis, dtype.ir))


def _reduce(op, x, dim, keepdim):
    for axis in _axes(dim, len(x.shape)):
        x = reduce_axis(op, x, axis, keepdim)
    return x


def _count(x, dim):
    n = 1
    for axis in _axes(dim, len(x.shape)):
        n = n * x.shape[axis]
    return n


def _finish(result, out):
    return result if out is None else assign(out, result)


@export("sum")
def sum(x, dim=None, keepdim=False, *, axis=None, dtype=None, out=None):
    if dtype is not None:
        x = convert(x, dtype)
    elif x.dtype.category < 2 and x.dtype is not int64:
        x = convert(x, int64)
    return _finish(_reduce("sum", x, dim if axis is None else axis, keepdim), out)


@export("nansum")
def nansum(x, dim=None, keepdim=False, **kwargs):
    return sum(where(ne(x, x), 0.0, x), dim, keepdim, **kwargs)


@export("mean")
def mean(x, dim=None, keepdim=False, *, axis=None, dtype=None, out=None):
    if dtype is not None:
        x = convert(x, dtype)
    dim = dim if axis is None else axis
    return _finish(div(_reduce("sum", x, dim, keepdim), _count(x, dim)), out)


@export("var")
def var(x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    correction = int(unbiased) if correction is None else correction
    center = sub(x, mean(x, dim, True))
    n = _count(x, dim)
    return div(_reduce("sum", mul(center, center), dim, keepdim), n - correction)


@export("std")
def std(x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return FUNCTIONS["sqrt"](var(x, dim, unbiased, keepdim, correction=correction))


@export("var_mean", method=False)
def var_mean(x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    return var(x, dim, unbiased, keepdim, correction=correction), mean(x, dim, keepdim)


@export("prod")
def prod(x, dim=None, keepdim=False, *, dtype=None):
    x = x if dtype is None else convert(x, dtype)
    if dim is None:
        x, dim = flatten(x), 0
    d = axis_of(dim, len(x.shape))
    v = _trace.value(x)
    if v.data is not None and len(x.shape) == 1:
        return _trace.constant((1,) if keepdim else (), x.dtype, _numbers.finish([math.prod(v.data)], x.dtype.ir))
    parts = unbind(x, d)
    out = parts[0]
    for p in parts[1:]:
        out = mul(out, p)
    return out.unsqueeze(d) if keepdim else out


@export("any")
def any(x, dim=None, keepdim=False, **kwargs):
    return ne(_reduce("reduce_max", convert(convert(x, bool_), int64), dim, keepdim), 0)


@export("all")
def all(x, dim=None, keepdim=False, **kwargs):
    return ne(_reduce("reduce_min", convert(convert(x, bool_), int64), dim, keepdim), 0)


@export("count_nonzero")
def count_nonzero(x, dim=None):
    return sum(ne(x, 0), dim)


def _numeric(x):
    return convert(x, int64) if x.dtype is bool_ else x


@export("amax")
def amax(x, dim=(), keepdim=False):
    return convert(_reduce("reduce_max", _numeric(x), dim, keepdim), x.dtype)


@export("amin")
def amin(x, dim=(), keepdim=False):
    return convert(_reduce("reduce_min", _numeric(x), dim, keepdim), x.dtype)


@export("aminmax")
def aminmax(x, *, dim=None, keepdim=False):
    return amin(x, () if dim is None else dim, keepdim), amax(x, () if dim is None else dim, keepdim)


@export("argmax")
def argmax(x, dim=None, keepdim=False):
    if dim is None:
        x, dim = flatten(x), 0
    return reduce_axis("argmax", _numeric(x), axis_of(dim, len(x.shape)), keepdim, int64)


@export("argmin")
def argmin(x, dim=None, keepdim=False):
    return argmax(neg(_numeric(x)), dim, keepdim)


@export("max")
def max(x, dim=None, keepdim=False, *, axis=None, out=None):
    dim = dim if axis is None else axis
    if isinstance(dim, Tensor):
        return FUNCTIONS["maximum"](x, dim)
    return amax(x) if dim is None else Pair((amax(x, dim, keepdim), argmax(x, dim, keepdim)))


@export("min")
def min(x, dim=None, keepdim=False, *, axis=None, out=None):
    dim = dim if axis is None else axis
    if isinstance(dim, Tensor):
        return FUNCTIONS["minimum"](x, dim)
    return amin(x) if dim is None else Pair((amin(x, dim, keepdim), argmin(x, dim, keepdim)))


# ---- norms ---------------------------------------------------------------------------------------------------------
@export("norm")
def norm(x, p="fro", dim=None, keepdim=False, *, dtype=None, out=None, ord=None):
    p = p if ord is None else ord
    x = convert(x, dtype or (x.dtype if x.dtype.category == 2 else _dtypes.default[0]))
    if p in (2, "fro", None):
        return FUNCTIONS["sqrt"](_reduce("sum", mul(x, x), dim, keepdim))
    a = FUNCTIONS["abs"](x)
    if p == 1:
        return _reduce("sum", a, dim, keepdim)
    if p == math.inf:
        return _reduce("reduce_max", a, dim, keepdim)
    return FUNCTIONS["pow"](_reduce("sum", FUNCTIONS["pow"](a, p), dim, keepdim), 1.0 / p)


@export("logsumexp")
def logsumexp(x, dim, keepdim=False):
    top = amax(x, dim, True)
    out = add(log(_reduce("sum", exp(sub(x, top)), dim, True)), top)
    for axis in [] if keepdim else _axes(dim, len(x.shape)):
        out = reshape_to(out, Size(out.shape[:axis] + out.shape[axis + 1 :]))
    return out


def _softmax_last(x):
    def compute():
        def evaluate(v):
            lists, outer, inner = _numbers.rows(v, len(v.shape) - 1)
            out = []
            for r in lists:
                top = math.inf
                for k in r:
                    top = k if top == math.inf or k > top else top
                e = [math.exp(k - top) for k in r]
                total = math.fsum(e)
                out.append([k / total for k in e])
            return _numbers.round_f32(_numbers.unrows(out, outer, inner))

        return evaluate

    return rec("softmax", [x], x.shape, x.dtype, compute)


@export("softmax")
def softmax(x, dim=None, dtype=None, *, _stacklevel=None):
    if dtype is not None:
        x = convert(x, dtype)
    d = axis_of(-1 if dim is None else dim, len(x.shape))
    if d == len(x.shape) - 1:
        return _softmax_last(x)
    return transpose(_softmax_last(transpose(x, d, -1)), d, -1)


@export("log_softmax")
def log_softmax(x, dim=None, dtype=None, *, _stacklevel=None):
    if dtype is not None:
        x = convert(x, dtype)
    return sub(x, logsumexp(x, -1 if dim is None else dim, True))


# ---- running -------------------------------------------------------------------------------------------------------
@export("cumsum", inplace=True)
def cumsum(x, dim, *, dtype=None, out=None):
    d = axis_of(dim, len(x.shape))
    if dtype is not None:
        x = convert(x, dtype)
    elif x.dtype.category < 2:
        x = convert(x, int64)
    return _finish(rec("cumsum(axis:%d)" % d, [x], x.shape, x.dtype, _numbers.cumsum, (d, x.dtype.ir)), out)


def _running(x, dim, combine, name):
    d = axis_of(dim, len(x.shape))
    n = x.shape[d]
    if type(n) is SymInt or n > 256:
        raise TraceError("torch.%s along a size of %s" % (name, n), "the graph has running sums only (torch.cumsum)")
    parts = [narrow(x, d, 0, 1)] if n else []
    for i in range(1, n):
        parts.append(combine(parts[-1], narrow(x, d, i, 1)))
    return cat(parts, d) if parts else x


@export("cumprod", inplace=True)
def cumprod(x, dim, *, dtype=None):
    return _running(x if dtype is None else convert(x, dtype), dim, mul, "cumprod")


@export("cummax")
def cummax(x, dim):
    return Pair((_running(x, dim, FUNCTIONS["maximum"], "cummax"), None))


@export("cummin")
def cummin(x, dim):
    return Pair((_running(x, dim, FUNCTIONS["minimum"], "cummin"), None))


@export("diff")
def diff(x, n=1, dim=-1, prepend=None, append=None):
    d = axis_of(dim, len(x.shape))
    x = cat([t for t in (prepend, x, append) if t is not None], d)
    for _ in range(n):
        m = x.shape[d] - 1
        x = sub(narrow(x, d, 1, m), narrow(x, d, 0, m))
    return x


# ---- sorting -------------------------------------------------------------------------------------------------------
def _last(x, dim):
    """The tensor with the axis last, and what puts it back."""
    rank = len(x.shape)
    d = axis_of(dim, rank) if rank else 0
    if not rank:
        return reshape_to(x, Size((1,))), lambda t: reshape_to(t, Size())
    if d == rank - 1:
        return x, lambda t: t
    return movedim(x, d, -1), lambda t: movedim(t, -1, d)


@export("argsort")
def argsort(x, dim=-1, descending=False, stable=False):
    x, back = _last(_numeric(x), dim)
    text = "argsort(descending:%s)" % ("true" if descending else "false")
    return back(rec(text, [x], x.shape, int64, _numbers.argsort, (descending,)))


@export("sort")
def sort(x, dim=-1, descending=False, stable=False):
    index = argsort(x, dim, descending)
    return Pair((FUNCTIONS["gather"](x, dim, index), index))


@export("msort")
def msort(x):
    return sort(x, 0).values


def _top_of_tokens(y, k):
    """The places of the k largest along an axis that depends on T.

    All are sorted, after k of the least number. Where there are fewer than k the first place is repeated, which means
    nothing to a mask; torch would refuse, and models ask for min(k, T). Of equals the later place wins, as in torch where
    an axis is long.
    """
    guard = getattr(k, "guard", None)
    if guard in _trace.GUARDS:
        _trace.GUARDS.remove(guard)
    if type(k) is SymInt:
        k = getattr(k, "at_most", None) or k
    if type(k) is SymInt:
        return FUNCTIONS["flip"](argsort(y, -1), -1)
    k = int(k)
    y = y if y.dtype.category == 2 else convert(y, _dtypes.float32)
    rest = _create.filled(y.shape[:-1] + (k,), -math.inf, y.dtype)
    index = FUNCTIONS["flip"](narrow(argsort(cat([rest, y], -1), -1), -1, y.shape[-1], k), -1)
    return FUNCTIONS["maximum"](sub(index, k), 0)


@export("topk")
def topk(x, k, dim=-1, largest=True, sorted=True):
    y, back = _last(x if largest else neg(x), dim)
    n = y.shape[-1]
    if type(n) is SymInt:
        index = back(_top_of_tokens(y, k))
        return Pair((FUNCTIONS["gather"](x, dim, index), index))
    k = int(k)
    shape = Size(y.shape[:-1] + (k,))
    index = back(rec("top_k(k:%d)" % k, [y], shape, int64, _numbers.top_k, (k,)))
    return Pair((FUNCTIONS["gather"](x, dim, index), index))


@export("kthvalue")
def kthvalue(x, k, dim=-1, keepdim=False):
    values, index = topk(x, k, dim, largest=False)
    values, index = narrow(values, dim, k - 1, 1), narrow(index, dim, k - 1, 1)
    return Pair((values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim)))


@export("median")
def median(x, dim=-1, keepdim=False):
    n = x.shape[dim]
    return kthvalue(x, (n + 1) // 2, dim, keepdim)


@export("bucketize", method=False)
def bucketize(x, boundaries, *, out_int32=False, right=False):
    x = x if isinstance(x, Tensor) else FUNCTIONS["tensor"](x)
    compare = FUNCTIONS["ge"] if right else FUNCTIONS["gt"]
    return sum(compare(x.unsqueeze(-1), boundaries), -1)


@export("searchsorted", method=False)
def searchsorted(boundaries, x, *, out_int32=False, right=False, side=None):
    return bucketize(x, boundaries, right=right or side == "right")


@export("bincount")
def bincount(x, weights=None, minlength=0):
    if not minlength:
        raise TraceError("torch.bincount without minlength", "its size depends on data")
    hits = eq(x.reshape(-1).unsqueeze(-1), FUNCTIONS["arange"](minlength))
    return sum(hits if weights is None else mul(hits, weights.reshape(-1).unsqueeze(-1)), 0)


@export("histc")
def histc(x, bins=100, min=0, max=0):
    """For integers counted one by one, as routers of experts do."""
    if min != 0 or max not in (bins - 1, bins):
        raise TraceError("torch.histc other than a count of 0, 1, 2, ...", "use one_hot and sum")
    return convert(bincount(x, minlength=bins), x.dtype)


@export("unique", "unique_consecutive")
def unique(x, **kwargs):
    data = _trace.concrete(x, "torch.unique")
    if kwargs.get("return_inverse") or kwargs.get("return_counts"):
        raise TraceError("torch.unique with return_inverse or return_counts")
    found = sorted_numbers(set(data))
    return _trace.constant((len(found),), x.dtype, found)


def sorted_numbers(numbers):
    out = list(numbers)
    out.sort()
    return out


@export("trace")
def trace(x):
    return sum(FUNCTIONS["diagonal"](x))


@export("renorm")
def renorm(x, p, dim, maxnorm):
    others = [i for i in range(len(x.shape)) if i != axis_of(dim, len(x.shape))]
    length = norm(x, p, others, True)
    return mul(x, clamp(div(maxnorm, add(length, 1e-7)), max=1.0))
