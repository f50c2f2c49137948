"""Modules: names, parameters, buffers, hooks; the composites; attention."""

import copy

import _graph
import torch
from tests import raises, run
from tests.values import begin
from torch import _composite, _trace, nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float32))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.norms = nn.ModuleList([nn.LayerNorm(3) for _ in range(2)])

    def forward(self, x):
        return self.norms[1](self.linear(x) * self.scale + self.table)


def _model():
    model = nn.Sequential(Block(), nn.SiLU())
    _trace.name_modules(model)
    for name, p in model.named_parameters():
        _trace.bind(p, lambda name=name, p=p: _trace.weight(name, p.shape))
    return model


def test_names():
    model = _model()
    names = [n for n, _ in model.named_parameters()]
    assert names == ["0.scale", "0.linear.weight"] + ["0.norms.%d.%s" % (i, n) for i in (0, 1) for n in ("weight", "bias")]
    assert [n for n, _ in model.named_buffers()] == ["0.table"] and "0.table" not in model.state_dict()
    assert model[0].norms[0]._path == "0.norms.0" and model.get_parameter("0.scale").dtype is torch.bfloat16
    assert [n for n, _ in model.named_modules()][:3] == ["", "0", "0.linear"]
    block = model[0]
    block.scale, block.linear = nn.Parameter(torch.ones(3)), nn.Linear(4, 3, bias=False)
    assert [n for n, _ in model.named_parameters()] == names, "what is replaced keeps its place"
    block.scale = None
    assert block.scale is None and "scale" in block._parameters
    assert raises(AttributeError, lambda: block.nothing) == "'Block' object has no attribute 'nothing'"


def test_copies_have_their_own_parameters():
    model = _model()
    other = copy.deepcopy(model)
    assert other[0].scale is not model[0].scale and other[0].scale.shape == (3,)
    assert other[0].table.tolist() == [0.0, 1.0, 2.0] and type(other[0].norms[1]) is nn.LayerNorm
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_a_pass():
    begin(5)
    model = _model()
    x = torch.stack([_trace.input("token_ids")] * 4, -1).to(torch.bfloat16)
    y = model(x)
    assert y.dtype is torch.float32 and str(list(y.shape)) == "[1, T, 3]"
    op, ins, _ = _graph.node(_trace.node(y))
    assert op == "activation(kind:silu)" and _graph.node(ins[0])[0].startswith("layer_norm(eps:")


def test_hooks():
    begin(5)
    model, seen = _model(), []
    handle = model[1].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    model[1].register_forward_pre_hook(lambda m, args, kwargs: (args, kwargs), with_kwargs=True)
    model(torch.zeros(1, 4, dtype=torch.bfloat16))
    handle.remove()
    model(torch.zeros(1, 4, dtype=torch.bfloat16))
    assert seen == ["SiLU"]


def test_unbound_parameters_are_named():
    begin(5)
    model = nn.Sequential(nn.Linear(2, 2))
    _trace.name_modules(model)
    x = torch.stack([_trace.input("positions")] * 2, -1).to(torch.bfloat16)
    assert "0.weight" in raises(_trace.TraceError, model, x)


def _heads(n, size):
    t = _trace.input("positions").to(torch.bfloat16)
    return t.view(1, 1, -1, 1).expand(1, n, t.shape[1], size)


def test_attention():
    begin(5)
    q, k = _heads(4, 8), _heads(2, 8)
    mask = _composite.causal_mask(window=3)
    y = nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask, scale=0.5, enable_gqa=True)
    assert str(list(y.shape)) == "[1, 4, T, 8]"
    text = _graph.text()
    assert "attention(state:0,scale:0.5,window:Some(3))" in text and "softmax" not in text and "causal_mask" not in text
    nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    assert "attention(state:1,scale:0.353553" in _graph.text()


def test_a_mask_that_is_computed_with_is_ordinary():
    begin(5)
    mask = _composite.causal_mask(dtype=torch.bfloat16)
    assert mask[:, :, :, : mask.shape[-1]].spec == (None, None) and mask.to(torch.float32).spec == (None, None)
    other = mask + 1
    assert other.spec is None and "causal_mask" in _graph.text()


def test_causal_convolution():
    T = begin(5)
    x = torch.stack([_trace.input("positions").to(torch.bfloat16)] * 3, 1)
    conv = nn.Conv1d(3, 3, 4, groups=3, padding=3, bias=False)
    _trace.bind(conv.weight, lambda: _trace.weight("conv", (3, 1, 4)))
    y = conv(x)
    assert str(list(y.shape)) == "[1, 3, T+3]"
    y = y[..., :T]
    assert str(list(y.shape)) == "[1, 3, T]" and "causal_conv1d(state:0)" in _graph.text()
    assert "slice" not in _graph.text()


run(globals())
