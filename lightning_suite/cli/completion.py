"""What the Tab key may complete: all commands and options as a plain `argparse` parser.

The parsers of the commands are jsonargparse's, and need torch; what is taken from them goes into a
script that the shell reads, so that nothing of this package runs while one types.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

import lightning_suite
from lightning_suite.cli.commands import COMMANDS, TRAINER_COMMANDS
from lightning_suite.cli.parsing import command_parser
from lightning_suite.cli.shipped import shipped_configs
from lightning_suite.extras import import_extra

Shell = Literal["bash", "zsh", "fish"]
_FLAGS = ("help", "print_config", "version")
# Positional words and options by what they name; all others with a value are left to the user.
_CONFIGS = {"config", "files", "options"}
_FOLDERS = {"folder", "folders", "scores", "out", "merge"}
_FILES = {"ckpt_path", "index", "dest", "bank"}


def completion_script(shell: Shell) -> str:
    """Return the script that teaches a shell to complete ``lightning-suite``.

    Args:
        shell: Of the reader.

    Raises:
        MissingExtraError: shtab, which writes the script, is not installed.
    """
    shtab = import_extra("shtab", "completion")
    script: str = shtab.complete(_tree(shtab), shell)
    return script


def _tree(shtab: types.ModuleType) -> argparse.ArgumentParser:
    """The whole program; `complete` attributes are shtab's way to say where values come from."""
    from lightning_suite.cli.lightning_cli import ParserOnly  # noqa: PLC0415

    root = argparse.ArgumentParser(prog="lightning-suite", description="")
    root.add_argument("-V", "--version", action="store_true", help="show the version")
    places = root.add_subparsers(dest="command")
    trainer = ParserOnly().parsers
    for name, text in TRAINER_COMMANDS.items():
        parser = places.add_parser(name, help=text, description=text)
        _copy(trainer[name], parser, shtab)
    for name, command in COMMANDS.items():
        parser = places.add_parser(name, help=command.help, description=command.help)
        module = command.module(name)
        if not hasattr(module, "VERBS"):
            _copy(command_parser(name, module.run), parser, shtab)
            continue
        verbs = parser.add_subparsers(dest="verb")
        for verb, run in module.VERBS.items():
            # the first line of a docstring is the help of its command
            text = (run.__doc__ or "").strip().partition("\n")[0].replace("%", "%%")
            below = verbs.add_parser(verb, help=text, description=text)
            _copy(command_parser(f"{name} {verb}", run), below, shtab)
    return root


def _copy(
    source: argparse.ArgumentParser, target: argparse.ArgumentParser, shtab: types.ModuleType
) -> None:
    for action in source._actions:
        # `--key.help CLASS` and `--key+` stand beside `--key`, and would only be in the way
        names = [name for name in action.option_strings if not name.endswith(("+", ".help"))]
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        options: dict[str, Any] = {"help": _first_sentence(action.help)}
        flag = action.nargs == 0 or action.dest in _FLAGS
        if flag:
            options["action"] = "store_true"
        elif not action.option_strings:
            options["nargs"] = action.nargs
        if action.option_strings and not names:
            continue
        new = target.add_argument(*(names or [action.dest]), **options)
        if flag:
            continue
        values = _values(action)
        if values:
            new.choices = values
        else:
            _say_where(new, action.dest, shtab)


def _say_where(action: argparse.Action, dest: str, shtab: types.ModuleType) -> None:
    """Tell shtab which files are meant."""
    name = dest.rpartition(".")[2]
    if name in _CONFIGS:
        action.complete = _configs(shipped_configs())  # type: ignore[attr-defined]
    elif name in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif name in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _values(action: argparse.Action) -> list[str]:
    """All values that an option can have, where these are few."""
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "name" and not action.option_strings:  # of `cp`
        return list(shipped_configs())
    names = lightning_suite.__all__
    data = [name for name in names if name.endswith("DataModule")]
    if action.dest == "data":
        return data
    if action.dest == "model":
        return [name for name in names if name.endswith("Module") and name not in data]
    return list(dict.fromkeys(_of_type(getattr(action, "_typehint", None))))


def _of_type(hint: Any) -> list[str]:
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_of_type(part) for part in get_args(hint) if part is not type(None)]
        # `int | Literal["auto"]` takes more than what could be shown, and showing a part is help
        return [value for part in parts for value in part]
    return []


def _first_sentence(text: str | None) -> str:
    first = re.split(r"(?<=[.;])\s|\n", (text or "").strip(), maxsplit=1)[0]
    return first.rstrip(".;").replace("%", "%%")


def _configs(names: Iterable[str]) -> dict[str, Any]:
    """YAML files, and the names of the shipped configs."""
    words = " ".join(names)
    function = "_lightning_suite_configs"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": (
                f'{function}() {{\n  compgen -W "{words}" -- "$1"\n'
                # two patterns: one would need `shopt -s extglob`
                '  compgen -f -X "!*.yaml" -- "$1"\n  compgen -f -X "!*.yml" -- "$1"\n'
                '  compgen -d -S / -- "$1"\n}'
            ),
            "zsh": (
                f"{function}() {{\n  _alternative 'shipped:shipped config:({words})' "
                "'files:YAML file:_files -g \"*.(yaml|yml)\"'\n}"
            ),
            "fish": (
                f"function {function}\n  printf '%s\\n' {words}\n"
                "  __fish_complete_suffix .yaml\n  __fish_complete_suffix .yml\nend"
            ),
        },
    }
