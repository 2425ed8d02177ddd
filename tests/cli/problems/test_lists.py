"""Callbacks and loggers that a later file or option replaces: nothing is dropped in silence."""

from __future__ import annotations

import pytest

from lightning_suite.cli.main import main

SETS = "trainer:\n  max_epochs: 1\n  callbacks: [{class_path: ModelCheckpoint}]\n"
APPENDS = "trainer: {callbacks+: [{class_path: DeviceStatsMonitor}]}\n"
APPENDS_AND_MORE = "trainer:\n  max_epochs: 2\n  callbacks+: [{class_path: DeviceStatsMonitor}]\n"
REPLACED = (
    "1.yaml:3: warning: trainer.callbacks: replaces ModelCheckpoint of 0.yaml; "
    "write `callbacks+:` to append"
)
LOST = (
    "0.yaml:3: error: trainer.callbacks+: DeviceStatsMonitor would be lost: 1.yaml, which comes "
    "after it, sets `callbacks:`. Give 1.yaml before it."
)


def test_a_list_that_takes_the_place_of_another_is_a_warning_of_check_and_fit(check, capsys):
    assert check(SETS, SETS) == (0, [REPLACED, "base.yaml + 0.yaml + 1.yaml: ok"])
    words = ["-c", "base.yaml", "-c", "0.yaml", "-c", "1.yaml", "--print_config"]
    assert main(["fit", *words]) == 0
    capsys.readouterr()
    assert main(["fit", *words[:-1], "--trainer.logger", "false"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == REPLACED


def test_what_only_appends_is_lost_in_no_order(check):
    ok = (0, ["base.yaml + 0.yaml + 1.yaml: ok"])
    assert check(SETS, APPENDS) == ok
    assert check(APPENDS, SETS) == ok


def test_what_also_appends_is_refused_before_a_file_that_sets(check, capsys):
    assert check(SETS, APPENDS_AND_MORE)[0] == 0
    assert check(APPENDS_AND_MORE, SETS) == (1, [LOST, "base.yaml + 0.yaml + 1.yaml: 1 error"])
    for command in ("fit", "validate"):
        assert main([command, "-c", "base.yaml", "-c", "0.yaml", "-c", "1.yaml"]) == 2
        assert LOST in capsys.readouterr().err
    assert main(["doctor", "-c", "base.yaml", "-c", "0.yaml", "-c", "1.yaml"]) == 2
    assert LOST in capsys.readouterr().err


def test_an_option_that_appends_is_refused_before_a_file_that_sets(project, capsys):
    (project / "0.yaml").write_text(SETS)
    words = ["-c", "base.yaml", "--trainer.callbacks+=DeviceStatsMonitor", "-c", "0.yaml"]
    assert main(["fit", *words]) == 2
    told = "--trainer.callbacks+: DeviceStatsMonitor would be lost: 0.yaml, which comes after it"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("earlier", [SETS, APPENDS])
def test_an_option_that_replaces_a_list_is_a_warning(check, earlier):
    status, lines = check(earlier, options=("--trainer.callbacks=DeviceStatsMonitor",))
    assert status == 0
    assert lines[0].startswith("command line: warning: --trainer.callbacks: replaces ")
    assert check(earlier, options=("--trainer.callbacks+=DeviceStatsMonitor",))[1][0].endswith(
        ": ok"
    )


def test_no_logger_is_no_list_that_one_could_be_appended_to(check):
    logger = "trainer: {logger+: [{class_path: CSVLogger, init_args: {save_dir: .}}]}"
    status, lines = check(logger, "trainer: {logger: false}")
    assert status == 0
    assert lines[0] == "1.yaml:1: warning: trainer.logger: replaces CSVLogger of 0.yaml"


@pytest.mark.parametrize("name", ["DepthMuPLRCallback", "ExpertGateCallback"])
def test_a_callback_of_which_a_trainer_takes_one_is_refused_twice(check, capsys, name):
    depth = ", init_args: {base_depth: 4}" if name[0] == "D" else ""
    overlay = f"trainer:\n  callbacks+:\n    - {{class_path: {name}{depth}}}\n"
    assert check(overlay)[0] == 0
    status, lines = check(overlay, overlay)
    assert status == 1
    assert lines[0].startswith(f"1.yaml:3: error: trainer.callbacks+.0: the trainer has 2 {name}s")
    assert lines[0].endswith("Keep one (an overlay that is given twice adds two).")
    assert main(["fit", "-c", "base.yaml", "-c", "0.yaml", "-c", "1.yaml"]) == 2
    assert lines[0] in capsys.readouterr().err
    assert check(overlay, overlay.replace("callbacks+", "callbacks"))[0] == 1  # in any order


def test_callbacks_of_which_a_trainer_takes_several_are_ok(check):
    assert check(SETS, APPENDS, APPENDS)[0] == 0
    early = "trainer: {callbacks+: [{class_path: EarlyStopping, init_args: {monitor: {0}}}]}"
    assert check(early.replace("{0}", "a"), early.replace("{0}", "b"))[0] == 0
