"""Errors whose text reaches the user as it is."""

import difflib

import _graph


class ModelError(_graph.TraceError):
    """The model cannot be built, for a reason that is not in a line of its code."""


def near(name, names, count=3):
    """`; the nearest are a, b` for messages, or nothing."""
    close = difflib.get_close_matches(name, list(names), count, 0.5)
    return "; the nearest are %s" % ", ".join(close) if close else ""
