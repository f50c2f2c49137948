"""Strict dataclasses, for configuration classes. Fields are not checked against their annotations: a configuration that
transformers accepts is accepted. What a class checks itself (`validate_*`) is."""

from dataclasses import MISSING, field, fields
from functools import wraps

from .errors import StrictDataclassClassValidationError


def strict(cls=None, *, accept_kwargs=False):
    def wrap(cls):
        if accept_kwargs:
            _accept_kwargs(cls)
        validators = [getattr(cls, name) for name in dir(cls) if name.startswith("validate_")]
        validators = [v for v in validators if callable(v)]

        def validate(self):
            for validator in validators:
                try:
                    validator(self)
                except (TypeError, ValueError) as cause:
                    raise StrictDataclassClassValidationError(validator.__name__, cause) from cause

        cls.validate = validate
        inner = cls.__init__

        @wraps(inner)
        def __init__(self, *args, **kwargs):
            inner(self, *args, **kwargs)
            # A class with a constructor of its own calls this one before it is complete.
            if type(self) is cls:
                validate(self)

        cls.__init__ = __init__
        return cls

    return wrap(cls) if cls is not None else wrap


def _accept_kwargs(cls):
    """Keywords that are no fields become attributes."""
    inner = cls.__init__

    @wraps(inner)
    def __init__(self, **kwargs):
        names = {f.name for f in fields(cls)}
        inner(self, **{k: v for k, v in kwargs.items() if k in names})
        for name, value in kwargs.items():
            if name not in names:
                setattr(self, name, value)

    cls.__init__ = __init__


def validated_field(validator, default=MISSING, default_factory=MISSING, metadata=None, **options):
    if default is not MISSING:
        options["default"] = default
    if default_factory is not MISSING:
        options["default_factory"] = default_factory
    return field(metadata=dict(metadata or {}, validator=validator), **options)


def as_validated_field(validator):
    def make(default=MISSING, default_factory=MISSING, metadata=None, **options):
        return validated_field(validator, default, default_factory, metadata, **options)

    return make


def validate_typed_dict(_schema, _data):
    pass
