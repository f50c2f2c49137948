"""torch.nn.init: the initial values of parameters, which a checkpoint replaces. Every function leaves its tensor as it is,
except that constants are written to buffers. Used by models while they are made."""

from ..nn.parameter import Parameter


def _leave(tensor=None, *args, **kwargs):
    return tensor


uniform_ = normal_ = xavier_uniform_ = xavier_normal_ = kaiming_uniform_ = kaiming_normal_ = trunc_normal_ = _leave
orthogonal_ = eye_ = dirac_ = sparse_ = _no_grad_trunc_normal_ = _leave


def constant_(tensor, val):
    return tensor if isinstance(tensor, Parameter) else tensor.fill_(val)


def zeros_(tensor):
    return constant_(tensor, 0)


def ones_(tensor):
    return constant_(tensor, 1)


def calculate_gain(nonlinearity, param=None):
    return 1.0


def _calculate_fan_in_and_fan_out(tensor):
    return tensor.shape[1], tensor.shape[0]


def _calculate_correct_fan(tensor, mode):
    return tensor.shape[1 if mode == "fan_in" else 0]
