"""What the report shows is in W&B, too: an offline run, read back."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb_records import read_offline_run

from lightning_suite.cli.wandb_artifacts import log_artifacts
from lightning_suite.run_folder import RunFolder

ROWS = [{"rule": "sp", "slope": 0.5, "note": ""}, {"rule": "nfd", "slope": -0.25, "note": "3"}]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a table and a figure; returns the folder of the offline run."""
    folder = RunFolder(tmp_path / "run")
    folder.add_table("slopes", ROWS, title="Slopes")
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2], [3, 4])
    folder.add_figure("curve", figure, title="Curve", caption="It rises.")
    plt.close(figure)
    wandb.teardown()  # a service that an earlier test started writes into that test's folder
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    try:
        log_artifacts([CSVLogger(tmp_path), logger], folder.path, 7)
    finally:
        wandb.finish()
        wandb.teardown()  # its service has written all to the disk when it has gone
    (found,) = tmp_path.glob("wandb/offline-run-*")
    return found


def test_tables_and_figures_are_those_of_the_run_folder(run: Path) -> None:
    logged = {key: value for row in read_offline_run(run).history for key, value in row.items()}
    assert logged["trainer/global_step"] == "7"
    table = json.loads((run / "files" / json.loads(logged["report/slopes.path"])).read_text())
    assert table["columns"] == ["rule", "slope", "note"]
    assert table["data"] == [["sp", 0.5, None], ["nfd", -0.25, 3.0]]
    (image,) = json.loads(logged["report/curve.filenames"])
    original = run.parents[1] / "run/artifacts/curve.png"
    assert (run / "files" / image).read_bytes() == original.read_bytes()
    assert json.loads(logged["report/curve.captions"]) == ["It rises."]


def test_without_wandb_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/index.json").write_text("damaged")
    log_artifacts([CSVLogger(tmp_path)], tmp_path, 0)
