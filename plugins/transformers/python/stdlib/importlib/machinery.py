"""Stands for `importlib.machinery`: what the standard library asks it for. There are no files to load."""

from _frozen_importlib import BuiltinImporter, FrozenImporter, ModuleSpec  # noqa: F401

SOURCE_SUFFIXES = [".py"]
BYTECODE_SUFFIXES = DEBUG_BYTECODE_SUFFIXES = OPTIMIZED_BYTECODE_SUFFIXES = [".pyc"]
EXTENSION_SUFFIXES = []


def all_suffixes():
    return SOURCE_SUFFIXES + BYTECODE_SUFFIXES


class ExtensionFileLoader:
    pass


class SourceFileLoader:
    pass


class SourcelessFileLoader:
    pass


class PathFinder:
    pass


class NamespaceLoader:
    pass


class AppleFrameworkLoader:
    pass
