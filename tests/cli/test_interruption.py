"""Ctrl-C is one line that says how it goes on, and status 130."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_suite.cli.interruption import was_interrupted
from lightning_suite.cli.main import main

STOPS = """
from lightning.pytorch import Callback


class Stops(Callback):
    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.at:
            raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Lightning ignores SIGINT once it has heard it, until the process ends."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(*args: object, **kwargs: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("score", "the same command goes on where it was"),
        ("lr-transfer", "the same command goes on where it was"),
        ("coord-check", "the same command goes on where it was"),
        ("select", "the same command begins anew"),
        ("list", "the same command begins anew"),
        ("fit", "the same command begins anew"),
    ],
)
def test_any_command_is_stopped_in_one_line(monkeypatch, capsys, command, goes_on):
    monkeypatch.setattr("lightning_suite.cli.main._dispatch", interrupted)
    assert main([command]) == 130
    said = capsys.readouterr().err
    assert said.startswith("lightning-suite: stopped; ")
    assert goes_on in said
    assert said.count("\n") == 1


def test_the_traceback_can_be_seen(monkeypatch):
    monkeypatch.setattr("lightning_suite.cli.main._dispatch", interrupted)
    monkeypatch.setenv("LIGHTNING_SUITE_TRACEBACK", "1")
    with pytest.raises(KeyboardInterrupt):
        main(["list"])


def stop_at(project: Path, step: int) -> list[str]:
    (project / "stops.py").write_text(STOPS)
    (project / "stops.yaml").write_text(
        f"trainer:\n  callbacks+:\n    - class_path: stops.Stops\n      init_args: {{at: {step}}}\n"
    )
    return ["fit", "-c", "base.yaml", "-c", "stops.yaml", "--trainer.max_epochs", "3"]


def test_a_fit_that_has_saved_nothing_says_so(project, capsys):
    assert main(stop_at(project, 1)) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "lightning-suite: stopped; run folder: lightning_logs/version_0. "
        "No checkpoint was written: the same command begins anew."
    )


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_fit_names_its_last_checkpoint_and_the_command_to_go_on(project, capsys):
    words = stop_at(project, 3)  # an epoch has two steps
    assert main([*words, "--trainer.default_root_dir=my runs"]) == 130
    first, last = capsys.readouterr().err.splitlines()[-2:]
    assert first.endswith("my runs/lightning_logs/version_0. To go on from its last checkpoint:")
    assert last == (
        "  lightning-suite fit -c base.yaml -c stops.yaml --trainer.max_epochs 3 "
        "'--trainer.default_root_dir=my runs' "
        "--ckpt_path 'my runs/lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt'"
    )
    saved = "my runs/lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt"
    again = ["-c", "base.yaml", "--trainer.max_epochs=2", "--ckpt_path", saved]
    assert main(["fit", *again]) == 0


def test_other_exits_are_none():
    assert not was_interrupted(SystemExit(1))
    assert not was_interrupted(ValueError())
