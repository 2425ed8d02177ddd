"""`check` finds all problems at once, in files and in options as `fit` takes them."""

from __future__ import annotations

import re

import pytest

from lightning_suite.cli.main import main
from lightning_suite.cli.shipped import shipped_configs


def test_a_good_stack_is_ok(check):
    assert check("trainer:\n  max_epochs: 2\n") == (0, ["base.yaml + 0.yaml: ok"])


def test_shipped_names_and_yaml_text_are_accepted(project, capsys):
    pytest.importorskip("wandb")
    assert main(["check", "base.yaml", "overlays/wandb_offline"]) == 0
    assert main(["check", "base.yaml", "{trainer: {max_epochs: x}}"]) == 1
    assert "-c:1: error: trainer.max_epochs: expected int or null" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in shipped_configs() if not n.startswith("overlays/")])
def test_shipped_configs_are_ok_for_their_command(name, capsys):
    assert main(["check", name]) == 0
    command = re.search(r"lightning-suite (\S+)", shipped_configs()[name].read_text())
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert command is not None
    of_trainer = command[1] in ("fit", "validate", "test", "predict")  # they take the same config
    assert verdict == f"{name}: ok" + ("" if of_trainer else f" (for {command[1]})")


def test_it_takes_the_words_of_fit(project, capsys):
    words = ["-c", "base.yaml", "--config=base.yaml", "--trainer.max_steps", "3"]
    assert main(["check", *words]) == 0
    assert capsys.readouterr().out == "base.yaml + base.yaml --trainer.max_steps 3: ok\n"
    assert main(["check"]) == 2
    assert "Expected: lightning-suite check FILE …" in capsys.readouterr().err


def test_flags_of_the_command_that_is_checked_take_no_value(capsys):
    assert main(["check", "--biases", "resofilter/score", "--layers", "3"]) == 0
    assert capsys.readouterr().out.startswith("resofilter/score --biases --layers 3: ok (for sc")


def test_an_empty_config_is_named(check):
    for text in ("", "# nothing but words\n"):
        line = "0.yaml: error: is empty; leave it out"
        assert check(text) == (1, [line, "base.yaml + 0.yaml: 1 error"])


def test_what_is_given_is_not_what_a_mistyped_file_means(project, capsys):
    assert main(["check", "base.yaml", "bases.yaml"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "bases.yaml: error: No such file or directory."
    )
    (project / "bases1.yaml").touch()
    assert main(["check", "base.yaml", "bases.yaml"]) == 1
    assert "Did you mean 'bases1.yaml'?" in capsys.readouterr().out
