"""Which modules of transformers run as they are, which are left out, and why.

A file of ours at `python/transformers/...` always wins. For the rest the first pattern that matches decides:
`package` runs transformers' own file, `empty` is a package whose `__init__` does not run, `stub` is a module whose every
name is a class without contents: it can be imported and named, and does nothing.
"""

TABLE = [
    # pattern, source, reason
    ("transformers.models.auto.auto_mappings", "package", "tables of names"),
    ("transformers.models.auto.configuration_auto", "package", "tables of names"),
    ("transformers.models.auto.modeling_auto", "package", "tables of names"),
    ("transformers.models.auto.*", "stub", "tokenizers and processors by name"),
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
    ("transformers.backbone_utils", "package", "used by configurations"),
    ("transformers.conversion_mapping", "package", "names of checkpoints' tensors"),
    ("transformers.core_model_loading", "package", "names of checkpoints' tensors"),
    ("transformers.integrations.moe", "package", "the interface of experts"),
    ("transformers.integrations.heterogeneity", "package", "used by configurations"),
    ("transformers.integrations.heterogeneity.configuration_utils", "package", "used by configurations"),
]


_PATTERNS = [(pattern.split("."), where) for pattern, where, _reason in TABLE]


def source(name):
    """Where a module of transformers comes from. A `*` in the table ends a part of a name."""
    parts = name.split(".")
    for pattern, where in _PATTERNS:
        if len(parts) == len(pattern) and all(map(_matches, parts, pattern)):
            return where
    return "stub"


def _matches(part, pattern):
    return part == pattern or (pattern[-1] == "*" and part.startswith(pattern[:-1]))


def prepare(module, kind):
    """Called before the code of a module runs: models get a `range` and a `min` that know sizes which depend on tokens."""
    if kind == "model" or (kind == "package" and module.__name__.startswith("transformers.models.")):
        from torch import _trace

        module.__dict__.update(_trace.GLOBALS)
