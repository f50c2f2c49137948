"""Stands for `os.path`: what can be said about a path from its text. Nothing exists."""

curdir, pardir, extsep, sep, pathsep, altsep = ".", "..", ".", "/", ":", None
devnull = "/dev/null"
supports_unicode_filenames = True


def _text(path):
    return path if isinstance(path, (str, bytes)) else type(path).__fspath__(path)


def join(first, *rest):
    out = _text(first)
    for part in map(_text, rest):
        if part.startswith("/"):
            out = part
        elif not out or out.endswith("/"):
            out += part
        else:
            out += "/" + part
    return out


def split(path):
    path = _text(path)
    head, slash, tail = path.rpartition("/")
    head += slash
    if head and head != "/" * len(head):
        head = head.rstrip("/")
    return head, tail


def basename(path):
    return split(path)[1]


def dirname(path):
    return split(path)[0]


def splitext(path):
    path = _text(path)
    dot = path.rfind(".")
    start = path.rfind("/") + 1
    while start < dot:
        if path[start] != ".":
            return path[:dot], path[dot:]
        start += 1
    return path, ""


def splitdrive(path):
    return _text(path)[:0], _text(path)


def isabs(path):
    return _text(path).startswith("/")


def normpath(path):
    path = _text(path)
    root = "/" if path.startswith("/") else ""
    parts = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".." or not root:
            parts.append(part)
    return root + "/".join(parts) or "."


def abspath(path):
    return normpath(join("/", path))


realpath = abspath


def normcase(path):
    return _text(path)


expanduser = expandvars = normcase


def exists(path):
    return False


isfile = isdir = islink = ismount = lexists = exists


def commonprefix(paths):
    paths = [_text(p) for p in paths]
    if not paths:
        return ""
    low, high = min(paths), max(paths)
    for i, c in enumerate(low):
        if c != high[i]:
            return low[:i]
    return low


def relpath(path, start="/"):
    here, there = abspath(start).split("/"), abspath(path).split("/")
    same = 0
    while same < min(len(here), len(there)) and here[same] == there[same]:
        same += 1
    return "/".join([".."] * len([p for p in here[same:] if p]) + [p for p in there[same:] if p]) or "."
