"""Draw the curves of a training run, one small figure a panel."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning_suite.extras import import_extra
from lightning_suite.report.metrics import Panel, Series
from lightning_suite.report.style import CATEGORICAL, depth_colors, figure_style, log_axis
from lightning_suite.report.text import shortened
from lightning_suite.run_folder import save_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400  # what a panel of this width can show
_LABELS = 6  # what its legend can hold
_LETTERS = 36  # of a line of it
_STAGES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
_LOG_RATIO = 30.0  # a positive quantity that spans more than this is drawn on a log axis


class Look(NamedTuple):
    """How a line looks.

    Attributes:
        color: Hex colour.
        dashes: matplotlib's line style.
    """

    color: str
    dashes: str


def draw_panel(
    panel: Panel, series: Mapping[str, Series], looks: Mapping[str, Look] | None = None
) -> str:
    """Return one panel as an SVG file.

    Args:
        panel: What to draw.
        series: All columns of the run.
        looks: By label, for lines that look the same in several panels and whose key stands
            outside of them; every line is then drawn, equal ones too.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = import_extra("matplotlib.figure", "report")
    with figure_style():
        figure = figure_module.Figure(figsize=(3.9, 2.5))
        axes = figure.add_subplot()
        lines = _distinct(panel.lines, series) if looks is None else panel.lines
        colors = _colors([label for label, _ in lines], ordered=panel.ordered)
        if looks is None:
            styles = [Look(color, "-") for color in colors]
        else:
            styles = [looks[label] for label, _ in lines]
        # of blocks, a few tell the rest; of roles, each is a name of its own
        legend = _evenly(len(lines), _LABELS if panel.ordered else 12)
        for place, (label, name) in enumerate(lines):
            one = thin(series[name])
            axes.plot(
                one.steps,
                one.values,
                color=styles[place].color,
                linestyle=styles[place].dashes,
                # equal lines of several runs: the ones below show at the edges of those above
                linewidth=1.6
                + 1.6 * sum(series[other] == series[name] for _, other in lines[place + 1 :]),
                marker="o" if len(one.steps) <= 12 else "",
                markersize=3.5,
                label=label if place in legend else None,
            )
        _scale(axes, [value for _, name in lines for value in series[name].values])
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(nbins=5, integer=True)  # half steps do not exist
        if len(panel.lines) > 1 and looks is None:
            axes.legend(
                fontsize=8 if len(legend) <= _LABELS else 6.5, handlelength=1.2, borderaxespad=0.2
            )
        buffer = io.BytesIO()
        save_svg(figure, buffer)
    return buffer.getvalue().decode()


def thin(series: Series, points: int = _POINTS) -> Series:
    """Keep at most about ``points`` values, among them the extremes of every stretch.

    Dropping every n-th value would hide the spikes that one looks for.
    """
    if len(series.values) <= points:
        return series
    size = math.ceil(2 * len(series.values) / points)
    keep: set[int] = {0, len(series.values) - 1}
    for start in range(0, len(series.values), size):
        stretch = range(start, min(start + size, len(series.values)))
        finite = [place for place in stretch if math.isfinite(series.values[place])]
        keep.update(set(stretch) - set(finite) if len(finite) < len(stretch) else ())
        if finite:
            keep.add(min(finite, key=series.values.__getitem__))
            keep.add(max(finite, key=series.values.__getitem__))
    places = sorted(keep)
    return Series([series.steps[p] for p in places], [series.values[p] for p in places])


def _distinct(
    lines: Sequence[tuple[str, str]], series: Mapping[str, Series]
) -> list[tuple[str, str]]:
    """Draw equal curves once, with all their labels: learning rates of several roles often are.

    Of many labels the first ones are named, and how many there are beside them.
    """
    found: dict[tuple[tuple[float, ...], tuple[float, ...]], list[tuple[str, str]]] = {}
    for label, name in lines:
        one = series[name]
        found.setdefault((tuple(one.steps), tuple(one.values)), []).append((label, name))
    return [(_joined([label for label, _ in same]), same[0][1]) for same in found.values()]


def _joined(labels: Sequence[str]) -> str:
    text = shortened(labels[0], _LETTERS)
    for place, name in enumerate(labels[1:], 1):
        more = f"{text}, {shortened(name, _LETTERS)}"
        if len(more) > _LETTERS:
            return f"{text} and {len(labels) - place} more"
        text = more
    return text


def _colors(labels: Sequence[str], *, ordered: bool) -> list[str]:
    if ordered or len(labels) > len(CATEGORICAL):
        return depth_colors(len(labels))
    # validation has one colour in all panels, also where it stands alone
    stages = [_STAGES.get(label) for label in labels]
    return [CATEGORICAL[n if stage is None else stage] for n, stage in enumerate(stages)]


def _evenly(n: int, most: int) -> set[int]:
    """Return at most ``most`` places among ``n``, the first and the last with them."""
    if n <= most:
        return set(range(n))
    return {round(step * (n - 1) / (most - 1)) for step in range(most)}


def _scale(axes: Axes, values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > _LOG_RATIO:
        log_axis(axes, min(finite), max(finite))
