"""Names of the generation package: generating is the host's work, so the mix-ins are empty."""

from .configuration_utils import GenerationConfig


class GenerationMixin:
    def can_generate(self):
        return True

    def prepare_inputs_for_generation(self, *_, **__):
        raise RuntimeError("generation is the host's")

    def _update_model_kwargs_for_generation(self, *_, **__):
        raise RuntimeError("generation is the host's")


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__module__": __name__})
