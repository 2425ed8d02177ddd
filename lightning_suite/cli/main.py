"""The program ``lightning-suite``: find the command, run it, turn errors into messages.

Nothing here imports torch, so that ``list``, ``--help`` and ``--version`` answer at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from lightning_suite import __version__
from lightning_suite.cli.commands import COMMANDS, TRAINER_COMMANDS
from lightning_suite.cli.disk_errors import explain_disk_error
from lightning_suite.cli.interruption import EXIT_STATUS, explain_interrupt, was_interrupted
from lightning_suite.cli.process_group import process_group_ended
from lightning_suite.cli.same_process import process_as_before
from lightning_suite.cli.trainer_help import short_help
from lightning_suite.errors import SuiteError, did_you_mean

_USAGE = """\
lightning-suite {version}: PyTorch Lightning callbacks, modules and commands for research methods

usage: lightning-suite COMMAND [OPTIONS]      (lightning-suite COMMAND --help tells more)

Train, with any of our modules or your own:
{trainer}

{commands}
Examples:
  lightning-suite list
  lightning-suite cp depth_mup/llama_from_scratch my.yaml
  lightning-suite fit -c my.yaml
  lightning-suite fit -c my.yaml -c configs/overlays/depth_mup.yaml --trainer.max_epochs 3
  lightning-suite fit -c my.yaml --print_config     (after the command, never before it)
  lightning-suite check my.yaml configs/overlays/depth_mup.yaml

Files given with -c are merged in order; `callbacks+:` in a file appends to the list of the others,
and overlays that do nothing else may stand anywhere.
Set LIGHTNING_SUITE_TRACEBACK=1 to see where an error came from.
"""


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The words after the program's name; default: those of this process.

    Returns:
        The exit status: 0 all well, 1 the command found problems, 2 it could not run,
        130 it was stopped by Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        with process_as_before(), process_group_ended():
            status = _dispatch(args)
        sys.stdout.flush()  # to a full disk, too, while it can be said
        return status
    except SuiteError as err:
        if _wants_traceback():
            raise
        print(f"lightning-suite: error: {err}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as err:
        package = (err.name or "").partition(".")[0]
        if package not in ("torch", "lightning"):
            raise
        print(
            f"lightning-suite: error: {package} is not installed; `lightning-suite doctor` says "
            "what is missing.",
            file=sys.stderr,
        )
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        return _status_of(stop, args[0] if args else "")
    except BrokenPipeError:  # the reader of `lightning-suite list | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as err:
        text = explain_disk_error(err, args[0] if args else "") or _explain_wandb_error(err)
        if text is None or _wants_traceback():
            raise
        print(f"lightning-suite: error: {text}", file=sys.stderr)
        _give_up_output()
        return 2


def _status_of(stop: KeyboardInterrupt | SystemExit, command: str) -> int:
    """Return the status to end with; say how to go on where Ctrl-C was heard."""
    if was_interrupted(stop) and not _wants_traceback():
        if text := explain_interrupt(stop, command):
            print(f"lightning-suite: {text}", file=sys.stderr)
        return EXIT_STATUS
    if isinstance(stop, KeyboardInterrupt) or isinstance(stop.code, str):
        raise stop
    return stop.code or 0  # --help and --print_config end this way


def _explain_wandb_error(err: Exception) -> str | None:
    if type(err).__module__.partition(".")[0] != "wandb":
        return None
    return f"W&B: {err} Or log without it: -c overlays/wandb_offline"


def _give_up_output() -> None:
    """Where nothing can be printed any more, forget what waits: Python would try at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wants_traceback() -> bool:
    return os.environ.get("LIGHTNING_SUITE_TRACEBACK") == "1"


def _dispatch(args: list[str]) -> int:
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(usage(), end="")
        return 0
    if command in ("--version", "-V"):
        print(f"lightning-suite {__version__}")
        return 0
    if command in COMMANDS:
        from lightning_suite.cli.parsing import run_command  # noqa: PLC0415

        return run_command(command, rest)
    if command in TRAINER_COMMANDS:
        if rest in (["--help"], ["-h"]):
            print(short_help(command), end="")
            return 0
        from lightning_suite.cli.lightning_cli import SuiteCLI  # noqa: PLC0415

        SuiteCLI(args)
        return 0
    if command.startswith("-"):
        raise SuiteError(
            f"{command} comes before the command. Options follow it: "
            f"lightning-suite fit {' '.join(args)}"
        )
    known = [*TRAINER_COMMANDS, *COMMANDS]
    raise SuiteError(
        f"there is no command {command!r}.{did_you_mean(command, known)} "
        f"Commands: {', '.join(known)}."
    )


def usage() -> str:
    """Return the text of ``lightning-suite --help``."""

    def lines(names: list[str]) -> str:
        helps = {**TRAINER_COMMANDS, **{name: command.help for name, command in COMMANDS.items()}}
        return "\n".join(f"  {name:<12} {helps[name]}" for name in names)

    sections: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        sections.setdefault(command.section, []).append(name)
    commands = "\n".join(f"{title}:\n{lines(names)}\n" for title, names in sections.items())
    return _USAGE.format(
        version=__version__, trainer=lines(list(TRAINER_COMMANDS)), commands=commands
    )
