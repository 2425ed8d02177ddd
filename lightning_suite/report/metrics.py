"""Read the ``metrics.csv`` that Lightning's ``CSVLogger`` writes, and sort its columns for reading.

The file is sparse: one row a logging call, a column for every key of the whole run, most cells
empty.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lightning_suite.errors import SuiteError

_STAGE = re.compile(r"(train|val|valid|validation|test)[_/](.+)")
_LEARNING_RATE = re.compile(r"lr-([^/-]+)(?:-(\d+))?(?:/(.+?))?(?:-(momentum|weight_decay))?")
METRICS = "Metrics"  # group of what the module itself logs
LEARNING_RATES = "Learning rates"
_NUMBER = re.compile(r"(\d+)")
_COUNTED = re.compile(r"(?:^|[_.-])\d+(?:$|[_.-])")  # block_0, h.3: one of several; not f1


@dataclass(frozen=True)
class Series:
    """One column without its empty cells.

    Attributes:
        steps: The ``step`` of each value (its row number where the file has no such column).
        values: The values; NaN and infinities are kept, they are findings.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Metrics:
    """The content of one ``metrics.csv``.

    Attributes:
        series: Column name -> its values, in the file's order of columns.
        torn: The last row was cut off in the middle (a killed run) and is left out.
    """

    series: dict[str, Series]
    torn: bool = False


@dataclass(frozen=True)
class Panel:
    """Columns that belong into one set of axes.

    Attributes:
        group: Heading under which the panel stands.
        title: What the vertical axis shows.
        lines: (label, column) pairs in reading order.
        ordered: The labels count something (blocks, layers): a sequential palette fits.
    """

    group: str
    title: str
    lines: list[tuple[str, str]]
    ordered: bool = False


def read_metrics(path: str | Path) -> Metrics:
    """Read a ``metrics.csv``.

    Raises:
        SuiteError: The file is missing or unreadable, or a cell is not a number; the message names
            file, row and column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(f"{path}: no such file. Train with a CSVLogger to get one.") from None
    except (OSError, UnicodeDecodeError) as err:
        raise SuiteError(f"{path}: cannot be read ({err}).") from err
    # The logger ends every row with a newline: a last row without one was being written when the
    # process died, and its last number may have lost digits.
    torn = "\n" in text and not text.endswith("\n")
    rows = _rows(path, text[: text.rfind("\n") + 1] if torn else text)
    header = next(rows, (0, []))[1]
    if not header:
        raise SuiteError(f"{path}: the file is empty; expected a header row.")
    step_column = header.index("step") if "step" in header else None
    series = {name: Series() for name in header if name not in {"step", "epoch"}}
    for number, cells in rows:
        if len(cells) != len(header):
            raise SuiteError(
                f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}."
            )
        values = [_number(path, number, *cell) for cell in zip(header, cells, strict=True)]
        step = None if step_column is None else values[step_column]
        for name, value in zip(header, values, strict=True):
            if name in series and value is not None:
                series[name].steps.append(float(number - 2) if step is None else step)
                series[name].values.append(value)
    return Metrics({name: one for name, one in series.items() if one.values}, torn)


def panels(names: list[str]) -> list[Panel]:
    """Group columns into panels.

    ``train_loss`` and ``val_loss`` share one; so do the learning rates of one optimizer, keys that
    differ only in numbers (``depth_mup/rms/block_0``, ``…/block_1``), and keys of three or more
    parts with the same parent. Panels are sorted: metrics of the module (the loss first), learning
    rates, then one group for each prefix.

    Args:
        names: Column names, without ``step`` and ``epoch``.
    """
    found: dict[_Place, list[tuple[str, str]]] = {}
    for name in names:
        place = _place(name)
        found.setdefault(place._replace(label=""), []).append((place.label, name))
    return [
        Panel(key.group, _title(key, lines), _in_order(lines), key.ordered)
        for key, lines in sorted(
            found.items(), key=lambda item: (item[0].rank, item[0].group, _natural(item[0].title))
        )
    ]


class _Place(NamedTuple):
    rank: int
    group: str
    title: str
    ordered: bool
    label: str


def _title(key: _Place, lines: list[tuple[str, str]]) -> str:
    """A number stands for its like only where there are several."""
    if key.ordered and len(lines) == 1:
        return lines[0][1].removeprefix(f"{key.group}/").replace("/", " / ")
    return key.title


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as err:
        raise SuiteError(f"{path}, row {reader.line_num}: not readable as CSV ({err}).") from err


def _number(path: Path, row: int, column: str, cell: str) -> float | None:
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        raise SuiteError(
            f"{path}, row {row}, column '{column}': expected a number, found {cell[:40]!r}."
        ) from None


def _place(name: str) -> _Place:
    """Decide where one column is shown."""
    if match := _LEARNING_RATE.fullmatch(name):
        optimizer, number, role, option = match.groups()
        what = (option or "learning rate").replace("_", " ").capitalize()
        label = " ".join(filter(None, [number, role])) or optimizer
        return _Place(1, LEARNING_RATES, f"{what} · {optimizer}", False, label)
    prefix, *parts = name.split("/")
    match = _STAGE.fullmatch(name)
    if match or not parts:
        stage, what = match.groups() if match else (name, name)
        for suffix in ("_step", "_epoch"):
            if what.endswith(suffix):
                stage = f"{stage.removesuffix(suffix)} ({suffix[1:]})"
                what = what.removesuffix(suffix)
        return _Place(0, METRICS, what, False, stage)
    counted = [part for part in parts if _COUNTED.search(part)]
    if counted:
        title = " / ".join("*" if part in counted else part for part in parts)
        return _Place(2, prefix, title.removesuffix(" / *"), True, "/".join(counted))
    return _Place(2, prefix, " / ".join(parts[:-1]) or parts[0], False, parts[-1])


def _in_order(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort (label, column) pairs and drop the path that all labels share."""
    paths = [label.split("/") for label, _ in lines]
    shared = 0
    while min(map(len, paths)) > shared + 1 and len({path[shared] for path in paths}) == 1:
        shared += 1
    return sorted(
        (("/".join(path[shared:]), name) for path, (_, name) in zip(paths, lines, strict=True)),
        key=lambda line: _natural(line[0]),
    )


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts block_2 before block_10, and the loss and training before all else."""
    if text.startswith(("loss", "train")):
        return []
    parts = _NUMBER.split(text.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
