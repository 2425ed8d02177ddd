"""Show CSV tables as HTML: numbers aligned and rounded for reading, sortable, cut when long."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_suite.errors import SuiteError
from lightning_suite.report.text import escape, relative_link, shortened

SHOWN_ROWS = 500  # a page with more is slow on a phone; the CSV beside it has them all
PRINTED_ROWS = 40  # of a table on paper
IN_VIEW = 15  # rows; a table with more scrolls in its box
_MANY = 10  # columns; a table with more is too wide for paper
_LONG = 40  # characters of a cell from which on it takes several lines
_MOST = 1000  # of a cell; the file has them all
_HEADING = 120  # of the name of a column
_LONGEST = 1 << 30  # characters of a cell in a file: Python's limit is that of a long prompt


@dataclass(frozen=True)
class Cell:
    """A cell that is more than its text.

    Attributes:
        text: What it shows, plain text.
        link: Path of a file, relative to the page, that it leads to.
        best: Whether it is the best of its column.
    """

    text: str
    link: str = ""
    best: bool = False


def read_table(path: Path, most: int = SHOWN_ROWS) -> tuple[list[str], list[list[str]], int]:
    """Return header, the first ``most`` rows, and the number of all rows of a CSV file.

    Raises:
        SuiteError: The file is missing, unreadable, or a row does not fit the header.
    """
    limit = csv.field_size_limit(_LONGEST)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows: list[list[str]] = []
            total = 0
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise SuiteError(
                        f"{path}, row {reader.line_num}: {len(row)} cells, "
                        f"but the header has {len(header)}."
                    )
                total += 1
                if total <= most:
                    rows.append(row)
    except FileNotFoundError:
        raise SuiteError(f"{path}: no such file, though the run's index lists it.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise SuiteError(f"{path}: not readable as CSV ({err}).") from err
    finally:
        csv.field_size_limit(limit)
    return header, rows, total


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    label: str,
    named_rows: bool = False,
    exact: bool = False,
    total: int | None = None,
) -> str:
    """Return a sortable table inside a box that scrolls on narrow screens.

    A column is numeric if all its filled cells are numbers; these are shown with four significant
    digits, and in full as tooltip. Of a table with long texts each row becomes a block on a phone,
    with the column's name above each value; so it does on paper where there are many columns.

    Args:
        header: Column names.
        rows: Cells, as plain text or with more.
        label: What a screen reader says for the box.
        named_rows: The first cell of each row is its name, and stays in view while one scrolls.
        exact: Numbers are shown as they are written, not rounded.
        total: Rows that there are, where these are the first of them.
    """
    header = [shortened(name, _HEADING) for name in header]
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    numeric = [
        any(row[i].text for row in cells)
        and all(is_number(row[i].text) for row in cells if row[i].text)
        for i in range(len(header))
    ]
    texts = [any(len(row[i].text) >= _LONG for row in cells) for i in range(len(header))]
    many = len(header) > _MANY
    labels = header if any(texts) or many else [""] * len(header)
    head = "".join(
        f'<th scope="col" aria-sort="none"{_kind(number)}>'
        f'<button type="button">{_heading(name)}</button></th>'
        for name, number in zip(header, numeric, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            _cell(
                cell,
                numeric[place],
                name=named_rows and place == 0,
                exact=exact,
                label=labels[place],
            )
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in cells
    )
    has = {"named": named_rows, "texts": any(texts), "many": many}
    kinds = [name for name, true in has.items() if true]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    tall = " tall" if len(cells) > IN_VIEW else ""
    table = (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{kind}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )
    if len(cells) > PRINTED_ROWS:
        every = len(cells) if total is None else total
        table += f'<p class="printed">Printed: the first {PRINTED_ROWS} of {every:,} rows.</p>'
    return table


def short_number(text: str) -> str:
    """Round for reading: integers as they are, other numbers to four significant digits."""
    number = float(text)
    if not math.isfinite(number) or text.lstrip("+-").isdigit():
        return text
    return f"{number:.4g}"


def plain_number(value: float) -> str:
    """Write a number in full, a whole one without a fraction."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)


def _cell(cell: Cell, number: bool, *, name: bool, exact: bool, label: str) -> str:
    tag, scope = ("th", ' scope="row"') if name else ("td", "")
    classes = ["number"] if number and not name else []
    classes += ["long"] if not number and len(cell.text) >= _LONG else []
    classes += ["best"] if cell.best else []
    kind = f' class="{" ".join(classes)}"' if classes else ""
    shown, data = breakable(cell.text[:_MOST]), ""
    if len(cell.text) > _MOST:
        shown += f'… <span class="soft">({len(cell.text):,} characters)</span>'
    column = f' data-label="{escape(label)}"' if label and not name and cell.text else ""
    if number and cell.text:
        short = cell.text if exact else short_number(cell.text)
        data = f' data-value="{escape(cell.text)}"'
        data += f' title="{escape(cell.text)}"' if short != cell.text else ""
        shown = escape(short)
    if cell.link:
        shown = f'<a href="{relative_link(cell.link)}">{shown}</a>'
    return f"<{tag}{scope}{kind}{column}{data}>{shown}</{tag}>"


def _kind(number: bool) -> str:
    return ' class="number"' if number else ""


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, NaN and infinities among them."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float("1_000") is a number only for Python


def _heading(name: str) -> str:
    """Let a long heading take two lines of about the same length."""
    places = [place + 1 for place, mark in enumerate(name) if mark in "_/ "]
    if len(name) <= 12 or not places:
        return escape(name)
    middle = min(places, key=lambda place: abs(place - len(name) / 2))
    return f"{escape(name[:middle])}<wbr>{escape(name[middle:])}"


def breakable(text: str) -> str:
    """Escape a text, and let long names in it wrap where a reader would."""
    if " " not in text:
        return _breakable_word(text, "_/.")
    # in a sentence only what is too long for a line of its own: fractions stay whole
    return " ".join(_breakable_word(word, "_/") for word in text.split(" "))


def _breakable_word(word: str, marks: str) -> str:
    safe = escape(word)
    if len(word) <= 14:
        return safe
    for mark in marks:
        safe = safe.replace(mark, f"{mark}<wbr>")
    return safe
