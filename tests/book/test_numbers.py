import math

import numpy as np
import pytest
import torch

from rl_notes.numbers import about


@pytest.mark.parametrize("value", [0.62, 0.6, 0.65, 0.59, torch.tensor(0.63)])
def test_what_is_found_again_is_printed_as_in_the_book(value):
    # 0.65 - 0.62 is 0.030000000000000027: the edge belongs to the room.
    assert about(value, 0.62, within=0.03) == "0.62"


@pytest.mark.parametrize(
    ("value", "found"),
    [(0.551, "0.55"), (0.6501, "0.65"), (0.5899, "0.59"), (-3, "-3.00")],
)
def test_what_has_moved_is_printed_beside_what_the_book_has(value, found):
    assert about(value, 0.62, within=0.03) == f"{found} (the book has 0.62)"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_found_again(value):
    assert "the book has 0.62" in about(value, 0.62, within=0.03)


@pytest.mark.parametrize(
    ("expected", "within", "written"),
    [
        (0.9, 0.02, "0.90"),
        (0.125, 0.005, "0.125"),
        (3.1, 0.5, "3.1"),
        (12, 1, "12"),
        (57_950, 800, "57,950"),
        (-0.4, 0.1, "-0.4"),
    ],
)
def test_the_room_says_how_many_digits_mean_something(expected, within, written):
    assert about(np.float32(expected), expected, within=within) == written


def test_digits_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"0\.625 has more digits.*Write 0\.62\."):
        about(0.625, 0.625, within=0.03)


@pytest.mark.parametrize("within", [0, -0.1, math.nan, math.inf])
def test_a_room_that_is_none_is_refused(within):
    with pytest.raises(ValueError, match="within must be a number above 0"):
        about(0.6, 0.6, within=within)


def test_the_room_has_no_default():
    with pytest.raises(TypeError, match="within"):
        about(0.6, 0.6)  # type: ignore[call-arg]
