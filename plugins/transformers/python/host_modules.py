"""Which modules of transformers run as they are, which are left out, and why.

A file of ours at `python/transformers/...` always wins. For the rest the first pattern that matches decides:
`package` runs transformers' own file, `empty` is a package whose `__init__` does not run, `stub` is a module whose every
name is a class without contents: it can be imported and named, and does nothing.
"""

import fnmatch

TABLE = [
    # pattern, source, reason
    ("transformers.models.auto.*", "stub", "maps names to classes by importing all of them; the driver finds the class itself"),
    ("transformers.models.*.tokenization_*", "stub", "the host tokenises"),
    ("transformers.models.*.processing_*", "stub", "text only"),
    ("transformers.models.*.image_processing_*", "stub", "text only"),
    ("transformers.models.*.video_processing_*", "stub", "text only"),
    ("transformers.models.*.feature_extraction_*", "stub", "text only"),
    ("transformers.models.*.generation_*", "stub", "the host samples"),
    ("transformers.models.*.*", "package", "the models"),
    ("transformers.models.*", "empty", "its __init__ imports lazily what the driver imports by name"),
    ("transformers.models", "empty", "its __init__ imports lazily what the driver imports by name"),
    ("transformers.configuration_utils", "package", "configurations"),
    ("transformers.modeling_rope_utils", "package", "rotary frequencies by the real code"),
    ("transformers.activations", "package", "activation functions by the real code"),
    ("transformers.modeling_outputs", "package", "plain classes"),
    ("transformers.utils.output_capturing", "package", "decorators of forward methods"),
    ("transformers.utils.generic", "package", "decorators and ModelOutput"),
    ("transformers.utils.type_validators", "package", "used by configurations"),
    ("transformers.integrations.moe", "package", "the interface of experts"),
    ("transformers.integrations.heterogeneity", "package", "used by configurations"),
    ("transformers.integrations.heterogeneity.configuration_utils", "package", "used by configurations"),
]


def source(name):
    """Where a module of transformers comes from."""
    for pattern, where, _reason in TABLE:
        if fnmatch.fnmatchcase(name, pattern) and (name.count(".") == pattern.count(".")):
            return where
    return "stub"


def prepare(module, kind):
    """Called before the code of a module runs: models get a `range` and a `min` that know sizes which depend on tokens."""
    if kind == "model" or (kind == "package" and module.__name__.startswith("transformers.models.")):
        from torch import _trace

        module.__dict__.update(_trace.GLOBALS)
