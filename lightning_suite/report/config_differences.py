"""The keys in which the configurations of like runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from lightning_suite.report.entries import Entry
from lightning_suite.report.layout import Section, notice
from lightning_suite.report.tables import Cell, html_table
from lightning_suite.report.text import escape

_MOST_KEYS = 200
_NOTHING = {"null", "[]", "{}"}
_MANY_RUNS = 8  # side by side they are wider than a screen


def config_differences(entries: Sequence[Entry]) -> list[Section]:
    """What differs between the configurations of runs of one command."""

    def kind(entry: Entry) -> tuple[str, str]:
        command = entry.run.subcommand if entry.run else ""
        return command, entry.summary.config.get("model", "")

    comparable = sorted((entry for entry in entries if entry.summary.config), key=kind)
    parts = []
    for names, group in groupby(comparable, kind):
        members = list(group)
        if len(members) < 2:
            continue
        title = f"Of {' · '.join(filter(None, names))}" if any(names) else "Of other runs"
        parts.append(f'<h3 class="group">{escape(title)}</h3>')
        differing = _differing([entry.summary.config for entry in members])
        if not differing:
            parts.append(f'<p class="soft">{len(members)} runs with the same configuration.</p>')
            continue
        if len(differing) > _MOST_KEYS:
            text = f"The first {_MOST_KEYS} of {len(differing)} differing keys are shown."
            parts.append(notice(text))
        header, rows = _table(members, differing[:_MOST_KEYS])
        table = html_table(
            header, rows, label=f"Configuration: {title}", named_rows=True, exact=True
        )
        parts.append(f'<div class="card">{table}</div>')
    return [Section("Differing configuration", "\n".join(parts))] if parts else []


def _table(
    entries: Sequence[Entry], keys: Sequence[str]
) -> tuple[list[str], list[list[str | Cell]]]:
    """A row a key; where that would be wider than high, a row a run."""
    if len(entries) > max(_MANY_RUNS, len(keys)):
        return ["run", *keys], [
            [entry.cell, *(entry.summary.config.get(key, "—") for key in keys)] for entry in entries
        ]
    return ["key", *(entry.name for entry in entries)], [
        [key, *(entry.summary.config.get(key, "—") for entry in entries)] for key in keys
    ]


def _differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ.

    Where only some have a class, its arguments say no more than its own line, unless those that
    have it differ in them.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]

    def told(key: str) -> bool:
        """Whether the line of the class that the key belongs to says as much."""
        parts = key.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts))} & {*differing}
        having = [config for config in configs if key in config]
        of_classes = {name for name in above if any(name in config for config in having)}
        return len({config[key] for config in having}) == 1 and bool(of_classes)

    def nothing(key: str) -> bool:
        """Whether no run has anything there but an empty list, and others have its items."""
        values = {config[key] for config in configs if key in config}
        return values <= _NOTHING and any(other.startswith(f"{key}.") for other in differing)

    return [key for key in differing if not told(key) and not nothing(key)]
