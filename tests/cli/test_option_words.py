"""Words of a command line: which are options, and what a mistyped one means."""

from __future__ import annotations

import pytest

from lightning_suite.cli.main import main
from lightning_suite.cli.option_words import read_words, suggestion


def test_words_are_configs_options_and_flags() -> None:
    words = [
        "-c",
        "a.yaml",
        "--config=b.yaml",
        "--x",
        "-1",
        "--flag",
        "c",
        "-",
        "--y=",
        "-q",
        "--z",
    ]
    given = [(part.name, part.value) for part in read_words(words, {"--flag"})]
    assert given == [
        ("--config", "a.yaml"),
        ("--config", "b.yaml"),
        ("--x", "-1"),
        ("--flag", None),
        ("", "c"),
        ("", "-"),
        ("--y", ""),
        ("-q", None),
        ("--z", None),
    ]
    assert [word for part in read_words(words) for word in part.words] == words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--trainer.max_step", " Did you mean '--trainer.max_steps'?"),  # of its section first
        ("--max_steps", " Did you mean '--trainer.max_steps'?"),
        ("--trainr.max_steps", " Did you mean '--trainer.max_steps'?"),
        ("--kep", " Did you mean '--keep'?"),
        ("--lr", " Did you mean '--model.lr' or '--optimizer.lr'?"),
        ("--xyz", ""),
    ],
)
def test_a_mistyped_option_means_the_closest(typed: str, meant: str) -> None:
    known = ["--help", "--keep", "--trainer", "--trainer.max_steps", "--trainer.max_time"]
    known += ["--optimizer.lr", "--model.lr", "--model.lr+", "--model.help", "-c"]
    assert suggestion(typed, known) == meant


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("select runs --keeep .5", "--keeep: unknown option. Did you mean '--keep'?"),
        ("list --jsn", "--jsn: unknown option. Did you mean '--json'?"),
        ("bank list facts --fnd x --al", "--fnd: unknown option. Did you mean '--find'?"),
        ("bank list facts --fnd x --al", "--al: unknown option. Did you mean '--all'?"),
        ("score --feature x", "--feature: unknown option. Did you mean '--features'?"),
        ("coord-check --dephts 3", "--dephts: unknown option. Did you mean '--depths'?"),
        ("bank rollback facts --id x", "Expected: lightning-suite bank rollback BANK ID"),
        ("bank show", "Expected: lightning-suite bank show BANK [ID …]"),
        ("bank rollback facts a b", "b. Expected: lightning-suite bank rollback BANK ID"),
    ],
)
def test_every_command_says_what_to_type(words: str, told: str, capsys) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1  # and not the usage of all options
