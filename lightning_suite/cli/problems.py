"""All problems of a stack of configs at once. The judge is the parser that `fit` itself uses.

That parser stops at the first error and does not know lines. So a value that it refuses is taken
apart: each part is parsed alone, down to the smallest one that is refused, and that one is found
in the file. What cannot be narrowed down is reported in the parser's own words: `check` never
accepts what the parser refuses, and takes nothing apart that the parser accepts as a whole.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_suite
from lightning_suite.cli.messages import condense
from lightning_suite.cli.shipped import is_text, shipped_configs
from lightning_suite.errors import SuiteError, did_you_mean

Keys = tuple[str | int, ...]

# What may stand under a key; elsewhere (an optimizer inside a module's arguments) any of `_OTHERS`.
_BASES: dict[str | int, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "callbacks+": Callback,
    "logger": Logger,
    "logger+": Logger,
}
_OTHERS: tuple[type, ...] = (Optimizer, LRScheduler, nn.Module)
# Classes that can be named without their package, and fail only when they are made.
_EXTRAS = {"WandbLogger": "wandb"}
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_LISTS = ("callbacks", "logger")
_MOST_NODES = 100_000  # of a config, aliases written out


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where.

    Attributes:
        file: As the user gave it.
        line: Line of the key, from 1; None where no line can be blamed.
        key: Dotted path of the key; list items by their number, from 0.
        text: What is wrong and what to do.
        warning: `fit` accepts it, and it is probably not what was meant.
    """

    file: str
    line: int | None
    key: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        kind = "warning" if self.warning else "error"
        return f"{where}: {kind}: {self.key + ': ' if self.key else ''}{self.text}"


class _TooLarge(Problem):
    """A config that no parser should be given."""


def config_files(words: Sequence[str]) -> list[str]:
    """Return the values of ``-c`` and ``--config`` in a command line, in order."""
    after = [word for option, word in pairwise(words) if option in ("-c", "--config")]
    return after + [w.removeprefix("--config=") for w in words if w.startswith("--config=")]


def command_of(files: Sequence[str], parsers: Mapping[str, ArgumentParser]) -> str:
    """Return the command that these files are for: the one that knows most of their keys.

    Args:
        files: As for `find_problems`.
        parsers: The parser of each command that takes configs; the first wins a draw.
    """
    sources = [source for source in map(_read, files) if isinstance(source, _Source)]
    keys = {str(key) for source in sources for key in source.values}

    def known(command: str) -> int:
        names = {key.partition(".")[0] for key in parsers[command].get_defaults().keys()}  # noqa: SIM118
        return len(keys & names)

    return max(parsers, key=known)


def explain(words: Sequence[str], parser: ArgumentParser, error: Exception) -> SuiteError:
    """Return one error with all problems of the configs in a command line, or with ``error``."""
    files = config_files(words)
    if not files and _REQUIRED.match(str(error)):
        return SuiteError(
            "no config is given. Give one of yours with -c FILE; `lightning-suite list` shows "
            "those to begin with, and `-c NAME` uses one as it is."
        )
    problems = [p for p in find_problems(files, parser) if not p.warning]
    lines = [str(problem) for problem in problems] or [condense(str(error))]
    return SuiteError("\n  ".join(["the configuration cannot be used:", *lines]))


def find_problems(files: Sequence[str], parser: ArgumentParser) -> list[Problem]:
    """Find all problems of configs that are given together, in this order.

    Args:
        files: Paths (or YAML text, as ``-c`` accepts it).
        parser: The parser of the command that they are for, with ``exit_on_error=False``.
    """
    read = [_read(file) for file in files]
    sources = [source for source in read if isinstance(source, _Source)]
    problems = [problem for problem in read if isinstance(problem, Problem)]
    if any(isinstance(problem, _TooLarge) for problem in problems):
        return problems
    for number, source in enumerate(sources):
        problems += source.duplicates()
        problems += _replaced_lists(source, sources[:number])
        problems += _missing_extras(source)
    refusal = _refusal_of_stack(parser, files)
    if refusal is None:
        return problems
    unexplained = len(sources) == len(files)  # a file that cannot be read explains it
    context: dict[str, Any] = {}
    for source in sources:
        values = _on_top_of(context, source.values)
        refused = _refused(parser, (), values, ())
        context = _without(values, [keys for keys, _ in refused])
        problems += [source.problem(keys, text) for keys, text in refused]
        unexplained &= not refused
    if unexplained:
        problems.append(Problem(" + ".join(files), None, "", _advise(refusal)))
    return problems


# --- reading -------------------------------------------------------------------------------------


@dataclass
class _Source:
    """One YAML file: its values, and its tree with line numbers."""

    name: str
    values: dict[str, Any]
    tree: yaml.Node | None = field(repr=False)

    def problem(self, keys: Keys, text: str, warning: bool = False) -> Problem:
        dotted = ".".join(str(key) for key in keys)
        return Problem(self.name, self.line(keys), dotted, text, warning)

    def line(self, keys: Keys) -> int | None:
        """Return the line of a key: of the deepest part of it that is in the file."""
        node, line = self.tree, None
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == str(key)]
                if not pairs:
                    break
                mark, node = pairs[-1][0].start_mark, pairs[-1][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
                node = node.value[key]
                mark = node.start_mark
            else:
                break
            line = mark.line + 1
        return line

    def duplicates(self) -> Iterator[Problem]:
        """Keys that stand twice in one mapping: YAML keeps the last one and says nothing."""
        stack = [(self.tree, "")]
        while stack:
            node, path = stack.pop()
            seen: dict[str, int] = {}
            for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
                dotted = f"{path}{key.value}"
                if key.value in seen:
                    text = f"given twice, first in line {seen[key.value]}; only this one counts"
                    yield Problem(self.name, key.start_mark.line + 1, dotted, text, warning=True)
                seen.setdefault(key.value, key.start_mark.line + 1)
                stack.append((value, f"{dotted}."))
            for number, item in enumerate(
                node.value if isinstance(node, yaml.SequenceNode) else ()
            ):
                stack.append((item, f"{path}{number}."))


def _read(file: str) -> _Source | Problem:
    if is_text(file):
        name, text = "-c", file
    else:
        try:
            name, text = file, Path(file).read_text(encoding="utf-8")
        except OSError as err:
            near = [str(path) for path in Path(file).parent.glob("*.y*ml")]
            advice = did_you_mean(file, near) or did_you_mean(
                file.removeprefix("configs/").removesuffix(".yaml"), shipped_configs()
            )
            return Problem(file, None, "", f"{err.strerror}.{advice}")
        except UnicodeDecodeError:
            return Problem(file, None, "", "not a text file (UTF-8).")
    return _parse(name, text)


def _parse(name: str, text: str) -> _Source | Problem:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        what = ", ".join(filter(None, (getattr(err, "context", ""), getattr(err, "problem", ""))))
        column = f" (column {mark.column + 1})" if mark else ""
        line = mark.line + 1 if mark else None
        return Problem(name, line, "", f"not valid YAML{column}: {what or err}")
    except (RecursionError, ValueError, OverflowError) as err:  # very deep; the 99th of a month
        return Problem(name, None, "", f"cannot be read as YAML: {' '.join(str(err).split())}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        kind = type(values).__name__
        return Problem(name, 1, "", f"expected `key: value` lines, found one {kind}")
    size = _size(tree, {})
    if math.isinf(size):
        return Problem(name, 1, "", "an alias (`*name`) stands inside what it is an alias of")
    if size > _MOST_NODES:
        return _TooLarge(
            name, 1, "", f"aliases (`*name`) make more than {_MOST_NODES:,} values of it"
        )
    return _Source(name, values, tree)


def _size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return how many nodes there are when all aliases are written out; infinite in a circle.

    Args:
        node: Of the tree.
        known: Of the nodes that were counted; empty at first. A node under way is infinite.
    """
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        parts += node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


# --- what the parser accepts and is still a problem ----------------------------------------------


def _replaced_lists(source: _Source, earlier: Sequence[_Source]) -> Iterator[Problem]:
    for key in _LISTS:
        trainer = source.values.get("trainer")
        if not isinstance(trainer, dict) or not trainer.get(key):
            continue
        for other in earlier:
            before = other.values.get("trainer")
            lost = (before.get(key) or before.get(f"{key}+")) if isinstance(before, dict) else None
            if lost:
                names = ", ".join(_class_name(item) for item in _listed(lost))
                text = f"replaces {names} of {other.name}; write `{key}+:` to append"
                yield source.problem(("trainer", key), text, warning=True)


def _missing_extras(source: _Source) -> Iterator[Problem]:
    for keys, name in _class_paths(source.values):
        extra = _EXTRAS.get(name.rpartition(".")[2])
        if extra and importlib.util.find_spec(extra) is None:
            text = f"{name} needs the extra '{extra}': pip install 'lightning-suite[{extra}]'"
            yield source.problem(keys, text)


def _class_paths(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    for key, item in _items(value):
        if key == "class_path" and isinstance(item, str):
            yield (*keys, key), item
        yield from _class_paths(item, (*keys, key))


# --- what the parser refuses ---------------------------------------------------------------------


def _refusal_of_stack(parser: ArgumentParser, files: Sequence[str]) -> str | None:
    try:
        parser.parse_args([word for file in files for word in ("--config", file)])
    except Exception as err:  # ArgumentError, and others where jsonargparse trips over odd values
        return str(err)
    return None


def _refusal(parser: ArgumentParser, inner: Keys, value: Any) -> str | None:
    """Return why the parser refuses ``value`` at ``inner``, whatever is missing beside it."""
    for key in reversed(inner):
        value = [value] if isinstance(key, int) else {key: value}
    try:
        parser.parse_object(copy.deepcopy(value))
    except Exception as err:  # see above
        return None if _REQUIRED.match(str(err)) else str(err)
    return None


# the second in the words of jsonargparse 4.39
_REQUIRED = re.compile(
    r"(?:the following arguments are required: "
    r'|(?:Validation failed: )?Key "(?=[^"]*" is required))([^"\n]*)'
)


def _refused(parser: ArgumentParser, inner: Keys, value: Any, keys: Keys) -> list[tuple[Keys, str]]:
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
    if isinstance(value, dict) and wants_class and not set(value) & set(_CLASS_KEYS):
        return [(keys, "name the class: `class_path: …`, and its arguments under `init_args:`")]
    parts: list[tuple[Keys, str]] = []
    if isinstance(value, dict) and isinstance(value.get("class_path"), str):
        found = _find_class(value["class_path"], keys)
        if isinstance(found, str):
            return [((*keys, "class_path"), found)]
        for name in set(value) - set(_CLASS_KEYS):
            parts.append(((*keys, name), f"unknown key.{did_you_mean(str(name), _CLASS_KEYS)}"))
        arguments = ArgumentParser(exit_on_error=False)
        arguments.add_class_arguments(found, fail_untyped=False, sub_configs=True)
        given = value.get("init_args")
        if not isinstance(given, dict | type(None)):
            parts.append(((*keys, "init_args"), "expected `argument: value` lines"))
            given = None
        for name, argument in _items(given):
            parts += _refused(arguments, (name,), argument, (*keys, "init_args", name))
    else:
        for name, item in _items(value):
            parts += _refused(parser, (*inner, name), item, (*keys, name))
    if not parts:
        return [(keys, _explain(refusal))]
    rest = _without(value, [part[len(keys) :] for part, _ in parts])
    refusal = _refusal(parser, inner, rest) if rest else None
    gone = {str(part[-1]) for part, _ in parts}
    if refusal is not None and not gone & set(re.findall(r"\w+", refusal.split("required:")[-1])):
        parts.append((keys, _explain(refusal)))
    return parts


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


def _explain(refusal: str) -> str:
    return re.sub(r"^[\w.+]+: ", "", _advise(refusal))


def _advise(refusal: str) -> str:
    missing = _REQUIRED.match(refusal)
    if missing:
        return (
            f"{missing[1]} is missing. An overlay is not complete alone: give the files together, "
            "the base config first."
        )
    return condense(refusal)


def _find_class(name: str, keys: Keys) -> type | str:
    """Return the class that ``class_path: name`` means, or why there is none."""
    if "." in name:
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except AttributeError:
            names = [key for key in vars(importlib.import_module(module)) if key[0] != "_"]
            return f"{module} has no {attribute!r}.{did_you_mean(attribute, names)}"
        except Exception as err:  # the user's module may fail in any way while it is imported
            return f"cannot import {name!r}: {type(err).__name__}: {err}"
        return found if isinstance(found, type) else f"{name!r} is not a class"
    if name in lightning_suite.__all__:
        try:
            getattr(lightning_suite, name)
        except (SuiteError, ImportError) as err:
            return f"{name} cannot be used here: {err}"
    bases = [_BASES[key] for key in keys if key in _BASES and "init_args" not in keys]
    known: dict[str, type] = {}
    for base in bases or _OTHERS:
        known.update((cls.__name__, cls) for cls in _subclasses(base))
    if name in known:
        return known[name]
    advice = did_you_mean(name, known) or f" Your own needs its module: my_module.{name}"
    return f"unknown class {name!r}.{advice}"


def _subclasses(base: type[Any]) -> Iterator[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


# --- nested values -------------------------------------------------------------------------------


def _on_top_of(context: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Complete ``init_args`` of an overlay by what the files before it say of the same class."""
    values = copy.deepcopy(values)
    for key in ("model", "data"):
        below, part = context.get(key), values.get(key)
        if isinstance(below, str):
            below = {"class_path": below}
        if not isinstance(below, dict):
            continue
        if part is None:
            values[key] = below
        elif isinstance(part, dict) and part.get("class_path") in (None, below.get("class_path")):
            under, over = below.get("init_args") or {}, part.get("init_args") or {}
            if isinstance(under, dict) and isinstance(over, dict):
                values[key] = {**below, **part, "init_args": {**under, **over}}
    return values


def _items(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _without(value: Any, paths: Sequence[Keys]) -> Any:
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


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _class_name(item: Any) -> str:
    path = item.get("class_path", "?") if isinstance(item, dict) else item
    return str(path).rpartition(".")[2]
