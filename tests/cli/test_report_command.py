"""`report` of one run, of a folder of runs, and of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_suite.cli.main import main
from lightning_suite.files import write_json
from lightning_suite.resofilter.store import write_table


def run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,val_loss\n0,2\n1,1\n")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("lightning_logs/version_0"))
    run(Path("lightning_logs/version_1"))
    run(Path("runs/a"))
    run(Path("runs/b/lightning_logs/version_0"))


def test_a_run_gets_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "runs/a"]) == 0
    assert capsys.readouterr().out == "runs/a/report.html\n"


def test_of_lightnings_logs_the_newest_run_is_shown_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", "lightning_logs"]) == 0
    told = capsys.readouterr()
    assert told.out == "lightning_logs/report.html\n"
    assert told.err == (
        "The newest of 2 runs. All: lightning-suite report lightning_logs "
        "--index lightning_logs/index.html\n"
    )
    assert main(["report", "runs/b"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("runs/b/report.html\n", "")


def test_a_folder_of_several_runs_gets_an_index(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "runs"]) == 0
    assert capsys.readouterr().out == "runs/index.html\n"
    assert Path("runs/a/report.html").is_file()
    assert Path("runs/b/lightning_logs/version_0/report.html").is_file()


def test_several_folders_get_the_index_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["report", "runs/a", "lightning_logs", "--index", "compare.html"]
    assert main([*words, "--metrics", "val_*"]) == 0
    assert capsys.readouterr().out == "compare.html\n"
    page = Path("compare.html").read_text()
    assert all(f">{name}</a>" in page.replace("<wbr>", "") for name in ("runs/a", "version_0"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/a", "lightning_logs"], "say where: --index compare.html"),
        (["nowhere"], "nowhere is not a folder"),
        (["runs/a", "--metrics", "val_loss"], "--metrics is for an index of several runs"),
        (["runs", "--metrics", "val_los"], "Did you mean 'val_loss'?"),
        (["runs", "--wandb", "p"], "--wandb is for one run, and runs holds 2"),
        (["runs/a", "--index", "i.html", "--wandb", "p"], "--wandb is for one run"),
        (["runs", "--index", "runs"], "give it a name that ends in .html"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_scores_that_are_not_finished_are_named_with_what_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    write_json(Path("scores/manifest.json"), {"mode": "probe", "data": {"samples": 3}})
    assert main(["report", "scores"]) == 2
    assert "scores: no sample is scored yet. Give the command" in capsys.readouterr().err
    table = pyarrow.table({"sample_id": ["a"], "status": ["ok"]})
    Path("scores/shards").mkdir()
    write_table(table, Path("scores/shards/rank0-0.parquet"))
    assert main(["report", "scores"]) == 2
    assert capsys.readouterr().err == (
        "lightning-suite: error: scores: 1 of 3 samples are scored. Give the command "
        "`lightning-suite score` again; it goes on where it was.\n"
    )
    Path("empty").mkdir()
    assert main(["report", "empty"]) == 2
    assert "no run in here" in capsys.readouterr().err
