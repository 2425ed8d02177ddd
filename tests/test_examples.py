"""Every file of examples/ runs as it is, on tiny data, and does what it says."""

from __future__ import annotations

import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_suite.report.runs import find_runs

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {"existing_trainer.py", "existing_cli/main.py", "own_model.py", "notebook.py"}


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a script as ``python SCRIPT ARGS`` does, in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what a script leaves goes with it

    def run(name: str, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *args])
        with warnings.catch_warnings():  # advice of Lightning for runs of a few steps
            warnings.simplefilter("ignore")
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here_and_named_in_the_readme() -> None:
    scripts = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert scripts == TESTED
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert all(f"(examples/{name})" in readme for name in TESTED)


def test_an_existing_trainer(run: Callable[..., str]) -> None:
    run("existing_trainer.py")


def test_an_existing_lightning_cli_gets_our_callbacks_by_config_alone(
    run: Callable[..., str], tmp_path: Path
) -> None:
    for path in (EXAMPLES / "existing_cli").glob("*.yaml"):
        shutil.copy(path, tmp_path)
    quick = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    quick += ["--trainer.max_epochs=1", "--data.rows=256"]
    run("existing_cli/main.py", "fit", "-c", "config.yaml", *quick)
    run("existing_cli/main.py", "fit", "-c", "config.yaml", "-c", "with_suite.yaml", *quick)
    plain, ours = find_runs(tmp_path / "lightning_logs")
    assert {path.name for path in plain.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
    }
    assert (ours / "artifacts/feature_dynamics.csv").is_file()
    assert list((ours / "gradient_features").rglob("*.parquet"))
    header = (ours / "metrics.csv").read_text().splitlines()[0]
    assert "depth_mup/lr/hidden_last" in header
    assert "resofilter/grad_norm" in header


def test_an_own_model_and_an_own_feature(run: Callable[..., str]) -> None:
    printed = run("own_model.py")
    assert "16 blocks of width 32" in printed
    assert "mixers.15.out.weight   hidden_last  rate × 0.5" in printed
    assert "net.mixers.15.mix.share_of_small: 256 samples" in printed


def test_a_script_of_cells(run: Callable[..., str]) -> None:
    printed = run("notebook.py").splitlines()
    assert printed[-3].startswith("1797 samples, ")
    right, wrong = (float(line.rpartition(" ")[2]) for line in printed[-2:])
    assert wrong > 2 * right
