"""Ctrl-C, as one line: what is kept, and how to go on.

Nothing here imports torch: the program says this of any command.
"""

from __future__ import annotations

EXIT_STATUS = 130  # what a shell expects of a program that SIGINT (2) has ended: 128 + 2

# Commands that find what they have done; see docs/reliability.md.
_GO_ON = dict.fromkeys(
    ("score", "lr-transfer", "coord-check", "diffuse"),
    "the same command goes on where it was.",
)
_ANEW = "what was there before is whole, and the same command begins anew."


class Stopped(KeyboardInterrupt):
    """Ctrl-C where more is known of it than the command's name; the text says what."""


def was_interrupted(err: BaseException | None) -> bool:
    """Whether Ctrl-C is what ended a command.

    Lightning ends the process with status 1 when a Trainer hears it.

    Args:
        err: What came out of the command.
    """
    while isinstance(err, SystemExit):
        err = err.__context__
    return isinstance(err, KeyboardInterrupt)


def explain_interrupt(err: BaseException, command: str) -> str:
    """Return what to tell the user; nothing where another process of the run does.

    Args:
        err: What came out of the command.
        command: Its name.
    """
    if isinstance(err, Stopped):
        return str(err)
    return f"stopped; {_GO_ON.get(command, _ANEW)}"
