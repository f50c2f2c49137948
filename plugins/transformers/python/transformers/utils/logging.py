"""Warnings of modelling code go to the log of the host, each once. The real module configures Python's `logging` from the
environment."""

import sys

_said = set()


class _Logger:
    name = "transformers"

    def warning(self, message="", *args, **_):
        text = str(message)
        if args:
            try:
                text = text % args
            except (TypeError, ValueError):
                pass
        if text not in _said:
            _said.add(text)
            print("transformers: " + text, file=sys.stderr)

    warning_once = warn = error = critical = exception = warning

    def info(self, *_, **__):
        pass

    info_once = debug = setLevel = addHandler = removeHandler = info

    def isEnabledFor(self, *_):
        return False

    def getEffectiveLevel(self):
        return 40


_logger = _Logger()


def get_logger(_name=None):
    return _logger


def get_verbosity():
    return 40


def tqdm(iterable=(), *_, **__):
    return iterable


def set_verbosity(*_):
    pass


set_verbosity_error = set_verbosity_warning = set_verbosity_info = set_verbosity_debug = set_verbosity
WARNING, ERROR, INFO, DEBUG, CRITICAL = 30, 40, 20, 10, 50
