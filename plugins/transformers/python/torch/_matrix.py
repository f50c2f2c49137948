"""Products of matrices: matmul and its relatives, einsum, triangular solves.

einsum becomes permutations around one matmul, or a product and sums where nothing is contracted. Methods of Tensor,
functions of torch.
"""

from . import _numbers, _trace
from ._dtypes import float32, promote
from ._pointwise import add, mul
from ._reduce import reduce_axis
from ._shape import cat, permute_to, reshape_to, transpose
from ._sym import Size, product, same, same_shape
from ._tensor import FUNCTIONS, Tensor, assign, axis_of, broadcast_shapes, convert, export
from ._trace import TraceError, rec


def _floats(a, b):
    """Both in one floating dtype."""
    if a.dtype is not b.dtype or a.dtype.category != 2:
        d = promote((a.reshape(-1), b.reshape(-1)))
        d = d if d.category == 2 else float32
        return convert(a, d), convert(b, d)
    return a, b


@export("matmul")
def matmul(a, b, *, out=None):
    if type(b).__matmul__ is not Tensor.__matmul__:
        return NotImplemented
    a, b = _floats(a, b)
    drop = []
    if len(a.shape) == 1:
        a = reshape_to(a, Size((1,) + a.shape))
        drop.append(-2)
    if len(b.shape) == 1:
        b = reshape_to(b, Size(b.shape + (1,)))
        drop.append(-1)
    if not same(a.shape[-1], b.shape[-2]):
        raise TraceError("a product of matrices of shapes %s and %s" % (list(a.shape), list(b.shape)), "inner sizes differ")
    lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = Size(lead + (a.shape[-2], b.shape[-1]))
    if type(a.shape[-1]) is int and a.shape[-1] == 1:
        y = mul(a, b)  # a column by a row: no sum
    else:
        y = rec("matmul", [a, b], shape, a.dtype, _numbers.matmul, (shape, a.dtype.ir))
    if drop:
        y = reshape_to(y, Size(n for i, n in enumerate(shape) if i - len(shape) not in drop))
    return y if out is None else assign(out, y)


for _n in ("bmm", "mm", "mv", "dot", "inner", "vdot"):
    export(_n)(matmul)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda b, a: matmul(a, b)


@export("outer", "ger")
def outer(a, b):
    return mul(a.unsqueeze(-1), b)


@export("addmm", "addmv", "baddbmm", "addbmm", inplace=True)
def addmm(x, a=None, b=None, *, beta=1, alpha=1, mat1=None, mat2=None, batch1=None, batch2=None, out=None):
    a = next(t for t in (a, mat1, batch1) if t is not None)
    b = next(t for t in (b, mat2, batch2) if t is not None)
    y = matmul(a, b)
    y = y if alpha == 1 else mul(y, alpha)
    y = y if beta == 0 else add(y, x if beta == 1 else mul(x, beta))
    return y if out is None else assign(out, y)


# ---- einsum --------------------------------------------------------------------------------------------------------
def _parse(equation, tensors):
    """-> the letters of each operand and of the result; an ellipsis is upper-case letters from the end of the alphabet."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(tensors):
        raise TraceError("einsum %r with %d operands" % (equation, len(tensors)))
    dots = 0
    for letters, x in zip(inputs, tensors):
        if "..." in letters:
            dots = max(dots, len(x.shape) - len(letters) + 3)
    names = "ZYXWVUTS"[:dots][::-1]
    inputs = [
        s.replace("...", names[len(names) - (len(x.shape) - len(s) + 3) :] if len(x.shape) > len(s) - 3 else "")
        for s, x in zip(inputs, tensors)
    ]
    if not arrow:
        every = "".join(inputs)
        right = ("..." if dots else "") + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in names))
    return inputs, right.replace("...", names)


def _reduce_to(x, letters, wanted):
    """Sums the letters that are not wanted."""
    for i in range(len(letters) - 1, -1, -1):
        if letters[i] not in wanted:
            x = reduce_axis("sum", x, i, False)
            letters = letters[:i] + letters[i + 1 :]
    return x, letters


def _arrange(x, letters, order):
    axes = [letters.index(c) for c in order]
    return x if axes == list(range(len(axes))) else permute_to(x, axes)


def _contract(a, la, b, lb, wanted):
    """Two operands into one that has the wanted letters."""
    a, la = _reduce_to(a, la, lb + wanted)
    b, lb = _reduce_to(b, lb, la + wanted)
    sizes = {}
    for letters, x in ((la, a), (lb, b)):
        for c, n in zip(letters, x.shape):
            if c not in sizes or (type(sizes[c]) is int and sizes[c] == 1):
                sizes[c] = n
    summed = [c for c in la if c in lb and c not in wanted]
    batch = [c for c in la if c in lb and c in wanted]
    left = [c for c in la if c not in lb]
    right = [c for c in lb if c not in la]
    if not summed:
        # No sum: a product that broadcasts.
        order = batch + left + right
        a = _arrange(a, la, batch + left)
        b = _arrange(b, lb, batch + right)
        a = reshape_to(a, Size(a.shape + (1,) * len(right)))
        b = reshape_to(b, Size(b.shape[: len(batch)] + (1,) * len(left) + b.shape[len(batch) :]))
        return mul(a, b), "".join(order)
    a = _arrange(a, la, batch + left + summed)
    b = _arrange(b, lb, batch + summed + right)
    lead = [sizes[c] for c in batch]
    m, k, n = (product(sizes[c] for c in part) for part in (left, summed, right))
    a = _shaped(a, list(a.shape[: len(batch)]) + [m, k])
    b = _shaped(b, list(b.shape[: len(batch)]) + [k, n])
    y = matmul(a, b)
    return _shaped(y, lead + [sizes[c] for c in left + right]), "".join(batch + left + right)


def _shaped(x, shape):
    shape = Size(shape)
    return x if same_shape(x.shape, shape) else reshape_to(x, shape)


@export("einsum", method=False)
def einsum(equation, *tensors):
    tensors = list(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors)
    inputs, result = _parse(equation, tensors)
    for k, letters in enumerate(inputs):
        for c in set(letters):
            while inputs[k].count(c) > 1:
                i = inputs[k].index(c)
                j = inputs[k].index(c, i + 1)
                tensors[k] = FUNCTIONS["diagonal"](tensors[k], 0, i, j)
                inputs[k] = inputs[k].replace(c, "") + c
    x, letters = tensors[0], inputs[0]
    for k in range(1, len(tensors)):
        wanted = result + "".join(inputs[k + 1 :])
        x, letters = _contract(x, letters, tensors[k], inputs[k], wanted)
    x, letters = _reduce_to(x, letters, result)
    return _arrange(x, letters, result)


@export("tensordot", method=False)
def tensordot(a, b, dims=2):
    if isinstance(dims, int):
        dims = (list(range(len(a.shape) - dims, len(a.shape))), list(range(dims)))
    left = [axis_of(d, len(a.shape)) for d in dims[0]]
    right = [axis_of(d, len(b.shape)) for d in dims[1]]
    la = "".join(chr(97 + i) for i in range(len(a.shape)))
    lb = "".join(la[left[right.index(i)]] if i in right else chr(110 + i) for i in range(len(b.shape)))
    out = "".join(c for i, c in enumerate(la) if i not in left) + "".join(c for i, c in enumerate(lb) if i not in right)
    return einsum("%s,%s->%s" % (la, lb, out), a, b)


@export("kron")
def kron(a, b):
    y = mul(a.unsqueeze(-1).unsqueeze(-3), b.unsqueeze(-2).unsqueeze(-4))
    return reshape_to(y, Size((a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])))


@export("cross")
def cross(a, b, dim=-1):
    roll = FUNCTIONS["roll"]
    return mul(roll(a, -1, dim), roll(b, -2, dim)) - mul(roll(a, -2, dim), roll(b, -1, dim))


# ---- triangles -----------------------------------------------------------------------------------------------------
def _triangle(x, diagonal, lower):
    """Elements with column - row at most (or at least) the diagonal; 0 elsewhere."""
    arange = FUNCTIONS["arange"]
    rows, columns = x.shape[-2], x.shape[-1]
    row, column = arange(rows).unsqueeze(-1), arange(columns)
    if type(diagonal) is not int or diagonal != 0:
        row = row + diagonal
    keep = FUNCTIONS["le"](column, row) if lower else FUNCTIONS["ge"](column, row)
    if x.dtype.ir == "bool":
        return FUNCTIONS["logical_and"](keep, x)
    return FUNCTIONS["where"](keep, x, _trace.scalar(0, x.dtype))


@export("tril", inplace=True)
def tril(x, diagonal=0):
    return _triangle(x, diagonal, True)


@export("triu", inplace=True)
def triu(x, diagonal=0):
    return _triangle(x, diagonal, False)


def _indices(lower):
    def f(row, col, offset=0, **kwargs):
        pairs = [(i, j) for i in range(row) for j in range(col) if (j - i <= offset if lower else j - i >= offset)]
        return FUNCTIONS["tensor"]([[i for i, _ in pairs], [j for _, j in pairs]])

    return f


export("tril_indices", method=False)(_indices(True))
export("triu_indices", method=False)(_indices(False))


def solve_triangular(a, b, *, upper, left=True, unitriangular=False):
    """torch.linalg.solve_triangular; the graph's op has ones on the diagonal and reads the lower triangle."""
    a, b = _floats(a, b)
    if not left:
        y = solve_triangular(transpose(a, -1, -2), transpose(b, -1, -2), upper=not upper, unitriangular=unitriangular)
        return transpose(y, -1, -2)
    if upper:
        flip = FUNCTIONS["flip"]
        return flip(solve_triangular(flip(flip(a, -1), -2), flip(b, -2), upper=False, unitriangular=unitriangular), -2)
    if not unitriangular:
        d = FUNCTIONS["diagonal"](a, 0, -2, -1).unsqueeze(-1)
        a, b = a / d, b / d
    shape = Size(broadcast_shapes(a.shape[:-2], b.shape[:-2]) + b.shape[-2:])
    return rec("solve_triangular", [a, b], shape, a.dtype)


@export("block_diag", method=False)
def block_diag(*tensors):
    width = sum(x.shape[1] for x in tensors)
    pad, rows, at = FUNCTIONS["nn.functional.pad"], [], 0
    for x in tensors:
        rows.append(pad(x, (at, width - at - x.shape[1])))
        at = at + x.shape[1]
    return cat(rows, 0)
