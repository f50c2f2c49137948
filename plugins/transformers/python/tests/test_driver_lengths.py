"""Branches on the number of tokens, and sizes that are multiples of blocks."""

from driver import errors, lengths
from tests import raises, run


def _traced(size, guards, choices=()):
    traced = lengths.Traced.__new__(lengths.Traced)
    traced.size, traced.text, traced.guards, traced.choices = size, "", guards, set(choices)
    return traced


PLACE = ("model/modeling_x.py:7", "T > 16")


def test_a_branch_that_lengths_take_differently_is_an_error():
    short, long = _traced(11, {PLACE: False}), _traced(511, {PLACE: True})
    text = raises(errors.ModelError, lengths.check, short, long)
    assert "model/modeling_x.py:7" in text and "T > 16" in text


def test_the_choice_of_the_best_covers_the_short_branch():
    lengths.check(_traced(11, {PLACE: False}), _traced(511, {PLACE: True}, [16]))


def test_branches_that_agree_are_no_error():
    lengths.check(_traced(11, {PLACE: True}), _traced(511, {PLACE: True}))


def test_block_sizes_are_read_from_the_error():
    error = RuntimeError("a size of ((T) // (4)) * (4), which is no polynomial in the number of tokens T")
    assert lengths.block_multiple(error, 1) == 4
    assert lengths.block_multiple(error, 6) == 12
    assert lengths.block_multiple(error, 12) is None
    assert lengths.block_multiple(RuntimeError("something else"), 1) is None


run(globals())
