"""The small modules of torch: torch.cuda, torch.jit, torch.utils.checkpoint and the like, most of which do nothing here.

Each is a table of names. What asks whether something is available is told that it is not; decorators give back what they
are given; contexts do nothing. Made once, when torch is imported.
"""

import sys
import types

from . import _dtypes
from ._matrix import solve_triangular
from ._tensor import FUNCTIONS, Tensor
from ._trace import MissingError, TraceError


def no(*args, **kwargs):
    return False


def none(*args, **kwargs):
    return None


def zero(*args, **kwargs):
    return 0


def same(f=None, *args, **kwargs):
    """A decorator that changes nothing, with or without arguments."""
    return f if callable(f) or isinstance(f, Tensor) else (lambda g: g)


class Context:
    """no_grad, autocast and others: a context and a decorator that do nothing."""

    def __new__(cls, *args, **kwargs):
        if len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], (type, Tensor, _dtypes.dtype)):
            return args[0]
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, f):
        return f

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False


class Function:
    """torch.autograd.Function: only the forward pass runs."""

    class _Context:
        needs_input_grad = ()

        def __getattr__(self, name):
            return none

    @classmethod
    def apply(cls, *args):
        return cls.forward(cls._Context(), *args)


class Nothing:
    """A class that can be named, made and subclassed, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __class_getitem__(cls, item):
        return cls


def nothing(name):
    return type(name, (Nothing,), {"__module__": "torch"})


def refuse(name):
    def f(*args, **kwargs):
        raise TraceError("a call of torch.%s" % name, "it is not known to the tracer")

    return f


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingError("%s.%s, which the tracer does not know" % (self.__name__, name), "use other functions of torch")


def module(name, **members):
    m = sys.modules.get(name)
    if m is None:
        m = _Module(name)
        m.__path__ = []
        sys.modules[name] = m
        parent, _, leaf = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], leaf, m)
    m.__dict__.update(members)
    return m


class Normal:
    """torch.distributions.Normal, of which the quantile function of known numbers is used."""

    def __init__(self, loc, scale, **kwargs):
        self.loc, self.scale = loc, scale

    def icdf(self, value):
        from statistics import NormalDist

        from ._trace import concrete, constant

        d = NormalDist(float(self.loc), float(self.scale))
        data = [d.inv_cdf(min(max(p, 1e-12), 1 - 1e-12)) for p in concrete(value, "Normal.icdf")]
        return constant(value.shape, value.dtype, data)

    def sample(self, shape=()):
        return FUNCTIONS["zeros"](shape)


class Categorical:
    """torch.distributions.Categorical: models that sample while they run depend on data."""

    def __init__(self, probs=None, logits=None, **kwargs):
        raise TraceError("a call of torch.distributions.Categorical", "what a model samples cannot be a graph")


def _vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None, out=None):
    return FUNCTIONS["norm"](x, ord, dim, keepdim, dtype=dtype)


def _tree_map(f, tree, *rest):
    if isinstance(tree, (list, tuple)):
        return type(tree)([_tree_map(f, x) for x in tree])
    if isinstance(tree, dict):
        return {k: _tree_map(f, x) for k, x in tree.items()}
    return f(tree)


_FLAGS = types.SimpleNamespace


def build():
    module("torch.compiler", is_compiling=no, is_dynamo_compiling=no, is_exporting=no, disable=same, allow_in_graph=same,
           assume_constant_result=same, cudagraph_mark_step_begin=none, set_stance=Context)  # fmt: skip
    module("torch._dynamo", allow_in_graph=same, is_compiling=no, disable=same, mark_static_address=none, mark_dynamic=none,
           config=_FLAGS(), graph_break=none, reset=none)  # fmt: skip
    module("torch._dynamo.config", cache_size_limit=8)
    module("torch._dynamo.eval_frame", OptimizedModule=nothing("OptimizedModule"))
    module("torch.jit", script=same, is_tracing=no, is_scripting=no, ignore=same, unused=same, export=same, Final=object,
           trace=refuse("jit.trace"), script_method=same, interface=same, ScriptModule=nothing("ScriptModule"),
           annotate=lambda kind, x: x, _overload_method=same, ScriptFunction=nothing("ScriptFunction"))  # fmt: skip
    module("torch.fx", Proxy=nothing("Proxy"), wrap=same, GraphModule=nothing("GraphModule"), Tracer=nothing("Tracer"))
    module("torch.fx.traceback", annotate=Context)
    device = dict(is_available=no, device_count=zero, current_device=zero, synchronize=none, empty_cache=none,
                  is_initialized=no, manual_seed=none, manual_seed_all=none, get_device_capability=lambda *a: (0, 0),
                  is_bf16_supported=no, memory_allocated=zero, max_memory_allocated=zero, reset_peak_memory_stats=none,
                  device=Context, stream=Context, Stream=nothing("Stream"), Event=nothing("Event"),
                  current_stream=none)  # fmt: skip
    module("torch.cuda", is_current_stream_capturing=no, **device)
    module("torch.cuda.amp", autocast=Context, custom_fwd=same, custom_bwd=same, GradScaler=nothing("GradScaler"))
    for name in ("xpu", "mps", "npu", "hpu", "mlu", "musa", "mtia"):
        module("torch." + name, **device)
    module("torch.backends")
    for name in ("cuda", "cudnn", "mps", "opt_einsum", "mkldnn", "xnnpack", "cpu"):
        module("torch.backends." + name, is_available=no, is_built=no, enabled=False, is_flash_attention_available=no,
               matmul=_FLAGS(allow_tf32=False), allow_tf32=False, deterministic=True, benchmark=False,
               sdp_kernel=Context, flash_sdp_enabled=no, mem_efficient_sdp_enabled=no, math_sdp_enabled=no,
               enable_flash_sdp=none, enable_mem_efficient_sdp=none, enable_math_sdp=none)  # fmt: skip
    _distributed()
    module("torch.library", custom_op=same, register_fake=same, register_autograd=none, register_kernel=same,
           triton_op=same, wrap_triton=same, Library=nothing("Library"), impl=same, define=none)  # fmt: skip
    module("torch.autograd", Function=Function, set_detect_anomaly=Context, grad=refuse("autograd.grad"), Variable=Tensor)
    module("torch.autograd.function", Function=Function, once_differentiable=same)
    module("torch.autograd.graph", saved_tensors_hooks=Context)
    module("torch.autograd.profiler", record_function=Context)
    module("torch.profiler", record_function=Context, profile=Context)
    module("torch.onnx", is_in_onnx_export=no)
    module("torch.onnx.operators", shape_as_tensor=lambda x: FUNCTIONS["tensor"](list(x.shape)))
    module("torch.version", __version__="2.11.0", cuda=None, hip=None, git_version="")
    module("torch.torch_version", TorchVersion=str)
    module("torch.amp", autocast=Context, custom_fwd=same, custom_bwd=same, is_autocast_available=no,
           GradScaler=nothing("GradScaler"))  # fmt: skip
    module("torch.amp.autocast_mode", is_autocast_available=no)
    module("torch.overrides", TorchFunctionMode=Context, has_torch_function=no, handle_torch_function=refuse("overrides"))
    module("torch.special", expit=FUNCTIONS["sigmoid"], logsumexp=FUNCTIONS["logsumexp"], erf=FUNCTIONS["erf"],
           softmax=FUNCTIONS["softmax"], log_softmax=FUNCTIONS["log_softmax"], expm1=FUNCTIONS["expm1"])  # fmt: skip
    module("torch.linalg", norm=FUNCTIONS["norm"], vector_norm=_vector_norm, solve_triangular=solve_triangular,
           matmul=FUNCTIONS["matmul"], cross=FUNCTIONS["cross"], diagonal=FUNCTIONS["diagonal"])  # fmt: skip
    module("torch.fft")
    module("torch.ops")
    module("torch.classes")
    module("torch.sparse")
    module("torch.random", fork_rng=Context, manual_seed=none)
    module("torch.testing", assert_close=none)
    module("torch.distributions", Normal=Normal, Categorical=Categorical)
    module("torch.distributions.normal", Normal=Normal)
    module("torch.distributions.categorical", Categorical=Categorical)
    module("torch.optim", Optimizer=nothing("Optimizer"), Adam=nothing("Adam"), AdamW=nothing("AdamW"))
    module("torch.optim.lr_scheduler", LambdaLR=nothing("LambdaLR"))
    module("torch.serialization", add_safe_globals=none)
    module("torch.export", export=refuse("export.export"), Dim=nothing("Dim"), ExportedProgram=nothing("ExportedProgram"))
    module("torch.types", Device=object, Number=object, _size=tuple)
    module("torch._C", _get_tracing_state=none, _nn=_FLAGS(), DispatchKey=nothing("DispatchKey"))
    for name in ("profiling_mode", "profiling_executor", "texpr_fuser_enabled", "nvfuser_enabled"):
        module("torch._C", **{"_jit_set_" + name: none})
    for name in ("fuse_on_cpu", "fuse_on_gpu"):
        module("torch._C", **{"_jit_override_can_" + name: none})
    module("torch._tensor", Tensor=Tensor)
    _utils()
    _nn()


def _distributed():
    module("torch.distributed", is_available=no, is_initialized=no, get_rank=zero, get_world_size=lambda *a: 1,
           ProcessGroup=nothing("ProcessGroup"), ReduceOp=_FLAGS(SUM=0, MAX=1), group=_FLAGS(WORLD=None),
           all_reduce=none, barrier=none, is_torchelastic_launched=no, DeviceMesh=nothing("DeviceMesh"))  # fmt: skip
    module("torch.distributed._functional_collectives", all_reduce=lambda x, *a: x)
    module("torch.distributed.tensor", DTensor=nothing("DTensor"), Placement=nothing("Placement"), Shard=nothing("Shard"),
           Replicate=nothing("Replicate"), distribute_tensor=refuse("distributed.tensor"))  # fmt: skip
    module("torch.distributed.device_mesh", DeviceMesh=nothing("DeviceMesh"), init_device_mesh=refuse("init_device_mesh"))
    module("torch.distributed.fsdp", FullyShardedDataParallel=nothing("FullyShardedDataParallel"))
    module("torch.distributed.algorithms")
    module("torch.distributed.nn")
    module("torch.distributed.nn.functional", all_reduce=lambda x, *a, **k: x)


def _utils():
    module("torch.utils")
    module("torch.utils._pytree", register_pytree_node=none, _register_pytree_node=none, _dict_flatten_with_keys=none,
           Context=object, tree_map=_tree_map, MappingKey=nothing("MappingKey"), _dict_flatten=none,
           _dict_unflatten=none)  # fmt: skip

    def checkpoint(f, *args, use_reentrant=None, **kwargs):
        return f(*args, **kwargs)

    module("torch.utils.checkpoint", checkpoint=checkpoint, checkpoint_sequential=refuse("utils.checkpoint_sequential"),
           set_checkpoint_early_stop=Context)  # fmt: skip
    data = dict(Dataset=nothing("Dataset"), DataLoader=nothing("DataLoader"), IterableDataset=nothing("IterableDataset"),
                Sampler=nothing("Sampler"))  # fmt: skip
    module("torch.utils.data", **data)
    module("torch.utils.hooks", RemovableHandle=nothing("RemovableHandle"))
    module("torch.utils.cpp_extension", load=refuse("utils.cpp_extension.load"))


def _nn():
    from . import nn
    from .nn import functional, init, layers, parameter
    from .nn import module as modules

    sys.modules["torch.nn"].__dict__.setdefault("functional", functional)
    module("torch.nn.modules", Module=nn.Module, Linear=nn.Linear, activation=layers, normalization=layers, loss=layers)
    everything = {n: x for n, x in vars(nn).items() if isinstance(x, type)}
    for name in (
        "module",
        "linear",
        "normalization",
        "activation",
        "container",
        "sparse",
        "conv",
        "dropout",
        "loss",
        "utils",
    ):
        module("torch.nn.modules." + name, **everything)
    module("torch.nn.attention", SDPBackend=_FLAGS(MATH=0, FLASH_ATTENTION=1, EFFICIENT_ATTENTION=2), sdpa_kernel=Context)
    module("torch.nn.attention.flex_attention", BlockMask=nothing("BlockMask"), flex_attention=refuse("flex_attention"),
           create_block_mask=refuse("create_block_mask"), create_mask=refuse("create_mask"), and_masks=refuse("and_masks"),
           or_masks=refuse("or_masks"), _DEFAULT_SPARSE_BLOCK_SIZE=128)  # fmt: skip
    module("torch.nn.attention.bias", CausalBias=nothing("CausalBias"), causal_lower_right=refuse("causal_lower_right"))
    module("torch.nn.utils", clip_grad_norm_=zero, clip_grad_value_=zero, weight_norm=refuse("nn.utils.weight_norm"),
           skip_init=lambda cls, *args, **kwargs: cls(*args, **kwargs), parameters_to_vector=refuse("parameters_to_vector"),
           spectral_norm=refuse("nn.utils.spectral_norm"), remove_weight_norm=same)  # fmt: skip
    module("torch.nn.utils.rnn", pad_sequence=refuse("pad_sequence"), PackedSequence=nothing("PackedSequence"))
    module("torch.nn.utils.parametrizations", weight_norm=same)
    module("torch.nn.utils.parametrize")
    module("torch.nn.parallel", DistributedDataParallel=nothing("DistributedDataParallel"))
    assert init and parameter and modules
