"""Stands for `importlib`: imports by name, through the finder of boot.py."""

import _frozen_importlib as _bootstrap

__import__ = _bootstrap.__import__


def import_module(name, package=None):
    level = len(name) - len(name.lstrip("."))
    if level and not package:
        raise TypeError(f"the 'package' argument is required to perform a relative import for {name!r}")
    return _bootstrap._gcd_import(name[level:], package, level)


def invalidate_caches():
    pass


def reload(module):
    raise ImportError(f"{module.__name__} cannot be loaded again here")
