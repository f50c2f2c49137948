"""Kernels by name. The real module replaces functions by kernels from the hub; here a function that the host has an op for is
recorded as that op (`driver.kernels`), and every other one runs as it is written."""

import inspect
from functools import wraps

ALLOW_ALL_KERNELS = False


def use_kernel_forward_from_hub(*_, **__):
    return lambda it: it


use_kernel_func_from_hub = use_kernelized_func = use_kernel_forward_from_hub


def use_kernel_func_from_hub_with_fallback(func_name, package=None, internal_path=None):
    def decorate(fallback):
        from driver import kernels

        recorded = kernels.KERNELS.get(func_name)
        if recorded is None:
            return fallback
        signature = inspect.signature(fallback)

        @wraps(fallback)
        def call(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return recorded(**bound.arguments)

        return call

    return decorate


def lazy_load_kernel(*_, **__):
    return None


def is_kernel(_name):
    return False


def get_kernel(*_, **__):
    raise ImportError("kernels are not loaded from the hub")
