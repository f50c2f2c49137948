"""Base classes of layers. The real module loads checkpoints of extra layers and implements gradient checkpointing; what
matters for a forward pass is that a layer is an `nn.Module`."""

from torch import nn


class GradientCheckpointingLayer(nn.Module):
    gradient_checkpointing = False


class GenericForSequenceClassification:
    base_model_prefix = "model"


class GenericForQuestionAnswering:
    base_model_prefix = "model"


class GenericForTokenClassification:
    base_model_prefix = "model"


class MtpLayer(nn.Module):
    """Layers that predict further tokens ahead: not part of the logits of the next one."""


class MtpModel(nn.Module):
    pass
