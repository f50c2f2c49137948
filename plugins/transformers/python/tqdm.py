"""Progress bars that show nothing."""


def tqdm(iterable=(), *_, **__):
    return iterable


trange = range
