"""The figure of a coordinate check: quantities against size, log-log, one line a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_suite.depth_mup.coord_check import CHECKED, Axis, SlopeCheck
from lightning_suite.extras import import_extra
from lightning_suite.report.style import INK, depth_colors, figure_style, markers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "first_update": "RMS(ΔW1·a)",
    "last_update": "RMS(ΔW2·φ)",
    "first_stream": "stream contribution of ΔW1",
    "last_stream": "stream contribution of ΔW2",
}

_Rows = Sequence[Mapping[str, Any]]


def coord_check_figure(rows: _Rows, checks: Sequence[SlopeCheck], axis: Axis) -> Figure:
    """Draw the check along one axis.

    Args:
        rows: Measurements with ``axis``, ``rule``, ``size``, ``seed``, ``step`` and quantities.
        checks: Their slopes.
        axis: ``"depth"`` or ``"width"``.

    Returns:
        A figure: rules side by side, a row of panels for each quantity, a line (geometric mean
        over seeds) and a band (smallest to largest seed) for each step, the expected slope
        dashed, the slope after the first step written into the panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = import_extra("matplotlib.figure", "report")
    rows = [row for row in rows if row["axis"] == axis]
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    quantities = [name for name in CHECKED if any(name in row for row in rows)]
    with figure_style():
        figure: Figure = figures.Figure(
            figsize=(max(4.5, 2.9 * len(rules) + 0.7), 2.15 * len(quantities) + 0.5)
        )
        panels = figure.subplots(
            len(quantities), len(rules), sharex=True, sharey="row", squeeze=False
        )
        for i, quantity in enumerate(quantities):
            for j, rule in enumerate(rules):
                panel = panels[i][j]
                _draw(panel, [row for row in rows if row["rule"] == rule], quantity)
                first = next(
                    (
                        check
                        for check in checks
                        if (check.axis, check.rule, check.quantity, check.step)
                        == (axis, rule, quantity, 1)
                    ),
                    None,
                )
                if first is not None:
                    _annotate(panel, first, [row["size"] for row in rows])
                if i == 0:
                    panel.set_title(rule)
                if i == len(quantities) - 1:
                    panel.set_xlabel("blocks L" if axis == "depth" else "width n")
                if j == 0:
                    panel.set_ylabel(_LABELS[quantity])
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw(panel: Axes, rows: _Rows, quantity: str) -> None:
    steps = sorted({row["step"] for row in rows})
    for step, color, marker in zip(
        steps, depth_colors(len(steps)), markers(len(steps)), strict=True
    ):
        by_size: dict[float, list[float]] = {}
        for row in rows:
            if row["step"] == step and quantity in row:
                by_size.setdefault(row["size"], []).append(row[quantity])
        sizes = sorted(by_size)
        means = [
            math.exp(math.fsum(map(math.log, v)) / len(v)) for v in map(by_size.get, sizes) if v
        ]
        label = f"after step {step}"
        panel.plot(sizes, means, color=color, marker=marker, label=label)
        low, high = ([f(by_size[size]) for size in sizes] for f in (min, max))
        panel.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    # plain text: figure_style takes mathematics in texts for dollar signs
    ticker = import_extra("matplotlib.ticker", "report")
    panel.yaxis.set_major_formatter(ticker.LogFormatter())
    panel.yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False))
    panel.set_xticks(sorted({row["size"] for row in rows}))
    panel.xaxis.set_major_formatter(lambda size, _: f"{size:g}")


def _annotate(panel: Axes, check: SlopeCheck, sizes: Sequence[float]) -> None:
    text = f"slope {check.slope.value:+.2f} ± {check.slope.standard_error:.2f}"
    if check.expected is not None:
        text += f"\nexpected {check.expected:+.2f}"  # below: a single rule has narrow panels
        # through the middle of the fitted line, so that only the slope is compared
        ends = [min(sizes), max(sizes)]
        middle = math.sqrt(ends[0] * ends[1])
        level = check.slope.at(middle)
        panel.plot(
            ends,
            [level * (size / middle) ** check.expected for size in ends],
            color=INK,
            linestyle=(0, (4, 3)),
            linewidth=1,
        )
    panel.annotate(
        text, (0.03, 0.04), xycoords="axes fraction", fontsize=7.5, va="bottom", ha="left"
    )
