"""Names of `concurrent.futures`, for modules that load weights in threads: nothing here is ever made."""


class Future:
    pass


class Executor:
    def __init__(self, *_, **__):
        raise RuntimeError("there are no threads")


ThreadPoolExecutor = ProcessPoolExecutor = Executor


def as_completed(futures, timeout=None):
    return iter(futures)
