"""What benchmarks of growing cost share: two sizes, one of which grows; peak memory; one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_suite.report.style import figure_style

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"


class Axis(NamedTuple):
    """A size: its key in a row, the values it takes, and the one it has while the other grows."""

    key: str
    values: Sequence[int]
    held: int
    label: str


class Line(NamedTuple):
    """A curve: in panel 0 (above) or 1, the value of the rows that are wanted."""

    panel: int
    wanted: Callable[[dict[str, Any]], bool]
    value: Callable[[dict[str, Any]], float]
    color: str
    style: str = "o-"
    label: str | None = None


def grid(first: Axis, second: Axis) -> list[tuple[int, int]]:
    """Return the pairs of sizes to measure: either grows while the other is held."""
    grows = [(value, second.held) for value in first.values]
    return grows + [(first.held, value) for value in second.values if value != second.held]


def resident_mib(what: str) -> float:
    """Return a line of this process's status in MiB: resident memory now, or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def lifted_mib(run: Callable[[], object]) -> float:
    """Run once; return how far that lifts the peak above what is resident now, in MiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def draw(
    file: Path,
    axes: tuple[Axis, Axis],
    rows: Sequence[dict[str, Any]],
    lines: Sequence[Line],
    *,
    labels: tuple[str, str],
    scales: tuple[str, str] = ("log", "log"),
    level: float | None = None,
) -> None:
    """Draw two quantities, one above the other, against both sizes.

    Args:
        file: To write.
        axes: The two sizes, from left to right.
        rows: What was measured; a row has the keys of both axes.
        lines: The curves.
        labels: Of the upper and the lower quantity.
        scales: Theirs.
        level: Of a horizontal line in the upper panels.
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415

    with figure_style():
        figure, panels = plt.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
        for column, (axis, other) in enumerate((axes, axes[::-1])):
            held = [row for row in rows if row[other.key] == other.held]
            held.sort(key=lambda row: int(row[axis.key]))
            for line in lines:
                own = [row for row in held if line.wanted(row)]
                panels[line.panel, column].plot(
                    [row[axis.key] for row in own],
                    [line.value(row) for row in own],
                    line.style,
                    color=line.color,
                    label=line.label,
                )
            if level is not None:
                panels[0, column].axhline(level, color="gray", linewidth=1)
            panels[1, column].set_xscale("log", base=2)
            panels[1, column].set(xlabel=axis.label, xticks=axis.values, xticklabels=axis.values)
            for panel, scale in enumerate(scales):
                panels[panel, column].set_yscale(scale)
        for panel, label in enumerate(labels):
            panels[panel, 0].set_ylabel(label)
        panels[0, 0].legend()
        figure.savefig(file, dpi=120)
        plt.close(figure)
