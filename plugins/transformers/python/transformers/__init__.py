"""The package `transformers`, as far as modelling code needs it. Its own `__init__` would import tokenizers, trainers and
image libraries; here names are looked up one by one, in the modules where modelling code finds them."""

import importlib

import _host

# The version of the package that the host found; the last one is what this was written against.
__version__ = (_host.request().get("sources") or {}).get("transformers_version") or "5.23.0"

# Where a name that custom code takes from the top level may live, in the order of search.
_HOMES = (
    "modeling_utils",
    "configuration_utils",
    "cache_utils",
    "activations",
    "modeling_outputs",
    "utils.generic",
    "utils",
    "generation",
    "modeling_rope_utils",
    "models.auto",
)
_OLD_NAMES = {"PretrainedConfig": "PreTrainedConfig"}


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "AutoConfig" or name.startswith("AutoModel"):
        return getattr(importlib.import_module("transformers.models.auto"), name)
    for home in _HOMES:
        module = importlib.import_module("transformers." + home)
        wanted = _OLD_NAMES.get(name, name)
        if wanted in vars(module):
            return vars(module)[wanted]
    # Classes of the library itself, such as LlamaConfig or LlamaForCausalLM.
    from driver import classes

    found = classes.find_anywhere(name)
    if found is None:
        raise AttributeError("module 'transformers' has no attribute %r" % name)
    return found
