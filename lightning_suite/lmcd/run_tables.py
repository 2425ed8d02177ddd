"""What a diagnosis leaves in the folder of a run: tables with titles, and all predicted pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_csv
from lightning_suite.lmcd.baselines import Answers
from lightning_suite.lmcd.cautions import floor_caution, mastery_caution
from lightning_suite.lmcd.diagnosis import (
    Diagnosis,
    item_rows,
    mastery_rows,
    next_rows,
    prediction_columns,
)
from lightning_suite.lmcd.metrics import weighted_auc
from lightning_suite.lmcd.score_tables import (
    bounded_logits,
    calibration_rows,
    roc_rows,
    score_rows,
)
from lightning_suite.run_folder import RunFolder

SECTION = "Diagnosis"


def bound_aucs(data: Any, part: str) -> dict[str, Tensor]:
    """Return the AUC of ``floor`` and ``ceiling`` on a part of the data; none without answers.

    Args:
        data: A ``ColdStartDataModule`` after ``setup``.
        part: ``val`` or ``test``.
    """
    asked = gather_answers(data, part)
    if not len(asked.correct):
        return {}
    bounds = _bounded(data, asked.correct, asked)
    every = torch.ones_like(asked.correct)
    return {
        name: weighted_auc(bounds[name], asked.correct, every).float()
        for name in ("floor", "ceiling")
    }


def gather_answers(data: Any, *names: str) -> Answers:
    """Return the answers of some parts of the data."""
    parts = [data.part(name) for name in names]
    return Answers(
        torch.cat([part.student for part in parts]),
        torch.cat([part.exercise for part in parts]),
        torch.cat([part.correct for part in parts]),
    )


def _bounded(data: Any, model: Tensor, asked: Answers) -> dict[str, Tensor]:
    shape = (len(data.data.students), len(data.data.exercises))
    return bounded_logits(model, gather_answers(data, "train", "support"), asked, *shape)


def write_scores(folder: RunFolder, data: Any, probability: Tensor, *, resamples: int) -> list[str]:
    """Write scores, calibration and ROC of the test's answers.

    Args:
        folder: Of the run.
        data: A ``ColdStartDataModule`` after ``setup``.
        probability: Of a right answer, NaN where none was predicted: [S, E].
        resamples: Of the students, for intervals.

    Returns:
        What to warn of.
    """
    asked = gather_answers(data, "test")
    predicted = probability[asked.student, asked.exercise]
    there = predicted.isfinite()  # all, unless the batches were limited
    asked = Answers(*(values[there] for values in asked))
    predicted = predicted[there]
    if not len(predicted):
        return []
    logits = _bounded(data, predicted.double().logit(eps=1e-12), asked)
    setting = {name: data.manifest[name] for name in ("kind", "fold", "folds", "split_seed")}
    rows = [{**row, **setting} for row in score_rows(logits, asked, resamples=resamples)]
    folder.add_table(
        "lmcd_scores",
        rows,
        title="Predicted answers, and what lies below and above",
        caption="Of the test's answers. Floor: each student's own rate. Ceiling: that rate and "
        "the test's own difficulties, the best that one ability can do. Intervals: 95 %, over "
        "students.",
        section=SECTION,
    )
    folder.add_table(
        "lmcd_calibration",
        calibration_rows(predicted, asked.correct),
        title="Calibration",
        caption="Answers by predicted probability, with the share that was right.",
        section=SECTION,
    )
    folder.add_table(
        "lmcd_roc", roc_rows(logits, asked.correct), title="ROC curves", section=SECTION
    )
    return floor_caution(rows)


def write_diagnosis(
    folder: RunFolder, diagnosis: Diagnosis, *, threshold: float, next_items: int, predictions: str
) -> tuple[Path | None, list[str]]:
    """Write mastery, exercises, what to ask next, and every predicted pair.

    Args:
        folder: Of the run.
        diagnosis: What is written.
        threshold: Predicted accuracy from which on a skill counts as mastered.
        next_items: Exercises to suggest to each student; 0 for none.
        predictions: ``parquet``, ``csv`` or ``none``.

    Returns:
        The file of the predicted pairs, and what to warn of.
    """
    mastery = list(mastery_rows(diagnosis, threshold))
    folder.add_table(
        "lmcd_mastery",
        mastery,
        title="Students and skills",
        caption="`predicted`: mean probability over all exercises of the skill; `theta`: what "
        f"the model reads from the student alone; mastered from {threshold:g} on.",
        section=SECTION,
    )
    folder.add_table(
        "lmcd_items",
        item_rows(diagnosis),
        title="Exercises",
        caption="Difficulty: mean over students, with its spread.",
        section=SECTION,
    )
    if next_items:
        folder.add_table(
            "lmcd_next",
            next_rows(diagnosis, next_items),
            title="What to ask next",
            caption="The exercises without an answer that would tell most about the student: "
            "Fisher information at the present estimate.",
            section=SECTION,
            columns=("student_id", "rank", "exercise_id", "information", "predicted"),
        )
    if predictions == "none":
        return None, mastery_caution(mastery)
    path = folder.artifacts / f"predictions.{predictions}"
    _write_columns(path, prediction_columns(diagnosis))
    return path, mastery_caution(mastery)


def _write_columns(path: Path, columns: dict[str, list[Any]]) -> None:
    if path.suffix == ".csv":
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        write_csv(path, (dict(zip(names, row, strict=True)) for row in rows), names)
        return
    pyarrow = import_extra("pyarrow", "llm")
    parquet = import_extra("pyarrow.parquet", "llm")
    with atomic_write(path, "wb") as file:
        parquet.write_table(pyarrow.table(columns), file)
