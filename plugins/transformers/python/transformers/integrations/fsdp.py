"""No training library is there."""


def is_fsdp_managed_module(_module):
    return False


def is_fsdp_enabled():
    return False
