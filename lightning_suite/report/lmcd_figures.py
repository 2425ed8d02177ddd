"""What the page draws from the tables that ``DiagnosisReportCallback`` writes.

The tables are all that is needed: a page can be made from a folder that someone sent. Runs that
lie beside it and are other folds of the same split are drawn with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_suite.extras import import_extra
from lightning_suite.report.lmcd_folds import SCORES, fold_scores, fold_tables, folds_figure
from lightning_suite.report.scen_figures import Drawing, Row, read_rows
from lightning_suite.report.style import CATEGORICAL, INK, depth_colors, figure_style
from lightning_suite.report.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Bounds in grey: they are no competitors.
SYSTEMS = {
    "lmcd": ("LMCD", CATEGORICAL[0], "-"),
    "ceiling": ("ceiling", CATEGORICAL[4], (0, (1, 1.5))),
    "floor": ("floor", CATEGORICAL[4], (0, (5, 2))),
}
_STUDENTS = 40  # rows of the heat map
_SKILLS = 40  # names below it; columns are all drawn
_CELLS = 5_000  # of the map as a drawing; more are a bitmap in it
_SPAN = 0.5  # of the axes of difficulty and discrimination, at least
_KC_LETTERS = 34
_STUDENT_LETTERS = 24


def draw_diagnosis(tables: Mapping[str, Path]) -> list[Drawing]:
    """Draw what the tables of a diagnosis show.

    Args:
        tables: CSV files by the name of their artifact; those of other things are passed over.

    Raises:
        SuiteError: A table does not have the columns that are expected.
        MissingExtraError: matplotlib is not installed.
    """
    drawings = []
    if mastery := read_rows(tables, "lmcd_mastery", ("student_id", "kc_id", "kc", "predicted")):
        count, skills = (len({row[name] for row in mastery}) for name in ("student_id", "kc_id"))
        drawings.append(
            Drawing(
                "lmcd-mastery",
                "Students and skills",
                "Predicted share of right answers over all exercises of a skill. "
                + (
                    f"{_STUDENTS} of {count:,} students, evenly from the weakest to the strongest."
                    if count > _STUDENTS
                    else "From the weakest student to the strongest."
                )
                + (f" {_SKILLS} of {skills:,} skills are named." if skills > _SKILLS else ""),
                mastery_figure(mastery),
            )
        )
    folds = fold_scores(tables)
    if len(folds) > 1:
        drawings.append(
            Drawing(
                "lmcd-folds",
                "Over the folds",
                "AUC of this run and of the runs beside it that test other folds of the same "
                "split, between floor (a student's own rate) and ceiling (that rate with the "
                "test's own difficulties). Bars: 95 % over students.",
                folds_figure(folds),
            )
        )
    calibration = read_rows(tables, "lmcd_calibration", ("predicted", "observed", "low", "high"))
    roc = read_rows(tables, "lmcd_roc", ("system", "false_rate", "true_rate"))
    scores = read_rows(tables, "lmcd_scores", SCORES)
    if calibration and roc and scores:
        beside = fold_tables(tables, "lmcd_calibration", ("predicted", "observed", "answers"))
        drawings.append(
            Drawing(
                "lmcd-curves",
                "Calibration and ROC",
                "Left: of answers with about the same predicted probability, the share that was "
                "right; bars are 95 %, the size of a point its answers"
                + (", grey lines the other folds." if beside else ".")
                + " Right: all thresholds at once, with the area under each curve.",
                curves_figure(calibration, roc, scores, beside),
            )
        )
    if items := read_rows(
        tables, "lmcd_items", ("part", "predicted", "observed", "difficulty", "discrimination")
    ):
        drawings.append(
            Drawing(
                "lmcd-items",
                "Exercises",
                "Left: predicted and observed share of right answers to each exercise. Right: "
                "what the model reads from its text. Exercises of the test were never seen.",
                items_figure(items),
            )
        )
    return drawings


def mastery_figure(rows: Sequence[Row]) -> Figure:
    """Draw students (down) by skills (across), coloured by predicted accuracy.

    Args:
        rows: Of ``lmcd_mastery.csv``.
    """
    matplotlib = import_extra("matplotlib", "report")
    students = list(dict.fromkeys(row["student_id"] for row in rows))
    names = {row["kc_id"]: row["kc"] for row in rows}
    place = {student: i for i, student in enumerate(students)}
    column = {kc: i for i, kc in enumerate(names)}
    values = np.full((len(students), len(names)), np.nan)
    for row in rows:
        if row["predicted"]:
            values[place[row["student_id"]], column[row["kc_id"]]] = float(row["predicted"])
    # a student of whom nothing is known has no mean and comes last
    mean = np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)
    order = np.argsort(mean, kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(_STUDENTS, len(order))).round())
    order = order[chosen.astype(int)]
    with figure_style():
        letters = min(_KC_LETTERS, max(map(len, names.values())))
        figure = _figure(7.0, 0.8 + 0.13 * len(order) + 0.05 * letters)
        axes = figure.subplots()
        colors = matplotlib.colors.LinearSegmentedColormap.from_list("mastery", depth_colors(7))
        mesh = axes.pcolormesh(
            np.arange(len(names) + 1) - 0.5,
            np.arange(len(order) + 1) - 0.5,
            values[order],
            cmap=colors.reversed(),
            vmin=0,
            vmax=1,
            edgecolor="none",
            rasterized=values[order].size > _CELLS,
        )
        named = np.unique(np.linspace(0, len(names) - 1, min(_SKILLS, len(names))).round())
        axes.set_xticks(
            named,
            [shortened(list(names.values())[int(place)], _KC_LETTERS) for place in named],
            rotation=60 if len(names) > 2 else 0,  # steep: names must not push the map aside
            rotation_mode="anchor" if len(names) > 2 else "default",
            ha="right" if len(names) > 2 else "center",
            fontsize=8,
        )
        axes.set_yticks(
            range(len(order)),
            [shortened(students[i], _STUDENT_LETTERS) for i in order],
            fontsize=6.5,
        )
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_ylabel("student")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.035, pad=0.02)
        bar.set_label("predicted share right")
        bar.outline.set_visible(False)
    return figure


def curves_figure(
    calibration: Sequence[Row],
    roc: Sequence[Row],
    scores: Sequence[Row],
    beside: Sequence[Sequence[Row]] = (),
) -> Figure:
    """Draw calibration with its intervals, and the ROC curves of the model and its bounds.

    Args:
        calibration: Of ``lmcd_calibration.csv``.
        roc: Of ``lmcd_roc.csv``.
        scores: Of ``lmcd_scores.csv``.
        beside: Calibration of other folds.
    """
    auc = {row["system"]: float(row["auc"]) for row in scores}
    with figure_style():
        figure = _figure(7.0, 3.7)
        left, right = figure.subplots(1, 2)
        for rows in beside:
            left.plot(
                _column(rows, "predicted"),
                _column(rows, "observed"),
                color=CATEGORICAL[4],
                linewidth=0.9,
                alpha=0.6,
            )
        x, y = _column(calibration, "predicted"), _column(calibration, "observed")
        low, high = _column(calibration, "low"), _column(calibration, "high")
        error = np.clip([y - low, high - y], 0, None)
        left.errorbar(x, y, error, color=CATEGORICAL[0], linewidth=1.2)
        answers = _column(calibration, "answers")
        left.scatter(x, y, 12 + 70 * answers / answers.max(), color=CATEGORICAL[0], zorder=3)
        left.set_xlabel("predicted probability")
        left.set_ylabel("share right")
        left.set_title("Calibration")
        for system, (label, color, line) in SYSTEMS.items():
            rows = [row for row in roc if row["system"] == system]
            if rows:
                right.plot(
                    _column(rows, "false_rate"),
                    _column(rows, "true_rate"),
                    color=color,
                    linestyle=line,
                    label=f"{label}  {auc.get(system, float('nan')):.3f}",
                )
        right.set_xlabel("wrong answers taken for right")
        right.set_ylabel("right answers found")
        right.set_title("ROC")
        right.legend(loc="lower right", title="AUC", alignment="left")
        for axes in (left, right):
            _diagonal(axes)
    return figure


def items_figure(rows: Sequence[Row]) -> Figure:
    """Draw exercises: predicted against observed accuracy, and difficulty with discrimination.

    Args:
        rows: Of ``lmcd_items.csv``.
    """
    kinds = [kind for kind in ("train", "val", "test", "") if any(r["part"] == kind for r in rows)]
    looks = {"train": (4, "o"), "val": (2, "^"), "test": (1, "D"), "": (3, "s")}
    with figure_style():
        figure = _figure(7.0, 3.7)
        left, right = figure.subplots(1, 2)
        for kind in kinds:
            color, marker = looks[kind]
            look = {
                "s": 26,
                "color": CATEGORICAL[color],
                "marker": marker,
                "label": kind or "no answers yet",
            }
            here = [row for row in rows if row["part"] == kind]
            both = [row for row in here if row["predicted"] and row["observed"]]
            left.scatter(_column(both, "observed"), _column(both, "predicted"), **look)
            read = [row for row in here if row["difficulty"] and row["discrimination"]]
            right.scatter(_column(read, "difficulty"), _column(read, "discrimination"), **look)
        _diagonal(left)
        left.set_xlabel("observed share right")
        left.set_ylabel("predicted share right")
        left.set_title("Accuracy")
        right.set_xlabel("difficulty")
        right.set_ylabel("discrimination")
        right.set_title("Parameters")
        _least_span(right)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(kinds))
    return figure


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _least_span(axes: Axes) -> None:
    """Keep parameters that are all alike from filling the axes: there, differences are rounding."""
    for low, high, limit in (
        (*axes.get_xlim(), axes.set_xlim),
        (*axes.get_ylim(), axes.set_ylim),
    ):
        if high - low < _SPAN:
            middle = (low + high) / 2
            limit(middle - _SPAN / 2, middle + _SPAN / 2)


def _diagonal(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _figure(width: float, height: float) -> Figure:
    figure: Figure = import_extra("matplotlib.figure", "report").Figure(figsize=(width, height))
    return figure
