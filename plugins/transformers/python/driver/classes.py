"""Classes by name: through transformers' own tables, or `auto_map` and the model's own files.

A configuration class is found by `model_type`, a model class by `architectures` in the same package. Custom code is preferred,
as in transformers, when config.json names it and the user trusts it (the host then hands over the files)."""

import importlib

from .errors import ModelError, near

MODEL_PACKAGE = "transformers_modules.model"


def tables():
    return importlib.import_module("transformers.models.auto.configuration_auto")


def package_of(model_type):
    """The folder of `transformers.models` for a model type."""
    return tables().model_type_to_module_name(model_type)


def config_class(model_type):
    names = tables().CONFIG_MAPPING_NAMES
    if model_type not in names:
        raise ModelError(
            "config.json has model_type `%s`, which this version of transformers does not know%s"
            % (model_type, near(str(model_type), names))
        )
    package = "transformers.models.%s" % package_of(model_type)
    return _from_package(package, "configuration_", names[model_type])


def _from_package(package, prefix, name):
    """A class of a package of models: in the file of the package's name, or in another of its files."""
    short = package.rsplit(".", 1)[1]
    for module in _modules(package, prefix, short):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is not None and not module.startswith(error.name):
                raise
            continue
        if isinstance(found, type):
            return found
    raise ModelError("%s has no class `%s`" % (package, name))


def _modules(package, prefix, short):
    """The usual file, then those of older layouts such as `configuration_data2vec_text`."""
    yield "%s.%s%s" % (package, prefix, short)
    for suffix in ("_text", "_decoder", "_asr"):
        yield "%s.%s%s%s" % (package, prefix, short, suffix)


def model_class(architecture, config, raw):
    """The class that config.json asks for."""
    custom = custom_reference(raw, _CAUSAL)
    if custom is not None:
        return custom_class(custom)
    model_type = config.model_type
    package = "transformers.models.%s" % package_of(model_type)
    if architecture is not None:
        try:
            return _from_package(package, "modeling_", architecture)
        except ModelError:
            pass
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for table in (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        name = _first(table.get(model_type))
        if name is not None and architecture in (None, name):
            return model_of_table(name, model_type)
    raise ModelError("transformers has no class `%s` for model_type `%s`" % (architecture, model_type))


def _first(names):
    return names[0] if isinstance(names, (list, tuple)) else names


def model_of_table(name, model_type):
    """A class that a table of transformers names for a model type: in the type's package, or another model's."""
    try:
        return _from_package("transformers.models.%s" % package_of(model_type), "modeling_", name)
    except ModelError:
        found = find_anywhere(name)
        if found is None:
            raise
        return found


_CONFIG = ("AutoConfig",)
_CAUSAL = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModel")


def custom_reference(raw, kinds):
    """What `auto_map` names first of these, if the model's own files are there."""
    import _host

    mapping = raw.get("auto_map") or {}
    files = set(_host.model_files())
    for kind in kinds:
        reference = mapping.get(kind)
        if isinstance(reference, (list, tuple)):
            reference = reference[0]
        if reference and files:
            return reference
    return None


def custom_class(reference):
    """`configuration_x.XConfig`, `folder/modeling_x.X` (or with a dot), or `repository--modeling_x.X`."""
    import _host

    repository, _, local = str(reference).rpartition("--")
    module, _, name = local.rpartition(".")
    module = module.replace("/", ".")
    path = module.replace(".", "/") + ".py"
    if path not in set(_host.model_files()):
        where = " of the repository %s" % repository if repository else ""
        raise ModelError(
            "auto_map names `%s`, but the model's folder has no file %s%s" % (reference, path, where)
        )
    found = getattr(importlib.import_module("%s.%s" % (MODEL_PACKAGE, module)), name, None)
    if not isinstance(found, type):
        raise ModelError("auto_map names `%s`, but %s has no class `%s`" % (reference, path, name))
    return found


def custom_config_class(raw):
    reference = custom_reference(raw, _CONFIG)
    return custom_class(reference) if reference is not None else None


def find_anywhere(name):
    """A class of the library by its name alone, for `from transformers import LlamaConfig`; None if there is none."""
    config_tables = tables()
    for model_type, config_name in config_tables.CONFIG_MAPPING_NAMES.items():
        if config_name == name:
            return config_class(model_type)
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for table in (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES):
        for model_type, names in table.items():
            if name == names or (isinstance(names, (list, tuple)) and name in names):
                try:
                    return _from_package("transformers.models.%s" % package_of(model_type), "modeling_", name)
                except ModelError:
                    continue  # another model's class, under which this one's checkpoints are loaded too
    return None
