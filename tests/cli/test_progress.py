"""A line of progress is rewritten on a terminal, and told now and then in a log."""

from __future__ import annotations

import math
import sys

import pytest

from lightning_suite.cli.progress import ProgressLine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_new_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(in_log=30)
    for second in range(91):
        clock[0] = 100.0 + second
        line.show(f"{second} s")
    line.close()
    assert capsys.readouterr().err == "30 s\n60 s\n90 s\n"
    assert line.seconds == 90


def test_a_terminal_s_line_is_rewritten_and_cleared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = ProgressLine(in_log=math.inf)
    line.show("a long text")
    line.show("short")
    line.close()
    shown = capsys.readouterr().err
    assert "\n" not in shown
    states = shown.split("\r")
    assert [state.rstrip() for state in states] == ["", "a long text", "short", "", ""]
    assert len(states[1]) == len(states[2]), "what was longer is overwritten"


def test_a_log_may_be_told_nothing_and_a_process_may_be_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for line in (ProgressLine(), ProgressLine(in_log=0, shown=False)):
        line.show("hidden")
        line.close()
    assert capsys.readouterr().err == ""
