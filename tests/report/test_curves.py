from __future__ import annotations

import math
import re

import pytest

from lightning_suite.report.curves import Look, _distinct, draw_panel, thin
from lightning_suite.report.metrics import Panel, Series
from lightning_suite.report.style import CATEGORICAL
from lightning_suite.report.svg import inline_svg


def a_series(values: list[float]) -> Series:
    return Series([float(step) for step in range(len(values))], values)


def test_thinning_keeps_ends_spikes_and_what_is_not_finite() -> None:
    values = [math.sin(step / 500) for step in range(10_000)]
    values[4_321], values[7_777], values[9_000] = 50.0, -50.0, math.nan
    thinned = thin(a_series(values), points=100)
    assert len(thinned.steps) <= 110
    assert {0.0, 4_321.0, 7_777.0, 9_000.0, 9_999.0} <= set(thinned.steps)
    assert thinned.steps == sorted(thinned.steps)
    assert all(
        math.isnan(value) or value == values[int(step)]
        for step, value in zip(thinned.steps, thinned.values, strict=True)
    )


def test_a_short_series_is_drawn_as_it_is() -> None:
    series = a_series([1.0, 2.0])
    assert thin(series) is series


def test_the_same_values_give_the_same_drawing() -> None:
    panel = Panel("Metrics", "loss", [("train", "a"), ("val", "b")])
    series = {"a": a_series([3.0, 2.0, 1.0]), "b": a_series([2.0, 2.0, 2.5])}
    assert draw_panel(panel, series) == draw_panel(panel, series)


@pytest.mark.parametrize(
    "values",
    [
        [math.nan, math.nan],
        [1.0],
        [1.0, math.inf, -math.inf, 2.0],
        [1e-30, 1e30],
        [0.0, 0.0],
        [-1e300, 1e300],
    ],
    ids=["only nan", "one value", "infinities", "60 decades", "constant zero", "huge"],
)
def test_diverged_and_degenerate_runs_are_drawn(values: list[float]) -> None:
    svg = draw_panel(Panel("Metrics", "loss", [("train", "a")]), {"a": a_series(values)})
    assert inline_svg(svg, prefix="x-", label="loss").startswith("<svg")


@pytest.mark.parametrize(
    ("values", "labels"),
    [([0.02, 3.0], {"0.02", "0.1", "0.5", "1", "2"}), ([1e-2, 1e6, 1e30], {"1", "1e+20"})],
    ids=["few decades", "many decades"],
)
def test_a_log_axis_has_plain_numbers(values: list[float], labels: set[str]) -> None:
    svg = draw_panel(Panel("Metrics", "loss", [("train", "a")]), {"a": a_series(values)})
    texts = set(re.findall(r"<!-- (.*?) -->", svg))
    assert not [text for text in texts if "$" in text]
    assert texts >= labels


def test_two_steps_have_no_quarters_between_them() -> None:
    svg = draw_panel(Panel("Metrics", "loss", [("train", "a")]), {"a": a_series([3.0, 4.0])})
    ticks = re.findall(r"<!-- (.*?) -->", svg)
    assert ticks[: ticks.index("step")] == ["0", "1"]


def test_equal_curves_are_one_line_with_all_their_labels() -> None:
    series = {"a": a_series([1.0, 2.0]), "b": a_series([3.0, 4.0]), "c": a_series([1.0, 2.0])}
    lines = [("first", "a"), ("last", "b"), ("input", "c")]
    assert _distinct(lines, series) == [("first, input", "a"), ("last", "b")]


def test_of_many_equal_curves_the_first_are_named() -> None:
    """A legend with all of them would cover the curves."""
    names = [f"block_{n}.weight" for n in range(9)]
    series = {name: a_series([1.0, 2.0]) for name in names}
    ((text, _),) = _distinct([(name, name) for name in names], series)
    assert text == "block_0.weight, block_1.weight and 7 more"


def test_an_equal_line_of_another_run_stays_in_sight() -> None:
    """It is drawn wider below the one that covers it."""
    lines = [("a", "a"), ("b", "b"), ("c", "c")]
    series = {"a": a_series([1.0, 2.0]), "b": a_series([5.0, 4.0]), "c": a_series([1.0, 2.0])}
    looks = {name: Look(color, "-") for name, color in zip("abc", CATEGORICAL, strict=False)}
    svg = draw_panel(Panel("Metrics", "loss", lines), series, looks)
    widths = [
        float(re.search(rf"stroke: {look.color}[^\"]*?stroke-width: ([\d.]+)", svg)[1])  # type: ignore[index]
        for look in looks.values()
    ]
    assert widths == [3.2, 1.6, 1.6]


def test_a_label_is_text_and_never_a_formula() -> None:
    panel = Panel("Metrics", "a", [("$\\frac{$", "a"), ("b", "b")])
    assert draw_panel(panel, {"a": a_series([1.0]), "b": a_series([1.0])})
