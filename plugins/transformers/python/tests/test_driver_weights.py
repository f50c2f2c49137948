"""Parameters and the checkpoint's tensors: shapes, ties, what is missing."""

import torch
from driver import errors, weights
from tests import raises, run
from tests.values import begin
from torch import _trace, nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def _leaf(name, *shape):
    return weights.Leaf(name, shape, "BF16")


def test_the_state_has_parameters_and_persistent_buffers():
    assert sorted(weights._state_of(Model())) == ["embed.weight", "head.weight", "scale"]


def test_a_tied_parameter_takes_the_tensor_that_is_there():
    begin()
    for given in ("embed.weight", "head.weight"):
        model = Model()
        model.all_tied_weights_keys = {"head.weight": "embed.weight"}
        found = {given: _leaf("stored", 8, 4)()}
        weights._tie(model, weights._state_of(model), found)
        assert found["embed.weight"] is found["head.weight"]


def test_two_tensors_are_not_tied():
    begin()
    model = Model()
    model.all_tied_weights_keys = {"head.weight": "embed.weight"}
    found = {"embed.weight": _leaf("a", 8, 4)(), "head.weight": _leaf("b", 8, 4)()}
    weights._tie(model, weights._state_of(model), found)
    assert found["embed.weight"] is not found["head.weight"]


def test_a_missing_tensor_is_an_error_that_names_the_nearest():
    text = raises(errors.ModelError, weights._missing, "head.weight", {"heads.weight": None, "other": None})
    assert "no tensor for parameter head.weight" in text and "heads.weight" in text


def test_a_quantised_tensor_is_refused():
    text = raises(errors.ModelError, weights.Leaf("w", (4, 4), "F8_E4M3"))
    assert "w of the checkpoint is quantised (F8_E4M3)" in text


def test_integers_stay_integers():
    begin()
    assert weights.Leaf("ids", (4,), "I32")().dtype is torch.int64


def test_a_scalar_may_be_stored_as_a_vector_of_one():
    begin()
    assert tuple(weights._flat(_leaf("scale", 1)(), Model().scale).shape) == ()
    assert _trace


run(globals())
