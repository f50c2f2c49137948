"""transformers' table of conversions, without its cost.

`conversion_mapping` makes a thousand transforms with compiled patterns, for every model that there is. Here each is made when the
model that needs it asks: while the table is built, the classes of transforms are stood in for by ones that only remember what
they were called with."""

from .errors import ModelError


class _Later:
    """A transform that was asked for."""

    def __init__(self, cls, args, kwargs):
        self._call = cls, args, kwargs

    def __getattr__(self, name):
        # The table is also filled from parts of itself: then the transform itself is needed.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.make(), name)

    def make(self):
        cls, args, kwargs = self._call
        # Transforms change the lists of patterns that they are given.
        args = [list(a) if isinstance(a, list) else a for a in args]
        kwargs = {k: list(v) if isinstance(v, list) else v for k, v in kwargs.items()}
        return cls(*args, **kwargs)


def _stand_in(cls):
    return lambda *args, **kwargs: _Later(cls, args, kwargs)


def _table(mapping):
    """The whole table, of transforms that are not made yet."""
    from transformers.core_model_loading import WeightTransform

    names = [n for n, v in vars(mapping).items() if isinstance(v, type) and issubclass(v, WeightTransform)]
    real = {n: getattr(mapping, n) for n in names}
    try:
        for name in names:
            setattr(mapping, name, _stand_in(real[name]))
        return mapping._build_checkpoint_conversion_mapping()
    finally:
        for name in names:
            setattr(mapping, name, real[name])


_tables = {}


def for_model(model):
    """The transforms of a model and its parts, in order."""
    from transformers import conversion_mapping as mapping

    if "table" not in _tables:
        try:
            _tables["table"] = _table(mapping)
        except (AttributeError, TypeError) as error:
            raise ModelError("this version of transformers has another conversion_mapping: %s" % error) from error
        mapping.get_checkpoint_conversion_mapping = _lookup
    return mapping.get_model_conversion_mapping(model)


def _lookup(name):
    entries = _tables["table"].get(name)
    return None if entries is None else [e.make() if isinstance(e, _Later) else e for e in entries]
