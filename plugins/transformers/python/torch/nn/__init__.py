"""torch.nn: modules, layers, parameters. Small modules of torch.nn are made in `_namespaces`."""

from . import functional, init, parameter  # noqa: F401
from .layers import *  # noqa: F403
from .module import Module, ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential  # noqa: F401
from .parameter import Buffer, Parameter, UninitializedParameter  # noqa: F401


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    from .._trace import MissingError

    raise MissingError("torch.nn.%s, which the tracer does not know" % name, "use other modules of torch.nn")
