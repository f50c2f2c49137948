"""Parts of multimodal models that text does not pass through.

A wrapper runs on token ids alone, so its towers for images, video and sound are never called: they are not built either. What
decides is the configuration of the part: without a vocabulary it is no language model."""

from torch import _trace, nn


def is_text(config):
    """Of a configuration of a model, or of a part of one."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None) is not None


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, *_, **__):
        raise _trace.TraceError("a call of the %s tower" % self.config.model_type, "models run on text only")
