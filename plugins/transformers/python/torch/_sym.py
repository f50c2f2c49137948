"""Sizes that know how they depend on the number of tokens, T.

A `SymInt` is an int (the value at this trace's T) that also carries a polynomial in T. Arithmetic keeps the polynomial;
a comparison that would come out differently at another T is noted in `GUARDS`. A size that is no polynomial in T (say
`T // 64`) stays usable as a number, and is refused only where it would become the shape of a value.

Never touches tensors or the graph. Used by everything in this package; the driver makes T with `symbol`.
"""

import sys

GUARDS = []
_MADE = {}
_int = int


class SymInt(int):
    """An int with a polynomial: `poly` is ((power, coefficient), ...), highest power first, or None if it is none."""

    def __new__(cls, value, poly=None, why=None):
        self = int.__new__(cls, value)
        self.poly = poly
        self.text = why or ("?" if poly is None else _text(poly))
        self.quoted = None if poly is None else '"%s"' % _text(poly)  # in the graph's text
        return self

    def __repr__(self):
        return self.text

    __str__ = __repr__

    def __format__(self, spec):
        return format(self.text, spec) if not spec or spec[-1:] == "s" else int.__format__(self, spec)

    def __hash__(self):
        return _int.__hash__(self)

    def __deepcopy__(self, memo):
        return self

    def __copy__(self):
        return self

    def __reduce__(self):
        return (_int, (_int(self),))

    def __neg__(self):
        return _make(-_int(self), None if self.poly is None else {p: -c for p, c in self.poly}, "-(%s)" % self.text)

    def __pos__(self):
        return self

    def __abs__(self):
        return self if _int(self) >= 0 else -self

    def __pow__(self, n, mod=None):
        if type(n) is not _int or n < 0 or mod is not None:
            return _int.__pow__(self, n, mod)
        out = 1
        for _ in range(n):
            out = out * self
        return out

    def __divmod__(self, other):
        return self // other, self % other


def _text(poly):
    out = ""
    for power, c in poly:
        symbols = "*".join(["T"] * power)
        if not symbols:
            term = str(c)
        elif c == 1:
            term = symbols
        elif c == -1:
            term = "-" + symbols
        else:
            term = "%d*%s" % (c, symbols)
        out += term if not out or term[0] == "-" else "+" + term
    return out or "0"


def _make(value, terms, why=None):
    """An int if the polynomial is a constant, else the one SymInt of this polynomial and value."""
    if terms is None:
        return SymInt(value, None, why)
    poly = tuple((p, terms[p]) for p in sorted(terms, reverse=True) if terms[p])
    if not poly or poly[0][0] == 0:
        return _int(value)
    key = (poly, _int(value))
    made = _MADE.get(key)
    if made is None:
        made = _MADE[key] = SymInt(value, poly)
    return made


def symbol(hint):
    """T, with the value that it has in this trace."""
    _RESULTS.clear()
    return _make(hint, {1: 1})


def terms_of(n):
    """{power: coefficient} of an int or SymInt; None if it is no polynomial."""
    if type(n) is SymInt:
        return None if n.poly is None else dict(n.poly)
    return {0: _int(n)} if n else {}


def _add(p, q):
    out = dict(p)
    for power, c in q.items():
        out[power] = out.get(power, 0) + c
    return out


def _sub(p, q):
    out = dict(p)
    for power, c in q.items():
        out[power] = out.get(power, 0) - c
    return out


def _mul(p, q):
    out = {}
    for a, x in p.items():
        for b, y in q.items():
            out[a + b] = out.get(a + b, 0) + x * y
    return out


def _floordiv(p, q):
    p = {k: c for k, c in p.items() if c}
    q = {k: c for k, c in q.items() if c}
    if p == q:
        return {0: 1}
    if len(q) != 1:
        return _divide(p, q)
    ((k, c),) = q.items()
    if all(a >= k and v % c == 0 for a, v in p.items()):
        return {a - k: v // c for a, v in p.items()}
    if k == 0 and all(v % c == 0 for a, v in p.items() if a):
        return {a: v // c for a, v in p.items()}
    return None


def _divide(p, q):
    """Polynomial division without remainder, or None."""
    lead = max(q)
    out = {}
    p = dict(p)
    while p:
        top = max(p)
        if top < lead or p[top] % q[lead]:
            return None
        power, c = top - lead, p[top] // q[lead]
        out[power] = c
        p = {k: v for k, v in _sub(p, _mul(q, {power: c})).items() if v}
    return out


def _mod(p, q):
    whole = _floordiv(p, q)
    return None if whole is None else _sub(p, _mul(whole, q))


# Results of arithmetic at this T: sizes of layers are computed over and over.
_RESULTS = {}


def _operator(name, compute, combine, sign, swapped):
    plain = getattr(int, name)

    def op(self, other):
        kind = type(other)
        if kind is not _int and kind is not SymInt:
            return op(self, _int(other)) if isinstance(other, _int) else plain(self, other)
        # Keys are texts, since comparing sizes would note guards.
        key = (name, self.text, other.text if kind is SymInt else other)
        made = _RESULTS.get(key)
        if made is not None:
            return made
        a, b = (other, self) if swapped else (self, other)
        value = compute(_int(a), _int(b))
        p, q = terms_of(a), terms_of(b)
        terms = None if p is None or q is None else combine(p, q)
        made = _make(value, terms, None if terms is not None else "(%s) %s (%s)" % (a, sign, b))
        _RESULTS[key] = made
        return made

    return op


for _n, _compute, _combine, _sign in (
    ("add", lambda a, b: a + b, _add, "+"),
    ("sub", lambda a, b: a - b, _sub, "-"),
    ("mul", lambda a, b: a * b, _mul, "*"),
    ("floordiv", lambda a, b: a // b, _floordiv, "//"),
    ("mod", lambda a, b: a % b, _mod, "%"),
):
    setattr(SymInt, "__%s__" % _n, _operator("__%s__" % _n, _compute, _combine, _sign, False))
    setattr(SymInt, "__r%s__" % _n, _operator("__r%s__" % _n, _compute, _combine, _sign, True))


def _difference(a, b):
    """a - b if it is the same for every T, else None."""
    p, q = terms_of(a), terms_of(b)
    if p is None or q is None:
        return None
    d = {k: c for k, c in _sub(p, q).items() if c}
    return d.get(0, 0) if not [k for k in d if k] else None


class Guard:
    """A comparison of sizes that the code made, which need not come out the same at another T."""

    def __init__(self, place, text, result, difference, compare):
        self.place, self.text, self.result = place, text, result
        self._difference, self._compare = difference, compare

    def holds(self, tokens):
        """Whether it comes out the same at this number of tokens; None if that is not known."""
        if self._difference is None:
            return None
        return self._compare(sum([c * tokens**p for p, c in self._difference.items()])) == self.result

    def __repr__(self):
        return "%s: %s is %s" % (self.place, self.text, self.result)


def note(a, sign, b, result, compare):
    """Notes a guard for the caller's caller."""
    f = sys._getframe(2)
    p, q = terms_of(a), terms_of(b)
    difference = None if p is None or q is None else _sub(p, q)
    text = "%s %s %s" % (a, sign, b)
    guard = Guard("%s:%d" % (f.f_code.co_filename, f.f_lineno), text, bool(result), difference, compare)
    GUARDS.append(guard)
    return guard


def _comparison(name, sign, compare):
    plain = getattr(int, name)

    equal = compare(0)

    def op(self, other):
        if other is self:
            return equal
        result = plain(self, other)
        if result is not NotImplemented and isinstance(other, _int):
            d = _difference(self, other)
            if d is not None:
                return compare(d)
            note(self, sign, other, result, compare)
        return result

    return op


for _n, _sign, _compare in (
    ("lt", "<", lambda d: d < 0),
    ("le", "<=", lambda d: d <= 0),
    ("gt", ">", lambda d: d > 0),
    ("ge", ">=", lambda d: d >= 0),
    ("eq", "==", lambda d: d == 0),
    ("ne", "!=", lambda d: d != 0),
):
    setattr(SymInt, "__%s__" % _n, _comparison("__%s__" % _n, _sign, _compare))


def same(a, b):
    """Whether two sizes are equal for every T. Notes no guard."""
    if a is b:
        return True
    if type(a) is SymInt or type(b) is SymInt:
        return _int(a) == _int(b) and _difference(a, b) == 0
    return a == b


def same_shape(a, b):
    if len(a) != len(b):
        return False
    for x, y in zip(a, b):
        if x is not y and not same(x, y):
            return False
    return True


def product(sizes):
    n = 1
    for s in sizes:
        n = n * s
    return n


def is_static(shape):
    """Whether no size depends on T."""
    for s in shape:
        if type(s) is SymInt:
            return False
    return True


class TorchSize(tuple):
    """torch.Size, as `Tensor.size()` gives it. Shapes are plain tuples elsewhere: they are made all the time."""

    def numel(self):
        return product(self)

    def __repr__(self):
        return "torch.Size(%s)" % (list(self),)


Size = tuple
EMPTY = ()
