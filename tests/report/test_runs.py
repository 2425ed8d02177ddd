"""Which folders are runs, and what a run says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_suite.errors import SuiteError
from lightning_suite.report.runs import are_versions, find_runs, open_run


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if path.suffix == ".json" else "")


def test_runs_are_found_in_natural_order_and_nothing_else_is(tmp_path: Path) -> None:
    touch(
        tmp_path / "scores/run.json",
        tmp_path / "scores/inside/run.json",  # a part of the run
        tmp_path / "lr/lightning_logs/version_10/hparams.yaml",
        tmp_path / "lr/lightning_logs/version_9/metrics.csv",
        tmp_path / "config.yaml",  # a project's own
        tmp_path / "lr/checkpoints/last.ckpt",
        tmp_path / ".hidden/run.json",
        tmp_path / "wandb/run-1/run.json",
        tmp_path / "a/b/c/d/e/f/run.json",  # too deep
        tmp_path / "notes/readme.txt",
    )
    (tmp_path / "link").symlink_to(tmp_path / "scores")
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == [
        "lr/lightning_logs/version_9",
        "lr/lightning_logs/version_10",
        "scores",
    ]


def test_a_run_itself_is_the_only_one_in_its_folder(tmp_path: Path) -> None:
    touch(tmp_path / "run.json", tmp_path / "lightning_logs/version_0/run.json")
    assert find_runs(tmp_path) == [tmp_path]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="none: no such folder"):
        find_runs(tmp_path / "none")


def test_versions_of_one_logger_are_told_from_several_runs() -> None:
    logs = Path("lightning_logs")
    assert are_versions([logs / "version_0", logs / "version_12"])
    assert not are_versions([logs / "version_0", Path("other/version_0")])
    assert not are_versions([logs / "version_0", logs / "version_last"])
    assert not are_versions([])


@pytest.mark.parametrize(
    ("record", "state"),
    [
        ({"state": "running"}, "not finished"),
        ({"state": "finished"}, "finished"),
        ({"state": "stopped", "stopped_by": "ValueError: x"}, "stopped: ValueError: x"),
        ({"state": ["odd"]}, ""),
        ({}, ""),
    ],
)
def test_the_state_is_that_of_the_record(tmp_path: Path, record: object, state: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert open_run(tmp_path).state == state


def test_the_command_is_shown_without_the_programs_folder(tmp_path: Path) -> None:
    words = ["/venv/bin/lightning-suite", "lr-transfer", "--depths", "2, 4"]
    (tmp_path / "run.json").write_text(json.dumps({"command": words}))
    run = open_run(tmp_path)
    assert run.subcommand == "lr-transfer"
    assert run.shell_words == ["lightning-suite", "lr-transfer", "--depths", "'2, 4'"]
