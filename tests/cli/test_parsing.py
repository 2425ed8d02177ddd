"""Options of a command come from its signature and docstring."""

from __future__ import annotations

import sys

import pytest

from lightning_suite.cli.commands import COMMANDS, Command
from lightning_suite.cli.main import main
from lightning_suite.cli.messages import condense
from lightning_suite.cli.parsing import command_parser, prepare_classes, time_left


def study(files: list[str], depths: list[int] | None = None, rate: float = 0.5, dry: bool = False):
    """Do a study.

    Args:
        files: What to read.
        depths: Numbers of blocks.
        rate: How fast.
        dry: Only show.

    Example:
        lightning-suite study a.yaml
    """


@pytest.fixture
def parser(monkeypatch):
    monkeypatch.setitem(COMMANDS, "study", Command("do a study", takes_config=True))
    return command_parser("study", study)


def test_lists_take_words_and_flags_take_none(parser):
    config = parser.parse_args(["a", "b", "--dry", "--depths=[4, 8]", "--rate", "1e-3"])
    assert (config.files, config.dry, config.depths) == (["a", "b"], True, [4, 8])
    assert config.rate == 1e-3


def test_options_come_from_yaml_too_and_the_command_line_wins(parser, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("rate: 0.25\ndepths: [2]\ndry: true\n")
    config = parser.parse_args(["a", "-c", str(path), "--rate", "2"])
    assert (config.rate, config.depths, config.dry) == (2.0, [2], True)


def test_help_has_the_docstring(parser):
    text = parser.format_help()
    for part in ("Do a study.", "What to read.", "Numbers of blocks.", "Only show."):
        assert part in text
    assert text.endswith("Examples:\n  lightning-suite study a.yaml\n")


def test_errors_are_short_and_point_to_the_help(capsys):
    assert main(["cp", "wandb"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-suite: error: ")
    assert "dest" in error
    assert error.endswith("(see lightning-suite cp --help)\n")


def test_a_config_of_a_command_with_typos_gives_all_of_them(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text("depth: 4\nseeds: many\n")
    assert main(["coord-check", "-c", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:1: error: depth: unknown key. Did you mean 'depths'?" in error
    assert f"{path}:2: error: seeds: expected int, got 'many'" in error


def test_the_current_folder_is_importable_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_classes()
    prepare_classes()
    assert sys.path.count(str(tmp_path)) == 1


def test_less_than_a_minute_left_is_not_none():
    assert time_left(26.4) == "26 s left"  # and not 0 min
    assert time_left(130) == "2 min left"


def test_messages_without_a_pattern_are_kept():
    assert condense("something   else\n  happened") == "something else happened"


def test_literals_and_subclasses_are_listed():
    message = (
        'Parser key "x":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
        "    - Expected a typing.Literal['a', 'b']\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n  Given value: c"
    )
    assert condense(message) == "x: expected 'a', 'b' or null, got 'c'"
