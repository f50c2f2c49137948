"""`GenerationConfig`, as far as configuration classes use it: the names of the parameters that they must not keep."""

_PARAMETERS = (
    "max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams "
    "use_cache_generation temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "encoder_repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids renormalize_logits forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "sequence_bias token_healing guidance_scale num_return_sequences output_scores output_logits "
    "return_dict_in_generate encoder_no_repeat_ngram_size decoder_start_token_id_generation num_beam_groups "
    "diversity_penalty"
).split()


class GenerationConfig:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    @staticmethod
    def _get_default_generation_params():
        return dict.fromkeys(_PARAMETERS)

    @classmethod
    def from_model_config(cls, _config):
        return cls()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__module__": __name__})
