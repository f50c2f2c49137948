"""Stands for `importlib.util`."""

import sys

from _frozen_importlib import _find_spec, module_from_spec, spec_from_loader  # noqa: F401


def resolve_name(name, package):
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    base = package.rsplit(".", level - 1)[0]
    return f"{base}.{name[level:]}" if name[level:] else base


def find_spec(name, package=None):
    name = resolve_name(name, package)
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    parent = name.rpartition(".")[0]
    path = None
    if parent:
        __import__(parent)
        path = getattr(sys.modules[parent], "__path__", None)
        if path is None:
            return None
    return _find_spec(name, path)
