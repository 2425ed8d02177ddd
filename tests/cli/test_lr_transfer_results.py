"""What is said of a sweep: how far the best rate moved, what that costs, how sure it is."""

from __future__ import annotations

import math

import pytest

from lightning_suite.cli.lr_transfer_results import drift_row, finding
from lightning_suite.depth_mup.lr_optimum import Drift, Interval


@pytest.mark.parametrize(
    ("regret", "words"),
    [
        (0.004, "ends at most 0% above the best loss"),
        (0.25, "ends at most 25% above the best loss"),
        (14.4, "ends at up to 15.4 times the best loss"),
        (math.inf, "diverges at some depth"),
    ],
)
def test_the_finding_says_what_keeping_the_rate_costs(regret: float, words: str) -> None:
    drift = Drift(
        "sp", Interval(-0.5, -0.6, -0.4), Interval(-2, -2.4, -0.04), (2, 32), False, regret, 3
    )
    text = finding(drift)
    assert text.startswith("Under sp the best rate moved by -2.0 octaves from depth 2 to 32 ")
    assert "(range over 3 seeds -2.4 to +0.0)" in text
    assert "in this sample, keeping the base depth's rate" in text
    assert words in text


@pytest.mark.parametrize(
    ("seeds", "words"),
    [(1, "(one seed)"), (3, "(range over 3 seeds"), (5, "(bootstrap interval over 5 seeds")],
)
def test_the_finding_says_what_its_interval_is(seeds: int, words: str) -> None:
    moved = Interval(-2, -2.4, -1.6)
    assert words in finding(Drift("sp", moved, moved, (2, 32), False, 0.1, seeds))


def test_no_drift_is_zero_in_the_table() -> None:
    still = Interval(-3.816e-17, -2e-16, 1.2345678)
    row = drift_row(Drift("sp", still, still, (2, 32), False, 0.0, 3))
    assert row["octaves_per_doubling"] == row["octaves_in_total_low"] == 0
    assert row["octaves_in_total_high"] == 1.2346
