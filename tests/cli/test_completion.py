"""The Tab key in a real interactive bash, and scripts that start nothing of this package."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_suite.cli.commands import COMMANDS, TRAINER_COMMANDS
from lightning_suite.cli.completion import completion_script
from lightning_suite.cli.main import main
from lightning_suite.cli.shipped import shipped_configs

pytest.importorskip("shtab", reason="needs the extra completion")
DONE = "READY>"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, in a file."""
    folder = tmp_path_factory.mktemp("completion")
    path = folder / "lightning-suite.bash"
    path.write_text(completion_script("bash"))
    return path


@pytest.fixture(scope="module")
def press_tab(script: Path) -> Iterator[Callable[[str, set[str]], str]]:
    """Type a line and Tab twice in an interactive bash; return what is then on the screen.

    Reading ends as soon as the words that are expected are there, and the prompt after them.
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    home = script.parent
    (home / "mine.yaml").touch()
    (home / "mine.txt").touch()
    (home / "runs").mkdir()
    process, terminal = pty.fork()
    if process == 0:  # the child becomes bash; no program of ours is in its PATH
        os.chdir(home)
        os.execve(bash, ["bash", "--norc", "--noprofile", "-i"], _plain(home))
    settings = "bell-style none", "page-completions off", "show-all-if-ambiguous on"
    os.write(terminal, "".join(f"bind 'set {one}'; " for one in settings).encode())
    os.write(terminal, f"source {script}; PS1='{DONE[:3]}''{DONE[3:]}'\n".encode())
    _read_until(terminal, lambda text: DONE in text)

    def press(line: str, expected: set[str]) -> str:
        os.write(terminal, line.encode() + b"\t\t")
        shown = _read_until(terminal, lambda text: expected <= words(text))
        os.write(terminal, b"\x15\n")  # forget the line
        return shown + _read_until(terminal, lambda text: DONE in text)

    yield press
    os.write(terminal, b"exit\n")
    os.close(terminal)
    os.waitpid(process, 0)


def _plain(home: Path) -> dict[str, str]:
    return {"TERM": "dumb", "HOME": str(home), "INPUTRC": "/dev/null", "COLUMNS": "300"}


def _read_until(terminal: int, done: Callable[[str], bool], quiet: float = 20.0) -> str:
    """Read until `done`, or until nothing came for `quiet` seconds."""
    text, end = "", time.monotonic() + 60
    while not done(text) and time.monotonic() < end:
        if not select.select([terminal], [], [], quiet)[0]:
            break
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


def words(text: str) -> set[str]:
    return set(re.findall(r"\S+", text))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lightning-suite do", {"doctor"}),
        ("lightning-suite ", {*COMMANDS, *TRAINER_COMMANDS}),
        ("lightning-suite cp ", set(shipped_configs())),
        ("lightning-suite fit -c overlays/w", {"overlays/wandb", "overlays/wandb_offline"}),
        ("lightning-suite check m", {"mine.yaml"}),
        ("lightning-suite doctor -c overlays/dep", {"overlays/depth_mup"}),
        ("lightning-suite report r", {"runs/"}),
        ("lightning-suite fit --trainer.max_", {"--trainer.max_epochs", "--trainer.max_steps"}),
        ("lightning-suite fit --trainer.barebones ", {"true", "false"}),
        ("lightning-suite fit --model ", {"ResidualNetModule", "SCENModule"}),
        ("lightning-suite bank r", {"remove", "rollback"}),
        ("lightning-suite completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_tab_completes_in_bash(
    press_tab: Callable[[str, set[str]], str], line: str, expected: set[str]
) -> None:
    shown = words(press_tab(line, expected))
    assert expected <= shown
    assert "mine.txt" not in shown


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_for_other_shells_know_the_commands_and_start_no_python(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for word in (*COMMANDS, *TRAINER_COMMANDS, "trainer.max_epochs", "overlays/wandb_offline"):
        assert word in text
    assert "python" not in text
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=text, check=True, text=True)


def test_the_script_for_bash_starts_no_python(script: Path) -> None:
    assert "python" not in script.read_text()


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "ksh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err.replace('"', "'")


def test_without_shtab_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'lightning-suite[completion]'" in capsys.readouterr().err
