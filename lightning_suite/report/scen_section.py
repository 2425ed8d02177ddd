"""What stands above the tables of an evaluation of edits: numbers, figures, answers.

All of it is made from the tables that :mod:`lightning_suite.scen.evaluation` names, when the page
is: a page can be made from a folder that someone sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_suite.errors import SuiteError
from lightning_suite.report.layout import notice, prose
from lightning_suite.report.scen_figures import METRICS, draw_edits, read_rows
from lightning_suite.report.scen_gate_counts import gate_counts
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import html_table, short_number
from lightning_suite.report.text import escape

_ANSWERS = 12


def edit_cards(tables: Mapping[str, Path]) -> list[str]:
    """Return HTML for the tables of an evaluation that are there; of others, none.

    Args:
        tables: CSV files by the name of their artifact.
    """
    parts = []
    for build in (_tiles, _decisions, _figures, _before_and_after):
        try:
            parts += build(tables)
        except (SuiteError, ValueError) as err:
            parts.append(notice(f"Not shown: {err}"))
    return parts


def _tiles(tables: Mapping[str, Path]) -> list[str]:
    tiles = []
    for first in read_rows(tables, "scen_summary", ("system", "edits", *METRICS))[:1]:
        note = f"{first['system']}, {int(first['edits']):,} edits"
        tiles = [_tile(name, short_number(first[name]), note) for name in METRICS if first[name]]
    return [f'<dl class="tiles">{"".join(tiles)}</dl>'] if tiles else []


def _decisions(tables: Mapping[str, Path]) -> list[str]:
    counts = gate_counts(tables)
    if counts is None:
        return []
    which = "" if counts.edits is None else f"{counts.edits:,} different edits fired; "
    tile = _tile(
        "questions answered by an edit",
        f"{counts.fired:,} of {counts.questions:,}",
        f"{which}the base model answered the rest",
    )
    return [f'<dl class="tiles">{tile}</dl>']


def _tile(name: str, value: str, note: str) -> str:
    return (
        f'<div class="card"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f"<small>{escape(note)}</small></dd></div>"
    )


def _figures(tables: Mapping[str, Path]) -> list[str]:
    return [
        _card(
            drawing.title,
            drawing.caption,
            '<div class="plot">'
            f"{inline_svg(drawing.svg, prefix=f'{drawing.name}-', label=drawing.title)}</div>",
        )
        for drawing in draw_edits(tables)
    ]


def _before_and_after(tables: Mapping[str, Path]) -> list[str]:
    columns = {"prompt": "prompt", "before": "before", "after": "after", "target": "asked for"}
    rows = read_rows(tables, "scen_edits", tuple(columns))
    if not rows:
        return []
    title = "Before and after"
    cells = [[row[column] for column in columns] for row in rows[:_ANSWERS]]
    return [
        _card(
            title,
            f"The answers to the first {len(cells)} edits' own prompts; all edits are below.",
            html_table(list(columns.values()), cells, label=title),
        )
    ]


def _card(title: str, caption: str, body: str) -> str:
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3><p>{prose(caption)}</p>'
        f"</figcaption>{body}</figure>"
    )
