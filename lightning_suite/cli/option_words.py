"""The words of a command line as configs and options, and options that there are not.

Nothing here imports torch: `lightning-suite list --jsn` is answered at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from jsonargparse import ArgumentParser

from lightning_suite.errors import closest

_CONFIG = ("-c", "--config")


class Given(NamedTuple):
    """A part of a command line.

    Attributes:
        name: Of the option, ``--config`` for ``-c`` too; empty for a word that stands alone.
        value: Of the option, or the word; None where the option has none.
        words: As they were typed.
    """

    name: str
    value: str | None
    words: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The parts of the option's name, without its dashes and the + that appends."""
        return tuple(self.name.lstrip("-").removesuffix("+").split("."))


def read_words(words: Sequence[str], flags: Collection[str] = ()) -> list[Given]:
    """Return the parts of a command line, in order.

    Args:
        words: After the command's name.
        flags: Names of options that take no value.
    """
    given = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if not _is_option(word):
            given.append(Given("", word, (word,)))
            continue
        name = "--config" if name in _CONFIG else name
        if equals or name in flags or not left or left[0].startswith("--"):
            given.append(Given(name, value if equals else None, (word,)))
        else:
            following = left.pop(0)
            given.append(Given(name, following, (word, following)))
    return given


def flags_of(parsers: Iterable[ArgumentParser]) -> set[str]:
    """Return the options of these parsers that take no value."""
    flags = {"--print_config"}  # its own follow a =
    for parser in parsers:
        for action in parser._actions:
            flags.update(action.option_strings if action.nargs == 0 else ())
    return flags


def unknown_options(
    given: Iterable[Given], parser: ArgumentParser, more: Collection[str] = ()
) -> list[tuple[Given, str]]:
    """Return the options that the parser does not have, each with what was probably meant.

    Options below one that is a class or a mapping (``--model.init_args.width``) are taken for
    known: only the class knows them.

    Args:
        given: Of a command line that the parser has refused.
        parser: Of the command.
        more: Other names to suggest.
    """
    known = [name for action in parser._actions for name in action.option_strings]
    words = {action.dest for action in parser._actions if not action.option_strings}
    found = []
    for part in given:
        if not part.name or _is_known(part.name, known):
            continue
        if part.keys[0] in words:
            text = f"its value stands alone, without this name. Expected: {usage(parser)}"
        else:
            text = f"unknown option.{suggestion(part.name, [*known, *more])}"
        found.append((part, text))
    return found


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean '--trainer.max_steps'?"`` for a mistyped option.

    Args:
        name: As typed, with its dashes.
        known: The options that there are.
    """
    names = {n.lstrip("-") for n in known if n.startswith("--") and not n.endswith((".help", "+"))}
    parent, _, last = name.lstrip("-").rpartition(".")
    lasts = {name.rpartition(".")[2]: name for name in sorted(names)}
    siblings = [name for name in names if name.rpartition(".")[0] == parent and parent]
    same = sorted(name for name in names if name.rpartition(".")[2] == last)
    near = (
        closest(name.lstrip("-"), siblings)
        or "' or '--".join(same[:3])
        or closest(name.lstrip("-"), names)
        or lasts.get(closest(last, lasts), "")
    )
    return f" Did you mean '--{near}'?" if near else ""


def refused_words(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return what is wrong with the names in a command line that the parser has refused."""
    given = read_words(words, flags_of([parser]))
    return [f"{part.name}: {text}" for part, text in unknown_options(given, parser)]


def usage(parser: ArgumentParser) -> str:
    """Return the command with the words that it needs, such as ``lightning-suite cp NAME DEST``."""
    words = [
        f"[{name} …]" if action.nargs == "*" else f"{name} …" if action.nargs == "+" else name
        for action in parser._actions
        if not action.option_strings
        for name in [str(action.metavar or action.dest).upper()]
    ]
    return " ".join([parser.prog, *words])


def _is_option(word: str) -> bool:
    return word != "--" and len(word) > 1 and word[0] == "-" and not word[1].isdigit()


def _is_known(name: str, known: Collection[str]) -> bool:
    plain = name.removesuffix("+")
    if plain in known or name in known:
        return True
    while "." in plain:
        plain = plain.rpartition(".")[0]
        if plain in known:  # a section has options of its own, and its other names are unknown
            return not any(
                option.startswith(f"{plain}.") and option[-5:] != ".help" for option in known
            )
    return False
