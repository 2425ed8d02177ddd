"""What the page draws from the tables of edits that :mod:`lightning_suite.scen.evaluation` names.

The tables are all that is needed: a page can be made from a folder that someone sent.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.report.style import CATEGORICAL, INK, figure_style, markers
from lightning_suite.report.tables import is_number, read_table
from lightning_suite.report.text import shortened
from lightning_suite.run_folder import save_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, str]

METRICS = ("reliability", "generality", "locality")
# What a gate did with a prompt, good things in cool colours.
OUTCOMES = {
    "right": ("right edit", CATEGORICAL[0]),
    "quiet": ("rightly none", CATEGORICAL[2]),
    "missed": ("missed", CATEGORICAL[4]),
    "wrong": ("wrong edit", CATEGORICAL[1]),
    "false_fire": ("false fire", CATEGORICAL[5]),
}
# Columns of the methods' tables that are read as numbers; a gap is none that can be counted.
_COUNTS = frozenset({"edits", "answers", "samples", *OUTCOMES})
_NUMBERS = frozenset(
    {"value", "margin", "auc", "predicted", "observed", "low", "high", "false_rate", "true_rate"}
    | {"difficulty", "discrimination", "deviation", "octaves_in_total", *METRICS}
)
_KINDS = ("edit", "rephrase", "same_subject", "same_object", "random")  # others follow
_MOST_GATES = 4
_BINS = 40
_LETTERS = 40  # of a name in a figure


@dataclass(frozen=True)
class Drawing:
    """A figure for the page.

    Attributes:
        name: Distinct on the page.
        title: Heading.
        caption: How to read it.
        figure: The figure itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> str:
        """The figure as an SVG file."""
        buffer = io.BytesIO()
        with figure_style():
            save_svg(self.figure, buffer)
        return buffer.getvalue().decode()


def draw_edits(tables: Mapping[str, Path]) -> list[Drawing]:
    """Draw what the tables of an evaluation show.

    Args:
        tables: CSV files by the name of their artifact; those of other things are passed over.

    Raises:
        SuiteError: A table does not have the columns that are expected.
        MissingExtraError: matplotlib is not installed.
    """
    drawings = []
    curve = read_rows(tables, "scen_curve", ("system", "edits", "metric", "kind", "value"))
    if curve := [row for row in curve if not row["kind"]]:
        drawings.append(
            Drawing(
                "scen-curve",
                "As the edits grow in number",
                "After n edits the prompts of the first n are asked again. Reliability: the "
                "edits' own prompts; generality: rephrases; locality: prompts that must keep "
                "the unedited model's answer.",
                curve_figure(curve),
            )
        )
    if gates := read_rows(tables, "scen_gate", ("system", "kind", *OUTCOMES)):
        drawings.append(
            Drawing(
                "scen-gate",
                "What the gate decided",
                "Prompts by kind. An edit's prompt or rephrase should reach the right edit; it "
                "can be missed or reach a wrong one. All others should reach none.",
                gate_figure(gates),
            )
        )
    prompts = read_rows(tables, "scen_prompts", ("system", "kind", "margin", "gate"))
    if gated := [row for row in prompts if row["gate"] and _finite(row["margin"]) is not None]:
        system = gated[0]["system"]
        drawings.append(
            Drawing(
                "scen-margins",
                f"Margins of {shortened(system, _LETTERS)}",
                "How far the nearest edit's score is above (fires) or below (stays quiet) its "
                "threshold. Prompts that no edit comes near have none and are left out. The first "
                "and last bar hold what is beyond.",
                margin_figure([row for row in gated if row["system"] == system]),
            )
        )
    return drawings


def read_rows(tables: Mapping[str, Path], name: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table, none where there is no such table.

    Raises:
        SuiteError: It cannot be read, lacks a column, or has text where a number is expected.
    """
    if name not in tables:
        return []
    header, cells, _ = read_table(tables[name], most=10**9)
    if missing := [column for column in columns if column not in header]:
        raise SuiteError(
            f"{tables[name]}: has no column {missing[0]!r}. It has: {', '.join(header) or 'none'}."
        )
    for column in _COUNTS.union(_NUMBERS).intersection(columns):
        place, counts = header.index(column), column in _COUNTS
        for number, row in enumerate(cells, 2):
            cell = row[place]
            if not (cell.isdecimal() if counts else not cell or is_number(cell)):
                raise SuiteError(
                    f"{tables[name]}, row {number}, column {column!r}: expected a "
                    f"{'count' if counts else 'number'}, found {cell[:40]!r}."
                )
    return [dict(zip(header, row, strict=True)) for row in cells]


def curve_figure(rows: Sequence[Row]) -> Figure:
    """Draw each metric against the number of edits, a line for each system.

    Args:
        rows: Of ``scen_curve.csv``, without those of single kinds.
    """
    systems = list(dict.fromkeys(row["system"] for row in rows))
    shown = [metric for metric in METRICS if any(row["metric"] == metric for row in rows)]
    signs = markers(len(systems))
    with figure_style():
        figure = _figure(2.5 * len(shown) + 0.4, 2.9 + 0.18 * math.ceil(len(systems) / 3))
        panels = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
        for axes, metric in zip(panels, shown, strict=True):
            points = [
                sorted(
                    (int(row["edits"]), float(row["value"]))
                    for row in rows
                    if row["system"] == system and row["metric"] == metric
                )
                for system in systems
            ]
            for place, (system, own) in enumerate(zip(systems, points, strict=True)):
                axes.plot(
                    *zip(*own, strict=True) if own else ([], []),
                    color=CATEGORICAL[place % len(CATEGORICAL)],
                    # equal lines: the ones below show at the edges of those above
                    linewidth=1.8 + 1.8 * min(points[place + 1 :].count(own), 3),
                    marker=signs[place],
                    markersize=4,
                    label=shortened(system, _LETTERS),
                )
            axes.set_title(metric)
            axes.set_ylim(-0.03, 1.03)
            _edits_axis(axes, [int(row["edits"]) for row in rows])
        handles, labels = panels[0].get_legend_handles_labels()
        if len(systems) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def gate_figure(rows: Sequence[Row]) -> Figure:
    """Draw which share of each kind of prompt met which fate, one panel for each system.

    Args:
        rows: Of ``scen_gate.csv``.
    """
    systems = list(dict.fromkeys(row["system"] for row in rows))[:_MOST_GATES]
    kinds = _ordered({row["kind"] for row in rows})
    with figure_style():
        figure = _figure(7.0, 0.7 + len(systems) * (0.5 + 0.34 * len(kinds)))
        panels = np.atleast_1d(figure.subplots(len(systems), 1, sharex=True))
        for axes, system in zip(panels, systems, strict=True):
            counts = {row["kind"]: row for row in rows if row["system"] == system}
            there = [kind for kind in kinds if kind in counts]
            totals = [sum(int(counts[kind][name]) for name in OUTCOMES) for kind in there]
            left = np.zeros(len(there))
            for name, (label, color) in OUTCOMES.items():
                shares = np.array(
                    [
                        int(counts[k][name]) / max(total, 1)
                        for k, total in zip(there, totals, strict=True)
                    ]
                )
                axes.barh(there, shares, left=left, color=color, label=label, height=0.7)
                for place, share in enumerate(shares):
                    if share >= 0.06:
                        axes.annotate(
                            f"{share:.1%}",
                            (left[place] + share / 2, place),
                            ha="center",
                            va="center",
                            fontsize=8,
                            color="#ffffff",
                        )
                left += shares
            axes.set_yticks(
                range(len(there)),
                [
                    f"{shortened(kind, _LETTERS)} ({total:,})"
                    for kind, total in zip(there, totals, strict=True)
                ],
            )
            axes.set_ylim(len(there) - 0.4, -0.6)  # from top to bottom, without empty ends
            axes.set_xlim(0, 1)
            axes.grid(visible=False)
            axes.set_title(shortened(system, _LETTERS) if len(systems) > 1 else "")
        panels[-1].set_xlabel("share of the prompts")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(OUTCOMES))
    return figure


def margin_figure(rows: Sequence[Row]) -> Figure:
    """Draw how scores lie around their thresholds, one panel for each kind of prompt.

    Args:
        rows: Of ``scen_prompts.csv``, of one system with a gate, with finite margins.
    """
    values = np.array([float(row["margin"]) for row in rows])
    low, high = np.percentile(values, [0.5, 99.5])
    low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / _BINS or 1.0
    bins = np.arange(math.floor(low / width), math.ceil(high / width) + 2) * width  # 0 is an edge
    kinds = _ordered({row["kind"] for row in rows})
    with figure_style():
        figure = _figure(7.0, 0.9 + 0.75 * len(kinds))
        panels = np.atleast_1d(figure.subplots(len(kinds), 1, sharex=True))
        for axes, kind in zip(panels, kinds, strict=True):
            of_kind = np.array([row["kind"] == kind for row in rows])
            groups = [
                values[of_kind & np.array([row["gate"] == name for row in rows])]
                for name in OUTCOMES
            ]
            axes.hist(
                [np.clip(group, bins[0], np.nextafter(bins[-1], bins[0])) for group in groups],
                bins.tolist(),
                stacked=True,
                color=[color for _, color in OUTCOMES.values()],
                label=[label for label, _ in OUTCOMES.values()],
            )
            axes.axvline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.grid(visible=False)
            axes.set_ylabel(
                f"{shortened(kind, _LETTERS)} ({of_kind.sum():,})",
                rotation=0,
                ha="right",
                va="center",
            )
        panels[-1].set_xlabel("score less threshold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(OUTCOMES))
    return figure


def _ordered(kinds: set[str]) -> list[str]:
    known = [kind for kind in _KINDS if kind in kinds]
    return [*known, *sorted(kinds.difference(_KINDS))]


def _finite(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _edits_axis(axes: Axes, counts: Sequence[int]) -> None:
    if max(counts) > 20 * min(counts):
        axes.set_xscale("log")
        ticks = [n for n in (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000) if n <= max(counts)]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel("edits in the model")


def _figure(width: float, height: float) -> Figure:
    figure: Figure = import_extra("matplotlib.figure", "report").Figure(figsize=(width, height))
    return figure
