"""The harness that kills commands: it finds what is lost, and finds nothing where nothing is."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_suite.files import atomic_write

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_harness.py"
PARTS, KILLS = 6, 24


@pytest.fixture(scope="module")
def harness() -> Any:
    spec = importlib.util.spec_from_file_location("kill_harness", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_harness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def in_place(path: Path, text: str) -> None:
    path.write_text("")
    for letter in text:
        with path.open("a") as file:
            file.write(letter)


def atomically(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)
        time.sleep(0.005)


def beside(path: Path, text: str) -> None:
    """As `atomically`, but what a kill leaves stays for good."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    in_place(other, text)
    other.replace(path)


def program(write: Callable[[Path, str], None], *, wrong: bool = False) -> Callable[[Any], int]:
    """Make parts that are not there, then a sum of them."""

    def run(words: list[str]) -> int:
        parts = [Path(f"part{n}.json") for n in range(PARTS)]
        left = [path for path in parts if not path.exists()]
        for path in left:
            write(path, json.dumps({"number": 7}))
        numbers = [json.loads(path.read_text())["number"] for path in parts]
        write(Path("sum.json"), json.dumps(sum(numbers) + wrong * (len(left) < PARTS)))
        return 0

    return run


def disturbed(harness: Any, folder: Path, run: Callable[[Any], int]) -> Any:
    case = harness.Case(
        "toy",
        lambda inputs: None,
        lambda inputs, here: [],
        lambda here: harness.hashes(here, "sum.json"),
        "the same again",
        program=run,
    )
    return harness.disturb(case, KILLS, folder.resolve(), random.Random(0))


def test_a_safe_command_loses_nothing(harness: Any, tmp_path: Path) -> None:
    outcome = disturbed(harness, tmp_path, program(atomically))
    assert outcome.kills >= KILLS
    assert len(outcome.moments) == outcome.kills
    assert outcome.finished >= 1
    assert outcome.faults == []
    assert {moment.split()[0] == "write" for moment in outcome.moments} == {True, False}


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (program(in_place), "JSONDecodeError"),
        (program(beside), "left behind: ."),
        (program(atomically, wrong=True), "other results after"),
    ],
)
def test_what_is_lost_is_found(
    harness: Any, tmp_path: Path, run: Callable[[Any], int], fault: str
) -> None:
    assert fault in "\n".join(disturbed(harness, tmp_path, run).faults)


@pytest.mark.slow
def test_a_real_command_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--only", "lr-transfer"]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert (result["kills"], result["faults"]) == (4, 0)
