"""The two figures of an LR-transfer sweep: loss against rate, and the best rate against depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_suite.depth_mup.lr_optimum import DepthOptimum
from lightning_suite.depth_mup.lr_transfer import RunResult
from lightning_suite.extras import import_extra
from lightning_suite.report.style import (
    CATEGORICAL,
    GRID,
    INK,
    PAPER,
    depth_colors,
    figure_style,
    markers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_A_ROW = 3
# Where the axis of the regret ends at the latest; a rate that diverges is drawn at its end.
_HIGHEST_REGRET = 64.0
_LEAST_REGRET = 1.25  # and at the earliest: less is no loss to speak of
_LINEAR = 4.0  # up to here the axis is linear


def draw_loss_curves(results: Sequence[RunResult], optima: Sequence[DepthOptimum]) -> Figure:
    """Draw one panel a rule and one line a depth: training loss against the log2 learning rate.

    The band spans the seeds, the large marker is the best rate of the grid, and the grey line its
    place at the first depth, where it would stay if rates transferred perfectly. A line ends where
    a run diverges.

    Args:
        results: All runs of the sweep.
        optima: What :func:`~lightning_suite.depth_mup.lr_optimum.analyse` found.
    """
    plt = import_extra("matplotlib.pyplot", "report")
    rules = list(dict.fromkeys(r.rule for r in results))
    depths = sorted({r.depth for r in results})
    colors = dict(zip(depths, depth_colors(len(depths)), strict=True))
    shapes = dict(zip(depths, markers(len(depths)), strict=True))
    columns = min(_PANELS_A_ROW, len(rules))
    rows = math.ceil(len(rules) / columns)
    with figure_style():
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(3.4 * columns + 0.6, 3.0 * rows + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        panels: list[Axes] = list(grid.flat)
        for axes, rule in zip(panels, rules, strict=False):
            own = [o for o in optima if o.rule == rule]
            if not math.isnan(own[0].grid_log2_lr):
                axes.axvline(own[0].grid_log2_lr, color=GRID, linewidth=2.5, zorder=1)
            for optimum in own:
                curve = [r for r in results if (r.rule, r.depth) == (rule, optimum.depth)]
                _draw_depth(axes, curve, optimum, colors[optimum.depth], shapes[optimum.depth])
            axes.set_title(rule)
            axes.set_yscale("log")
        for axes in panels[len(rules) :]:
            axes.remove()
        low, high = panels[0].get_ylim()
        panels[0].yaxis.set_major_formatter("{x:g}")
        # between the powers of ten only where there are few of these
        panels[0].yaxis.set_minor_formatter("{x:.1g}" if high < 10 * low else "")
        for axes in grid[:, 0]:
            axes.set_ylabel("training loss")
        for column in range(columns):
            lowest = panels[max(i for i in range(len(rules)) if i % columns == column)]
            lowest.set_xlabel("log2 of the base learning rate")
            lowest.tick_params(labelbottom=True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", title="depth L")
    return figure  # type: ignore[no-any-return]


def _draw_depth(
    axes: Axes, runs: Sequence[RunResult], optimum: DepthOptimum, color: str, marker: str
) -> None:
    log2_lrs = sorted({r.log2_lr for r in runs})
    losses = [np.array([r.train_loss for r in runs if r.log2_lr == lr]) for lr in log2_lrs]
    mean = np.array([values.mean() for values in losses])
    shown = np.where(np.isfinite(mean), mean, np.nan)
    axes.plot(log2_lrs, shown, color=color, linewidth=1.4, label=str(optimum.depth), zorder=2)
    low, high = (np.array([pick(values) for values in losses]) for pick in (np.min, np.max))
    ok = np.isfinite(high)
    axes.fill_between(
        np.array(log2_lrs)[ok], low[ok], high[ok], color=color, alpha=0.13, linewidth=0
    )
    if not math.isnan(optimum.grid_log2_lr):
        axes.plot(
            [optimum.grid_log2_lr],
            [optimum.loss],
            color=color,
            marker=marker,
            markersize=7,
            linestyle="",
            zorder=4,
            markerfacecolor="none" if optimum.edge else color,
            markeredgewidth=1.4 if optimum.edge else 0,
        )


def draw_optimum_over_depth(optima: Sequence[DepthOptimum]) -> Figure:
    """Draw the best log2 rate, and what keeping the base depth's rate costs, against depth.

    The best rate is the vertex of the parabola through the best grid point and its neighbours. The
    axis of the cost ends above the largest, at 1.25 at least and 64 at most.

    Bars are bootstrap intervals over seeds (their spread); a hollow marker is an optimum at the
    grid's edge, and a cross a depth at which the base depth's rate diverges.
    """
    plt = import_extra("matplotlib.pyplot", "report")
    rules = list(dict.fromkeys(o.rule for o in optima))
    depths = sorted({o.depth for o in optima})
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9))
        top = _regret_end([1 + o.regret.value for o in optima if not math.isnan(o.log2_lr.value)])
        for i, rule in enumerate(rules):
            own = [o for o in optima if o.rule == rule and not math.isnan(o.log2_lr.value)]
            # rules side by side, so that bars of equal optima do not hide each other
            shift = 2 ** (0.09 * (i - (len(rules) - 1) / 2))
            color, marker = CATEGORICAL[i % len(CATEGORICAL)], markers(len(rules))[i]
            _draw_optima(left, own, shift, color, marker)
            _draw_regret(right, own, shift, color, marker, top)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(depths, [str(d) for d in depths])
            axes.set_xlabel("depth L")
        left.set_ylabel("best log2 learning rate")
        left.set_title("Where the best rate lies (vertex)")
        if top > _LINEAR:
            right.set_yscale("log", base=2)
            right.set_ylim(top=top * 1.3)
        else:
            right.set_ylim(1 - 0.06 * (top - 1), top + 0.06 * (top - 1))
        right.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        right.axhline(1, color=INK, linewidth=0.8, zorder=1)
        right.set_ylabel("loss at the base depth's rate / best loss")
        right.set_title("What keeping it costs (×: diverges)")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", title="rule")
    return figure  # type: ignore[no-any-return]


def _regret_end(ratios: Sequence[float]) -> float:
    """Return where the axis of the ratios ends: above the largest, and with room for a cross."""
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    top = max(1.1 * max(finite, default=1.0), _LEAST_REGRET)
    return min(2 * top if len(finite) < len(ratios) else top, _HIGHEST_REGRET)


def _draw_optima(
    axes: Axes, optima: Sequence[DepthOptimum], shift: float, color: str, marker: str
) -> None:
    axes.plot(
        [o.depth * shift for o in optima], [o.log2_lr.value for o in optima], color=color, zorder=2
    )
    for optimum in optima:
        best = optimum.log2_lr
        axes.errorbar(
            [optimum.depth * shift],
            [best.value],
            # an estimate may lie outside its percentile interval, by a rounding or by a few seeds
            [[max(0.0, best.value - best.low)], [max(0.0, best.high - best.value)]],
            color=color,
            marker=marker,
            markerfacecolor=PAPER if optimum.edge else color,
            markeredgewidth=1.2 if optimum.edge else 0,
            capsize=2,
            elinewidth=1,
            zorder=3,
        )


def _draw_regret(
    axes: Axes, optima: Sequence[DepthOptimum], shift: float, color: str, marker: str, top: float
) -> None:
    x = np.array([o.depth * shift for o in optima])
    ratio = np.array([1 + o.regret.value for o in optima])
    shown = np.minimum(ratio, top)
    axes.plot(x, shown, color=color, label=None, zorder=2)
    stays = np.isfinite(ratio)
    axes.plot(
        x[stays], shown[stays], color=color, marker=marker, linestyle="", label=optima[0].rule
    )
    axes.plot(x[~stays], shown[~stays], color=color, marker="x", linestyle="", markeredgewidth=1.6)
