"""From config.json to the model's configuration object, which transformers' own class makes.

Two repairs, both by rule: attributes that transformers 4 gave to every configuration and 5 does not are there with the old
defaults for custom code, and a checkpoint that is quantised is refused, since its tensors are not what the graph reads."""

import copy

import torch

from . import classes
from .errors import ModelError

# What every configuration had before transformers 5 (custom code may read any of it).
_OLD_DEFAULTS = {
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "sep_token_id": None,
    "decoder_start_token_id": None,
    "is_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "torchscript": False,
    "pruned_heads": {},
    "use_bfloat16": False,
    "use_cache": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
    "tf_legacy_loss": False,
    "pretraining_tp": 1,
}


def load(raw):
    """The configuration of a model, from config.json as a dictionary."""
    _refuse_quantised(raw)
    custom = classes.custom_config_class(raw)
    model_type = raw.get("model_type")
    if custom is None and model_type is None:
        raise ModelError("config.json has no `model_type`")
    if custom is None and raw.get("auto_map") and model_type not in classes.tables().CONFIG_MAPPING_NAMES:
        raise ModelError(
            "the model `%s` brings its own code (auto_map), which runs with --trust-remote-code only" % model_type
        )
    cls = custom if custom is not None else classes.config_class(model_type)
    fields = copy.deepcopy(raw)
    if hasattr(cls, "_decode_special_floats"):  # infinities, which JSON has not
        fields = cls._decode_special_floats(fields)
    config = cls.from_dict(fields)
    if custom is not None:
        for name, value in _OLD_DEFAULTS.items():
            if not hasattr(config, name):
                setattr(config, name, copy.copy(value))
    # Everything is traced in the type that the graph calls `float`, so that casts to float32 are seen.
    for one in _nested(config):
        one.dtype = torch.bfloat16
        one.use_cache = False
    return config


def _nested(config):
    yield config
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "sub_configs"):
            yield from _nested(inner)


def _refuse_quantised(raw):
    for one in (raw, raw.get("text_config") or {}):
        quantised = one.get("quantization_config") or one.get("compression_config")
        if quantised:
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
            raise ModelError(
                "the checkpoint is quantised (quantization_config, method `%s`); use the checkpoint in bf16, f16 or f32"
                % method
            )


_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
    "model_max_length",
    "max_seqlen",
    "context_length",
)
# For models without a limit of their own, such as state space models.
UNBOUNDED = 1 << 20


def context_length(config):
    """How many positions the model was made for, with what its rotary embeddings stretch them to."""
    text = config.get_text_config()
    for name in _LENGTHS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return _stretched(text, value)
    return UNBOUNDED


def _stretched(config, positions):
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or not isinstance(rope.get("factor"), (int, float)):
        return positions
    kind, factor = rope.get("rope_type"), rope["factor"]
    if kind in ("linear", "dynamic"):
        return int(positions * factor)
    original = rope.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int):
        return int(original * factor)
    return positions


def architecture(raw):
    names = raw.get("architectures")
    return names[0] if isinstance(names, (list, tuple)) and names else None
