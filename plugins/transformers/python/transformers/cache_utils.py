"""Caches that hold nothing. The host keeps keys, values and recurrent states, and the graph means one whole sequence, so every
cache is empty: it has seen no tokens and `update` gives back what it got. Modelling code that cannot run without its cache
takes the path of the first step."""

from collections import UserDict


class Cache:
    is_compileable = False
    is_initialized = False
    layers = ()

    def __init__(self, *_, config=None, **__):
        self.config = config
        self.layers = []

    def __len__(self):
        return 0

    def __bool__(self):
        return True

    @classmethod
    def from_legacy_cache(cls, *_, **__):
        return cls()

    def to_legacy_cache(self):
        return None

    def get_seq_length(self, *_, **__):
        return 0

    def get_query_offset(self, *_, **__):
        return 0

    def get_usable_length(self, *_, **__):
        return 0

    def get_mask_sizes(self, query_length, *_, **__):
        return query_length, 0

    def get_max_length(self, *_, **__):
        return None

    get_max_cache_shape = get_max_length

    def update(self, key_states, value_states, *_, **__):
        return key_states, value_states

    def update_indexer(self, key_states, *_, **__):
        return key_states

    def has_previous_state(self, *_, **__):
        return False

    def is_recording_past(self, *_, **__):
        return False

    def get_conv_state(self, *_, **__):
        return None

    get_recurrent_state = get_conv_state

    def update_conv_state(self, states, *_, **__):
        return states

    update_recurrent_state = update_conv_state

    @property
    def is_sliding(self):
        return []

    is_linear = is_dummy = is_sliding


class DynamicCache(Cache):
    pass


class StaticCache(Cache):
    pass


class EncoderDecoderCache(Cache):
    def __init__(self, *caches, **_):
        super().__init__()
        self.self_attention_cache = caches[0] if caches else DynamicCache()
        self.cross_attention_cache = caches[1] if len(caches) > 1 else DynamicCache()
        self.is_updated = {}


class CacheLayerMixin:
    """For models that define layers of their own; none is ever made."""


class DynamicLayer(CacheLayerMixin):
    pass


class DynamicSlidingWindowLayer(DynamicLayer):
    pass


class DynamicIndexedLayer(DynamicLayer):
    pass


class StaticLayer(CacheLayerMixin):
    pass


class StaticSlidingWindowLayer(StaticLayer):
    pass


class LinearAttentionCacheLayerMixin:
    pass


class LinearAttentionLayer(LinearAttentionCacheLayerMixin):
    pass


class LinearAttentionAndFullAttentionLayer(LinearAttentionLayer, DynamicLayer):
    pass


class KVSharingDict(UserDict):
    """Keys and values that layers share, by the name of the kind of layer; set and read within one forward pass."""


HybridCache = SlidingWindowCache = QuantizedCache = MtpCache = DFlashCache = DynamicCache


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Cache,), {"__module__": __name__})
