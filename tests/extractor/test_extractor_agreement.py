"""How far a vector may be from its recomputed self: derived, and wide enough for real networks."""

import numpy as np
import pytest

from extractor.agreement import relative_difference, tolerance
from extractor.device import MNN, Way


def test_the_tolerance_follows_the_precision():
    assert tolerance(Way("float32"), "exact") == pytest.approx(3e-4, rel=0.02)
    assert tolerance(Way("float32", MNN), "exact") == 1e-3
    assert tolerance(Way("fp16"), "exact") == pytest.approx(0.0447, rel=0.01)  # a cosine of 0.999
    assert tolerance(Way("bf16"), "exact") == tolerance(None, "exact") == 2**-3


def test_a_dense_vector_may_have_lain_in_another_tile():
    assert tolerance(Way("float32"), "dense") == 1e-3
    assert tolerance(Way("bf16"), "dense") == 2**-3


def test_a_difference_is_relative_to_the_recomputed_vector():
    assert relative_difference(np.float32([3, 4]), np.float32([3, 5])) == pytest.approx(34**-0.5)
    assert relative_difference(np.float32([2, 0]), np.float32([1, 0])) == 1


def test_of_unit_vectors_the_difference_gives_their_cosine():
    a, b = np.float32([1, 0]), np.float32([0.96, 0.28])
    assert 1 - relative_difference(a, b) ** 2 / 2 == pytest.approx(0.96)
