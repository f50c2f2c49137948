"""Functions that rearrange: reshape, permute, broadcast, join, cut, repeat.

Those of which torch gives views give views here (see `_tensor`), so that writes reach the base. Sizes may depend on T; a
split into a number of pieces that depends on T is an error. Methods of Tensor, functions of torch.
"""

from . import _numbers, _trace
from ._dtypes import promote
from ._sym import Size, SymInt, product, same, same_shape
from ._tensor import FUNCTIONS, Tensor, assign_all, axis_of, broadcast_shapes, convert, export, sizes_of, view
from ._trace import TraceError, dims, rec


# ---- reshape -------------------------------------------------------------------------------------------------------
def _read_reshape(base, shape):
    return reshape_to(base, shape)


_RESHAPE = (_read_reshape, lambda base, t, shape: reshape_to(t, base.shape))


def reshape_to(x, shape):
    """Same elements; not marked as a view."""
    return rec("reshape(shape:" + dims(shape) + ")", [x], shape, x.dtype, lambda: _numbers.same)


def _complete(shape, x):
    """Fills in the size given as -1, and checks the others."""
    shape = [n if type(n) is int or type(n) is SymInt else int(n) for n in shape]
    old = x.shape
    unknown = None
    for i, n in enumerate(shape):
        if type(n) is int and n == -1:
            unknown = i
    # Sizes that both begin with need not be multiplied: they are most of those that depend on T.
    k, end = 0, min(len(old), len(shape) if unknown is None else unknown)
    while k < end and (old[k] is shape[k] or (type(old[k]) is int and type(shape[k]) is int and old[k] == shape[k])):
        k += 1
    total, rest = product(old[k:]), product([n for i, n in enumerate(shape) if i >= k and i != unknown])
    if unknown is not None:
        if int(rest) == 0 or int(total) % int(rest):
            raise TraceError("shape %s cannot become %s" % (list(old), shape))
        shape[unknown] = total if type(rest) is int and rest == 1 else total // rest
        rest = rest * shape[unknown]
    if rest is not total and not same(rest, total):
        raise TraceError(
            "shape %s cannot become %s for every number of tokens" % (list(old), shape),
            "a size that the code computed (an int() or a division of a size) no longer knows that it depends on T",
        )
    return tuple(shape)


def _only_units(a, b):
    """Whether two shapes differ in sizes of 1 only."""
    return same_shape([n for n in a if not (type(n) is int and n == 1)], [n for n in b if not (type(n) is int and n == 1)])


def _reshape(x, shape, always_view):
    shape = _complete(shape, x)
    if len(shape) == len(x.shape) and same_shape(shape, x.shape):
        return x
    out = reshape_to(x, shape)
    if x._packed:
        return view(out, x, _RESHAPE, shape)
    if always_view or _only_units(shape, x.shape):
        out._packed = not _only_units(shape, x.shape) and always_view
        return view(out, x, _RESHAPE, shape)
    return out


@export("reshape")
def reshape(x, *shape):
    return _reshape(x, sizes_of(shape), False)


@export("view", function=False)
def tensor_view(x, *shape):
    if len(shape) == 1 and not isinstance(shape[0], (tuple, list, int, Tensor)):
        if shape[0].ir == x.dtype.ir:
            return convert(x, shape[0])
        raise TraceError("view of %s as %s, which reads bits of other types" % (x.dtype, shape[0]))
    return _reshape(x, sizes_of(shape), True)


@export("view_as", function=False)
def view_as(x, other):
    return _reshape(x, other.shape, True)


@export("reshape_as", function=False)
def reshape_as(x, other):
    return _reshape(x, other.shape, False)


@export("flatten")
def flatten(x, start_dim=0, end_dim=-1):
    rank = len(x.shape)
    if rank == 0:
        return _reshape(x, (1,), False)
    a, b = axis_of(start_dim, rank), axis_of(end_dim, rank)
    return _reshape(x, tuple(x.shape[:a]) + (product(x.shape[a : b + 1]),) + tuple(x.shape[b + 1 :]), False)


@export("ravel")
def ravel(x):
    return flatten(x)


@export("unflatten")
def unflatten(x, dim, sizes):
    d = axis_of(dim, len(x.shape))
    sizes = list(sizes)
    for i, n in enumerate(sizes):
        if type(n) is int and n == -1:
            sizes[i] = x.shape[d] // product(m for j, m in enumerate(sizes) if j != i)
    return _reshape(x, tuple(x.shape[:d]) + tuple(sizes) + tuple(x.shape[d + 1 :]), True)


@export("unsqueeze")
def unsqueeze(x, dim):
    d = axis_of(dim, len(x.shape) + 1)
    shape = Size(x.shape[:d] + (1,) + x.shape[d:])
    out = reshape_to(x, shape)
    out._packed = x._packed
    return view(out, x, _RESHAPE, shape)


@export("squeeze")
def squeeze(x, dim=None):
    rank = len(x.shape)
    if dim is None:
        drop = range(rank)
    else:
        drop = [axis_of(d, rank) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    shape = Size(n for i, n in enumerate(x.shape) if not (i in drop and type(n) is int and n == 1))
    if len(shape) == rank:
        return x
    out = reshape_to(x, shape)
    out._packed = x._packed
    return view(out, x, _RESHAPE, shape)


@export("atleast_1d")
def atleast_1d(x):
    return x if x.shape else unsqueeze(x, 0)


@export("atleast_2d")
def atleast_2d(x):
    x = atleast_1d(x)
    return x if len(x.shape) > 1 else unsqueeze(x, 0)


# ---- permute -------------------------------------------------------------------------------------------------------
def permute_to(x, axes):
    shape = x.shape
    return rec(
        "permute(axes:" + dims(axes) + ")",
        [x],
        Size([shape[a] for a in axes]),
        x.dtype,
        _numbers.permute,
        (axes,),
    )


def _unpermute(base, t, axes):
    back = [0] * len(axes)
    for i, a in enumerate(axes):
        back[a] = i
    return permute_to(t, back)


_PERMUTE = (permute_to, _unpermute)


def _permute(x, axes):
    if axes == list(range(len(axes))):
        return x
    out = permute_to(x, axes)
    # Moving sizes of 1 about keeps the order in memory.
    moved = [a for a in axes if not (type(x.shape[a]) is int and x.shape[a] == 1)]
    out._packed = x._packed and moved == sorted(moved)
    return view(out, x, _PERMUTE, axes)


@export("permute")
def permute(x, *axes):
    rank = len(x.shape)
    return _permute(x, [axis_of(a, rank) for a in sizes_of(axes)])


@export("transpose", "swapaxes", "swapdims")
def transpose(x, dim0, dim1):
    rank = len(x.shape)
    a, b = axis_of(dim0, rank), axis_of(dim1, rank)
    axes = list(range(rank))
    axes[a], axes[b] = b, a
    return _permute(x, axes)


@export("t")
def t(x):
    return transpose(x, 0, 1) if len(x.shape) > 1 else x


@export("movedim", "moveaxis")
def movedim(x, source, destination):
    rank = len(x.shape)
    source, destination = (
        [axis_of(d, rank) for d in (s if isinstance(s, (tuple, list)) else (s,))] for s in (source, destination)
    )
    axes = [i for i in range(rank) if i not in source]
    for d, s in sorted(zip(destination, source)):
        axes.insert(d, s)
    return _permute(x, axes)


Tensor.T = property(lambda x: _permute(x, list(range(len(x.shape)))[::-1]))
Tensor.mT = Tensor.H = Tensor.mH = property(lambda x: transpose(x, -1, -2))


def _reshaping(name):
    """A method that changes its tensor's shape in place."""
    f = FUNCTIONS[name]

    def method(x, *args):
        return assign_all(x, f(x, *args))

    setattr(Tensor, name + "_", method)


for _n in ("unsqueeze", "squeeze", "transpose", "swapaxes", "t"):
    _reshaping(_n)


# ---- broadcast -----------------------------------------------------------------------------------------------------
def broadcast_to_shape(x, shape):
    return rec("broadcast(shape:" + dims(shape) + ")", [x], shape, x.dtype, _numbers.broadcast, (shape,))


_EXPAND = (broadcast_to_shape, None)


@export("expand", function=False)
def expand(x, *sizes, implicit=False):
    sizes = sizes_of(sizes)
    lead = len(sizes) - len(x.shape)
    shape = Size(
        [x.shape[i - lead] if i >= lead and type(n) is int and n == -1 else n for i, n in enumerate(map(_size, sizes))]
    )
    if len(shape) == len(x.shape) and same_shape(shape, x.shape):
        return x
    if not same_shape(broadcast_shapes(x.shape, shape), shape):
        raise TraceError("shape %s does not expand to %s" % (list(x.shape), list(shape)))
    out = broadcast_to_shape(x, shape)
    out._packed = False
    return view(out, x, _EXPAND, shape)


def _size(n):
    return int(n) if isinstance(n, Tensor) else n


@export("broadcast_to")
def broadcast_to(x, size):
    return expand(x, *size)


@export("expand_as", function=False)
def expand_as(x, other):
    return expand(x, *other.shape)


@export("broadcast_tensors", method=False)
def broadcast_tensors(*tensors):
    tensors = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    shape = broadcast_shapes(*[x.shape for x in tensors])
    return tuple(expand(x, *shape) for x in tensors)


FUNCTIONS["broadcast_shapes"] = broadcast_shapes


@export("repeat", function=False)
def repeat(x, *sizes):
    sizes = [_size(n) for n in sizes_of(sizes)]
    x = reshape_to(x, Size([1] * (len(sizes) - len(x.shape)) + list(x.shape)))
    for i, n in enumerate(sizes):
        if type(n) is int and n == 1:
            continue
        shape = x.shape
        x = reshape_to(x, Size(shape[:i] + (1,) + shape[i:]))
        x = broadcast_to_shape(x, Size(shape[:i] + (n,) + shape[i:]))
        x = reshape_to(x, Size(shape[:i] + (n * shape[i],) + shape[i + 1 :]))
    return x


@export("tile")
def tile(x, *sizes):
    sizes = list(sizes_of(sizes))
    return repeat(x, *([1] * (len(x.shape) - len(sizes)) + sizes))


@export("repeat_interleave")
def repeat_interleave(x, repeats, dim=None, *, output_size=None):
    if dim is None:
        x, dim = flatten(x), 0
    d = axis_of(dim, len(x.shape))
    if isinstance(repeats, Tensor):
        counts = _trace.concrete(repeats, "repeat_interleave by the numbers of a tensor")
        if len(counts) > 1:
            index = [i for i, n in enumerate(counts) for _ in range(n)]
            return FUNCTIONS["index_select"](x, d, FUNCTIONS["tensor"](index))
        repeats = counts[0]
    if type(repeats) is int and repeats == 1:
        return x
    shape = x.shape
    x = reshape_to(x, Size(shape[: d + 1] + (1,) + shape[d + 1 :]))
    x = broadcast_to_shape(x, Size(shape[: d + 1] + (repeats,) + shape[d + 1 :]))
    return reshape_to(x, Size(shape[:d] + (shape[d] * repeats,) + shape[d + 1 :]))


# ---- join and cut --------------------------------------------------------------------------------------------------
@export("cat", "concat", "concatenate", method=False)
def cat(tensors, dim=0, *, axis=None, out=None):
    tensors = [x for x in tensors if not (len(x.shape) == 1 and type(x.shape[0]) is int and x.shape[0] == 0)] or tensors[:1]
    d = axis_of(dim if axis is None else axis, len(tensors[0].shape))
    first = tensors[0]
    if len(tensors) == 1:
        return first.clone()
    dtype = first.dtype
    for x in tensors:
        if x.dtype is not dtype:
            dtype = promote([x.reshape(-1) for x in tensors])
            tensors = [convert(x, dtype) for x in tensors]
            break
    # A size of 0 along the axis adds nothing.
    kept = [x for x in tensors if not (type(x.shape[d]) is int and x.shape[d] == 0)] or tensors[:1]
    n = kept[0].shape[d]
    for x in kept[1:]:
        n = n + x.shape[d]
        for i, size in enumerate(x.shape):
            if i != d and not same(size, kept[0].shape[i]):
                raise TraceError(
                    "torch.cat of shapes %s along dimension %d" % (", ".join(str(list(x.shape)) for x in kept), d),
                    "other sizes must agree",
                )
    if len(kept) == 1:
        return kept[0].clone()
    shape = Size(kept[0].shape[:d] + (n,) + kept[0].shape[d + 1 :])
    result = rec(f"concat(axis:{d})", kept, shape, dtype, _numbers.concat, (d,))
    return result if out is None else out.copy_(result)


@export("stack", method=False)
def stack(tensors, dim=0, *, out=None):
    d = axis_of(dim, len(tensors[0].shape) + 1)
    parts = [reshape_to(x, Size(x.shape[:d] + (1,) + x.shape[d:])) for x in tensors]
    return cat(parts, d) if len(parts) > 1 else parts[0]


def _join(name, low_rank, dim):
    def f(tensors):
        tensors = [
            x if len(x.shape) >= low_rank else _reshape(x, (1,) * (low_rank - len(x.shape)) + tuple(x.shape), False)
            for x in tensors
        ]
        return cat(tensors, dim if len(tensors[0].shape) > dim else 0)

    f.__name__ = name
    export(name, method=False)(f)


_join("hstack", 1, 1)
_join("vstack", 2, 0)


@export("narrow")
def narrow(x, dim, start, length):
    d = axis_of(dim, len(x.shape))
    return x[(slice(None),) * d + (slice(start, start + length),)]


@export("select")
def select(x, dim, index):
    return x[(slice(None),) * axis_of(dim, len(x.shape)) + (index,)]


@export("unbind")
def unbind(x, dim=0):
    d = axis_of(dim, len(x.shape))
    n = x.shape[d]
    if type(n) is SymInt:
        raise TraceError("unbind of shape %s into as many tensors as there are tokens" % list(x.shape), "use whole tensors")
    return tuple([select(x, d, i) for i in range(n)])


@export("split", "split_with_sizes")
def split(x, split_size_or_sections=None, dim=0, split_size=None, split_sizes=None):
    sizes = next(s for s in (split_size_or_sections, split_size, split_sizes) if s is not None)
    d = axis_of(dim, len(x.shape))
    total = x.shape[d]
    if isinstance(sizes, (int, Tensor)):
        k = _size(sizes)
        if same(k, total):
            return (x,)
        if type(total) is SymInt or type(k) is SymInt:
            count = total // k
            if type(count) is SymInt or int(total) % int(k):
                raise TraceError(
                    "a split of a size of %s into pieces of %s, the number of which depends on the number of tokens"
                    % (total, k),
                    "it must be a single op over all tokens",
                )
            sizes = [k] * count
        else:
            sizes = [k] * (total // k) + ([total % k] if total % k else [])
    out, start = [], 0
    for k in sizes:
        k = _size(k)
        out.append(narrow(x, d, start, k))
        start = start + k
    if not same(start, total):
        raise TraceError("a split of a size of %s into %s" % (total, list(sizes)), "the pieces must add up")
    return tuple(out)


@export("chunk")
def chunk(x, chunks, dim=0):
    d = axis_of(dim, len(x.shape))
    n = x.shape[d]
    if type(n) is SymInt:
        k = n // chunks
        if k.poly is None or not same(k * chunks, n):
            raise TraceError("a chunk of shape %s along a size that depends on T" % list(x.shape), "split by fixed sizes")
        return split(x, [k] * chunks, d)
    return split(x, -(-n // chunks), d)


@export("tensor_split")
def tensor_split(x, indices_or_sections, dim=0):
    d = axis_of(dim, len(x.shape))
    n = x.shape[d]
    if isinstance(indices_or_sections, int):
        k, more = divmod(n, indices_or_sections)
        return split(x, [k + 1] * more + [k] * (indices_or_sections - more), d)
    points = [0, *indices_or_sections, n]
    return split(x, [b - a for a, b in zip(points, points[1:])], d)


# ---- move ----------------------------------------------------------------------------------------------------------
@export("roll")
def roll(x, shifts, dims=None):
    if dims is None:
        return roll(flatten(x), shifts, 0).reshape(x.shape)
    shifts, dims = (list(v) if isinstance(v, (tuple, list)) else [v] for v in (shifts, dims))
    for k, d in zip(shifts, dims):
        d = axis_of(d, len(x.shape))
        n = x.shape[d]
        k = k % n if type(n) is int else (k if int(k) >= 0 else n + k)
        if int(k):
            x = cat([narrow(x, d, n - k, k), narrow(x, d, 0, n - k)], d)
    return x


@export("flip")
def flip(x, *dims):
    for d in sizes_of(dims):
        d = axis_of(d, len(x.shape))
        n = x.shape[d]
        index = FUNCTIONS["rsub"](FUNCTIONS["arange"](n), n - 1)
        x = FUNCTIONS["index_select"](x, d, index)
    return x


Tensor.fliplr = lambda x: flip(x, 1)
Tensor.flipud = lambda x: flip(x, 0)


@export("unfold", function=False)
def unfold(x, dimension, size, step):
    d = axis_of(dimension, len(x.shape))
    n = x.shape[d]
    count = n - size + 1 if step == 1 else (n - size) // step + 1
    if step == size:
        shape = Size(x.shape[:d] + (count, size) + x.shape[d + 1 :])
        return movedim(reshape_to(narrow(x, d, 0, count * size), shape), d + 1, -1)
    if step != 1 and type(n) is SymInt:
        raise TraceError("unfold in steps of %d along a size that depends on T" % step)
    return stack([x[(slice(None),) * d + (slice(i, i + (count - 1) * step + 1, step),)] for i in range(size)], -1)


@export("meshgrid", method=False)
def meshgrid(*tensors, indexing="ij"):
    tensors = list(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors)
    if indexing == "xy":
        tensors[:2] = tensors[1::-1]
    shape = [x.shape[0] if x.shape else 1 for x in tensors]
    out = [
        expand(_reshape(x, [1] * i + [shape[i]] + [1] * (len(shape) - i - 1), False), *shape) for i, x in enumerate(tensors)
    ]
    if indexing == "xy":
        out[:2] = out[1::-1]
    return tuple(out)
