"""What the figures of a sweep show, read off the drawn lines."""

from __future__ import annotations

import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lightning_suite.depth_mup.lr_optimum import analyse
from lightning_suite.depth_mup.lr_transfer import RunResult
from lightning_suite.report.lr_transfer_figure import draw_loss_curves, draw_optimum_over_depth

BEST = {("sp", 2): -1.0, ("sp", 8): -3.0, ("nfd", 2): -1.0, ("nfd", 8): -4.0}


def sweep() -> list[RunResult]:
    """`sp` diverges from 2^-2 on at depth 8; `nfd` has its optimum at the lower edge there."""
    return [
        RunResult(
            rule,
            depth,
            lr,
            seed,
            math.inf
            if (rule, depth) == ("sp", 8) and lr >= -2
            else 0.1 * math.exp((lr - best) ** 2 / 4) * (1 + 0.1 * seed),
            0.0,
            0.9,
            None,
        )
        for (rule, depth), best in BEST.items()
        for lr in (-4.0, -3.0, -2.0, -1.0, 0.0)
        for seed in (0, 1)
    ]


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def test_one_panel_a_rule_one_line_a_depth_that_ends_where_it_diverges() -> None:
    results = sweep()
    figure = draw_loss_curves(results, analyse(results, 2)[0])
    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["sp", "nfd"]
    assert all(axes.get_yscale() == "log" for axes in panels)
    assert panels[0].get_ylim() == panels[1].get_ylim()
    lines = {line.get_label(): line for line in panels[0].lines}
    assert {"2", "8"} <= lines.keys()
    deep = np.asarray(lines["8"].get_ydata(), dtype=float)
    assert np.isfinite(deep).tolist() == [True, True, False, False, False]
    assert deep[1] == pytest.approx(0.105)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["2", "8"]


def test_optima_are_marked_and_those_at_the_edge_are_hollow() -> None:
    results = sweep()
    panels = draw_loss_curves(results, analyse(results, 2)[0]).axes
    marks = [
        {
            float(line.get_xdata()[0]): line.get_markerfacecolor()
            for line in axes.lines
            if line.get_linestyle() == "None"
        }
        for axes in panels
    ]
    assert set(marks[0]) == {-1.0, -3.0}
    assert set(marks[1]) == {-1.0, -4.0}
    assert marks[1][-4.0] == "none"
    assert marks[1][-1.0] != "none"


def test_optimum_and_cost_over_depth() -> None:
    results = sweep()
    optima, _ = analyse(results, 2)
    left, right = draw_optimum_over_depth(optima).axes
    drawn = [line.get_ydata().tolist() for line in left.lines if len(line.get_xdata()) == 2]
    assert [o.log2_lr.value for o in optima if o.rule == "sp"] in drawn
    crosses = [line for line in right.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1  # the rate of depth 2 diverges at depth 8 under sp alone
    assert float(crosses[0].get_xdata()[0]) == pytest.approx(8, rel=0.2)


def at_cost(highest: float) -> list[RunResult]:
    """Losses of which the worst is ``highest`` times the best at the base depth's rate."""
    losses = {2: (2.0, 1.0, 2.0, 4.0), 8: (2.0, highest, 1.0, 2.0)}
    return [
        RunResult("sp", depth, lr, 0, of_depth[place], 0.0, 0.9, None)
        for depth, of_depth in losses.items()
        for place, lr in enumerate((-4.0, -3.0, -2.0, -1.0))
    ]


@pytest.mark.parametrize(("highest", "end"), [(1.01, 1.27), (1.8, 2.05), (8.0, 11.5), (500.0, 84)])
def test_the_axis_of_the_cost_ends_where_the_costs_do(highest: float, end: float) -> None:
    """A good result was an empty plot, far below an axis that always reached 64."""
    _, right = draw_optimum_over_depth(analyse(at_cost(highest), 2)[0]).axes
    assert right.get_ylim()[1] == pytest.approx(end, rel=0.02)
    drawn = [y for line in right.lines for y in np.atleast_1d(line.get_ydata())]
    assert all(right.get_ylim()[0] < float(y) <= right.get_ylim()[1] for y in drawn)


def test_a_depth_at_which_everything_diverges_has_no_mark() -> None:
    results = [
        RunResult("sp", depth, lr, 0, math.inf if depth == 4 else 1 - 0.1 * lr, 0.0, 0.1, None)
        for depth in (2, 4)
        for lr in (-2.0, -1.0)
    ]
    optima, _ = analyse(results, 2)
    figure = draw_loss_curves(results, optima)
    assert sum(line.get_linestyle() == "None" for line in figure.axes[0].lines) == 1
    draw_optimum_over_depth(optima)
