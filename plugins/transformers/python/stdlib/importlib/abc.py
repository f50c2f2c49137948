"""Stands for `importlib.abc`: names to inherit from."""


class Loader:
    pass


class MetaPathFinder:
    pass


class InspectLoader(Loader):
    pass


class SourceLoader(InspectLoader):
    pass
