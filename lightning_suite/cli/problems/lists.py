"""Entries of the Trainer's lists that are lost because something after them sets the list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from lightning_suite.cli.option_words import Given
from lightning_suite.cli.problems.sources import COMMAND_LINE, Keys, Problem, Source
from lightning_suite.cli.stacking import LISTS

_OPTIONS = {f"--trainer.{name}{plus}": f"{name}{plus}" for name in LISTS for plus in ("", "+")}


class _ListOption(Source):
    """``--trainer.callbacks`` or its like on the command line."""

    def problem(self, keys: Keys, text: str, warning: bool = False) -> Problem:
        """Return a problem that names the option as it is typed."""
        return Problem(self.name, None, f"--{'.'.join(map(str, keys))}", text, warning)


def list_option(option: Given) -> Source | None:
    """Return what an option says about one of the Trainer's lists; None of any other option."""
    key = _OPTIONS.get(option.name)
    if key is None:
        return None
    try:
        value = yaml.safe_load(option.value or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        value = option.value
    return _ListOption(COMMAND_LINE, {"trainer": {key: value}}, None)


def lost_entries(sources: Sequence[Source]) -> Iterator[Problem]:
    """Entries of the Trainer's lists that something later replaces.

    What was to be appended and is not is an error; a list that takes the place of another is a
    warning, and so is what an option on the command line replaces, which comes last on purpose.

    Args:
        sources: Configs and options in the order in which they count.
    """
    for number, source in enumerate(sources):
        for name in LISTS:
            if name in _trainer(source):
                for other in sources[:number]:
                    yield from _lost(source, other, name)


def _lost(source: Source, other: Source, name: str) -> Iterator[Problem]:
    value, before = _trainer(source)[name], _trainer(other)
    keys: Keys = ("trainer", name)
    if before.get(name):
        advice = f"; write `{name}+:` to append" if value else ""
        text = f"replaces {_names(before[name])} of {other.name}{advice}"
        yield source.problem(keys, text, warning=True)
    if appended := before.get(f"{name}+"):
        if isinstance(source, _ListOption) or value is False:
            text = f"replaces {_names(appended)} of {other.name}"
            yield source.problem(keys, text, warning=True)
        else:
            text = (
                f"{_names(appended)} would be lost: {source.name}, which comes after it, sets "
                f"`{name}:`. Give {source.name} before it."
            )
            yield other.problem(("trainer", f"{name}+"), text)


def _trainer(source: Source) -> dict[str, Any]:
    trainer = source.values.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _names(value: Any) -> str:
    listed = value if isinstance(value, list) else [value]
    paths = [item.get("class_path", "?") if isinstance(item, dict) else item for item in listed]
    return ", ".join(str(path).rpartition(".")[2] for path in paths)
