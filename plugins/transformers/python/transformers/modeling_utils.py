"""`PreTrainedModel` without loading, saving, devices and training: what constructs the modules and says how they are tied and
named. Attention and experts resolve to the functions that record them (`driver.attention`, `driver.experts`), whatever a
configuration asks for."""

import re
from contextlib import contextmanager, nullcontext
from itertools import cycle

import torch
from driver import attention, experts, towers
from torch import nn

from .configuration_utils import PreTrainedConfig
from .generation import GenerationMixin
from .integrations.moe import ALL_EXPERTS_FUNCTIONS
from .utils.generic import GeneralInterface
from .utils.output_capturing import _CAN_RECORD_REGISTRY


class AttentionInterface(GeneralInterface):
    """Every name is the recorder. `get_interface` also gets the model's own function, for what the op cannot say."""

    _names = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention", "paged|eager")
    _global_mapping = {name: attention.recorder() for name in _names}

    def get_interface(self, attn_implementation, default=None):
        own = self._local_mapping.get(attn_implementation)
        return attention.recorder(own if own is not None else default, plain=attn_implementation != "eager")

    def get(self, attn_implementation, default=None):
        return self.get_interface(attn_implementation, default)


ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_EXPERTS_FUNCTIONS.register("recorded", experts.record)


def slice_logits_to_keep(hidden_states, logits_to_keep):
    """The host chooses the rows whose logits it wants."""
    return hidden_states


def get_torch_context_manager_or_global_device():
    return None


@contextmanager
def local_torch_dtype(_dtype, _model_class_name=None):
    yield


no_init_weights = nullcontext


class EmbeddingAccessMixin:
    _input_embed_layer = "embed_tokens"

    def get_input_embeddings(self):
        name = getattr(self, "_input_embed_layer", "embed_tokens")
        homes = [self, *(getattr(self, n, None) for n in ("embeddings", "model"))]
        for home in homes:
            found = getattr(home, name, None) if home is not None else None
            if found is not None:
                return found
        for inner in (getattr(self, "language_model", None), self.base_model):
            if inner is not None and inner is not self and hasattr(inner, "get_input_embeddings"):
                return inner.get_input_embeddings()
        raise NotImplementedError("%s does not say which layer embeds its input" % type(self).__name__)

    def set_input_embeddings(self, value):
        setattr(self, getattr(self, "_input_embed_layer", "embed_tokens"), value)

    def get_output_embeddings(self):
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, value):
        self.lm_head = value


class PreTrainedModel(nn.Module, EmbeddingAccessMixin):
    config_class = None
    _auto_class = None
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = "text"
    model_tags = None
    _is_stateful = False
    _no_split_modules = None
    _skip_keys_device_placement = None
    _keep_in_fp32_modules = None
    _keep_in_fp32_modules_strict = None
    _tied_weights_keys = None
    _keys_to_ignore_on_load_missing = None
    _keys_to_ignore_on_load_unexpected = None
    _keys_to_ignore_on_save = None
    _supports_sdpa = False
    _supports_flash_attn = False
    _supports_flash_attn_2 = False
    _supports_flex_attn = False
    _supports_attention_backend = False
    _can_compile_fullgraph = False
    _can_record_outputs = None
    _tp_plan = None
    _pp_plan = None
    supports_gradient_checkpointing = False
    is_parallelizable = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("config_class")
        if own is None:
            # Annotations that name what was never imported cannot be evaluated; the parent's class is then right.
            try:
                own = cls.__annotations__.get("config")
            except (AttributeError, NameError):
                own = None
        if isinstance(own, type):
            cls.config_class = own

    def __new__(cls, config=None, *_, **__):
        if isinstance(config, PreTrainedConfig) and not towers.is_text(config):
            return towers.Tower(config)
        return super().__new__(cls)

    def __init__(self, config, *_, **__):
        super().__init__()
        if not isinstance(config, PreTrainedConfig):
            raise TypeError("%s needs a configuration, not %s" % (type(self).__name__, type(config).__name__))
        self.config = config
        self.name_or_path = ""
        self.warnings_issued = {}
        # Only on this configuration: those of sub-models are set by the models that have them.
        config._attn_implementation_internal = self._implementation()
        config._experts_implementation_internal = "recorded"
        self.generation_config = None
        self.loss_type = None
        self.gradient_checkpointing = False
        _CAN_RECORD_REGISTRY[self] = self._can_record_outputs

    def _implementation(self):
        """SDPA's masks and classes where the model has them, since they leave attention in one call."""
        return "sdpa" if self._supports_sdpa else "eager"

    def _check_and_adjust_attn_implementation(self, *_, **__):
        return self._implementation()

    @property
    def can_record_outputs(self):
        return self._can_record_outputs or {}

    def post_init(self):
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys()
        for attribute in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"):
            setattr(self, attribute, set(getattr(self, attribute) or ()))
        for name, child in self.named_children():
            tied = getattr(child, "all_tied_weights_keys", None) or {}
            self.all_tied_weights_keys.update({"%s.%s" % (name, k): "%s.%s" % (name, v) for k, v in tied.items()})
            for attribute in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"):
                getattr(self, attribute).update(getattr(child, attribute, None) or ())

    def get_expanded_tied_weights_keys(self, all_submodels=False):
        """{parameter: the parameter that it shares}; keys may be patterns over names of parameters or modules."""
        tied = self._tied_weights_keys
        if not tied or not getattr(self.config, "tie_word_embeddings", False):
            return {}
        if isinstance(tied, (list, tuple, set)):  # before transformers 5: only the names
            return ties_with_the_embedding(self, tied)
        if all(re.fullmatch(r"[A-Za-z0-9_.]+\.(weight|bias)", name) for name in (*tied, *tied.values())):
            return dict(tied)
        names = {n for n, _ in self.named_parameters(remove_duplicate=False)}
        names |= {n for n, *_ in self.named_buffers()}
        result = {}
        for target, source in tied.items():
            targets = sorted(n for n in names if re.search("^" + target, n))
            sources = sorted(n for n in names if re.search("^" + source, n))
            if not targets or not sources or len(targets) % len(sources):
                raise ValueError("tied weights %r: %r do not pair with %r" % (target, targets, sources))
            for one, other in zip(targets, cycle(sources)):
                result[one] = result.get(other, other)
        return result

    def init_weights(self):
        pass

    def _init_weights(self, module):
        pass

    _initialize_weights = initialize_weights = init_weights

    def tie_weights(self, *_, **__):
        """Sharing is by name, when weights are bound to the checkpoint's tensors."""

    def get_parameter_or_buffer(self, name):
        home, _, leaf = name.rpartition(".")
        return getattr(self.get_submodule(home), leaf)

    def warn_if_padding_and_no_attention_mask(self, *_, **__):
        pass

    def get_head_mask(self, head_mask, num_hidden_layers, *_):
        return [None] * num_hidden_layers

    def invert_attention_mask(self, mask):
        return torch.zeros((1, 1, 1, 1))

    def get_extended_attention_mask(self, attention_mask, input_shape, *_, dtype=None, **__):
        from torch import _composite

        return _composite.causal_mask(dtype=dtype if dtype is not None else self.dtype)

    @property
    def base_model(self):
        return getattr(self, self.base_model_prefix, self)

    @property
    def dtype(self):
        return next(p.dtype for p in self.parameters())

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def loss_function(self):
        return None

    def can_generate(self):
        return isinstance(self, GenerationMixin)

    def get_decoder(self):
        return getattr(self, "model", self)

    def gradient_checkpointing_enable(self, *_, **__):
        pass

    @classmethod
    def _from_config(cls, config, **_):
        return cls(config)

    from_config = _from_config

    @classmethod
    def register_for_auto_class(cls, *_):
        pass

    @classmethod
    def is_remote_code(cls):
        return cls._auto_class is not None

    @classmethod
    def is_custom_code(cls):
        return not cls.__module__.startswith("transformers.")


def ties_with_the_embedding(model, names):
    """Ties of transformers 4 say which parameters are shared, not with what: with the input's embedding."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return {}
    source = next((n for n, m in model.named_modules() if m is embedding), None)
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    if source is None:
        return {}
    return {n: source + ".weight" for n in names if n in parameters and n.endswith("weight") and n != source + ".weight"}


class PreTrainedAudioTokenizerBase(PreTrainedModel):
    pass


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__module__": __name__})
