"""A run that is refused before it has written anything leaves no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.cli.empty_folders import no_empty_folder
from lightning_suite.cli.main import main

REFUSES = """
from lightning_suite.errors import SuiteError
from users_project import Data


class Refusing(Data):
    def setup(self, stage):
        raise SuiteError("no such rows")
"""


def refuse(folder: Path, *written: str) -> None:
    @no_empty_folder(folder)
    def fit() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in written:
            (folder / name).touch()
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        fit()


def test_what_was_made_and_holds_nothing_goes(tmp_path):
    refuse(tmp_path / "logs/version_0")
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_into_stays(tmp_path):
    refuse(tmp_path / "logs/version_0", "metrics.csv")
    refuse(tmp_path / "logs/version_1")
    assert [path.name for path in tmp_path.glob("logs/*")] == ["version_0"]


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    refuse(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_a_run_that_goes_through_keeps_its_folder(tmp_path):
    with no_empty_folder(tmp_path / "logs"):
        (tmp_path / "logs").mkdir()
    assert (tmp_path / "logs").is_dir()
    with pytest.raises(RuntimeError), no_empty_folder(None):
        raise RuntimeError


def test_a_fit_that_is_refused_on_its_data_leaves_nothing(project, capsys):
    (project / "refusing.py").write_text(REFUSES)
    before = set(project.iterdir())
    assert main(["fit", "-c", "base.yaml", "--data", "refusing.Refusing"]) == 2
    assert "no such rows" in capsys.readouterr().err
    left = {path.name for path in set(project.iterdir()) - before}
    assert left <= {"__pycache__"}
