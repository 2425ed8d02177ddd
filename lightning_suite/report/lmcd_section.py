"""What stands above the tables of a diagnosis: the AUC between its bounds, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.cautions import (
    alike_caution,
    floor_caution,
    likelihood_caution,
    mastery_caution,
    oracle_caution,
    trained,
)
from lightning_suite.report.layout import notice, prose
from lightning_suite.report.lmcd_figures import draw_diagnosis
from lightning_suite.report.lmcd_folds import SCORES
from lightning_suite.report.scen_figures import read_rows
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.text import escape

_TILES = {
    "lmcd": ("AUC", "{answers:,} answers"),
    "floor": ("floor", "own rates"),
    "ceiling": ("ceiling", "own rates, true difficulties"),
}


def diagnosis_cards(tables: Mapping[str, Path]) -> list[str]:
    """Return HTML for the tables of a diagnosis that are there; of others, none.

    Args:
        tables: CSV files by the name of their artifact.
    """
    parts = []
    for build in (_tiles, _cautions, _figures):
        try:
            parts += build(tables)
        except (SuiteError, ValueError, KeyError) as err:
            problem = notice(f"Not shown: {err}")
            parts += [problem] if problem not in parts else []  # one table, read twice
    return parts


def _tiles(tables: Mapping[str, Path]) -> list[str]:
    rows = {row["system"]: row for row in read_rows(tables, "lmcd_scores", SCORES)}
    tiles = "".join(
        f'<div class="card"><dt>{name}</dt><dd>{float(rows[system]["auc"]):.3f}'
        f"<small>{note.format(answers=int(rows[system]['answers']))}</small></dd></div>"
        for system, (name, note) in _TILES.items()
        if system in rows
    )
    return [f'<dl class="tiles">{tiles}</dl>'] if tiles else []


def _cautions(tables: Mapping[str, Path]) -> list[str]:
    mastery = read_rows(tables, "lmcd_mastery", ("student_id", "predicted"))
    scores = read_rows(tables, "lmcd_scores", SCORES)
    cautions = oracle_caution(scores) + floor_caution(scores) + likelihood_caution(scores)
    items = read_rows(tables, "lmcd_items", ("predicted", "observed"))
    if items and "answers" in items[0]:  # a table of an earlier revision has no such column
        cautions += alike_caution(items, trained=trained(scores))
    if mastery and "mastered" in mastery[0]:
        cautions += mastery_caution(mastery, trained=trained(scores))
    return [notice(caution) for caution in cautions]


def _figures(tables: Mapping[str, Path]) -> list[str]:
    return [
        f'<figure class="card"><figcaption><h3>{escape(drawing.title)}</h3>'
        f"<p>{prose(drawing.caption)}</p></figcaption>"
        '<div class="plot">'
        f"{inline_svg(drawing.svg, prefix=f'{drawing.name}-', label=drawing.title)}</div></figure>"
        for drawing in draw_diagnosis(tables)
    ]
