"""Files as they are read: what is no YAML, or no mapping, has its place."""

from __future__ import annotations

import pytest

from lightning_suite.cli.main import main


def test_a_key_given_twice_is_a_warning(check):
    status, lines = check("trainer:\n  max_epochs: 1\n  max_epochs: 2\n")
    assert status == 0
    assert "0.yaml:3: warning: trainer.max_epochs: given twice, first in line 2" in lines[0]


def test_yaml_errors_have_a_position(check):
    status, lines = check("trainer:\n  max_epochs: [1\n  x: 2\n")
    assert status == 1
    assert lines[0].startswith("0.yaml:3: error: not valid YAML (column 4): ")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(check, text):
    status, lines = check(text)
    assert status == 1
    assert "expected `key: value` lines" in lines[0]


def test_a_value_that_contains_itself_is_refused(check):
    status, lines = check("trainer: &loop\n  callbacks: [*loop]\n")
    assert status == 1
    assert "an alias (`*name`) stands inside" in lines[0]


def test_aliases_that_make_millions_of_values_are_refused_at_once(check) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    code, found = check("\n".join(lines))
    assert code == 1
    assert "aliases (`*name`) make more than 100,000 values of it" in found[0]


def test_missing_files_are_named(project, capsys):
    assert main(["check", "basee.yaml"]) == 1
    assert "No such file or directory. Did you mean 'base.yaml'?" in capsys.readouterr().out


def test_a_mistyped_shipped_config_is_guessed(project, capsys):
    assert main(["check", "base.yaml", "overlays/depth_mpu"]) == 1
    assert "Did you mean 'overlays/depth_mup'?" in capsys.readouterr().out
