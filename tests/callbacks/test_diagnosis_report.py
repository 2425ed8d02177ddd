"""What a teacher reads is what the model says; bounds stand beside scores; nothing stays behind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from pyarrow import parquet
from sklearn.metrics import roc_auc_score
from tiny_lmcd import quiet, tiny_class, tiny_diagnosis

from lightning_suite import DiagnosisReportCallback
from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.diagnosis import Diagnosis, item_rows
from lightning_suite.lmcd.run_tables import write_diagnosis, write_scores
from lightning_suite.run_folder import RunFolder

# modules of a frozen backbone stand in evaluation mode on purpose
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predicted(folder: Path, **options: Any) -> tuple[Any, Any, Path]:
    """Fit for an epoch and predict with the callback."""
    module, data = tiny_diagnosis(), tiny_class(folder)
    quiet(folder).fit(module, data)
    callback = DiagnosisReportCallback(str(folder / "run"), resamples=20, **options)
    quiet(folder, callback).predict(module, data)
    return module, data, folder / "run" / "artifacts"


def test_predictions_are_those_of_the_model(tmp_path: Path) -> None:
    module, data, artifacts = predicted(tmp_path)
    rows = parquet.read_table(artifacts / "predictions.parquet").to_pylist()
    part = data.part("test")
    with torch.no_grad():
        expected = module.eval()(part[list(range(len(part)))]).sigmoid()
    said = {(row["student_id"], row["exercise_id"]): row for row in rows}
    assert len(said) == len(rows) == 12 * 10
    answers = zip(part.student, part.exercise, part.correct, expected, strict=True)
    for student, exercise, correct, probability in answers:
        row = said[data.student_ids[student], data.data.exercises[exercise].id]
        assert row["probability"] == pytest.approx(probability.item(), abs=1e-6)
        assert row["correct"] == correct
        assert row["part"] == "test"


def test_scores_are_of_logits_and_not_of_rounded_probabilities(tmp_path: Path) -> None:
    """A wrong answer that was held for certain costs its logit: float32 knows no 1 - 1e-9."""
    data = tiny_class(tmp_path, oracle_fraction=0.5, train_on_oracle=True)
    data.setup()
    part = data.part("test")
    logits = torch.full((len(data.student_ids), len(data.data.exercises)), torch.nan)
    logits[part.student, part.exercise] = 30.0
    cautions = write_scores(RunFolder(tmp_path / "run"), data, logits, resamples=0)
    row = read(tmp_path / "run" / "artifacts" / "lmcd_scores.csv")[0]
    wrong = 1 - part.correct.mean().item()
    assert float(row["nll"]) == pytest.approx(30 * wrong, abs=1e-4)
    assert row["train_on_oracle"] == "1"
    assert cautions[0].startswith("Not a cold test")


def test_the_report_takes_the_logits_of_the_step(tmp_path: Path) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    quiet(tmp_path).fit(module, data)
    with torch.no_grad():
        for weight in module.model.head.network[-1].parameters():
            weight.mul_(1e3)  # sure of everything
    callback = DiagnosisReportCallback(str(tmp_path / "run"), resamples=0)
    logged = quiet(tmp_path, callback).test(module, data, verbose=False)[0]
    row = read(tmp_path / "run" / "artifacts" / "lmcd_scores.csv")[0]
    assert logged["lmcd/test_nll"] > 20
    assert float(row["nll"]) == pytest.approx(logged["lmcd/test_nll"], rel=1e-5)


def test_mastery_is_the_mean_prediction_over_the_exercises_of_a_skill(tmp_path: Path) -> None:
    module, data, artifacts = predicted(tmp_path, threshold=0.55)
    said = parquet.read_table(artifacts / "predictions.parquet").to_pylist()
    theta = module.model.proficiency()
    rows = read(artifacts / "lmcd_mastery.csv")
    assert len(rows) == 12 * 5
    for row in rows[::7]:
        k = data.kc_ids.index(row["kc_id"])
        having = {e.id for e in data.data.exercises if row["kc_id"] in e.kcs}
        own = [
            r for r in said if r["student_id"] == row["student_id"] and r["exercise_id"] in having
        ]
        mean = sum(r["probability"] for r in own) / len(own)
        assert float(row["predicted"]) == pytest.approx(mean, abs=1e-5)
        assert float(row["observed"]) == pytest.approx(
            sum(r["correct"] for r in own) / len(own), abs=1e-5
        )
        assert row["mastered"] == str(int(mean >= 0.55))
        student = data.student_ids.index(row["student_id"])
        assert float(row["theta"]) == pytest.approx(theta[student, k].item(), abs=1e-5)


def test_mastery_is_written_in_columns_too_unrounded(tmp_path: Path) -> None:
    artifacts = predicted(tmp_path, threshold=0.55)[2]
    table = parquet.read_table(artifacts / "mastery.parquet")
    rows = read(artifacts / "lmcd_mastery.csv")
    for column, said in table.to_pydict().items():
        assert len(said) == len(rows)
        for value, row in zip(said, rows, strict=True):
            if isinstance(value, float):
                assert float(row[column]) == pytest.approx(value, rel=1e-5)
            else:
                assert row[column] == (value if isinstance(value, str) else str(int(value)))
    kinds = {
        name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)
    }
    assert (kinds["predicted"], kinds["mastered"], kinds["kc_id"]) == ("float", "bool", "string")


def test_a_difficulty_that_all_students_read_alike_has_no_spread() -> None:
    """The mean of equal float32 numbers is off by their last bit, and so is what is left of it."""
    alike = torch.full((12, 1), 0.3137) + torch.tensor([[0.0], [6e-8]] * 6)
    assert alike.std(correction=0) > 0
    apart = torch.linspace(-1, 1, 12)[:, None]
    both = torch.cat([alike, apart], 1)
    diagnosis = Diagnosis(
        students=[f"s{i}" for i in range(12)],
        exercises=["e", "f"],
        texts=["", ""],
        kcs=[],
        names=[],
        q_matrix=torch.zeros(2, 0, dtype=torch.bool),
        observed=torch.ones(12, 2),
        part=["train", "test"],
        probability=both.sigmoid(),
        proficiency=torch.zeros(12, 1),
        per_kc=False,
        information=both,
        difficulty=both,
        items={},
    )
    spreads = [row["difficulty_sd"] for row in item_rows(diagnosis)]
    assert spreads[0] == 0
    assert spreads[1] == pytest.approx(apart.std(correction=0).item(), rel=1e-5)


def test_what_is_not_known_of_a_student_is_empty_in_every_format(tmp_path: Path) -> None:
    nobody = torch.tensor([[0.25, 0.75], [torch.nan, torch.nan]])
    diagnosis = Diagnosis(
        students=["ann", "ben"],
        exercises=["e", "f"],
        texts=["", ""],
        kcs=[],
        names=[],
        q_matrix=torch.zeros(2, 0, dtype=torch.bool),
        observed=torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]),
        part=["train", ""],
        probability=nobody,
        proficiency=torch.zeros(2, 3),  # several abilities, and no KC
        per_kc=False,
        information=nobody,
        difficulty=nobody,
        items={},
    )
    folder = RunFolder(tmp_path)
    options: dict[str, Any] = {"threshold": 0.5, "next_items": 0}
    path, cautions = write_diagnosis(folder, diagnosis, predictions="parquet", **options)
    assert path is not None
    assert cautions == []
    ann = {"predicted": 0.5, "observed": 1.0, "answers": 1, "mastered": True}
    ben = {"predicted": None, "observed": None, "answers": 0, "mastered": None}
    known = {"kc_id": "", "kc": "all exercises", "theta": None}
    assert parquet.read_table(folder.artifacts / "mastery.parquet").to_pylist() == [
        {"student_id": "ann", **known, **ann},
        {"student_id": "ben", **known, **ben},
    ]
    last = read(folder.artifacts / "lmcd_mastery.csv")[1]
    assert [last[name] for name in ("theta", "predicted", "observed", "mastered")] == [""] * 4
    pairs = parquet.read_table(path).to_pylist()
    assert [(row["exercise_id"], row["correct"]) for row in pairs] == [("e", 1), ("f", None)]
    path, _ = write_diagnosis(folder, diagnosis, predictions="csv", **options)
    assert path is not None
    assert [row["correct"] for row in read(path)] == ["1", ""]


def test_scores_stand_between_their_bounds_in_table_and_log(tmp_path: Path) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    logger = CSVLogger(tmp_path, name="logs")
    fit = quiet(tmp_path, DiagnosisReportCallback(resamples=20), logger=logger)
    fit.fit(module, data)
    assert {"lmcd/val_floor_auc", "lmcd/val_ceiling_auc"} <= set(fit.callback_metrics)
    logged = fit.test(module, data, verbose=False)[0]
    rows = {row["system"]: row for row in read(Path(logger.log_dir, "artifacts/lmcd_scores.csv"))}
    assert float(rows["lmcd"]["auc"]) == pytest.approx(logged["lmcd/test_auc"], abs=2e-6)
    for bound in ("floor", "ceiling"):
        assert float(rows[bound]["auc"]) == pytest.approx(
            logged[f"lmcd/test_{bound}_auc"], abs=2e-6
        )
    part, train = data.part("test"), data.part("train")
    rate = [(train.correct[train.student == s].sum() + train.correct.mean()) for s in range(12)]
    floor = roc_auc_score(part.correct, [rate[s].item() for s in part.student])
    assert float(rows["floor"]["auc"]) == pytest.approx(floor, abs=2e-6)


def test_a_diagnosis_that_says_nothing_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    quiet(tmp_path).fit(module, data)
    for stage in ("test", "predict"):
        for threshold, said in ((0.999, "below what counts"), (0.001, "at or above what counts")):
            caplog.clear()
            folder = tmp_path / f"{stage}{threshold}"
            callback = DiagnosisReportCallback(str(folder), threshold, resamples=0)
            getattr(quiet(tmp_path, callback), stage)(module, data)
            assert said in caplog.text
            assert ("of each student over the exercises of each skill" in caplog.text) == (
                stage == "predict"
            )
            aucs = {
                row["system"]: float(row["auc"])
                for row in read(folder / "artifacts/lmcd_scores.csv")
            }
            assert ("what each student's own rate" in caplog.text) == (aucs["lmcd"] < aucs["floor"])


def test_of_an_untrained_model_the_checkpoint_is_asked_for_and_not_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    callback = DiagnosisReportCallback(str(tmp_path / "run"), 0.999, resamples=0)
    quiet(tmp_path, callback).predict(module, data)
    said = [record.getMessage() for record in caplog.records if "DiagnosisR" in record.getMessage()]
    assert "--ckpt_path" in said[-1]
    assert not any("epochs" in line for line in said)
    assert read(tmp_path / "run/artifacts/lmcd_scores.csv")[0]["trained"] == "0"


def test_only_unanswered_exercises_are_suggested_the_most_telling_first(tmp_path: Path) -> None:
    tiny_class(tmp_path)
    lines = (tmp_path / "interactions.csv").read_text().splitlines()
    gone = {("s3", "e0"), ("s3", "e4"), ("s3", "e7"), ("s8", "e2")}
    kept = [line for line in lines if tuple(line.split(",")[:2]) not in gone]
    (tmp_path / "interactions.csv").write_text("\n".join(kept) + "\n")
    artifacts = predicted(tmp_path, next_items=2)[2]
    rows = read(artifacts / "lmcd_next.csv")
    assert [row["student_id"] for row in rows] == ["s3", "s3", "s8"]
    assert {(row["student_id"], row["exercise_id"]) for row in rows} <= gone
    assert float(rows[0]["information"]) >= float(rows[1]["information"]) > 0


def test_the_table_of_exercises_has_their_parameters_and_parts(tmp_path: Path) -> None:
    _, data, artifacts = predicted(tmp_path, predictions="none")
    rows = read(artifacts / "lmcd_items.csv")
    tested = {data.data.exercises[e].id for e in data.part("test").exercise.tolist()}
    assert {row["exercise_id"] for row in rows if row["part"] == "test"} == tested
    assert all(0 < float(row["discrimination"]) < 1 for row in rows)
    assert not list(artifacts.glob("*.parquet"))


class Stop(Callback):
    def on_predict_batch_end(self, *_: Any) -> None:
        raise KeyError("stop")


def test_an_exception_leaves_nothing_behind_and_the_next_run_works(tmp_path: Path) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    quiet(tmp_path).fit(module, data)
    callback = DiagnosisReportCallback(str(tmp_path / "run"), resamples=0)
    with pytest.raises(KeyError, match="stop"):
        quiet(tmp_path, callback, Stop()).predict(module, data)
    assert callback._pairs == {}
    assert not (tmp_path / "run").exists()
    quiet(tmp_path, callback).predict(module, data)
    assert (tmp_path / "run/artifacts/lmcd_items.csv").exists()


def test_probabilities_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    module, data = tiny_diagnosis(), tiny_class(tmp_path)
    quiet(tmp_path).fit(module, data)
    with torch.no_grad():
        module.model.fusion.students.weight[3] = torch.nan
    callback = DiagnosisReportCallback(str(tmp_path / "run"), resamples=0)
    with pytest.raises(SuiteError, match="for exercise 'e0' is not a number, and 0 others"):
        quiet(tmp_path, callback).predict(module, data)


class Silent(LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Return nothing."""


def test_what_cannot_be_reported_is_refused_by_name(tmp_path: Path) -> None:
    def test(trainer: Trainer) -> None:
        trainer.test(Silent(), tiny_class(tmp_path), verbose=False)

    with pytest.raises(SuiteError, match="Silent must return students, exercises"):
        test(quiet(tmp_path, DiagnosisReportCallback(str(tmp_path / "run"))))
    with pytest.raises(SuiteError, match="no logger"):
        test(quiet(tmp_path, DiagnosisReportCallback()))
    with pytest.raises(SuiteError, match="threshold is 1.5"):
        DiagnosisReportCallback(threshold=1.5)
    with pytest.raises(SuiteError, match="did you mean|parquet"):
        DiagnosisReportCallback(predictions="parket")  # type: ignore[arg-type]
