"""Auto classes: the tables are transformers' own (`auto_mappings`, `modeling_auto`), loading is the driver's."""

import importlib


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "AutoConfig" or name.startswith(("CONFIG_MAPPING", "model_type_to")):
        return getattr(importlib.import_module("transformers.models.auto.configuration_auto"), name)
    if name.startswith(("AutoModel", "AutoBackbone", "MODEL_")):
        return getattr(importlib.import_module("transformers.models.auto.modeling_auto"), name)
    return type(name, (), {"__module__": __name__})
