"""Expert loops that transformers writes out: dense dispatch.

Two shapes of code choose rows by data. `for e in mask.any(...).nonzero(): rows = torch.where(mask[e]); ... x[rows] ...
out.index_add_(0, rows, y)`, and `sizes = count.tolist(); parts = x.split(sizes); torch.cat([f_e(parts[e]) ...])`. Both mean: apply
f_e to the rows that chose e. A graph cannot have a number of rows that depends on data, so every f_e is applied to all rows and
the results are chosen by the mask: the same numbers, more work. That is right only if rows stay rows between choosing and
joining, so what is chosen here is of its own type, `Rows`, or has a size that says so, and everything else that code may do with
it is an error. Called from the tracer of torch by way of `install`."""

import _graph
import torch
from torch import _sym, _tensor, _trace
from torch._tensor import FUNCTIONS, Tensor

HINT = "experts may be chosen with x[rows], and joined with index_add_ or torch.cat; see also use_experts_implementation"


class Rows(Tensor):
    """One of the index tensors of the true elements of a mask bool[K, T] or bool[T] (along K or T)."""

    def __init__(self, mask, axis):
        self.shape = _sym.Size((mask.shape[-1],))
        self.dtype = torch.int64
        self.mask = mask
        self.axis = axis

    @property
    def _v(self):
        raise _trace.TraceError("arithmetic on the positions of a mask's true elements", HINT)

    @property
    def along_tokens(self):
        return self.axis == len(self.mask.shape) - 1

    def any(self):
        """bool[T]: the rows that are chosen."""
        mask = self.mask
        return mask if len(mask.shape) == 1 else mask.any(dim=0)


class _Ledger:
    """Choices that a loop was given, and those that it made: a loop that skips one does something else than dispatch."""

    offered = 0
    taken = 0


def reset():
    _Ledger.offered = _Ledger.taken = 0


def check():
    """At the end of a trace."""
    if _Ledger.offered != _Ledger.taken:
        raise _trace.TraceError(
            "a loop over positions that depend on data (%d positions, %d of them chose rows)"
            % (_Ledger.offered, _Ledger.taken),
            HINT,
        )


def on_nonzero(mask, as_tuple):
    """Positions of the true elements of a traced tensor."""
    if mask.dtype is not torch.bool:
        mask = mask != 0
    if not _sym.is_static(mask.shape):
        if not as_tuple or len(mask.shape) > 2 or type(mask.shape[-1]) is not _sym.SymInt:
            raise _trace.data_dependent("nonzero of shape %s" % list(mask.shape))
        _Ledger.taken += 1
        return tuple(Rows(mask, axis) for axis in range(len(mask.shape)))
    # Which experts were chosen at all: every one that there is may have been.
    sizes = [int(n) for n in mask.shape]
    places = [[]]
    for n in sizes:
        places = [p + [i] for p in places for i in range(n)]
    limit = _choices(_trace.node(mask))
    if limit is not None:
        places = [p for p in places if p[0] < limit]
    if as_tuple:
        raise _trace.data_dependent("nonzero of shape %s" % sizes)
    _Ledger.offered += len(places)
    return torch.tensor(places, dtype=torch.int64)


def _choices(node):
    """How many values the chosen indices that a mask was made of can have, if they all come from choices among so many. (Masks
    are often made with one more class than there are experts.)"""
    seen, todo, limit = set(), [node], None
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        text, inputs, _ = _graph.node(at)
        name = text.partition("(")[0]
        if name in ("top_k", "argsort", "argmax"):
            n = _graph.type(inputs[0])[1][-1]
            if not isinstance(n, int):
                return None
            limit = max(limit or 0, n)
        elif name in ("input", "weight"):
            return None
        else:
            todo.extend(inputs)
    return limit


def _rows_of(index):
    items = index if isinstance(index, tuple) else (index,)
    found = [i for i in items if isinstance(i, Rows)]
    return items, found


def _get(x, index, plain=Tensor.__getitem__):
    if isinstance(index, Rows) or (isinstance(index, tuple) and any(isinstance(i, Rows) for i in index)):
        return _chosen(x, *_rows_of(index))
    return plain(x, index)


def _chosen(x, items, rows):
    """x[rows], and w[token, choice, None] for w[T, K]: the weight of the choice that a row made."""
    if len(rows) == 1 and isinstance(items[0], Rows) and rows[0].along_tokens:
        rest = items[1:]
        return x[(slice(None), *rest)] if rest else x
    if len(rows) == 2 and isinstance(items[0], Rows) and isinstance(items[1], Rows):
        token, choice = rows if rows[0].along_tokens else (rows[1], rows[0])
        mask = token.mask
        if token.along_tokens and not choice.along_tokens and choice.mask is mask and items[0] is token:
            weights = torch.where(mask.transpose(0, 1), x, torch.zeros((), dtype=x.dtype)).sum(dim=1)
            rest = items[2:]
            return weights[(slice(None), *rest)] if rest else weights
    raise _trace.TraceError("an index with positions of a mask in another form than x[rows]", HINT)


def _set(x, index, new, plain=Tensor.__setitem__):
    items, rows = _rows_of(index)
    if not rows:
        return plain(x, index, new)
    if len(items) != 1 or not rows[0].along_tokens:
        raise _trace.TraceError("a write at positions of a mask in another form than x[rows] = y", HINT)
    return _tensor.assign(x, torch.where(_as_column(rows[0].any(), x), new, x))


def _as_column(mask, x):
    return mask.reshape(*mask.shape, *(1 for _ in x.shape[1:]))


def _add(x, dim, index, source, *, alpha=1, plain=FUNCTIONS["index_add"]):
    if not isinstance(index, Rows):
        return plain(x, dim, index, source, alpha=alpha)
    if dim % len(x.shape) != 0 or not index.along_tokens:
        raise _trace.TraceError("index_add at positions of a mask along another axis", HINT)
    source = source if alpha == 1 else source * alpha
    zero = torch.zeros((), dtype=source.dtype)
    return x + torch.where(_as_column(index.any(), source), source, zero).to(x.dtype)


def _add_here(x, *args, **kwargs):
    return _tensor.assign(x, _add(x, *args, **kwargs))


class Counts:
    """Numbers of rows for each part, which depend on data: counts i64[E]."""

    def __init__(self, counts):
        self.counts = counts
        self.parts = int(counts.shape[0])


def _size(total, counts, part):
    """The number of rows of a part, as the size that stands for all rows; it remembers what it is a part of."""
    size = _sym.SymInt(int(total), _sym._make(int(total), _sym.terms_of(total)).poly)
    size.counts, size.part = counts, part
    return size


def _to_list(x, plain=Tensor.tolist):
    if len(x.shape) != 1 or not _sym.is_static(x.shape) or _trace.value(x).data is not None:
        return plain(x)
    if not _trace.value(x).live or x.dtype.ir != "i64":
        return plain(x)
    counts = Counts(x)
    sizes = [_sym.SymInt(1, None, "the number of rows of a part") for _ in range(counts.parts)]
    for i, size in enumerate(sizes):
        size.counts, size.part = counts, i
    return sizes


def _part_of(size):
    return getattr(size, "counts", None) if type(size) is _sym.SymInt else None


def _split(x, sizes, dim=0, plain=FUNCTIONS["split"]):
    if isinstance(sizes, (list, tuple)) and sizes and _part_of(sizes[0]) is not None:
        counts = sizes[0].counts
        if dim != 0 or [getattr(s, "part", None) for s in sizes] != list(range(counts.parts)):
            raise _trace.TraceError("a split by some of the numbers of rows for each expert", HINT)
        total = x.shape[0]
        parts = []
        for i in range(counts.parts):
            part = x.clone()
            part.shape = _sym.Size((_size(total, counts, i), *x.shape[1:]))
            parts.append(part)
        return tuple(parts)
    return plain(x, sizes, dim)


def _cat(tensors, dim=0, *, plain=FUNCTIONS["cat"], **options):
    counts = _part_of(tensors[0].shape[0]) if len(tensors) and tensors[0].shape else None
    if counts is None:
        return plain(tensors, dim, **options)
    if dim != 0 or [getattr(t.shape[0], "part", None) for t in tensors] != list(range(counts.parts)):
        raise _trace.TraceError("a join of some of the parts for each expert", HINT)
    rows = torch.arange(_whole(tensors[0].shape[0]))
    ends = counts.counts.cumsum(0)
    out = _joined(tensors[0])
    for i, part in enumerate(tensors[1:]):
        out = torch.where(_as_column(rows >= ends[i], out), _joined(part), out)
    return out


def _whole(size):
    return _sym._make(int(size), dict(size.poly))


def _joined(part):
    out = part.clone()
    out.shape = _sym.Size((_whole(part.shape[0]), *part.shape[1:]))
    return out


def install():
    """Hooks these rules into the tracer of torch. Once."""
    if _trace.on_nonzero is on_nonzero:
        return
    _trace.on_nonzero = on_nonzero
    Tensor.__getitem__ = _get
    Tensor.__setitem__ = _set
    Tensor.tolist = _to_list
    for name, function in (("index_add", _add), ("split", _split)):
        FUNCTIONS[name] = function
        setattr(Tensor, name, function)
        setattr(torch, name, function)
    Tensor.index_add_ = _add_here
    for name in ("cat", "concat", "concatenate"):
        FUNCTIONS[name] = _cat
        setattr(torch, name, _cat)
