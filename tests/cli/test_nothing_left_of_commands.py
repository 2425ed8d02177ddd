"""A command that runs inside of a Python process, sound or not, leaves the process as it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from left_behind import changes, in_process
from tiny_scoring import rows, write_config

from lightning_suite.cli.main import main
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.errors import SuiteError

CONFIGS = Path(__file__).parents[2] / "configs" / "depth_mup"
RUNS: dict[str, tuple[str, ...]] = {
    "score": ("score", "-c", "score.yaml", "--threads=2", "--out=scores"),
    "select": ("select", "scores", "--keep=1"),
    "report": ("report", "scores"),
    "coord-check": (
        *("coord-check", "-c", str(CONFIGS / "coord_check_mlp.yaml"), "--out=check"),
        *("--depths=2,4", "--seeds=1", "--steps=2", "--model.init_args.width=16", "--threads=2"),
    ),
    "lr-transfer": (
        *("lr-transfer", "--depths", "2,4", "--rules", "sp", "--lrs", "2^-5..2^-2", "--seeds=1"),
        *("--model.width=16", "--steps=4", "--final_steps=2", "--extend=0", "--out=transfer"),
        "--threads=2",
    ),
    "fit": (
        *("fit", "--model=ResidualNetModule", "--model.width=8", "--model.depth=2"),
        *("--data=ImageDataModule", "--trainer.max_steps=2", "--trainer.accelerator=cpu"),
        "--trainer.limit_val_batches=1",
    ),
}


def quiet(command: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return main([*RUNS[command]])


@pytest.mark.parametrize("breaks", [False, True], ids=["sound", "breaks"])
@pytest.mark.parametrize("command", RUNS)
def test_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, breaks: bool
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, rows(4)).rename("score.yaml")
    if command in ("select", "report"):
        assert quiet("score") == 0

    def broken(*_: Any, **__: Any) -> Any:
        raise SuiteError("on purpose")

    if breaks:
        monkeypatch.setattr(ResidualMLP, "forward", broken)
        monkeypatch.setattr("lightning_suite.cli.commands.score.precision_of", broken)
        if Path("scores").exists():
            Path("scores").rename("elsewhere")
    before = in_process()
    assert (quiet(command) == 2) is breaks  # 1: what was checked is not right
    assert not changes(before, in_process())
