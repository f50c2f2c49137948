"""Tests of the shims, run inside the interpreter: every `test_*.py` here is a script that raises if a test fails."""


def run(names):
    """Runs the functions called test_*, in order; the first failure says which one it was."""
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test):
            try:
                test()
            except Exception as error:
                error.add_note("in %s" % name)
                raise


def raises(kind, f, *args):
    """The text of the exception of this kind that f raises."""
    try:
        f(*args)
    except kind as error:
        return str(error)
    raise AssertionError("no %s was raised" % kind.__name__)
