"""What the report shows is in W&B, too: an offline run, read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import wandb
from hostile_run import NAMES, hostile_run
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb_records import read_offline_run

from lightning_suite.cli.main import main
from lightning_suite.cli.wandb_artifacts import log_artifacts
from lightning_suite.report.page import write_report
from lightning_suite.run_folder import RunFolder

ROWS = [{"rule": "sp", "slope": 0.5, "note": ""}, {"rule": "nfd", "slope": -0.25, "note": "3"}]


def offline_run(place: Path, folder: Path) -> Path:
    """Log what a run folder holds, and return the folder of the offline run."""
    wandb.teardown()  # a service that an earlier test started writes into that test's folder
    logger = WandbLogger(save_dir=place, offline=True)
    try:
        log_artifacts([CSVLogger(place), logger], folder, 7)
    finally:
        wandb.finish()
        wandb.teardown()  # its service has written all to the disk when it has gone
    (found,) = place.glob("wandb/offline-run-*")
    return found


def tables_of(run: Path) -> dict[str, dict[str, Any]]:
    """The tables of an offline run by key."""
    files = {
        key.removesuffix(".path"): run / "files" / json.loads(value)
        for row in read_offline_run(run).history
        for key, value in row.items()
        if key.endswith(".path") and value.endswith('.table.json"')
    }
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in files.items()}


def logged_keys(run: Path) -> set[str]:
    names = {name.partition(".")[0] for name in read_offline_run(run).metrics}
    return names - {"trainer/global_step"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a table and a figure; returns the folder of the offline run."""
    folder = RunFolder(tmp_path / "run")
    folder.add_table("slopes", ROWS, title="Slopes")
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([1, 2], [3, 4])
    folder.add_figure("curve", figure, title="Curve", caption="It rises.")
    plt.close(figure)
    return offline_run(tmp_path, folder.path)


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


def test_every_table_and_figure_of_the_page_is_there_whatever_it_is_called(tmp_path: Path) -> None:
    """What the page draws of tables, too: a run of Lightning leaves no file of these figures."""
    folder = hostile_run(tmp_path / "run", NAMES["hostile"])
    page = write_report(folder).read_text(encoding="utf-8")
    drawn = set(re.findall(r'id="(scen-[a-z]+|lmcd-[a-z]+)-figure_1"', page))
    assert drawn == {
        *("scen-curve", "scen-gate", "scen-margins", "lmcd-mastery", "lmcd-curves", "lmcd-items")
    }
    artifacts = {artifact.name for artifact in RunFolder(folder).index()}
    found = offline_run(tmp_path, folder)
    assert logged_keys(found) == {f"report/{name}" for name in artifacts | drawn}
    for name in drawn:
        (image,) = found.glob(f"files/media/images/report/{name}_*.png")
        assert image.read_bytes().startswith(b"\x89PNG")
    (row,) = tables_of(found)["report/mine"]["data"]
    assert row == [NAMES["hostile"]]


def test_numbers_are_numbers_and_names_of_digits_stay_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    rows = [
        {"count": 3, "loss": 0.5, "id": "007", "hash": 12345678901234567890, "name": "1_000"},
        {"count": "", "loss": 1, "id": "12", "hash": 2, "name": "2"},
    ]
    folder.add_table("t", rows, title="T")
    table = tables_of(offline_run(tmp_path, folder.path))["report/t"]
    assert table["data"] == [
        [3, 0.5, "007", "12345678901234567890", "1_000"],
        [None, 1.0, "12", "2", "2"],
    ]


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    path = folder.add_table("t", [{"a": 1}], title="T")
    path.write_text("a,a,a (2),a\n1,2,3,4\n", encoding="utf-8")
    table = tables_of(offline_run(tmp_path, folder.path))["report/t"]
    assert table["columns"] == ["a", "a (2)", "a (2) (2)", "a (3)"]
    assert table["data"] == [[1, 2, 3, 4]]


def test_what_is_damaged_is_warned_of_and_the_rest_is_logged(tmp_path: Path) -> None:
    """The run is over by then: its end must not fail for that."""
    folder = RunFolder(tmp_path / "run")
    folder.add_table("scen_gate", [{"a": 1}], title="Torn").write_text("a,b\n1\n")
    folder.add_table("whole", [{"a": 1}], title="Whole")
    with pytest.warns(UserWarning, match="W&B") as warned:
        found = offline_run(tmp_path, folder.path)
    texts = [str(warning.message) for warning in warned]
    assert [text.partition(" is not")[0] for text in texts[:1]] == ["W&B: table 'scen_gate'"]
    assert [text.partition(":")[2][:24] for text in texts[1:]] == [" figures of the tables a"]
    assert all("scen_gate.csv, row 2" in text for text in texts)
    assert logged_keys(found) == {"report/whole"}


def test_the_run_of_a_command_without_a_logger_gets_there_by_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = RunFolder("scores")
    folder.add_table("resofilter_status", [{"status": "ok", "samples": 3}], title="Samples")
    folder.write_record(command=["lightning-suite", "score"], seed=0, config="layers: last:3\n")
    wandb.teardown()
    try:
        assert main(["report", "scores", "--wandb", "mine"]) == 0
    finally:
        wandb.teardown()
    (found,) = tmp_path.glob("wandb/offline-run-*")
    tracked = read_offline_run(found)
    assert tracked.config["lightning_suite"] == {"layers": "last:3"}
    assert tracked.config["command"] == ["lightning-suite", "score"]
    assert tables_of(found)["report/resofilter_status"]["data"] == [["ok", 3]]


def test_without_wandb_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/index.json").write_text("damaged")
    log_artifacts([CSVLogger(tmp_path)], tmp_path, 0)
