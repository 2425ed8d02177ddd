from __future__ import annotations

import re
from itertools import pairwise

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from lightning_suite.report.style import (
    CATEGORICAL,
    DARK_CARD,
    INK,
    MARKERS,
    PAPER,
    depth_colors,
    figure_style,
    markers,
)

# Machado, Oliveira & Fernandes (2009), severity 1, applied to linear RGB
DEUTERANOPIA = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
PROTANOPIA = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
NORMAL = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def linear(color: str) -> list[float]:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    weights = (0.2126, 0.7152, 0.0722)
    low, high = sorted(
        sum(w * c for w, c in zip(weights, linear(color), strict=True)) for color in (one, other)
    )
    return (high + 0.05) / (low + 0.05)


def seen_distance(one: str, other: str, vision: list[list[float]]) -> float:
    """Distance of two colours in OKLab as seen with a kind of colour vision."""

    def oklab(color: str) -> list[float]:
        r, g, b = (
            max(0.0, sum(m * c for m, c in zip(row, linear(color), strict=True))) for row in vision
        )
        cones = [
            (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3),
            (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3),
            (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3),
        ]
        rows = [
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ]
        return [sum(a * c for a, c in zip(row, cones, strict=True)) for row in rows]

    return sum((a - b) ** 2 for a, b in zip(oklab(one), oklab(other), strict=True)) ** 0.5


@pytest.mark.parametrize("color", [*CATEGORICAL, *depth_colors(12)])
def test_data_colours_read_on_light_and_dark_cards(color: str) -> None:
    assert contrast(color, PAPER) >= 3
    assert contrast(color, DARK_CARD) >= 3


@pytest.mark.parametrize("vision", [NORMAL, DEUTERANOPIA, PROTANOPIA])
def test_depths_are_told_apart_with_every_kind_of_colour_vision(vision: list[list[float]]) -> None:
    colors = depth_colors(6)
    steps = [seen_distance(a, b, vision) for a, b in pairwise(colors)]
    assert min(steps) > 0.04  # two just noticeable differences
    # farther in depth is farther in colour: the palette is a path, not a circle
    to_first = [seen_distance(colors[0], color, vision) for color in colors]
    assert to_first == sorted(to_first)


@pytest.mark.parametrize("vision", [NORMAL, DEUTERANOPIA, PROTANOPIA])
def test_the_first_categories_are_told_apart(vision: list[list[float]]) -> None:
    first = CATEGORICAL[:3]
    assert all(seen_distance(a, b, vision) > 0.05 for a in first for b in first if a < b)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
def test_a_palette_has_as_many_distinct_colours_as_asked(n: int) -> None:
    colors = depth_colors(n)
    assert len(set(colors)) == n
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)


def test_the_ends_of_the_palette_do_not_depend_on_its_length() -> None:
    assert {(depth_colors(n)[0], depth_colors(n)[-1]) for n in (2, 3, 8)} == {
        (depth_colors(2)[0], depth_colors(2)[1])
    }


def test_markers_are_distinct_and_never_run_out() -> None:
    assert markers(12) == list(MARKERS)
    assert len(set(MARKERS)) == 12
    assert markers(13)[-1] == MARKERS[0]


def test_the_style_holds_inside_its_block_only() -> None:
    before = dict(mpl.rcParams)
    with figure_style():
        figure = Figure()
        axes = figure.add_subplot()
        title = axes.set_title("x", loc="left")
    assert dict(mpl.rcParams) == before
    assert mpl.colors.to_hex(figure.get_facecolor()) == PAPER
    assert mpl.colors.to_hex(title.get_color()) == INK
