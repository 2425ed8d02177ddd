"""The metrics of several runs side by side, the best marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_suite.report.entries import Entry, chosen
from lightning_suite.report.layout import Section, notice
from lightning_suite.report.summaries import Better, Summary, better
from lightning_suite.report.tables import Cell, html_table, plain_number, short_number

_MOST_COLUMNS = 12


def side_by_side(entries: Sequence[Entry], wanted: Sequence[str] | None) -> list[Section]:
    """Write the table of what several runs have measured.

    Args:
        entries: The runs.
        wanted: Patterns of names of figures and curves; None takes the figures that are shared.

    Returns:
        One section, or none where there is nothing to compare.
    """
    owners: dict[str, list[Entry]] = {}
    for entry in entries:
        for name in entry.summary.figures if wanted is None else _all_names(entry.summary):
            owners.setdefault(name, []).append(entry)
    names = chosen([name for name, has in owners.items() if len(has) > 1 or wanted], wanted)
    if not names or len(entries) < 2:
        return []
    notes = []
    if len(names) > _MOST_COLUMNS:
        notes.append(
            notice(
                f"The first {_MOST_COLUMNS} of {len(names)} shared metrics are shown; "
                "`--metrics` chooses others."
            )
        )
        names = names[:_MOST_COLUMNS]
    header, columns = ["run"], list[dict[str, Cell]]()
    for name in names:
        last = {entry.name: _last(entry.summary, name) for entry in owners[name]}
        header.append(name)
        columns.append(_column(last, better(name)))
        best = {entry.name: _best(entry.summary, name) for entry in owners[name]}
        if any(value is not None and value != last[run] for run, value in best.items()):
            header.append(f"{'lowest' if better(name) is min else 'highest'} {name}")
            columns.append(_column(best, better(name)))
    shown = [entry for entry in entries if any(entry in owners[name] for name in names)]
    rows = [
        [entry.cell, *(column.get(entry.name, Cell("")) for column in columns)] for entry in shown
    ]
    table = html_table(header, rows, label="Metrics side by side", named_rows=True)
    text = "Figures of the methods' tables, and the last value of each curve; ★ marks the best."
    body = f'<div class="card"><p>{text}</p>{table}</div>'
    return [Section("Side by side", "\n".join([*notes, body]))]


def _all_names(summary: Summary) -> list[str]:
    return list(dict.fromkeys([*summary.figures, *summary.series]))


def _last(summary: Summary, name: str) -> float | None:
    if name in summary.figures:
        return summary.figures[name]
    return summary.series[name].values[-1] if name in summary.series else None


def _best(summary: Summary, name: str) -> float | None:
    """The best value of a curve, where one can say which that is."""
    pick = better(name)
    if pick is None or name not in summary.series:
        return None
    values = [value for value in summary.series[name].values if not math.isnan(value)]
    return pick(values) if values else None


def _column(values: Mapping[str, float | None], pick: Better | None) -> dict[str, Cell]:
    """Mark the best as it is shown: runs of which one reads the same number share the mark."""
    known = [value for value in values.values() if value is not None and not math.isnan(value)]
    best = None
    if pick is not None and len({short_number(plain_number(value)) for value in known}) > 1:
        best = short_number(plain_number(pick(known)))
    return {
        name: Cell(text, best=bool(text) and short_number(text) == best)
        for name, value in values.items()
        for text in ["" if value is None else plain_number(value)]
    }
