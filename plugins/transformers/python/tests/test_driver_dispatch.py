"""Loops over experts: every expert on every token, chosen by the mask; anything else is an error."""

import _graph
import torch
from driver import dispatch
from tests import raises, run
from tests.values import begin
from torch import _trace
from torch.nn import functional as F

EXPERTS = 3


def _start():
    tokens = begin()
    dispatch.install()
    dispatch.reset()
    return tokens


def _routed(classes=EXPERTS):
    x = F.embedding(_trace.input("token_ids")[0], _trace.weight("embedding", (16, 4)))
    logits = F.linear(x, _trace.weight("router", (EXPERTS, 4)))
    weights, ids = torch.topk(logits.softmax(-1), 2, dim=-1)
    mask = F.one_hot(ids, num_classes=classes).permute(2, 1, 0)
    return x, weights, mask


def _loop(classes=EXPERTS, skip=None):
    x, weights, mask = _routed(classes)
    experts = _trace.weight("experts", (EXPERTS, 4, 4))
    out = torch.zeros_like(x)
    seen = []
    for hit in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        expert = hit[0]
        if int(expert) == skip:
            continue
        seen.append(int(expert))
        choice, token = torch.where(mask[expert])
        y = F.linear(x[token], experts[expert]) * weights[token, choice, None]
        out.index_add_(0, token, y)
    dispatch.check()
    return out, seen


def test_every_expert_is_applied_to_all_tokens():
    _start()
    out, seen = _loop()
    assert seen == [0, 1, 2]
    assert _graph.type(_trace.node(out))[1] == (((1, 1),), 4)


def test_classes_that_no_choice_can_give_are_left_out():
    _start()
    assert _loop(classes=EXPERTS + 1)[1] == [0, 1, 2]


def test_a_loop_that_skips_an_expert_is_refused():
    _start()
    assert "loop over positions that depend on data" in raises(_trace.TraceError, _loop, EXPERTS, 1)


def test_positions_are_good_for_nothing_else():
    _start()
    x, _, mask = _routed()
    _, token = torch.where(mask[0])
    assert "positions of a mask" in raises(_trace.TraceError, lambda: token + 1)
    assert "another form" in raises(_trace.TraceError, lambda: x[:, token])


def test_parts_by_data_dependent_sizes_are_joined_by_the_sizes():
    _start()
    x, _, mask = _routed()
    sizes = mask.sum(dim=(-1, -2)).tolist()
    experts = _trace.weight("experts", (EXPERTS, 4, 4))
    parts = [F.linear(part, experts[i]) for i, part in enumerate(x.split(sizes, dim=0))]
    out = torch.cat(parts, dim=0)
    assert _graph.type(_trace.node(out))[1] == (((1, 1),), 4)
    assert "some of the parts" in raises(_trace.TraceError, torch.cat, parts[:2])


run(globals())
