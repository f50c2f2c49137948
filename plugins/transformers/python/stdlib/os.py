"""Stands for `os`: paths can be computed, the system cannot be reached. The environment is empty."""

import abc
import sys

import posixpath as path

sys.modules["os.path"] = path

name = "posix"
sep, altsep, extsep = "/", None, "."
curdir, pardir, pathsep = ".", "..", ":"
linesep, defpath, devnull = "\n", "/bin:/usr/bin", "/dev/null"
environ = {}
error = OSError
SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
F_OK, X_OK, W_OK, R_OK = 0, 1, 2, 4
supports_dir_fd = supports_fd = supports_effective_ids = supports_follow_symlinks = frozenset()


def getenv(key, default=None):
    return environ.get(key, default)


def fspath(path):
    if isinstance(path, (str, bytes)):
        return path
    if hasattr(type(path), "__fspath__"):
        return type(path).__fspath__(path)
    raise TypeError(f"expected str, bytes or os.PathLike object, not {type(path).__name__}")


def fsencode(text):
    text = fspath(text)
    return text.encode() if isinstance(text, str) else text


def fsdecode(text):
    text = fspath(text)
    return text.decode() if isinstance(text, bytes) else text


def getcwd():
    return "/"


def getpid():
    return 1


def cpu_count():
    return 1


def get_terminal_size(fd=1):
    return (80, 24)


def register_at_fork(*, before=None, after_in_parent=None, after_in_child=None):
    pass


class PathLike(abc.ABC):
    @abc.abstractmethod
    def __fspath__(self):
        raise NotImplementedError

    @classmethod
    def __subclasshook__(cls, subclass):
        return hasattr(subclass, "__fspath__") if cls is PathLike else NotImplemented

    @classmethod
    def __class_getitem__(cls, item):
        return cls


def _denied(function):
    def deny(*args, **kwargs):
        raise PermissionError(f"os.{function}: modelling code has no access to the operating system")

    deny.__name__ = deny.__qualname__ = function
    return deny


for _name in (
    "access chdir chmod chown close dup dup2 execl execv execve execvp fdopen fork forkpty kill killpg link listdir lstat "
    "makedirs mkdir mkfifo open pipe popen posix_spawn putenv read readlink remove removedirs rename renames replace rmdir "
    "scandir setuid spawnl spawnv stat statvfs symlink system truncate unlink unsetenv urandom utime wait waitpid walk write"
).split():
    globals()[_name] = _denied(_name)
