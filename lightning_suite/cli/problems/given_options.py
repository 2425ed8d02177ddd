"""What is wrong with the options of a command line, on top of its configs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lightning_suite.cli.option_words import Given, suggestion, unknown_options
from lightning_suite.cli.problems.classes import find_class
from lightning_suite.cli.problems.refused import (
    CLASS_KEYS,
    REQUIRED,
    explain_part,
    parse,
    refused_parts,
)
from lightning_suite.cli.problems.sources import (
    COMMAND_LINE,
    Keys,
    Problem,
    Source,
    has,
    items,
    on_top_of,
)

# Options whose value may be the name of a class alone.
_NAME_CLASSES = ("model", "data", "class_path", "callbacks", "optimizer", "lr_scheduler")


class OptionSource(Source):
    """One option as the part of a configuration that it sets."""

    def problem(self, keys: Keys, text: str, warning: bool = False) -> Problem:
        """Return a problem that names the option as it is typed."""
        names = takewhile(lambda key: isinstance(key, str), keys)
        name = f"--{'.'.join(map(str, names))}"
        return Problem(COMMAND_LINE, None, name, text, warning)


def option_source(option: Given, context: Mapping[str, Any]) -> OptionSource:
    """Return what an option sets.

    Args:
        option: Such as ``--model.width 4``.
        context: The configuration that it changes; where a class stands in it, ``init_args`` may
            be left out of the option's name.
    """
    path: list[str] = []
    place: Any = context
    for key in option.keys:
        if isinstance(place, Mapping) and "class_path" in place and key not in CLASS_KEYS:
            path.append("init_args")
            place = place.get("init_args")
        path.append(key)
        place = place.get(key) if isinstance(place, Mapping) else None
    try:
        value = yaml.safe_load(option.value or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        value = option.value
    for key in reversed(path):
        value = {key: value}
    return OptionSource(COMMAND_LINE, value, None)


def wrong_options(
    given: Sequence[Given],
    files: Mapping[Given, Sequence[str]],
    context: Mapping[str, Any],
    parser: ArgumentParser,
) -> list[Problem]:
    """Return the options without which the parser would not be better off, with what is wrong.

    Args:
        given: The parts of a command line.
        files: Of the configs among them, the words to give to the parser.
        context: What the configs say together.
        parser: Of the command.
    """
    options = [part for part in given if part not in files]
    unknown = dict(unknown_options(options, parser, sorted(_names_in(context))))
    problems = [Problem(COMMAND_LINE, None, part.name, text) for part, text in unknown.items()]
    taken: list[Given] = []

    def refusal(*candidates: Given) -> str | None:
        parts = [files.get(part, part.words) for part in given if part in {*files, *candidates}]
        parsed = parse(parser, [word for words in parts for word in words])
        return parsed if isinstance(parsed, str) else None

    before = refusal()
    for part in options:
        if part in unknown:
            continue
        after = refusal(*taken, part)
        if after is None or after == before or REQUIRED.search(after):
            taken.append(part)
        else:
            problems.append(_explained(part, after, context, parser))
    return problems


def _explained(
    option: Given, refusal: str, context: Mapping[str, Any], parser: ArgumentParser
) -> Problem:
    """Return what is wrong with an option that the parser refuses, in its words or better ones."""
    source = option_source(option, context)
    values = on_top_of(context, source.values, deep=True)
    for keys, text in refused_parts(parser, (), values, ()):
        if has(source.values, keys) and text.startswith("unknown key"):
            near = re.search(r"Did you mean '(.+?)'", text)
            whole = f"--{'.'.join(map(str, (*keys[:-1], near[1])))}" if near else ""
            advice = (
                f" Did you mean '{whole}'?" if near else suggestion(option.name, _names_in(context))
            )
            return Problem(COMMAND_LINE, None, option.name, f"unknown option.{advice}")
    text = explain_part(refusal)
    if option.keys[-1] in _NAME_CLASSES and re.fullmatch(r"[\w.]+", option.value or ""):
        text = find_class(option.value or "", option.keys).problem or text
    return Problem(COMMAND_LINE, None, option.name, text)


def _names_in(context: Mapping[str, Any]) -> set[str]:
    """Return the options that would set what a configuration sets."""

    def paths(value: Any, name: str) -> Iterator[str]:
        for key, item in items(value) if isinstance(value, Mapping) else ():
            yield f"{name}{key}"
            yield from paths(item, f"{name}{key}.")

    return {path for path in paths(context, "--") if not path.endswith(CLASS_KEYS)}
