"""Field validators of configuration classes: fields are not validated (see `huggingface_hub.dataclasses`). The real module
imports tokenizers and video utilities for its other validators."""

from huggingface_hub.dataclasses import as_validated_field, validated_field


def _accept(_value=None):
    pass


positive_int_field = activation_fn_key = as_validated_field(_accept)
positive_int = positive_any_number = _accept


def interval(*_, **__):
    """Makes a validated field, as the real one does."""
    return as_validated_field(_accept)


def is_divisible_by(*_, **__):
    return as_validated_field(_accept)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _accept
