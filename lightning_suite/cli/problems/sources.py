"""The files and options of a command line that describe one configuration, and their lines."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_suite.cli.shipped import is_text, shipped_configs
from lightning_suite.cli.yaml_depth import refuse_deep
from lightning_suite.errors import did_you_mean
from lightning_suite.given_paths import meant_file

Keys = tuple[str | int, ...]

# Where an option stands, beside the names of files.
COMMAND_LINE = "command line"

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


class TooLarge(Problem):
    """A config that no parser should be given."""


@dataclass
class Source:
    """One YAML file: its values, and its tree with line numbers."""

    name: str
    values: dict[str, Any]
    tree: yaml.Node | None = field(repr=False)

    def problem(self, keys: Keys, text: str, warning: bool = False) -> Problem:
        """Return a problem at a key of this file."""
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


def read_file(file: str, others: Collection[str] = ()) -> Source | Problem:
    """Read a YAML file, or YAML itself, or say why it cannot be read.

    Args:
        file: As the user gave it.
        others: What is given, too, and so is not what was meant.
    """
    if is_text(file):
        name, text = "-c", file
    else:
        try:
            name, text = file, Path(file).read_text(encoding="utf-8")
        except OSError as err:
            advice = meant_file(file, others) or did_you_mean(
                file.removeprefix("configs/").removesuffix(".yaml"), shipped_configs()
            )
            return Problem(file, None, "", f"{err.strerror}.{advice}")
        except UnicodeDecodeError:
            return Problem(file, None, "", "not a text file (UTF-8).")
    return _parse(name, text)


def _parse(name: str, text: str) -> Source | Problem:
    try:
        refuse_deep(text)
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
        return TooLarge(
            name, 1, "", f"aliases (`*name`) make more than {_MOST_NODES:,} values of it"
        )
    return Source(name, values, tree)


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


def items(value: Any) -> list[tuple[str | int, Any]]:
    """Return keys or numbers, and values, of a mapping or a list; nothing of anything else."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def has(value: Any, keys: Keys) -> bool:
    """Whether there is something at ``keys``."""
    for key in keys:
        inside = dict(items(value))
        if key not in inside:
            return False
        value = inside[key]
    return True


def on_top_of(
    context: Mapping[str, Any], values: Mapping[str, Any], deep: bool = False
) -> dict[str, Any]:
    """Complete ``init_args`` of an overlay by what the files before it say of the same class.

    Args:
        context: What the files before it say together.
        values: Of the overlay.
        deep: Whether mappings inside ``init_args`` are completed, too, as an option does.
    """
    whole = copy.deepcopy(dict(values))
    for key in ("model", "data"):
        below, part = context.get(key), whole.get(key)
        if isinstance(below, str):
            below = {"class_path": below}
        if not isinstance(below, dict):
            continue
        if part is None:
            whole[key] = below
        elif isinstance(part, dict) and part.get("class_path") in (None, below.get("class_path")):
            under, over = below.get("init_args") or {}, part.get("init_args") or {}
            if isinstance(under, dict) and isinstance(over, dict):
                inside = _merged(under, over) if deep else {**under, **over}
                whole[key] = {**below, **part, "init_args": inside}
    return whole


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return {**under, **over, **both}
