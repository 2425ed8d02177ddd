"""YAML that would break its reader: nested so deep that libyaml, which calls itself, crashes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_suite.json_text import DEEPEST

# Events come one after the other, at any depth; building a tree out of them does not.
_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OPENS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSES = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def refuse_deep(text: str) -> None:
    """Refuse YAML with more than `DEEPEST` levels; other mistakes are left to its reader.

    Text in quotes counts, too: a parser of options takes some for YAML.

    Raises:
        yaml.MarkedYAMLError: It has more; ``problem_mark`` is where.
    """
    depth = 0
    with suppress(yaml.reader.ReaderError, yaml.scanner.ScannerError, yaml.parser.ParserError):
        for event in yaml.parse(text, Loader=_Events):
            depth += isinstance(event, _OPENS) - isinstance(event, _CLOSES)
            if depth > DEEPEST:
                problem = f"it is nested more than {DEEPEST} levels deep"
                mark: Any = event.start_mark
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            if isinstance(event, yaml.ScalarEvent) and DEEPEST < len(event.value) < len(text):
                refuse_deep(event.value)


def guard_yaml() -> None:
    """Make every config that a parser of options reads pass `refuse_deep`."""
    load = get_loader("yaml")
    if getattr(load, "refuses_deep", False):
        return

    def guarded(text: str) -> Any:
        refuse_deep(text)
        return load(text)

    guarded.refuses_deep = True  # type: ignore[attr-defined]
    set_loader("yaml", guarded, exceptions=(yaml.YAMLError,))
