"""The last lines of a fit name everything that a newcomer needs to go on."""

from __future__ import annotations

import pytest

from lightning_suite.cli.after_fit import last_lines, stopped_lines


class SCENModule:
    def __init__(self, bank: str | None) -> None:
        self.hparams = {"bank": bank}


class LMCDModule:
    pass


class MyLMCDModule(LMCDModule):
    pass


class TheirModule:
    pass


def test_a_bank_is_named_with_how_to_look_at_it_and_how_to_ask_it() -> None:
    lines = last_lines(SCENModule("my bank"), ["fit", "-c", "scen.yaml"], "runs/v0", "runs/a.ckpt")
    assert lines == [
        "Run folder: runs/v0",
        "Bank:       my bank (lightning-suite bank list 'my bank')",
        "Report:     lightning-suite report runs/v0",
        "Checkpoint: runs/a.ckpt",
        "Next:       lightning-suite predict -c scen.yaml",
    ]


def test_a_bank_that_has_no_place_of_its_own_is_found_in_the_run() -> None:
    lines = last_lines(SCENModule(None), ["fit", "-c", "scen.yaml"], "runs/v0", "runs/a.ckpt")
    assert lines[1].startswith("Bank:       runs/v0/artifacts/bank (")
    assert lines[-1].endswith("predict -c scen.yaml --ckpt_path runs/a.ckpt")


@pytest.mark.parametrize("words", [["--ckpt_path", "old.ckpt"], ["--ckpt_path=old.ckpt"]])
@pytest.mark.parametrize("kind", [LMCDModule, MyLMCDModule])
def test_the_next_command_takes_the_new_checkpoint(kind: type, words: list[str]) -> None:
    lines = last_lines(kind(), ["fit", *words, "-c", "lmcd.yaml"], "runs/v0", "best.ckpt")
    assert lines[-1] == "Next:       lightning-suite predict -c lmcd.yaml --ckpt_path best.ckpt"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_checkpoint_that_took_the_place_of_an_earlier_one_is_said_to_be_this_fit_s(
    replaced: bool,
) -> None:
    lines = last_lines(LMCDModule(), ["fit"], "runs/v1", "runs/best.ckpt", replaced=replaced)
    note = " (of this fit; an earlier file of that name is replaced)" if replaced else ""
    assert f"Checkpoint: runs/best.ckpt{note}" in lines
    assert lines[-1] == "Next:       lightning-suite predict --ckpt_path runs/best.ckpt"


def test_of_a_users_module_nothing_is_presumed() -> None:
    lines = last_lines(TheirModule(), ["fit", "-c", "a.yaml"], "lightning_logs/version_0")
    assert lines == [
        "Run folder: lightning_logs/version_0",
        "Report:     lightning-suite report lightning_logs/version_0",
    ]


def test_what_a_fit_went_on_from_is_not_its_result() -> None:
    lines = last_lines(TheirModule(), ["fit"], "runs/v1", "in.ckpt", written=False)
    assert lines[-1] == "Checkpoint: none was written in this run (the best so far is in.ckpt)"
    lines = last_lines(TheirModule(), ["fit"], "runs/v1", written=False)
    assert lines[-1] == "Checkpoint: none was written in this run"


def test_a_stopped_bank_goes_on_by_the_same_command() -> None:
    said = stopped_lines(SCENModule("bank"), ["fit", "-c", "scen.yaml"], "runs/v0", "")
    assert said.endswith("the same command goes on:\n  lightning-suite fit -c scen.yaml")
