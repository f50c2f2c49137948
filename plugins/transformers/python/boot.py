"""Runs first: mends the interpreter and sets up imports. Called once, by src/interpreter.rs.

Imports serve our own files, the standard library as far as src/whitelist.rs keeps it, files of transformers as the table in
host_modules.py says, and the model's own files. Nothing else exists.
"""

import builtins
import sys

import _host
import _io
from _frozen_importlib import ModuleSpec

# The standard library's io.py wants these names; without files there is nothing behind them.
for _name in ("FileIO", "open_code", "BufferedRandom"):
    if not hasattr(_io, _name):
        setattr(_io, _name, type(_name, (), {}))


class _Log:
    """What print writes to: complete lines go to the log."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self):
        self._line = ""

    def write(self, text):
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            _host.log(line)
        if len(rest) > 4096:
            _host.log(rest)
            rest = ""
        self._line = rest
        return len(text)

    def flush(self):
        if self._line:
            _host.log(self._line)
            self._line = ""

    def isatty(self):
        return False


sys.stdout = sys.stderr = _Log()
# Where the host's program is, is nobody's business; how deep calls may nest is decided outside.
sys.argv, sys.orig_argv, sys.executable = [], [], ""
sys.prefix = sys.exec_prefix = sys.base_prefix = sys.base_exec_prefix = ""
sys.setrecursionlimit = lambda limit: None


def _no_files(file, *args, **kwargs):
    raise PermissionError(f"open({file!r}): modelling code has no access to files")


_io.open = _io.open_code = builtins.open = _no_files


class _Loader:
    """Runs the code of one file as a module."""

    def __init__(self, kind, path, code):
        self.kind = kind
        self.path = path
        self.code = code

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = self.code.co_filename if self.code else self.path
        if self.code is None:
            return
        prepare = _prepare()
        if prepare is not None:
            prepare(module, self.kind)
        exec(self.code, module.__dict__)

    def get_source(self, name):
        return _host.read(self.kind, self.path)


class _StubLoader:
    """A module of transformers that no trace needs: every name in it is a class without contents."""

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        made = {}

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            if name not in made:
                made[name] = type(name, (), {"__module__": module.__name__})
            return made[name]

        module.__getattr__ = attribute


def _prepare():
    table = sys.modules.get("host_modules")
    return getattr(table, "prepare", None)


def _file(kind, base):
    """(path, code, is package) of the file that holds a module, or None."""
    for path, package in ((base + ".py", False), (base + "/__init__.py", True)):
        code = _host.code(kind, path)
        if code is not None:
            return path, code, package
    return None


def _spec(name, kind, found):
    path, code, package = found
    return ModuleSpec(name, _Loader(kind, path, code), origin=path, is_package=package)


def _empty_package(name, kind, path):
    return _spec(name, kind, (path, None, True))


class _Finder:
    """Finds every module but those of the standard library."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        base = name.replace(".", "/")
        for root in ("", "stdlib/"):
            found = _file("shim", root + base)
            if found is not None:
                return _spec(name, "shim", found)
        top = name.partition(".")[0]
        if top == "transformers" and top != name:
            return _transformers(name, base)
        if top == "transformers_modules":
            return _model(name)
        if _host.exists("shim", base):
            return _empty_package(name, "shim", base)
        return None


def _transformers(name, base):
    import host_modules

    source = host_modules.source(name)
    if source == "package":
        found = _file("package", base)
        return None if found is None else _spec(name, "package", found)
    if not (_host.exists("package", base) or _host.exists("package", base + ".py")):
        return None
    if source == "empty":
        return _empty_package(name, "package", base)
    return ModuleSpec(name, _StubLoader(), origin="stub", is_package=True)


def _model(name):
    parts = name.split(".")
    if len(parts) <= 2:
        if parts[1:] not in ([], ["model"]) or not _host.model_files():
            return None
        found = _file("model", "") if len(parts) == 2 else None
        return _empty_package(name, "model", "") if found is None else _spec(name, "model", found)
    base = "/".join(parts[2:])
    found = _file("model", base)
    if found is not None:
        return _spec(name, "model", found)
    return _empty_package(name, "model", base) if _host.exists("model", base) else None


sys.meta_path.insert(0, _Finder)
sys.path_hooks.clear()
sys.path.clear()


def _ordered_dict():
    """The library's OrderedDict, written in Python, reads items through an overridden __getitem__ and then recurses in
    transformers' ModelOutput. A dict keeps its order anyway."""
    import collections

    class OrderedDict(dict):
        def move_to_end(self, key, last=True):
            value = dict.pop(self, key)
            if last:
                dict.__setitem__(self, key, value)
                return
            rest = list(dict.items(self))
            dict.clear(self)
            dict.__setitem__(self, key, value)
            for k, v in rest:
                dict.__setitem__(self, k, v)

        def popitem(self, last=True):
            if not dict.__len__(self):
                raise KeyError("dictionary is empty")
            key = list(dict.keys(self))[-1 if last else 0]
            return key, dict.pop(self, key)

    OrderedDict.__module__ = "collections"
    OrderedDict.__qualname__ = "OrderedDict"
    collections.OrderedDict = OrderedDict


_ordered_dict()


def _lazy_patterns():
    """Compiling a regular expression takes a millisecond here, and transformers compiles hundreds for the names of every
    model's tensors, of which one model uses a few. So `re.compile` compiles at first use."""
    import re

    compile_now = re._compile

    class LazyPattern:
        def __init__(self, pattern, flags):
            self._source = pattern, flags
            self._made = None

        def _get(self):
            if self._made is None:
                self._made = compile_now(*self._source)
            return self._made

        def __getattr__(self, name):
            value = getattr(self._get(), name)
            self.__dict__[name] = value  # found without this detour next time
            return value

        def __eq__(self, other):
            return isinstance(other, LazyPattern) and self._source == other._source

        def __hash__(self):
            return hash(self._source)

        def __repr__(self):
            return f"re.compile({self._source[0]!r})"

        def __copy__(self):
            return self

        def __deepcopy__(self, memo):
            return self

    def compile(pattern, flags=0):
        return LazyPattern(pattern, flags) if isinstance(pattern, str) else compile_now(pattern, flags)

    def compile_given(pattern, flags):
        return pattern._get() if type(pattern) is LazyPattern else compile_now(pattern, flags)

    re.compile = compile
    re._compile = compile_given


_lazy_patterns()
