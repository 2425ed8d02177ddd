"""The ``-c`` words of a command line: which files are meant, and in which order they count.

Every command that takes configs reads its words here, so that all merge them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_suite.cli.shipped import resolve

# Keys of the Trainer that a file sets (`callbacks:`) or appends to (`callbacks+:`).
LISTS = ("callbacks", "logger")


def resolve_options(args: Sequence[str]) -> list[str]:
    """Return a command line with the files that are meant, in the order in which they count.

    The value of every ``-c`` and ``--config`` goes through
    :func:`~lightning_suite.cli.shipped.resolve`. A file that appends to a list and says nothing
    else, as the shipped overlays do, counts behind the files that set this list, wherever it
    stands: before them its entries would be lost. All else stays in the order that was given.

    Args:
        args: With or without the command's name.
    """
    parts = _parts(args)
    if sum(file is not None for _, file in parts) > 1:
        parts = _appended_last(parts)
    return [word for words, _ in parts for word in words]


def sets(trainer: Mapping[str, Any], name: str) -> bool:
    """Whether a ``trainer`` section sets this list; ``logger: false`` is no list."""
    return trainer.get(name, False) is not False


# The words of an option, and the file that they give.
_Part = tuple[tuple[str, ...], str | None]


def _parts(args: Sequence[str]) -> list[_Part]:
    parts: list[_Part] = []
    left = list(args)
    while left:
        word = left.pop(0)
        option, equals, value = word.partition("=")
        if word in ("-c", "--config") and left:
            file = resolve(left.pop(0))
            parts.append(((word, file), file))
        elif option == "--config" and equals:
            parts.append(((f"--config={resolve(value)}",), resolve(value)))
        else:
            parts.append(((word,), None))
    return parts


def _appended_last(parts: Sequence[_Part]) -> list[_Part]:
    values = [_values(file) for _, file in parts]
    trainers = [v["trainer"] if isinstance(v.get("trainer"), dict) else {} for v in values]
    last = {
        name: max((n for n, trainer in enumerate(trainers) if sets(trainer, name)), default=-1)
        for name in LISTS
    }
    behind: dict[int, list[_Part]] = {}
    ordered: list[_Part] = []
    for number, part in enumerate(parts):
        lists = [name for name in LISTS if f"{name}+" in trainers[number]]
        place = max((last[name] for name in lists), default=-1)
        appends_only = set(values[number]) == {"trainer"} and len(lists) == len(trainers[number])
        if appends_only and place > number:
            behind.setdefault(place, []).append(part)
        else:
            ordered.append(part)
        ordered += behind.get(number, [])
    return ordered


def _values(file: str | None) -> dict[str, Any]:
    """Return what a file says; nothing of one that cannot be read."""
    from lightning_suite.cli.problems.sources import Source, read_file  # noqa: PLC0415 (slow)

    source = read_file(file) if file is not None else None
    return source.values if isinstance(source, Source) else {}
