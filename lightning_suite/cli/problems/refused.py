"""What the parser of a command refuses, taken apart to the smallest part that it refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_suite.cli.messages import condense
from lightning_suite.cli.problems.classes import find_class
from lightning_suite.cli.problems.sources import Keys, items
from lightning_suite.errors import closest, did_you_mean

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace | str:
    """Return the configuration that a command line makes, or why the parser refuses it."""
    try:
        parsed: Namespace = parser.parse_args(list(words))
    except Exception as err:  # ArgumentError, and others where jsonargparse trips over odd values
        return str(err)
    return parsed


def _refusal(parser: ArgumentParser, inner: Keys, value: Any) -> str | None:
    """Return why the parser refuses ``value`` at ``inner``, whatever is missing beside it."""
    for key in reversed(inner):
        value = [value] if isinstance(key, int) else {key: value}
    try:
        parser.parse_object(copy.deepcopy(value))
    except Exception as err:  # see above
        return None if REQUIRED.match(str(err)) else str(err)
    return None


REQUIRED = re.compile(r"the following arguments are required: ([^\"\n]*)")


def refused_parts(
    parser: ArgumentParser, inner: Keys, value: Any, keys: Keys
) -> list[tuple[Keys, str]]:
    """Return the smallest parts of ``value`` that the parser refuses, with what is wrong.

    Args:
        parser: Of the command, or of the class whose arguments these are.
        inner: Where ``value`` stands in that parser.
        value: What the file says.
        keys: Where ``value`` stands in the file.
    """
    refusal = _refusal(parser, inner, value)
    if refusal is None:
        return []
    if unknown := _unknown(parser, inner):
        return [(keys, unknown)]
    dotted = ".".join(str(key) for key in inner)
    wants_class = f'Parser key "{dotted}"' in refusal and "given class_path" in refusal
    if isinstance(value, dict) and wants_class and not set(value) & set(CLASS_KEYS):
        return [(keys, "name the class: `class_path: …`, and its arguments under `init_args:`")]
    parts: list[tuple[Keys, str]] = []
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        found = find_class(value["class_path"], keys)
        if found.cls is None:
            return _below_no_class(parser, inner, value, keys)
        for name in set(value) - set(CLASS_KEYS):
            parts.append(((*keys, name), f"unknown key.{did_you_mean(str(name), CLASS_KEYS)}"))
        arguments = ArgumentParser(exit_on_error=False)
        arguments.add_class_arguments(found.cls, fail_untyped=False, sub_configs=True)
        given = value.get("init_args")
        if not isinstance(given, dict | type(None)):
            parts.append(((*keys, "init_args"), "expected `argument: value` lines"))
            given = None
        for name, argument in items(given):
            parts += refused_parts(arguments, (name,), argument, (*keys, "init_args", name))
    else:
        for name, item in items(value):
            parts += refused_parts(parser, (*inner, name), item, (*keys, name))
    if not parts:
        return [(keys, explain_part(refusal))]
    rest = without(value, [part[len(keys) :] for part, _ in parts])
    refusal = _refusal(parser, inner, rest) if rest else None
    lacks = re.findall(r"\w+", refusal.split("required:")[-1]) if refusal else []
    # what is wrong at its own key, or was meant by a mistyped one, is not missing besides
    if refusal is not None and not any(closest(str(part[-1]), lacks) for part, _ in parts):
        parts.append((keys, explain_part(refusal)))
    return parts


def _below_no_class(
    parser: ArgumentParser, inner: Keys, value: dict[str, Any], keys: Keys
) -> list[tuple[Keys, str]]:
    """Return what is wrong with a class that there is not, and with what stands below it."""
    place = (*keys, "class_path")
    found = find_class(value["class_path"], keys)
    text = found.problem
    if not any(value.get(key) for key in CLASS_KEYS[1:]):
        return [(place, text)]
    end = "" if text[-1] in ".?" else "."
    if not found.meant:
        return [(place, f"{text}{end} What stands below it was not looked at.")]
    parts = refused_parts(parser, inner, {**value, "class_path": found.meant}, keys)
    text += f"{end} What stands below it was checked as if that were meant."
    return [(place, text), *parts]


def _unknown(parser: ArgumentParser, inner: Keys) -> str | None:
    """Return what to say if the last key of ``inner`` is none of the parser's; else None."""
    names = [str(key).removesuffix("+") for key in inner]
    known = {
        parts[len(names) - 1]
        for parts in (key.split(".") for key in parser.get_defaults().keys())  # noqa: SIM118
        if parts[: len(names) - 1] == names[:-1] and len(parts) >= len(names)
    }
    if not names or not known or names[-1] in known:
        return None
    return f"unknown key.{did_you_mean(names[-1], known)}"


def explain_part(refusal: str) -> str:
    """Return the words of the parser without the key that they begin with."""
    return re.sub(r"^[\w.+]+: ", "", advise(refusal))


def advise(refusal: str) -> str:
    """Return the words of the parser, shortened, with what to do."""
    missing = REQUIRED.match(refusal)
    if missing:
        return (
            f"{missing[1]} is missing. An overlay is not complete alone: give the files together, "
            "the base config first."
        )
    return condense(refusal)


def without(value: Any, paths: Sequence[Keys]) -> Any:
    """Return a copy without these parts; a class that is unknown goes as a whole."""
    value = copy.deepcopy(value)
    gone = {path[:-1] if path[-1:] == ("class_path",) else path for path in paths}
    if () in gone:
        return {}
    # list items from the end, so that numbers stay right
    order = sorted(gone, key=lambda path: [key if isinstance(key, int) else -1 for key in path])
    for *parents, last in reversed(order):
        if any(tuple(parents[:n]) in gone for n in range(1, len(parents) + 1)):
            continue  # it goes with what it is a part of
        place = value
        for key in parents:
            place = place[key]
        del place[last]
    return value
