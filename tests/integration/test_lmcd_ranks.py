"""Two processes with unequal shares of the answers report what one process does."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from tiny_lmcd import quiet, tiny_class, tiny_diagnosis

from lightning_suite import ColdStartDataModule, DiagnosisReportCallback, LMCDModule

METRICS = ("auc", "acc", "f1", "rmse", "mae", "brier", "ece", "nll", "doa")
TABLES = {"scores", "calibration", "roc", "mastery", "items", "next"}


def uneven_class(folder: Path) -> ColdStartDataModule:
    """Return a class where some answers are missing, cut into batches that two ranks cannot halve.

    Lightning gives the second rank a batch again that the first one has.
    """
    if not (folder / "interactions.csv").exists():
        tiny_class(folder)  # writes the files
        file = folder / "interactions.csv"
        rows = file.read_text().splitlines()
        file.write_text("\n".join(row for n, row in enumerate(rows) if n % 11 != 5) + "\n")
    return tiny_class(folder, split="random", folds=3, exercises_per_batch=2)


Table = list[list[str | float]]


def run(folder: Path, checkpoint: Path, ranks: int) -> tuple[dict[str, float], dict[str, Table]]:
    """Test and predict; return what was logged, and the tables."""
    options = {"strategy": "ddp_fork", "devices": ranks} if ranks > 1 else {}
    out = folder / f"ranks{ranks}"
    found = {}
    for what in ("test", "predict"):
        report = DiagnosisReportCallback(str(out / what), resamples=30, predictions="csv")
        trainer, data = quiet(folder, report, **options), uneven_class(folder)
        module = LMCDModule.load_from_checkpoint(checkpoint)
        if what == "test":
            found = dict(trainer.test(module, data, verbose=False)[0])
        else:
            trainer.predict(module, data, return_predictions=False)
    return found, {str(p.relative_to(out)): read(p) for p in out.rglob("artifacts/*.csv")}


def read(path: Path) -> Table:
    with path.open(encoding="utf-8") as file:
        return [[number(cell) for cell in row] for row in csv.reader(file)]


def number(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_two_ranks_report_what_one_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    module, data = tiny_diagnosis(), uneven_class(tmp_path)
    trainer = quiet(tmp_path)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    batches: Any = data.test_dataloader()
    sizes = [len(batch["correct"]) for batch in batches]
    assert len(sizes) % 2 == 1, "one rank must be given a batch too many"
    assert len(set(sizes)) > 1

    one, tables_of_one = run(tmp_path, tmp_path / "a.ckpt", 1)
    two, tables_of_two = run(tmp_path, tmp_path / "a.ckpt", 2)
    assert {f"lmcd/test_{name}" for name in METRICS} < set(one)
    assert two == pytest.approx(one, rel=1e-6)
    assert {f"predict/artifacts/lmcd_{name}.csv" for name in TABLES} < set(tables_of_one)
    assert tables_of_two.keys() == tables_of_one.keys()
    for name, table in tables_of_one.items():
        assert tables_of_two[name][0] == table[0]
        for column, wanted in columns(table).items():
            # texts are read in other company on two ranks: the last digit differs
            close = pytest.approx(wanted, rel=1e-5, abs=1e-6) if numbers(wanted) else wanted
            assert columns(tables_of_two[name])[column] == close, f"{name}, {column}"


def columns(table: Table) -> dict[str, list[str | float]]:
    return {str(name): list(cells) for name, *cells in zip(*table, strict=True)}


def numbers(cells: list[str | float]) -> bool:
    return all(isinstance(cell, float) for cell in cells)
