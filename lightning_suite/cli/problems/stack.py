"""All problems of the configs and options of a command line at once.

The judge is the parser that `fit` itself uses. It stops at the first error and does not know
lines. So a value that it refuses is taken apart: each part is parsed alone, down to the smallest
one that is refused, and that one is found in the file. What cannot be narrowed down is reported in
the parser's own words: nothing is accepted that the parser refuses, and nothing taken apart that
it accepts as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from lightning_suite.cli.messages import condense
from lightning_suite.cli.option_words import Given, flags_of, read_words
from lightning_suite.cli.problems.accepted import (
    missing_extras,
    refused_arguments,
    wrong_inside,
    wrong_values,
)
from lightning_suite.cli.problems.given_options import option_source, wrong_options
from lightning_suite.cli.problems.lists import list_option, list_problems
from lightning_suite.cli.problems.refused import (
    REQUIRED,
    advise,
    parse,
    refused_parts,
    without,
)
from lightning_suite.cli.problems.sources import (
    COMMAND_LINE,
    Problem,
    Source,
    TooLarge,
    has,
    on_top_of,
    read_file,
)
from lightning_suite.cli.shipped import resolve
from lightning_suite.errors import SuiteError


def command_of(words: Sequence[str], parsers: Mapping[str, ArgumentParser]) -> str:
    """Return the command that these configs are for: the one that knows most of their keys.

    Args:
        words: As for `find_problems`.
        parsers: The parser of each command that takes configs; the first wins a draw.
    """
    given = read_words(words, flags_of(parsers.values()))
    keys: set[str] = set()
    for part in filter(_is_file, given):
        if isinstance(source := read_file(part.value or ""), Source):
            keys.update(map(str, source.values))
    keys = keys or {part.keys[0] for part in given}

    def known(command: str) -> int:
        names = {key.partition(".")[0] for key in parsers[command].get_defaults().keys()}  # noqa: SIM118
        return len(keys & names)

    return max(parsers, key=known)


def explain(words: Sequence[str], parser: ArgumentParser, error: Exception) -> SuiteError:
    """Return one error with all problems of a command line, or with ``error``.

    Args:
        words: After the command's name.
        parser: Of the command, which has refused them.
        error: How.
    """
    given = read_words(words, flags_of([parser]))
    stray = [f"{part.value!r} stands alone. {_advice(part)}" for part in given if not part.name]
    kept = [part for part in given if part.name or _looks_like_file(part)]
    found = [p for p in find_problems(config_words(kept), parser) if not p.warning]
    named = [p for p in found if p.file == COMMAND_LINE and p.key]
    if not any(map(_is_file, kept)):
        if not stray and not named and REQUIRED.match(str(error)):
            return SuiteError(
                "no config is given. Give one of yours with -c FILE; `lightning-suite list` shows "
                "those to begin with, and `-c NAME` uses one as it is."
            )
        found = named or ([] if stray else found)  # what else is missing depends on the config
    if (stray or named) and len(named) == len(found):  # nothing but words: no file is to blame
        return SuiteError("\n  ".join([*stray, *(f"{p.key}: {p.text}" for p in named)]))
    lines = [*stray, *map(str, found)] or [condense(str(error))]
    return SuiteError("\n  ".join(["the configuration cannot be used:", *lines]))


def find_problems(words: Sequence[str], parser: ArgumentParser) -> list[Problem]:
    """Find all problems of configs and options that are given together, in this order.

    Args:
        words: As on the command line: ``-c FILE`` or FILE alone (or YAML text), and options.
        parser: The parser of the command that they are for, with ``exit_on_error=False``.
    """
    command = str(parser.prog).rpartition(" ")[2]
    given = read_words(words, flags_of([parser]))
    names = [part.value or "" for part in given if _is_file(part)]
    read = [(part, read_file(part.value or "", names)) for part in given if _is_file(part)]
    files = [source for _, source in read if isinstance(source, Source)]
    problems = [problem for _, problem in read if isinstance(problem, Problem)]
    if any(isinstance(problem, TooLarge) for problem in problems):
        return problems
    problems += [p for file in files for p in (*file.duplicates(), *missing_extras(file))]
    problems += list_problems(_list_sources(given, dict(read)))
    parsed = parse(parser, config_words(given))
    refusal = parsed if isinstance(parsed, str) else None
    # of what a later file replaces nothing is wrong any more
    wrong = None if isinstance(parsed, str) else {t for _, t in wrong_values(parsed, command)}
    unexplained = refusal is not None and len(files) == len(read)
    context: dict[str, Any] = {}
    inside: list[Problem] = []
    repaired: dict[Given, Sequence[str]] = {}  # words for the files, without their problems
    for part, source in read:
        if not isinstance(source, Source) or source.tree is None:
            repaired[part] = ()
            if isinstance(source, Source) and refusal is not None:
                problems.append(source.problem((), "is empty; leave it out"))
                unexplained = False
            continue
        values = on_top_of(context, source.values)
        refused = refused_parts(parser, (), values, ()) if refusal is not None else []
        problems += [source.problem(keys, text) for keys, text in refused]
        inside += wrong_inside(source, values, command)
        context = without(values, [keys for keys, _ in refused])
        if refused:
            own = [keys for keys, _ in refused if has(source.values, keys)]
            rest = without(source.values, own)
            repaired[part] = ("--config", yaml.safe_dump(rest, default_flow_style=True))
        unexplained &= not refused
    repaired |= {part: ("--config", part.value or "") for part, _ in read if part not in repaired}
    found = [] if refusal is None else wrong_options(given, repaired, context, parser)
    sources = list(files)
    refused_options = {problem.key for problem in found}
    for part in given:
        if part not in repaired and part.name not in refused_options:
            option = option_source(part, context)
            context = on_top_of(context, option.values, deep=True)
            inside += wrong_inside(option, context, command)
            sources.append(option)
    for keys, text in refused_arguments(context if isinstance(parsed, str) else parsed.as_dict()):
        placed = [source.problem(keys, text) for source in sources if has(source.values, keys)]
        inside += placed[-1:]
    problems += [*found, *(p for p in inside if wrong is None or p.text in wrong)]
    stack = " + ".join(names) or COMMAND_LINE
    if unexplained and not found:
        problems.append(Problem(stack, None, "", advise(refusal or "")))
    unplaced = (wrong or set()) - {p.text for p in inside}
    return problems + [Problem(stack, None, "", text) for text in sorted(unplaced)]


def refuse_lists(words: Sequence[str], parser: ArgumentParser) -> None:
    """Refuse lists of the Trainer that are not what was meant, or warn.

    Args:
        words: As for `find_problems`, in the order in which they count.
        parser: Of the command, which accepts them.

    Raises:
        SuiteError: What one config appends another drops, or a callback is given twice that a
            trainer takes once.
    """
    given = read_words(words, flags_of([parser]))
    read = {part: read_file(part.value or "") for part in given if _is_file(part)}
    found = list(list_problems(_list_sources(given, read)))
    if errors := [problem for problem in found if not problem.warning]:
        raise explain(words, parser, SuiteError("\n  ".join(map(str, errors))))
    for problem in found:
        rank_zero_only(print)(problem, file=sys.stderr)


def _list_sources(given: Sequence[Given], read: Mapping[Given, Source | Problem]) -> list[Source]:
    """Return what says something about the Trainer's lists, in the order given."""
    sources = [read.get(part) or list_option(part) for part in given]
    return [source for source in sources if isinstance(source, Source)]


def config_words(given: Sequence[Given]) -> list[str]:
    """Return the parts of a command line as the parser of a command takes them."""
    pairs = [
        ("--config", resolve(part.value or "")) if _is_file(part) else part.words for part in given
    ]
    return [word for words in pairs for word in words]


def _advice(stray: Given) -> str:
    if _looks_like_file(stray):
        return f"A config is given with -c: -c {stray.value}"
    return "The option that it is for is missing before it."


def _looks_like_file(part: Given) -> bool:
    word = part.value or ""
    return word.endswith((".yaml", ".yml")) or resolve(word) != word or Path(word).is_file()


def _is_file(part: Given) -> bool:
    return part.name in ("", "--config") and part.value is not None
