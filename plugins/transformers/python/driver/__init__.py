"""From a request to a graph: configuration, class, model without weights, two recorded passes, names of the checkpoint.

`build` is what the plugin calls. The model is recorded at two numbers of tokens; the plugin compares the two texts, so that a
graph never depends on the length it was traced with."""

import _graph
import _host

from . import attention, classes, configs, dispatch, lengths, loops, rope, squares, trace, weights

# Numbers of tokens: one that is shorter than windows and other limits usually are, and two that are longer.
SHORT = 11


def build(request):
    _install()
    raw = request["config"]
    clock = [_host.clock()]
    config = configs.load(raw)
    cls = classes.model_class(configs.architecture(raw), config, raw)
    loops.install(cls, config)
    squares.install()
    clock.append(_host.clock())
    model = instantiate(cls, config)
    weights.bind(model, request["tensors"])
    clock.append(_host.clock())
    length = record(model, configs.context_length(config))
    clock.append(_host.clock())
    _graph.model(configs.architecture(raw) or cls.__name__, length)
    steps = ("classes", "model and weights", "traces")
    times = ", ".join("%s %.0f ms" % (s, 1e3 * (b - a)) for s, a, b in zip(steps, clock, clock[1:]))
    _host.log("traced %s: %s" % (cls.__name__, times))


def record(model, length):
    """Records the model; gives the longest sequence. Two traces must agree, since a graph means every length; the second names its
    nodes. Where the same code was compared for the same request before, the second alone is made."""
    before = _host.inputs()
    note = _host.recall(before) if before is not None else None
    if note is not None:
        multiple, long, after = note.split()
        _trace_once(model, int(long), int(multiple))
        if _host.inputs() == after:
            _graph.trust()
            return lengths.usable(length, int(long))
        _graph.reset()
    multiple, long = _compare(model, length)
    if before is not None:
        _host.remember(before, "%d %d %s" % (multiple, long, _host.inputs()))
    return lengths.usable(length, long)


def _compare(model, length):
    """Two traces; (multiple of T, length of the second). A branch on the number of tokens that a short and a long sequence take
    differently is an error, but for those that the long branch is known to cover (`lengths`)."""
    long = max(length - 1, 2 * SHORT + 1)
    multiple, first = _first_trace(model)
    _trace_once(model, long, multiple)
    second = lengths.Traced(long, _graph.text())
    if first.text != second.text:
        lengths.check(first, second)
        _graph.reset()
        long -= long // 4
        _trace_once(model, long + long // 4, multiple, named=False)
        _trace_once(model, long, multiple)
    return multiple, long


def _first_trace(model):
    """The short trace, over blocks if the model cannot be recorded otherwise."""
    multiple, first_error = 1, None
    while True:
        try:
            _trace_once(model, SHORT, multiple, named=False)
            return multiple, lengths.Traced(SHORT, _graph.text())
        except _graph.TraceError as error:
            first_error = first_error or error
            multiple = lengths.block_multiple(error, multiple)
            if multiple is None:
                raise first_error from error
            _graph.reset()


def _trace_once(model, size, multiple, named=True):
    _graph.begin(size)
    _graph.output("logits", trace.run(model, size, multiple, named))


def _install():
    """Rules that change modules of torch and transformers, before a model is imported."""
    from transformers import modeling_rope_utils

    dispatch.install()
    lengths.install()
    attention.install()
    rope.install(modeling_rope_utils)


def instantiate(cls, config):
    """The model, with shapes but without weights."""
    from torch import _trace

    wanted = getattr(cls, "config_class", None)
    if isinstance(wanted, type) and not isinstance(config, wanted):
        # A class of the text model under the configuration of the whole.
        inner = config.get_text_config()
        if isinstance(inner, wanted):
            config = inner
    model = cls(config)
    model.eval()
    _trace.name_modules(model)
    return model
