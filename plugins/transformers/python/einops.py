"""A stand-in for einops: rearrange, repeat, reduce and einsum, as reshapes and permutations of our torch.

Written from einops' documentation of its patterns. Used by models' own code; transformers itself does without it.
"""

import torch


class EinopsError(RuntimeError):
    pass


def _side(text):
    """A side of a pattern as a list of groups: a name, or a list of names in parentheses; 1 is an empty group."""
    out, group = [], None
    for word in text.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            group = []
        elif word == ")":
            out.append(group)
            group = None
        elif group is not None:
            group.append(word)
        else:
            out.append([] if word == "1" else word)
    return out


def _names(side):
    return [n for g in side for n in (g if isinstance(g, list) else [g])]


def _spread(side, rank):
    """A side with its ellipsis as names of single dimensions, and those names."""
    if "..." not in side:
        return side, []
    dots = [".%d" % i for i in range(rank - len(side) + 1)]
    at = side.index("...")
    return side[:at] + dots + side[at + 1 :], dots


def _parse(pattern, rank):
    left, arrow, right = pattern.partition("->")
    if not arrow:
        raise EinopsError("%r has no ->" % pattern)
    left, dots = _spread(_side(left), rank)
    if len(left) != rank:
        raise EinopsError("%r is for %d dimensions, the tensor has %d" % (pattern, len(left), rank))
    out = []
    for g in _side(right):
        if g == "...":
            out += dots
        elif isinstance(g, list):
            out.append([n for m in g for n in (dots if m == "..." else [m])])
        else:
            out.append(g)
    return left, out


def _sizes(left, shape, known):
    """The size of each name of the left side."""
    sizes = dict(known)
    for group, n in zip(left, shape):
        names = group if isinstance(group, list) else [group]
        unknown = [m for m in names if m not in sizes]
        rest = 1
        for m in names:
            if m in sizes:
                rest = rest * sizes[m]
        if len(unknown) > 1:
            raise EinopsError("the sizes of %s are not known" % ", ".join(unknown))
        if unknown:
            sizes[unknown[0]] = n // rest if len(names) > 1 else n
    return sizes


def _product(sizes, names):
    n = 1
    for m in names:
        n = n * sizes[m]
    return n


def _grouped(x, side, sizes):
    return x.reshape([_product(sizes, g) if isinstance(g, list) else sizes[g] for g in side])


def rearrange(tensor, pattern, **sizes):
    if isinstance(tensor, (list, tuple)):
        tensor = torch.stack(list(tensor))
    left, right = _parse(pattern, tensor.ndim)
    sizes = _sizes(left, tensor.shape, sizes)
    names = _names(left)
    if sorted(names) != sorted(_names(right)):
        raise EinopsError("%r does not have the same names on both sides" % pattern)
    x = tensor.reshape([sizes[n] for n in names])
    return _grouped(x.permute([names.index(n) for n in _names(right)]), right, sizes)


def repeat(tensor, pattern, **sizes):
    left, right = _parse(pattern, tensor.ndim)
    sizes = _sizes(left, tensor.shape, sizes)
    names, wanted = _names(left), _names(right)
    x = tensor.reshape([sizes[n] for n in names])
    x = x.permute([names.index(n) for n in wanted if n in names])
    x = x.reshape([sizes[n] if n in names else 1 for n in wanted]).expand([sizes[n] for n in wanted])
    return _grouped(x, right, sizes)


def reduce(tensor, pattern, reduction, **sizes):
    left, right = _parse(pattern, tensor.ndim)
    sizes = _sizes(left, tensor.shape, sizes)
    names, wanted = _names(left), _names(right)
    x = tensor.reshape([sizes[n] for n in names])
    gone = [i for i, n in enumerate(names) if n not in wanted]
    if gone:
        x = {"sum": x.sum, "mean": x.mean, "max": x.amax, "min": x.amin}[reduction](gone)
    kept = [n for n in names if n in wanted]
    return _grouped(x.permute([kept.index(n) for n in wanted]), right, sizes)


def einsum(*args):
    """einsum(x, y, "a b, b c -> a c"): names of any length."""
    tensors, pattern = args[:-1], args[-1]
    letters = {}
    out = ""
    for word in pattern.replace(",", " , ").replace("->", " -> ").split():
        out += word if word in (",", "->", "...") else letters.setdefault(word, chr(97 + len(letters)))
    return torch.einsum(out, *tensors)


def pack(tensors, pattern):
    raise EinopsError("einops.pack is not known to the tracer")


unpack = pack
