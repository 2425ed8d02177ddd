"""The program finds its command, and turns errors into messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_suite import __version__
from lightning_suite.cli.commands import COMMANDS, TRAINER_COMMANDS
from lightning_suite.cli.main import main
from lightning_suite.errors import SuiteError


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command_and_shows_examples(args, capsys):
    assert main(args) == 0
    text = capsys.readouterr().out
    for name in [*COMMANDS, *TRAINER_COMMANDS]:
        assert f"\n  {name} " in text
    assert "lightning-suite fit -c my.yaml" in text
    assert max(map(len, text.splitlines())) <= 100


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-suite {__version__}\n"


def test_unknown_command_suggests_the_nearest(capsys):
    assert main(["chek"]) == 2
    assert "no command 'chek'. Did you mean 'check'?" in capsys.readouterr().err


def test_option_before_the_command_is_explained(capsys):
    assert main(["--print_config"]) == 2
    assert "Options follow it: lightning-suite fit --print_config" in capsys.readouterr().err


def test_error_shows_its_traceback_when_asked(monkeypatch):
    monkeypatch.setenv("LIGHTNING_SUITE_TRACEBACK", "1")
    with pytest.raises(SuiteError, match="no command"):
        main(["chek"])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_every_command_ends_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lightning-suite {name}")
    assert f"  lightning-suite {name}" in text.partition("\nExamples:\n")[2]


@pytest.mark.parametrize("name", list(TRAINER_COMMANDS))
def test_help_of_trainer_commands_ends_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lightning-suite {name} [-c FILE]... [OPTIONS]\n")
    assert (
        "--print_config follows the\ncommand" in text
        or "--print_config follows the command" in text
    )
    assert f"  lightning-suite {name} -c my.yaml" in text.partition("\nExamples:\n")[2]
    assert "weights_only" not in text  # pickled checkpoints are no choice
    assert len(text.splitlines()) < 35


def test_all_keys_of_the_trainer_are_shown_when_asked_for(capsys):
    assert main(["fit", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lightning-suite fit [-c FILE]... [OPTIONS]\n")
    assert "--trainer.gradient_clip_algorithm" in text
    assert "weights_only" not in text
    assert "  lightning-suite fit -c my.yaml" in text.partition("\nExamples:\n")[2]


def test_fit_without_a_config_says_how_to_get_one(capsys):
    assert main(["fit"]) == 2
    told = capsys.readouterr().err
    assert "no config is given" in told
    assert "lightning-suite list" in told


def test_unknown_option_is_named(capsys):
    assert main(["list", "--jsn"]) == 2
    assert "--jsn: unknown option. Did you mean '--json'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["--version"], ["--help"], ["list"], ["cp", "wandb", "-"], ["fit", "--help"]]
)
def test_starts_without_torch(args):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['lightning'] = None\n"
        "from lightning_suite.cli.main import main\n"
        f"sys.exit(main({args}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_fit_without_torch_points_to_doctor():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['lightning'] = None\n"
        "from lightning_suite.cli.main import main\n"
        "sys.exit(main(['fit', '-c', 'x.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "lightning is not installed; `lightning-suite doctor` says" in done.stderr


def test_python_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_suite", "chek"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lightning-suite: error: ")
    assert "Traceback" not in done.stderr


def test_closed_pipe_is_quiet():
    command = f"{sys.executable} -m lightning_suite list --json | true"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.stderr == ""
