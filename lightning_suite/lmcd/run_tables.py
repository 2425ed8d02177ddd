"""What a diagnosis leaves in the folder of a run: tables with titles, and all predicted pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_csv
from lightning_suite.lmcd.baselines import Answers
from lightning_suite.lmcd.cautions import (
    MEANS,
    alike_caution,
    chances_caution,
    floor_caution,
    likelihood_caution,
    oracle_caution,
)
from lightning_suite.lmcd.diagnosis import Diagnosis, item_rows, next_rows, prediction_chunks
from lightning_suite.lmcd.mastery import KCMastery, mastery_by_kc, mastery_rows
from lightning_suite.lmcd.metrics import weighted_auc
from lightning_suite.lmcd.score_tables import (
    bounded_logits,
    calibration_rows,
    roc_rows,
    score_rows,
)
from lightning_suite.run_folder import RunFolder

SECTION = "Diagnosis"
PREDICTIONS = {
    "student_id": "string",
    "exercise_id": "string",
    "part": "string",
    "probability": "float64",
    "correct": "int64",
}
MASTERY = {
    "student_id": "string",
    "kc_id": "string",
    "kc": "string",
    "theta": "float32",
    "predicted": "float32",
    "observed": "float32",
    "answers": "int64",
    "mastered": "bool",
}
_ROWS = 2**16  # of a Parquet row group, at least


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


def write_scores(
    folder: RunFolder, data: Any, logits: Tensor, *, resamples: int, trained: bool = True
) -> list[str]:
    """Write scores, calibration and ROC of the test's answers.

    Args:
        folder: Of the run.
        data: A ``ColdStartDataModule`` after ``setup``.
        logits: Of right answers, NaN where none was predicted: [S, E]. (Probabilities near 0 and 1
            would have lost their digits.)
        resamples: Of the students, for intervals.
        trained: Whether the model was; the table keeps it for who advises a reader.

    Returns:
        What to warn of.
    """
    asked = gather_answers(data, "test")
    predicted = logits[asked.student, asked.exercise]
    there = predicted.isfinite()  # all, unless the batches were limited
    asked = Answers(*(values[there] for values in asked))
    predicted = predicted[there]
    if not len(predicted):
        return []
    bounded = _bounded(data, predicted, asked)
    setting = {name: data.manifest[name] for name in ("kind", "fold", "folds", "split_seed")}
    setting["train_on_oracle"] = int(data.manifest.get("train_on_oracle", False))
    setting["trained"] = int(trained)
    rows = [{**row, **setting} for row in score_rows(bounded, asked, resamples=resamples)]
    folder.add_table(
        "lmcd_scores",
        rows,
        title="Predicted answers, and what lies below and above",
        caption="Of the test's answers. Floor: each student's own rate. Ceiling: that rate and "
        "the test's own difficulties: nearly the best that one ability can do, if all students "
        "answered the same exercises; if not, rates compare students badly, and any model may "
        "pass it. Intervals: 95 %, over students.",
        section=SECTION,
    )
    folder.add_table(
        "lmcd_calibration",
        calibration_rows(predicted.double().sigmoid(), asked.correct),
        title="Calibration",
        caption="Answers by predicted probability, with the share that was right.",
        section=SECTION,
    )
    folder.add_table(
        "lmcd_roc", roc_rows(bounded, asked.correct), title="ROC curves", section=SECTION
    )
    return oracle_caution(rows) + floor_caution(rows) + likelihood_caution(rows)


def write_diagnosis(
    folder: RunFolder,
    diagnosis: Diagnosis,
    *,
    threshold: float,
    next_items: int,
    predictions: str,
    trained: bool = True,
) -> tuple[Path | None, list[str]]:
    """Write mastery, exercises, what to ask next, and every predicted pair.

    Args:
        folder: Of the run.
        diagnosis: What is written.
        threshold: Predicted accuracy from which on a skill counts as mastered.
        next_items: Exercises to suggest to each student; 0 for none.
        predictions: ``parquet``, ``csv`` or ``none``; mastery is written as Parquet with them.
        trained: Whether the model was.

    Returns:
        The file of the predicted pairs, and what to warn of.
    """
    mastery = list(mastery_by_kc(diagnosis, threshold))  # numbers alone: 17 bytes a pair
    students = diagnosis.students
    folder.add_table(
        "lmcd_mastery",
        mastery_rows(students, mastery),
        title="Students and skills",
        caption="`predicted`: mean probability over all exercises of the skill; `theta`: what "
        f"the model reads from the student alone; mastered from {threshold:g} on.",
        section=SECTION,
    )
    items = list(item_rows(diagnosis))
    folder.add_table(
        "lmcd_items",
        items,
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
    path = folder.artifacts / f"predictions.{predictions}"
    if predictions == "csv":
        write_csv(path, _rows(prediction_chunks(diagnosis)), list(PREDICTIONS))
    elif predictions == "parquet":
        _write_parquet(path, PREDICTIONS, prediction_chunks(diagnosis))
        _write_parquet(folder.artifacts / "mastery.parquet", MASTERY, _columns(students, mastery))
    cautions = alike_caution(items, trained=trained) + _one_sided(mastery, threshold, trained)
    return None if predictions == "none" else path, cautions


def _one_sided(mastery: Iterable[KCMastery], threshold: float, trained: bool) -> list[str]:
    chances = torch.cat([torch.zeros(0), *(kc.predicted for kc in mastery)])
    chances = chances[chances.isfinite()]
    if len(chances) < 2:
        return []
    low, high = chances.aminmax()
    return chances_caution(float(low), float(high), threshold, of=MEANS, trained=trained)


def _rows(chunks: Iterable[Mapping[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        for row in zip(*chunk.values(), strict=True):
            yield dict(zip(chunk, row, strict=True))


def _columns(students: Sequence[str], mastery: Iterable[KCMastery]) -> Iterator[dict[str, Any]]:
    pyarrow = import_extra("pyarrow", "llm")
    ids = pyarrow.array(students, pyarrow.string())

    def known(values: Tensor | None) -> Any:
        values = torch.full((len(students),), torch.nan) if values is None else values
        return pyarrow.array(values.numpy(), mask=values.isnan().numpy())

    for kc in mastery:
        yield {
            "student_id": ids,
            "kc_id": pyarrow.repeat(kc.kc, len(students)),
            "kc": pyarrow.repeat(kc.name, len(students)),
            "theta": known(kc.theta),
            "predicted": known(kc.predicted),
            "observed": known(kc.observed),
            "answers": kc.answers.numpy(),
            "mastered": pyarrow.array(kc.mastered.numpy(), mask=kc.predicted.isnan().numpy()),
        }


def _write_parquet(
    path: Path, kinds: Mapping[str, str], chunks: Iterable[Mapping[str, Any]]
) -> None:
    """Write chunks of columns as they come, as many in a row group as make it worth one."""
    pyarrow = import_extra("pyarrow", "llm")
    parquet = import_extra("pyarrow.parquet", "llm")
    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in kinds.items()])
    with atomic_write(path, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        waiting = schema.empty_table()
        for chunk in chunks:
            waiting = pyarrow.concat_tables([waiting, pyarrow.table(dict(chunk), schema=schema)])
            if len(waiting) >= _ROWS:
                writer.write_table(waiting)
                waiting = schema.empty_table()
        if len(waiting):
            writer.write_table(waiting)
