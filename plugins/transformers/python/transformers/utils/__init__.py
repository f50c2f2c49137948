"""`transformers.utils`: the helpers that modelling and configuration code imports. The real package also talks to the hub and
probes the machine for libraries; none of that exists here, so every `is_*_available` is false but torch's."""

from . import import_utils, logging
from .generic import *  # noqa: F403
from .generic import (
    ContextManagers,
    ExplicitEnum,
    ModelOutput,
    PaddingStrategy,
    TensorType,
    TransformersKwargs,
    can_return_tuple,
    is_timm_config_dict,
)
from .import_utils import *  # noqa: F403

CONFIG_NAME = "config.json"
DUMMY_INPUTS = [[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]]
DUMMY_MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


class PushToHubMixin:
    """Nothing is ever pushed."""

    def push_to_hub(self, *_, **__):
        raise RuntimeError("nothing is pushed to the hub")


def auto_docstring(obj=None, **_):
    return obj if obj is not None else (lambda it: it)


def _decorator(*_, **__):
    return lambda it: it


add_start_docstrings = add_end_docstrings = add_start_docstrings_to_model_forward = _decorator
add_code_sample_docstrings = replace_return_docstrings = filter_out_non_signature_kwargs = _decorator


def copy_func(function):
    return function


def is_env_variable_true(_name):
    return False


def __getattr__(name):
    if name.startswith("is_"):
        return getattr(import_utils, name)
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_, **__):
        raise RuntimeError("transformers.utils.%s does not exist while a model is traced" % name)

    return missing
