"""Indexing: x[...] and x[...] = v.

An index is put in order first: for each axis all of it, a part of it, one place of it, or a tensor of places. Parts and
places become slices (views); tensors of places become `take`. Writes are functional: a part of an axis is written by
joining what is before it, the new values and what is after it; tensors of places by `scatter`; masks by `select`.
A mask as an index, whose result depends on data, is an error. Methods of Tensor, and the functions that index.
"""

from . import _numbers, _trace
from ._dtypes import bool_, int64
from ._shape import broadcast_to_shape, cat, movedim, permute_to, reshape_to
from ._sym import Size, SymInt, product, same, same_shape
from ._tensor import FUNCTIONS, Tensor, assign, axis_of, broadcast_shapes, convert, export, view
from ._trace import TraceError, dim, rec

_FULL = slice(None)


# ---- one axis ------------------------------------------------------------------------------------------------------
def slice_axis(x, axis, start, end, step=1):
    """Elements start, start+step, ... before end, of one axis. Not marked as a view."""
    n = end - start
    if step != 1:
        n = (n + (step - 1)) // step
    shape = Size(x.shape[:axis] + (n,) + x.shape[axis + 1 :])
    op = f"slice(axis:{axis},start:{dim(start)},end:{dim(end)},step:{step})"
    return rec(op, [x], shape, x.dtype, _numbers.slice_axis, (axis, start, end, step))


def take(x, axis, index):
    shape = Size(x.shape[:axis] + index.shape + x.shape[axis + 1 :])
    return rec("take(axis:%d)" % axis, [x, index], shape, x.dtype, _numbers.take, (axis,))


def _places(index, n):
    """An index tensor as int64, with negative places counted from the end where they are known."""
    index = convert(index, int64)
    v = _trace.value(index)
    if v.data is not None and any(i < 0 for i in v.data):
        if type(n) is SymInt:
            index = FUNCTIONS["where"](index < 0, index + n, index)
        else:
            index = _trace.constant(index.shape, int64, [i + n if i < 0 else i for i in v.data])
    return index


# ---- reading an index ----------------------------------------------------------------------------------------------
def _bounds(s, n):
    """A slice of an axis of n elements as (start, end, step), clamped as Python does."""
    step = 1 if s.step is None else int(s.step)
    if step < 1:
        raise ValueError("step must be greater than zero")
    start, stop = s.start, s.stop
    if start is None:
        start = 0
    elif type(start) is not int and type(start) is not SymInt:
        start = int(start)
    if stop is None:
        stop = n
    elif type(stop) is not int and type(stop) is not SymInt:
        stop = int(stop)
    size = int(n)
    if int(start) < 0:
        start = start + n
        if int(start) < 0:
            start = 0
    elif int(start) > size:
        start = n
    if int(stop) < 0:
        stop = stop + n
        if int(stop) < 0:
            stop = 0
    elif int(stop) > size:
        stop = n
    if int(stop) < int(start):
        stop = start
    return start, stop, step


def _as_item(i):
    """An entry of an index in one of the forms None, Ellipsis, slice, int or tensor."""
    if i is None or i is Ellipsis or type(i) is slice or type(i) is int or type(i) is SymInt:
        return i
    if isinstance(i, Tensor):
        if not i.shape and i.dtype is not bool_:
            v = _trace.value(i)
            if v.data is not None:
                return v.data[0]
        return i
    if isinstance(i, bool):
        return FUNCTIONS["tensor"](i)
    if isinstance(i, (list, tuple, range)):
        return FUNCTIONS["tensor"](list(i), dtype=None if len(i) else int64)
    return int(i)


def _read_index(x, idx):
    """-> entries in order, one for each axis of x and None for each new axis, Ellipsis filled in."""
    items = [_as_item(i) for i in (idx if type(idx) is tuple else (idx,))]
    used = 0
    for i in items:
        if i is not None and i is not Ellipsis:
            used += len(i.shape) if isinstance(i, Tensor) and i.dtype is bool_ else 1
    rank = len(x.shape)
    if used > rank:
        raise IndexError("too many indices for tensor of dimension %d" % rank)
    missing = [_FULL] * (rank - used)
    for at, i in enumerate(items):
        if i is Ellipsis:
            return items[:at] + missing + items[at + 1 :]
    return items + missing


def _mask_places(mask):
    """The places of the true elements, one tensor for each axis."""
    return FUNCTIONS["nonzero"](mask, as_tuple=True)


# ---- x[...] --------------------------------------------------------------------------------------------------------
def _read_view(base, idx):
    return _index(base, idx)


def _write_view(base, t, idx):
    return index_written(base, _read_index(base, idx), t)


_VIEW = (_read_view, _write_view)


def getitem(x, idx):
    """x[idx], as a view where torch gives one."""
    if x.conv is not None:
        causal = x.conv(x, idx)
        if causal is not None:
            return causal
    out = _index(x, idx)
    if out is not x and not _has_tensor(idx):
        view(out, x, _VIEW, idx)
    return out


def _has_tensor(idx):
    for i in idx if type(idx) is tuple else (idx,):
        if isinstance(i, (list, range)) or (isinstance(i, Tensor) and (i.shape or _trace.value(i).data is None)):
            return True
    return False


def _index(x, idx):
    items = _read_index(x, idx)
    whole = x
    axis = 0
    shape = []
    tensors = []
    reshaped = False
    for i in items:
        if i is None:
            shape.append(1)
            reshaped = True
        elif type(i) is slice:
            n = x.shape[axis]
            if i.start is not None or i.stop is not None or i.step is not None:
                start, stop, step = _bounds(i, n)
                if not (type(start) is int and start == 0 and step == 1 and same(stop, n)):
                    x = slice_axis(x, axis, start, stop, step)
                    n = x.shape[axis]
            shape.append(n)
            axis += 1
        elif isinstance(i, Tensor):
            for j in _mask_places(i) if i.dtype is bool_ else (i,):
                tensors.append((len(shape), j))
                shape.append(x.shape[axis])
                axis += 1
        else:
            n = x.shape[axis]
            if int(i) >= int(n) or int(i) < -int(n):
                raise IndexError("index %s is out of bounds for dimension %d with size %s" % (i, axis, n))
            i = i + n if int(i) < 0 else i
            if not (type(n) is int and n == 1):
                x = slice_axis(x, axis, i, i + 1)
            axis += 1
            reshaped = True
    packed = whole._packed and (x is whole or _leading(whole, x))
    if reshaped:
        x = reshape_to(x, Size(shape))
    if tensors:
        return _take_all(x, tensors)
    if x is not whole:
        x._packed = packed
    return x


def _leading(whole, part):
    """Whether a part is contiguous in memory: only sizes of 1 come before the axis that was cut."""
    for n, m in zip(whole.shape, part.shape):
        if n is not m:
            return True
        if not (type(n) is int and n == 1):
            return False
    return True


def _take_all(x, tensors):
    """x indexed by tensors at several axes: their axes are joined into one, and the places computed."""
    if len(tensors) == 1:
        axis, index = tensors[0]
        return take(x, axis, _places(index, x.shape[axis]))
    axes = [a for a, _ in tensors]
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    x, at, index = _join_axes(x, tensors)
    out = take(x, at, index)
    if not together:
        # torch puts the dimensions of the index first.
        n = len(index.shape)
        order = list(range(at, at + n)) + [i for i in range(len(out.shape)) if not at <= i < at + n]
        out = permute_to(out, order)
    return out


def _join_axes(x, tensors):
    """Brings the indexed axes together into one: -> tensor, that axis, index into it."""
    axes = [a for a, _ in tensors]
    first = axes[0]
    if axes != list(range(first, first + len(axes))):
        others = [i for i in range(len(x.shape)) if i not in axes]
        before = [i for i in others if i < first]
        x = permute_to(x, before + axes + others[len(before) :])
    index = None
    shape = broadcast_shapes(*[i.shape for _, i in tensors])
    for k, (_, i) in enumerate(tensors):
        n = x.shape[first + k]
        if type(n) is int and n == 1 and k:
            continue
        i = _places(i, n)
        index = i if index is None else index * n + i
    if not same_shape(index.shape, shape):
        index = broadcast_to_shape(index, shape)
    sizes = x.shape
    joined = product(sizes[first : first + len(axes)])
    x = reshape_to(x, Size(sizes[:first] + (joined,) + sizes[first + len(axes) :]))
    return x, first, index


# ---- x[...] = v ----------------------------------------------------------------------------------------------------
def setitem(x, idx, new):
    if not isinstance(new, Tensor):
        new = FUNCTIONS["tensor"](new) if isinstance(new, (list, tuple)) else _trace.scalar(new, x.dtype)
    new = convert(new, x.dtype)
    assign(x, index_written(x, _read_index(x, idx), new))


def index_written(x, items, new, add=False):
    """x with new values where the index says."""
    tensors = [i for i in items if isinstance(i, Tensor)]
    masks = [i for i in tensors if i.dtype is bool_]
    if masks:
        return _write_masked(x, items, masks, new, add)
    parts, region, target, places = [], [], [], []
    axis = 0
    for i in items:
        if i is None:
            target.append(1)
            continue
        n = x.shape[axis]
        if isinstance(i, Tensor):
            places.append((axis, i))
            parts.append((0, n, 1))
        elif type(i) is slice:
            start, stop, step = _bounds(i, n)
            parts.append((start, stop, step))
            size = stop - start if step == 1 else (stop - start + step - 1) // step
            target.append(size)
        else:
            i = i + n if int(i) < 0 else i
            parts.append((i, i + 1, 1))
        axis += 1
    if places:
        return _write_places(x, parts, places, new, add)
    for start, stop, step in parts:
        size = stop - start if step == 1 else (stop - start + step - 1) // step
        region.append(size)
    if any(int(n) == 0 for n in region):
        return x
    if len(new.shape) > len(target):
        new = reshape_to(new, Size(new.shape[len(new.shape) - len(target) :]))
    if not same_shape(new.shape, target):
        new = broadcast_to_shape(new, Size(target))
    new = new if same_shape(new.shape, region) else reshape_to(new, Size(region))
    return write_region(x, parts, new, add)


def write_region(x, parts, new, add=False):
    """x with new values in a box: a (start, end, step) for each axis."""
    for axis, (start, stop, step) in enumerate(parts):
        n = x.shape[axis]
        if type(start) is int and start == 0 and step == 1 and same(stop, n):
            continue
        rest = [(0, x.shape[i], 1) if i <= axis else p for i, p in enumerate(parts)]
        if step != 1:
            return _write_steps(x, axis, parts, rest, new)
        pieces = []
        if int(start) > 0:
            pieces.append(slice_axis(x, axis, 0, start))
        rest[axis] = (0, stop - start, 1)
        pieces.append(write_region(slice_axis(x, axis, start, stop), rest, new, add))
        if int(stop) < int(n):
            pieces.append(slice_axis(x, axis, stop, n))
        return cat(pieces, axis) if len(pieces) > 1 else pieces[0]
    return FUNCTIONS["add"](x, new) if add else new


def _write_steps(x, axis, parts, rest, new):
    """A write to every step-th element of an axis."""
    start, stop, step = parts[axis]
    rest[axis] = (0, new.shape[axis], 1)
    inner = write_region(slice_axis(x, axis, start, stop, step), rest, new)
    index = FUNCTIONS["arange"](int(start), int(stop), step)
    return scatter_rows(x, axis, index, inner)


def scatter_rows(x, axis, index, new, add=False):
    """x with rows of an axis replaced: index of one dimension, new with that many rows."""
    shape = new.shape
    index = reshape_to(index, Size([1] * axis + [shape[axis]] + [1] * (len(shape) - axis - 1)))
    if not same_shape(index.shape, shape):
        index = broadcast_to_shape(index, shape)
    return scatter_op(x, axis, index, new, add)


def scatter_op(x, axis, index, new, add=False):
    op = "scatter_add" if add else "scatter"
    if x.dtype is bool_ and add:
        raise TraceError("a sum of bools in an indexed write")
    return rec("%s(axis:%d)" % (op, axis), [x, index, new], x.shape, x.dtype, _numbers.scatter, (axis, add, x.dtype.ir))


def _write_places(x, parts, places, new, add):
    """A write at tensors of places; other axes whole, or cut to parts first."""
    cut = [not (type(a) is int and a == 0 and s == 1 and same(b, x.shape[i])) for i, (a, b, s) in enumerate(parts)]
    if any(cut):
        part = x
        for axis, (start, stop, step) in enumerate(parts):
            if cut[axis]:
                part = slice_axis(part, axis, start, stop, step)
        whole = [(0, n, 1) for n in part.shape]
        # A place of an axis was an integer: it has size 1 and broadcasts.
        return write_region(x, parts, _write_places(part, whole, places, new, add))
    axes = [a for a, _ in places]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise TraceError("a write to x[...] at tensors of places that are not next to each other", "use scatter")
    joined, axis, index = _join_axes(x, places) if len(places) > 1 else (x, axes[0], _places(places[0][1], x.shape[axes[0]]))
    rows = Size(joined.shape[:axis] + index.shape + joined.shape[axis + 1 :])
    new = new if same_shape(new.shape, rows) else broadcast_to_shape(new, rows)
    flat = Size(joined.shape[:axis] + (product(index.shape),) + joined.shape[axis + 1 :])
    out = scatter_rows(joined, axis, reshape_to(index, Size((product(index.shape),))), reshape_to(new, flat), add)
    return out if len(places) == 1 else reshape_to(out, x.shape)


def _write_masked(x, items, masks, new, add):
    if len(masks) > 1 or add:
        raise TraceError("a write to x[...] with several masks", "write with torch.where")
    mask = masks[0]
    axis = 0
    for i in items:
        if i is mask:
            break
        if i is None or type(i) is not slice or i != _FULL:
            raise TraceError("a write to x[...] with a mask and other indices", "write with torch.where")
        axis += 1
    after = len(x.shape) - axis - len(mask.shape)
    if new.shape and not all(type(n) is int and n == 1 for n in new.shape[: len(new.shape) - after]):
        v = _trace.value(mask)
        if v.data is None:
            raise TraceError(
                "a write of shape %s to the places of a mask" % list(new.shape),
                "as many values as the mask has true elements depend on data: write with torch.where",
            )
        places = list(_mask_places(mask))
        return index_written(x, [_FULL] * axis + places + [_FULL] * after, new)
    mask = reshape_to(mask, Size(mask.shape + (1,) * after)) if after else mask
    return FUNCTIONS["where"](mask, new, x)


Tensor.__getitem__ = getitem
Tensor.__setitem__ = setitem


# ---- functions that index ------------------------------------------------------------------------------------------
@export("index_select")
def index_select(x, dim, index):
    d = axis_of(dim, len(x.shape))
    return take(x, d, _places(index.reshape(-1), x.shape[d]))


@export("take")
def _take(x, index):
    return take(x.reshape(-1), 0, _places(index, x.numel()))


@export("gather")
def gather(x, dim, index, *, sparse_grad=False):
    d = axis_of(dim, len(x.shape))
    index = _places(index, x.shape[d])
    for i, n in enumerate(index.shape):
        if i != d and not same(n, x.shape[i]):
            x = slice_axis(x, i, 0, n)
    return rec("gather(axis:%d)" % d, [x, index], index.shape, x.dtype, _numbers.gather, (d,))


@export("take_along_dim")
def take_along_dim(x, indices, dim=None):
    if dim is None:
        return gather(x.reshape(-1), 0, indices.reshape(-1))
    d = axis_of(dim, len(x.shape))
    shape = broadcast_shapes(*[s[:d] + (1,) + s[d + 1 :] for s in (x.shape, indices.shape)])
    expand = FUNCTIONS["broadcast_to"]
    x = expand(x, shape[:d] + (x.shape[d],) + shape[d + 1 :])
    return gather(x, d, expand(indices, shape[:d] + (indices.shape[d],) + shape[d + 1 :]))


def _scatter(x, dim, index, new, add):
    d = axis_of(dim, len(x.shape))
    index = _places(index, x.shape[d])
    if not isinstance(new, Tensor):
        new = _trace.scalar(new, x.dtype)
    new = convert(new, x.dtype)
    if not new.shape:
        new = broadcast_to_shape(new, index.shape)
    for i, n in enumerate(index.shape):
        if not same(new.shape[i], n):
            new = slice_axis(new, i, 0, n)
    parts = [(0, x.shape[i] if i == d else n, 1) for i, n in enumerate(index.shape)]
    part = x
    for i, (_, n, _) in enumerate(parts):
        if not same(n, x.shape[i]):
            part = slice_axis(part, i, 0, n)
    out = scatter_op(part, d, index, new, add)
    return out if part is x else write_region(x, parts, out)


@export("scatter", inplace=True)
def scatter(x, dim, index, src=None, *, value=None, reduce=None):
    if reduce not in (None, "add", "sum"):
        raise TraceError("scatter with reduce=%r" % reduce)
    return _scatter(x, dim, index, value if src is None else src, reduce is not None)


@export("scatter_add", inplace=True)
def scatter_add(x, dim, index, src):
    return _scatter(x, dim, index, src, True)


@export("scatter_reduce", inplace=True)
def scatter_reduce(x, dim, index, src, reduce, *, include_self=True):
    if reduce != "sum":
        raise TraceError("scatter_reduce with reduce=%r" % reduce, "the graph has sums only")
    return _scatter(x if include_self else FUNCTIONS["zeros_like"](x), dim, index, src, True)


@export("index_add", inplace=True)
def index_add(x, dim, index, source, *, alpha=1):
    d = axis_of(dim, len(x.shape))
    source = convert(source if alpha == 1 else source * alpha, x.dtype)
    return scatter_rows(x, d, _places(index.reshape(-1), x.shape[d]), source, True)


@export("index_copy", inplace=True)
def index_copy(x, dim, index, source):
    d = axis_of(dim, len(x.shape))
    return scatter_rows(x, d, _places(index.reshape(-1), x.shape[d]), convert(source, x.dtype))


@export("index_fill", inplace=True)
def index_fill(x, dim, index, value):
    d = axis_of(dim, len(x.shape))
    index = _places(index.reshape(-1), x.shape[d])
    shape = Size(x.shape[:d] + index.shape + x.shape[d + 1 :])
    return scatter_rows(x, d, index, broadcast_to_shape(_trace.scalar(value, x.dtype), shape))


@export("index_put", inplace=True)
def index_put(x, indices, values, accumulate=False):
    return index_written(x, _read_index(x, tuple(indices)), convert(values, x.dtype), accumulate)


@export("nonzero")
def nonzero(x, *, as_tuple=False):
    v = _trace.value(x)
    if v.data is None:
        if _trace.on_nonzero is not None:
            return _trace.on_nonzero(x, as_tuple)
        raise _trace.data_dependent("nonzero, torch.where(mask) or x[mask]")
    found = [k for k, i in enumerate(v.data) if i]
    columns = [[k // s % int(n) for k in found] for s, n in zip(_numbers.strides(x.shape), x.shape)]
    if as_tuple:
        return tuple([_trace.constant((len(found),), int64, c) for c in columns])
    return _trace.constant((len(found), len(x.shape)), int64, [c[i] for i in range(len(found)) for c in columns])


@export("argwhere")
def argwhere(x):
    return nonzero(x)


@export("masked_select")
def masked_select(x, mask):
    return x[mask]


@export("masked_scatter", inplace=True)
def masked_scatter(x, mask, source):
    raise _trace.data_dependent("masked_scatter")


@export("diagonal")
def diagonal(x, offset=0, dim1=0, dim2=1):
    rank = len(x.shape)
    a, b = axis_of(dim1, rank), axis_of(dim2, rank)
    x = movedim(x, (a, b), (-2, -1))
    rows, columns = x.shape[-2], x.shape[-1]
    top, left = (-offset, 0) if offset < 0 else (0, offset)
    n = rows - top if int(rows - top) < int(columns - left) else columns - left
    flat = reshape_to(x, Size(x.shape[:-2] + (rows * columns,)))
    index = FUNCTIONS["arange"](n) * (columns + 1) + (top * columns + left)
    return take(flat, rank - 2, index)


@export("diag")
def diag(x, diagonal=0):
    if len(x.shape) == 2:
        return FUNCTIONS["diagonal"](x, diagonal)
    return FUNCTIONS["diag_embed"](x, diagonal)


@export("diag_embed")
def diag_embed(x, offset=0, dim1=-2, dim2=-1):
    n = x.shape[-1] + abs(offset)
    i = FUNCTIONS["arange"](n)
    where_to = i.unsqueeze(0) - i.unsqueeze(1) == offset
    x = FUNCTIONS["nn.functional.pad"](x, (max(offset, 0), 0) if offset > 0 else (0, -offset))
    return FUNCTIONS["where"](where_to, x.unsqueeze(-2 if offset > 0 else -1), 0)
