"""The Trainer's lists over several configs: entries that are lost, and callbacks given twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from lightning.pytorch import Callback

from lightning_suite.cli.option_words import Given
from lightning_suite.cli.problems.classes import find_class
from lightning_suite.cli.problems.sources import COMMAND_LINE, Keys, Problem, Source
from lightning_suite.cli.stacking import LISTS
from lightning_suite.depth_mup.trainer_support import more_than_one

_OPTIONS = {f"--trainer.{name}{plus}": f"{name}{plus}" for name in LISTS for plus in ("", "+")}


class _ListOption(Source):
    """``--trainer.callbacks`` or its like on the command line."""

    def problem(self, keys: Keys, text: str, warning: bool = False) -> Problem:
        """Return a problem that names the option as it is typed."""
        return Problem(self.name, None, f"--{'.'.join(map(str, keys[:2]))}", text, warning)


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


def list_problems(sources: Sequence[Source]) -> Iterator[Problem]:
    """What goes wrong with the Trainer's lists where several configs and options make them.

    Args:
        sources: Configs and options in the order in which they count.
    """
    yield from _lost_entries(sources)
    yield from _repeated_callbacks(sources)


def _lost_entries(sources: Sequence[Source]) -> Iterator[Problem]:
    """Entries of the Trainer's lists that something later replaces.

    What was to be appended and is not is an error; a list that takes the place of another is a
    warning, and so is what an option on the command line replaces, which comes last on purpose.
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


def _repeated_callbacks(sources: Sequence[Source]) -> Iterator[Problem]:
    """Callbacks of which a trainer takes one only, at the place of the last."""
    kept: list[tuple[Source, Keys, Any]] = []
    for source in sources:
        trainer = _trainer(source)
        for key in ("callbacks", "callbacks+"):
            if key in trainer:
                kept = kept if key[-1] == "+" else []
                items = enumerate(_listed(trainer[key]))
                kept += [(source, ("trainer", key, n), item) for n, item in items]
    found: dict[type, list[tuple[Source, Keys]]] = {}
    for source, keys, item in kept:
        if (cls := find_class(_class_path(item), keys).cls) is not None:
            found.setdefault(cls, []).append((source, keys))
    for cls, places in found.items():
        if len(places) > 1 and (text := _refuses_others(cls, len(places))):
            source, keys = places[-1]
            yield source.problem(keys, text)


def _refuses_others(cls: type, count: int) -> str:
    """Return why a trainer does not take several callbacks of this class; empty if it does."""
    if cls.__name__ == "DepthMuPLRCallback":
        return more_than_one(cls.__name__, count)
    if not issubclass(cls, Callback):
        return ""
    # Lightning refuses two states under one key of a checkpoint
    has_state = cls.state_dict is not Callback.state_dict
    if has_state and cls.state_key is Callback.state_key:
        return (
            f"the trainer has {count} {cls.__name__}s, which would keep their states in one place "
            "of a checkpoint. Keep one (an overlay that is given twice adds two)."
        )
    return ""


def _trainer(source: Source) -> dict[str, Any]:
    trainer = source.values.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _names(value: Any) -> str:
    return ", ".join(_class_path(item).rpartition(".")[2] for item in _listed(value))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _class_path(item: Any) -> str:
    return str(item.get("class_path", "?") if isinstance(item, dict) else item)
