"""One look for all figures: quiet axes, colours that read on white and on dark pages.

The report page puts the SVG files inline and replaces `INK`, `GRID` and `PAPER` by the
colours of the page's theme; that is why these three are unusual values that nothing else uses.
All data colours keep a contrast of at least 3 : 1 (WCAG 2.2, 1.4.11) against white *and* against
the dark card, so that a figure needs no second version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING

from lightning_suite.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#22272f"
GRID = "#dfe2e8"
PAPER = "#fefefe"
DARK_CARD = "#171a21"

# Categorical colours, ordered so that neighbours differ for every kind of colour vision.
CATEGORICAL = ("#2f7fd6", "#d9730d", "#0f9d76", "#b04fc4", "#8a8f98", "#c9485b")
# Sequential: from cool to warm (the axis that colour-blind readers keep), in steps that look equal
# on average over normal, protan and deutan vision.
_SEQUENTIAL = ("#3c64e6", "#8353ca", "#ac4fb4", "#c54f95", "#d65673", "#df634c", "#d17c00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw the figures of this block in the suite's style.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> with figure_style():
        ...     figure, axes = plt.subplots()
        >>> figure.get_facecolor()[:3] == axes.get_facecolor()[:3]
        True
        >>> plt.close(figure)
    """
    matplotlib = import_extra("matplotlib", "report")
    with matplotlib.rc_context(
        {
            "axes.axisbelow": True,
            "axes.edgecolor": INK,
            "axes.facecolor": PAPER,
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.labelsize": 10,
            "axes.linewidth": 0.8,
            "axes.prop_cycle": matplotlib.cycler(color=CATEGORICAL),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlepad": 10,
            "figure.constrained_layout.use": True,
            "figure.facecolor": PAPER,
            "figure.figsize": (7.0, 4.2),
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
            "font.size": 9.5,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "lines.linewidth": 1.8,
            "lines.markersize": 5.5,
            "lines.markeredgewidth": 0,
            "text.color": INK,
            "text.parse_math": False,  # names of users may hold dollar signs
            "xtick.color": INK,
            "xtick.labelsize": 9,
            "xtick.major.width": 0.8,
            "xtick.minor.visible": False,
            "ytick.color": INK,
            "ytick.labelsize": 9,
            "ytick.major.width": 0.8,
        }
    ):
        yield


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the vertical axis logarithmic, with plain numbers at its ticks.

    matplotlib's own labels are mathematics, which `figure_style` takes for dollar signs.

    Args:
        axes: Whose.
        low: The smallest value that is drawn, above 0.
        high: The largest one.
    """
    ticker = import_extra("matplotlib.ticker", "report")
    axes.set_yscale("log")
    # between the powers of ten only where there are few of these
    places = (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=places))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def depth_colors(n: int) -> list[str]:
    """Return ``n`` colours for growing depths, from cool (shallow) to warm (deep).

    Args:
        n: Number of depths, at least 0.

    Returns:
        Hex colours. Pair them with `markers(n)` so that
        colour is never the only sign.
    """
    if n == 1:
        return [_SEQUENTIAL[0]]
    anchors = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _SEQUENTIAL]
    colors = []
    for step in range(n):
        place = step * (len(anchors) - 1) / (n - 1)
        low = min(int(place), len(anchors) - 2)
        part = place - low
        mixed = (a + part * (b - a) for a, b in zip(anchors[low], anchors[low + 1], strict=True))
        colors.append("#" + "".join(f"{round(channel):02x}" for channel in mixed))
    return colors


def markers(n: int) -> list[str]:
    """Return ``n`` matplotlib markers, distinct for the first twelve."""
    return list(islice(cycle(MARKERS), n))
