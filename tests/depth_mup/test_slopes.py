"""Slopes of power laws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_suite.depth_mup.slopes import fit_slope
from lightning_suite.errors import SuiteError


def test_a_power_law_is_found_exactly() -> None:
    sizes = [2, 4, 8, 16]
    slope = fit_slope(sizes, [3.0 * size**-0.5 for size in sizes])
    assert slope.value == pytest.approx(-0.5)
    assert slope.standard_error == pytest.approx(0, abs=1e-8)
    assert slope.at(4) == pytest.approx(1.5)


def test_slope_and_error_are_those_of_ordinary_least_squares() -> None:
    """Against numpy, on noisy repeats."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([4.0, 8.0, 16.0, 32.0], 3)
    values = np.exp(0.3 * np.log(sizes) + 0.1 * rng.standard_normal(len(sizes)))
    fitted, covariance = np.polyfit(np.log(sizes), np.log(values), 1, cov=True)
    slope = fit_slope(sizes.tolist(), values.tolist())
    assert slope.value == pytest.approx(fitted[0])
    assert slope.log_intercept == pytest.approx(fitted[1])
    assert slope.standard_error == pytest.approx(math.sqrt(covariance[0, 0]))


def test_two_points_have_a_slope_and_no_error() -> None:
    slope = fit_slope([1, 2], [1.0, 2.0])
    assert slope.value == pytest.approx(1)
    assert math.isnan(slope.standard_error)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([4, 4], [1.0, 2.0], "two different sizes"),
        ([4, 8], [1.0, 0.0], "at size 8 it is 0.0"),
        ([4, 8], [math.nan, 1.0], "at size 4 it is nan"),
    ],
)
def test_no_slope_without_a_reason(sizes: list[int], values: list[float], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        fit_slope(sizes, values)
