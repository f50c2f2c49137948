"""`parse` and `Version`: enough of PEP 440 to compare releases."""

import re

_PATTERN = re.compile(r"^v?(\d+(?:\.\d+)*)(?:[._-]?(a|b|rc|dev|post)[._-]?(\d*))?(?:\+.*)?", re.I)
_ORDER = {"dev": -4, "a": -3, "b": -2, "rc": -1, None: 0, "post": 1}


class InvalidVersion(ValueError):
    pass


class Version:
    def __init__(self, text):
        found = _PATTERN.match(str(text).strip())
        if found is None:
            raise InvalidVersion("Invalid version: %r" % (text,))
        self.release = tuple(int(n) for n in found.group(1).split("."))
        kind = found.group(2).lower() if found.group(2) else None
        self._text = str(text)
        release = self.release
        while len(release) > 1 and release[-1] == 0:
            release = release[:-1]
        self._key = (release, _ORDER[kind], int(found.group(3) or 0) if kind else 0)
        self.is_prerelease = _ORDER[kind] < 0

    major = property(lambda self: self.release[0])
    minor = property(lambda self: self.release[1] if len(self.release) > 1 else 0)
    micro = property(lambda self: self.release[2] if len(self.release) > 2 else 0)
    base_version = property(lambda self: ".".join(str(n) for n in self.release))

    def __str__(self):
        return self._text

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, Version) and self._key == other._key

    def __lt__(self, other):
        return self._key < other._key

    def __le__(self, other):
        return self._key <= other._key

    def __gt__(self, other):
        return self._key > other._key

    def __ge__(self, other):
        return self._key >= other._key


def parse(text):
    return Version(text)
