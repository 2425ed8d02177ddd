"""What stands above the table of feature dynamics: how much each block learnt, over the depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.report.layout import notice, prose
from lightning_suite.report.scen_figures import Drawing, Row, read_rows
from lightning_suite.report.style import depth_colors, figure_style, log_axis, markers
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn as far as the table has them: a block of one matrix has no first one.
_QUANTITIES = {"first_update": "first matrix, ΔW1·a", "last_update": "last matrix, ΔW2·φ"}
_STEPS = 6  # lines; more are chosen evenly
_LOG_RATIO = 30.0  # of largest and smallest value, from which on the axis is logarithmic


def dynamics_cards(tables: Mapping[str, Path]) -> list[str]:
    """Return HTML for the table of feature dynamics if it is there.

    Args:
        tables: CSV files by the name of their artifact.
    """
    try:
        figure = dynamics_figure(read_rows(tables, "feature_dynamics", ("step",)))
    except (SuiteError, ValueError, KeyError) as err:
        return [notice(f"Not shown: {err}")]
    if figure is None:
        return []
    drawing = Drawing(
        "feature-dynamics",
        "What each block has learnt",
        "RMS of what the changes of a block's matrices make of its input, over the depth t = l/L, "
        "a line a step. A flat line: all blocks learn alike; one that falls or rises: those at one "
        "end learn less.",
        figure,
    )
    svg = inline_svg(drawing.svg, prefix=f"{drawing.name}-", label=drawing.title)
    return [
        f'<figure class="card"><figcaption><h3>{drawing.title}</h3><p>{prose(drawing.caption)}</p>'
        f'</figcaption><div class="plot">{svg}</div></figure>'
    ]


def dynamics_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw the updates of both matrices against the depth, a line for each of some steps.

    Args:
        rows: Of ``feature_dynamics.csv``.

    Returns:
        None where nothing has been learnt yet, or nothing is known.
    """
    curves = {name: _curves(rows, name) for name in _QUANTITIES}
    curves = {name: found for name, found in curves.items() if found}
    steps = sorted({step for found in curves.values() for step in found})
    if not steps:
        return None
    places = np.unique(np.linspace(0, len(steps) - 1, min(_STEPS, len(steps))).round())
    steps = [steps[int(place)] for place in places]
    with figure_style():
        figure: Figure = import_extra("matplotlib.figure", "report").Figure(
            figsize=(0.6 + 3.2 * len(curves), 3.2)
        )
        panels = np.atleast_1d(figure.subplots(1, len(curves)))
        for panel, (name, found) in zip(panels, curves.items(), strict=True):
            looks = zip(steps, depth_colors(len(steps)), markers(len(steps)), strict=True)
            for step, color, marker in looks:
                if step in found:
                    t, values = zip(*found[step], strict=True)
                    label = f"step {step:,}"
                    panel.plot(t, values, color=color, marker=marker, markersize=4, label=label)
            drawn = [value for step in steps for _, value in found.get(step, ())]
            low, high = min(drawn), max(drawn)
            if 0 < low * _LOG_RATIO < high:
                log_axis(panel, low, high)
            else:
                panel.set_ylim(bottom=0)
            panel.set_xlim(0, 1.03)
            panel.set_xlabel("depth t = l/L")
            panel.set_title(_QUANTITIES[name])
        panels[0].set_ylabel("RMS of the update")
        panels[0].legend()
    return figure


def _curves(rows: Sequence[Row], name: str) -> dict[int, list[tuple[float, float]]]:
    """Return (t, value) of the blocks by step, of steps that have changed something."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if all(is_number(row.get(key, "")) for key in ("step", "t", name)) and math.isfinite(
            float(row[name])
        ):
            found.setdefault(int(row["step"]), []).append((float(row["t"]), float(row[name])))
    return {step: sorted(pairs) for step, pairs in found.items() if any(v > 0 for _, v in pairs)}
