"""Stands for `pathlib`: paths as text. Nothing exists, and nothing can be opened."""

import os


class PurePath:
    def __init__(self, *parts):
        self._path = os.path.normpath(os.path.join(*map(os.fspath, parts))) if parts else "."

    def __fspath__(self):
        return self._path

    def __str__(self):
        return self._path

    def __repr__(self):
        return f"{type(self).__name__}({self._path!r})"

    def __eq__(self, other):
        return isinstance(other, PurePath) and self._path == other._path

    def __hash__(self):
        return hash(self._path)

    def __truediv__(self, other):
        return type(self)(self._path, other)

    def __rtruediv__(self, other):
        return type(self)(other, self._path)

    def joinpath(self, *others):
        return type(self)(self._path, *others)

    @property
    def name(self):
        return os.path.basename(self._path)

    @property
    def stem(self):
        return os.path.splitext(self.name)[0]

    @property
    def suffix(self):
        return os.path.splitext(self.name)[1]

    @property
    def parent(self):
        return type(self)(os.path.dirname(self._path) or ".")

    @property
    def parts(self):
        return tuple(("/" if self._path.startswith("/") else "",) + tuple(self._path.strip("/").split("/")))[
            0 if self._path.startswith("/") else 1 :
        ]

    def as_posix(self):
        return self._path

    def is_absolute(self):
        return self._path.startswith("/")

    def with_suffix(self, suffix):
        return type(self)(os.path.splitext(self._path)[0] + suffix)


class Path(PurePath):
    def resolve(self, strict=False):
        return type(self)(os.path.abspath(self._path))

    absolute = expanduser = resolve

    def exists(self):
        return False

    is_file = is_dir = is_symlink = exists

    @classmethod
    def cwd(cls):
        return cls("/")

    def _denied(self, *args, **kwargs):
        raise PermissionError(f"{self._path}: modelling code has no access to files")

    open = read_text = read_bytes = write_text = write_bytes = iterdir = glob = rglob = mkdir = unlink = touch = stat = _denied


PosixPath, PurePosixPath = Path, PurePath
