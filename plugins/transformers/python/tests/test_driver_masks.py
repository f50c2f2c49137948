"""What masks mean: `driver.masks` sees windows, chunks, linear biases and sets of keys in tensors that code made by hand."""

import torch
from driver import masks
from tests import run
from tests.values import begin
from torch import _composite, _trace


def _distance(tokens):
    rows = torch.arange(tokens)
    return rows[:, None] - rows[None, :]


def _start():
    tokens = begin()
    masks.reset()
    return tokens


def _additive(visible):
    lowest = torch.full((), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    return torch.where(visible, torch.zeros((), dtype=torch.bfloat16), lowest)[None, None]


def test_a_specification_is_taken_as_it_is():
    _start()
    mask = masks.understand(_composite.causal_mask(window=8), 4)
    assert (mask.window, mask.chunk, mask.slopes, mask.allowed) == (8, None, None, None)


def test_a_causal_mask_made_by_hand_is_causal():
    distance = _distance(_start())
    for tensor in ((distance >= 0)[None, None], _additive(distance >= 0)):
        mask = masks.understand(tensor, 4)
        assert (mask.window, mask.chunk, mask.slopes, mask.allowed) == (None, None, None, None)


def test_windows_and_chunks_are_seen():
    tokens = _start()
    distance = _distance(tokens)
    assert masks.understand(_additive((distance >= 0) & (distance < 5)), 4).window == 5
    rows = torch.arange(tokens) // 4
    same = rows[:, None] == rows[None, :]
    assert masks.understand(((distance >= 0) & same)[None, None], 4).chunk == 4


def test_a_window_beyond_the_evaluated_tokens_is_not_taken_for_none():
    distance = _distance(_start())
    far = (distance >= 0) & (distance < 4096)
    assert masks.understand(_additive(far), 4) is None
    assert masks.understand(far[None, None], 4).allowed is not None


def test_linear_biases_become_slopes():
    distance = _distance(_start())
    slopes = torch.tensor([0.5, 0.25])
    bias = (slopes[:, None, None] * -distance.float()).to(torch.bfloat16)[None]
    lowest = torch.full_like(bias, torch.finfo(torch.bfloat16).min)
    mask = masks.understand(torch.where(distance >= 0, bias, lowest), 2)
    assert mask.slopes.tolist() == [0.5, 0.25]


def test_a_bias_that_is_not_linear_has_no_form():
    distance = _distance(_start())
    bias = (distance * distance).to(torch.bfloat16)
    lowest = torch.full_like(bias, torch.finfo(torch.bfloat16).min)
    assert masks.understand(torch.where(distance >= 0, bias, lowest)[None, None], 2) is None


def test_attention_to_later_tokens_has_no_form():
    distance = _distance(_start())
    assert masks.understand((distance >= -1)[None, None], 2) is None


def _chosen():
    ids = _trace.input("token_ids")
    return (ids > 3)[:, None, None, :]


def test_keys_chosen_by_tokens_are_a_further_mask():
    tokens = _start()
    causal = _composite.causal_mask()
    chosen = masks.understand(causal & _chosen(), 2)
    assert chosen.allowed is not None and chosen.allowed.dtype is torch.bool
    additive = _composite.causal_mask(dtype=torch.bfloat16)
    hidden = additive.masked_fill(~_chosen(), torch.finfo(torch.bfloat16).min)
    assert masks.understand(hidden, 2).allowed.dtype is torch.bool
    assert tokens


def test_a_bias_that_depends_on_tokens_has_no_form():
    _start()
    additive = _composite.causal_mask(dtype=torch.bfloat16)
    bias = _trace.input("token_ids").to(torch.bfloat16)[:, None, None, :]
    assert masks.understand(additive + bias, 2) is None


run(globals())
