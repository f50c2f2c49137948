"""`deprecate_kwarg` without its warnings: renamed arguments are not used by the tracer."""


def deprecate_kwarg(*_, **__):
    return lambda it: it
