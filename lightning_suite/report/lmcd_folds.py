"""The folds of one split: runs that lie beside each other, drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.report.scen_figures import Row, read_rows
from lightning_suite.report.style import CATEGORICAL, INK, figure_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = ("system", "answers", "auc", "kind", "fold", "folds", "split_seed")


def fold_scores(tables: Mapping[str, Path]) -> list[list[Row]]:
    """Return ``lmcd_scores`` of each fold, this run's among them, in the order of the folds.

    Of several runs of one fold the newest folder counts; of this run's, this run.
    """
    own = read_rows(tables, "lmcd_scores", SCORES)
    if not own:
        return []
    found = {own[0]["fold"]: own}
    for path in _beside(tables["lmcd_scores"]):
        try:
            rows = read_rows({"lmcd_scores": path}, "lmcd_scores", SCORES)
        except SuiteError:
            continue  # a neighbour that is broken is not this run's fault
        if rows and _setting(rows[0]) == _setting(own[0]) and rows[0]["fold"] not in found:
            found[rows[0]["fold"]] = rows
    return [found[fold] for fold in sorted(found, key=int)]


def fold_tables(tables: Mapping[str, Path], name: str, columns: Sequence[str]) -> list[list[Row]]:
    """Return the tables ``name`` of the other folds."""
    own = read_rows(tables, "lmcd_scores", SCORES)
    found: dict[str, list[Row]] = {}
    for path in _beside(tables["lmcd_scores"]) if own else ():
        try:
            scores = read_rows({"lmcd_scores": path}, "lmcd_scores", SCORES)
            rows = read_rows({name: path.with_name(f"{name}.csv")}, name, columns)
        except SuiteError:
            continue
        other = scores and scores[0]["fold"] != own[0]["fold"]
        if other and _setting(scores[0]) == _setting(own[0]):
            found.setdefault(scores[0]["fold"], rows)
    return list(found.values())


def folds_figure(folds: Sequence[Sequence[Row]]) -> Figure:
    """Draw the AUC of each fold between its floor and its ceiling.

    Args:
        folds: ``lmcd_scores`` of each fold.
    """
    with figure_style():
        figure: Figure = import_extra("matplotlib.figure", "report").Figure(
            figsize=(7.0, 1.5 + 0.42 * len(folds))
        )
        axes = figure.subplots()
        for place, rows in enumerate(folds):
            of = {row["system"]: row for row in rows}
            floor, ceiling = (float(of[name]["auc"]) for name in ("floor", "ceiling"))
            axes.plot(
                [floor, ceiling], [place, place], color=CATEGORICAL[4], linewidth=5, alpha=0.45
            )
            axes.plot([floor, ceiling], [place, place], "|", color=INK, markersize=11)
            auc = float(of["lmcd"]["auc"])
            if of["lmcd"].get("auc_low"):
                ends = [auc - float(of["lmcd"]["auc_low"]), float(of["lmcd"]["auc_high"]) - auc]
                axes.errorbar(
                    auc, place, xerr=np.clip([[ends[0]], [ends[1]]], 0, None), color=CATEGORICAL[0]
                )
            axes.plot(auc, place, "o", color=CATEGORICAL[0], markersize=7)
            axes.annotate(
                f"{auc:.3f}",
                (auc, place),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        values = np.array(
            [float(r["auc"]) for rows in folds for r in rows if r["system"] == "lmcd"]
        )
        axes.axvline(values.mean(), color=CATEGORICAL[0], linewidth=1, linestyle=(0, (4, 3)))
        axes.set_title(f"mean {values.mean():.3f}, standard deviation {values.std(ddof=1):.3f}")
        axes.set_yticks(range(len(folds)), [f"fold {rows[0]['fold']}" for rows in folds])
        axes.set_ylim(len(folds) - 0.5, -0.7)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("AUC; grey: from floor to ceiling")
    return figure


def _beside(path: Path) -> list[Path]:
    """Return the same table of the runs beside this one, the highest version first."""
    run = path.parent.parent
    found = [p for p in run.parent.glob(f"*/artifacts/{path.name}") if p.parent.parent != run]
    return sorted(found, key=lambda p: (len(str(p)), str(p)), reverse=True)


def _setting(row: Row) -> tuple[str, ...]:
    # an upper bound is no fold of a cold test; tables of an earlier revision do not say
    return row["kind"], row["folds"], row["split_seed"], row.get("train_on_oracle") or "0"
