"""What annotations import from `typing_extensions`: this interpreter's `typing` has nearly all of it."""

import typing
from typing import *  # noqa: F403


def TypeVar(name, *constraints, default=None, **options):
    return typing.TypeVar(name, *constraints, **options)


def dataclass_transform(**_):
    return lambda it: it


def deprecated(*_, **__):
    return lambda it: it


def override(it):
    return it


def __getattr__(name):
    found = getattr(typing, name, None)
    if found is None:
        raise AttributeError("module 'typing_extensions' has no attribute %r" % name)
    return found
