"""The two figures of an LR-transfer sweep: loss against rate, and the best rate against depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_suite.depth_mup.lr_optimum import DepthOptimum
from lightning_suite.depth_mup.lr_transfer import RunResult
from lightning_suite.extras import import_extra
from lightning_suite.report.style import CATEGORICAL, GRID, INK, depth_colors, figure_style, markers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_A_ROW = 3
# A diverging run may end anywhere; the axis ends at this multiple of the loss of a blind guess.
_HIGHEST_LOSS = 1.3


def draw_loss_curves(
    results: Sequence[RunResult],
    optima: Sequence[DepthOptimum],
    *,
    highest_loss: float | None = None,
) -> Figure:
    """Draw one panel a rule and one line a depth: training loss against the log2 learning rate.

    The band spans the seeds, the large marker is the optimum, and the grey line its place at the
    first depth, where it would stay if rates transferred perfectly.

    Args:
        results: All runs of the sweep.
        optima: What :func:`~lightning_suite.depth_mup.lr_optimum.analyse` found.
        highest_loss: Where the loss axis ends; default: log(10) times 1.3, above which a
            ten-class problem has learnt nothing.
    """
    plt = import_extra("matplotlib.pyplot", "report")
    rules = list(dict.fromkeys(r.rule for r in results))
    depths = sorted({r.depth for r in results})
    colors = dict(zip(depths, depth_colors(len(depths)), strict=True))
    shapes = dict(zip(depths, markers(len(depths)), strict=True))
    ceiling = _HIGHEST_LOSS * math.log(10) if highest_loss is None else highest_loss
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
            if not math.isnan(own[0].log2_lr.value):
                axes.axvline(own[0].log2_lr.value, color=GRID, linewidth=2.5, zorder=1)
            for optimum in own:
                curve = [r for r in results if (r.rule, r.depth) == (rule, optimum.depth)]
                _draw_depth(axes, curve, optimum, colors[optimum.depth], shapes[optimum.depth])
            axes.set_title(rule)
            axes.set_yscale("log")
        for axes in panels[len(rules) :]:
            axes.remove()
        finite = [r.train_loss for r in results if 0 < r.train_loss < ceiling]
        if finite:
            panels[0].set_ylim(min(finite) * 0.8, min(ceiling, max(finite) * 1.25))
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
    if not math.isnan(optimum.log2_lr.value):
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "", "zorder": 4}
        face: dict[str, Any] = (
            {"markerfacecolor": "none", "markeredgewidth": 1.4} if optimum.edge else {}
        )
        axes.plot([optimum.log2_lr.value], [optimum.loss], markersize=7, **(style | face))


def draw_optimum_over_depth(optima: Sequence[DepthOptimum]) -> Figure:
    """Draw the best log2 rate, and what keeping the base depth's rate costs, against depth.

    Bars are bootstrap intervals over seeds; a hollow marker is an optimum at the grid's edge.
    """
    plt = import_extra("matplotlib.pyplot", "report")
    rules = list(dict.fromkeys(o.rule for o in optima))
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.9))
        for i, rule in enumerate(rules):
            own = [o for o in optima if o.rule == rule and not math.isnan(o.log2_lr.value)]
            # rules side by side, so that bars of equal optima do not hide each other
            shift = 2 ** (0.09 * (i - (len(rules) - 1) / 2))
            x = np.array([o.depth * shift for o in own])
            color, marker = CATEGORICAL[i % len(CATEGORICAL)], markers(len(rules))[i]
            value = np.array([o.log2_lr.value for o in own])
            bars = np.array([[o.log2_lr.low, o.log2_lr.high] for o in own]).T
            left.errorbar(
                x,
                value,
                np.abs(bars - value) if own else None,
                color=color,
                marker=marker,
                capsize=2,
                elinewidth=1,
                label=rule,
            )
            for optimum, place in zip(own, x, strict=True):
                if optimum.edge:
                    left.plot(
                        [place],
                        [optimum.log2_lr.value],
                        marker=marker,
                        color=color,
                        markersize=9,
                        markerfacecolor="none",
                        markeredgewidth=1.2,
                    )
            regret = np.array([1 + o.regret.value for o in own])
            right.plot(x, regret, color=color, marker=marker, label=rule)
        depths = sorted({o.depth for o in optima})
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(depths, [str(d) for d in depths])
            axes.set_xlabel("depth L")
        left.set_ylabel("best log2 learning rate")
        left.set_title("Where the best rate lies")
        right.set_yscale("log", base=2)
        right.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        right.axhline(1, color=INK, linewidth=0.8)
        right.set_ylabel("loss at the base depth's rate / best loss")
        right.set_title("What keeping it costs")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", title="rule")
    return figure  # type: ignore[no-any-return]
