"""Editing through the shell: killed and continued, on two processes, and with bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_editing import edit_rows, write_config, write_edits, write_model

from lightning_suite.cli.main import main
from lightning_suite.scen.bank_file import bank_exists, read_bank

EDITS = 300
KILLED_AT = (20, 130, 240)  # edits in the bank, and some more by the time the signal arrives
COMMAND = [sys.executable, "-m", "lightning_suite", "fit", "-c", "scen.yaml"]
NO_VALIDATION = "--trainer.limit_val_batches=0"
# Seconds. A run takes some eight of CPU time, and many times that where others want the processor
# too; this only ends one that hangs.
HANGS = 900


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, NO_VALIDATION, *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, err = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, edits, config, and the bank of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("editing")
    model = write_model(folder / "tiny")
    edits = write_edits(folder / "edits.jsonl", edit_rows(EDITS))
    write_config(folder, model, edits, {"batch_size": 10}, bank="whole")
    finish(start(folder))
    return folder


@pytest.mark.slow
def test_a_run_killed_again_and_again_makes_the_same_bank_and_loses_nothing(whole: Path) -> None:
    bank = whole / "killed"
    made = json.loads((whole / "whole.json").read_text())["edits"]
    done = 0
    for point in KILLED_AT:
        process = start(whole, "--model.init_args.bank=killed")
        deadline = time.monotonic() + HANGS
        while not (bank_exists(bank) and len(read_bank(bank).records) >= point):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        left = json.loads(bank.with_suffix(".json").read_text())["edits"]
        assert max(done, point) <= len(left) < EDITS, "what a kill leaves holds what was there"
        assert left == made[: len(left)]
        done = len(left)
    finish(start(whole, "--model.init_args.bank=killed"))
    assert len(read_bank(bank).records) == EDITS
    for suffix in (".safetensors", ".json"):
        first, second = (whole / f"{name}{suffix}" for name in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_bank_of_one(whole: Path) -> None:
    two = ["--model.init_args.bank=two", "--trainer.devices=2", "--trainer.strategy=ddp"]
    finish(start(whole, *two))
    one, other = (json.loads((whole / f"{name}.json").read_text()) for name in ("whole", "two"))
    kept = [[edit["id"], edit["target"], edit["status"]] for edit in one["edits"]]
    assert kept == [[edit["id"], edit["target"], edit["status"]] for edit in other["edits"]]
    first, second = (load_file(whole / f"{name}.safetensors") for name in ("whole", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # A group has other companions there, so that sums are rounded otherwise; experts are
        # stored in bfloat16, and Adam turns a rounded zero into a step.
        close = torch.isclose(tensor.float(), second[name].float(), rtol=0.02, atol=2e-3)
        assert close.float().mean() > 0.99, name


# --- bad input ------------------------------------------------------------------------------------


def rows(change: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
    found = edit_rows(3)
    change(found)
    return found


BAD_EDITS = {
    "an empty target": (
        rows(lambda r: r[1].update(target=" ")),
        ["edits.jsonl", "row 2", "target"],
    ),
    "an id twice": (rows(lambda r: r[2].update(id="e0")), ["edits.jsonl", "rows 1, 3", "'e0'"]),
    "two answers to one prompt": (
        rows(lambda r: r[2].update(prompt=r[0]["prompt"])),
        ["edits.jsonl", "rows 1, 3", "Alice likes"],
    ),
    "a prompt over the context": (
        rows(lambda r: r[1].update(prompt="word " * 200)),
        ["'e1'", "tokens", "reads 128"],
    ),
}


@pytest.fixture
def project(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    edits = write_edits(tmp_path / "edits.jsonl", edit_rows(3))
    write_config(tmp_path, whole / "tiny", edits)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: str, command: str = "fit") -> str:
    """Return the one message with which a run ends."""
    assert main([command, "-c", "scen.yaml", *args]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("name", BAD_EDITS)
def test_bad_edits_are_named(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    bad, said = BAD_EDITS[name]
    write_edits(project / "edits.jsonl", bad)
    error = refused(capsys)
    assert all(piece in error for piece in said), error


def test_an_unknown_layer_is_named_with_the_nearest(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "--model.init_args.layer=model.layers.1.mlp.downproj")
    assert "no module 'model.layers.1.mlp.downproj'" in error
    assert "Did you mean 'model.layers.1.mlp.down_proj'" in error


def test_a_bank_of_another_model_is_refused(
    project: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(whole / "tiny", dtype=torch.float32)
    other.model.layers[1].mlp.down_proj.weight.data.mul_(2)
    shutil.copytree(whole / "tiny", project / "other")
    other.save_pretrained(project / "other")
    options = ["--model.init_args.pretrained=other", f"--model.init_args.bank={whole / 'whole'}"]
    for command in ("fit", "test", "predict"):
        error = refused(capsys, *options, command=command)
        assert "the bank was made for" in error
        assert "differ" in error


def test_a_truncated_bank_is_refused(
    project: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".json", ".safetensors"):
        content = (whole / f"whole{suffix}").read_bytes()
        (project / f"cut{suffix}").write_bytes(content[:-50] if suffix != ".json" else content)
    error = refused(capsys, "--model.init_args.bank=cut", command="predict")
    assert "cut.safetensors" in error
    assert "cut off" in error


def test_to_test_before_there_is_a_bank_says_what_to_do(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, command="test")
    assert "holds none of the 3 edits" in error
    assert "lightning-suite fit" in error
