"""Fit the exponent of a power law: the slope of log(quantity) against log(size)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_suite.errors import SuiteError


@dataclass(frozen=True)
class Slope:
    """A least-squares line through (log size, log quantity).

    Attributes:
        value: The slope: the quantity grows like ``size ** value``.
        standard_error: Of the slope, from the residuals; NaN with fewer than three points.
        log_intercept: log of the quantity that the line gives at size 1.
    """

    value: float
    standard_error: float
    log_intercept: float

    def at(self, size: float) -> float:
        """Return the quantity on the line at ``size``."""
        return math.exp(self.log_intercept + self.value * math.log(size))


def fit_slope(sizes: Sequence[float], quantities: Sequence[float]) -> Slope:
    """Fit ``quantity = constant * size ** slope`` by least squares in the logarithms.

    Args:
        sizes: Depths or widths, one for each quantity; repeated where there are several seeds.
        quantities: What was measured there.

    Raises:
        SuiteError: Fewer than two different sizes, or a quantity that is not positive and finite.

    Example:
        >>> round(fit_slope([4, 16, 64], [1.0, 0.5, 0.25]).value, 3)
        -0.5
    """
    if len(set(sizes)) < 2:
        raise SuiteError(f"a slope needs at least two different sizes, and these are {set(sizes)}.")
    for size, quantity in zip(sizes, quantities, strict=True):
        if not (math.isfinite(quantity) and quantity > 0):
            raise SuiteError(
                f"a slope in the logarithm needs positive finite quantities; at size {size} it is "
                f"{quantity}."
            )
    x = [math.log(size) for size in sizes]
    y = [math.log(quantity) for quantity in quantities]
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    residuals = math.fsum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(residuals / (n - 2) / spread) if n > 2 else math.nan
    return Slope(slope, error, intercept)
