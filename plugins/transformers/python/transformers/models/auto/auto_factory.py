"""`AutoModel.from_config` for models that contain others. The real module loads checkpoints and custom code from the hub."""

from collections import OrderedDict

from driver.towers import Tower

from .configuration_auto import model_type_to_module_name


class _LazyAutoMapping(OrderedDict):
    """{configuration class: model class} by way of {model type: name}."""

    def __init__(self, config_mapping, model_mapping):
        super().__init__()
        self._names = model_mapping

    def class_for(self, config):
        from driver import classes

        name = self._names.get(config.model_type)
        if name is None:
            return None
        if isinstance(name, (list, tuple)):
            name = name[0]
        package = "transformers.models.%s" % model_type_to_module_name(config.model_type)
        return classes._from_package(package, "modeling_", name)

    def register(self, *_, **__):
        pass


class _BaseAutoModelClass:
    _model_mapping = None

    @classmethod
    def from_config(cls, config, **_):
        found = cls._model_mapping.class_for(config)
        return found(config) if found is not None else Tower(config)

    _from_config = from_config

    @classmethod
    def register(cls, *_, **__):
        pass


class _BaseAutoBackboneClass(_BaseAutoModelClass):
    pass


def auto_class_update(cls, *_, **__):
    return cls


def get_values(mapping):
    return list(mapping.values())


def add_generation_mixin_to_remote_model(cls):
    return cls
