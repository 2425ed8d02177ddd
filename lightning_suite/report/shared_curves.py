"""The curves that several runs share, in the same axes, with one key for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_suite.errors import MissingExtraError
from lightning_suite.report.curves import Look, draw_panel
from lightning_suite.report.entries import Entry, chosen
from lightning_suite.report.layout import Section, heading, notice
from lightning_suite.report.metrics import METRICS, Panel, panels
from lightning_suite.report.style import CATEGORICAL
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.text import escape

_DASHES = ("-", "--", ":", "-.")
_MOST_LINES = len(CATEGORICAL) * len(_DASHES)  # runs that a reader can tell apart in one panel
_MOST_PANELS = 24


def shared_curves(entries: Sequence[Entry], wanted: Sequence[str] | None) -> list[Section]:
    """Draw a panel for every curve that several runs have.

    Args:
        entries: The runs.
        wanted: Patterns of names of curves; None takes all.

    Returns:
        One section, or none where no curve is shared.
    """
    owners: dict[str, list[Entry]] = {}
    for entry in entries:
        for name, series in entry.summary.series.items():
            if len(series.values) > 1:
                owners.setdefault(name, []).append(entry)
    plan = panels([name for name, has in owners.items() if len(has) > 1])
    # the module's own metrics first, then the rest; one panel a metric, one line a run
    names = chosen([name for panel in plan for _, name in panel.lines], wanted)
    if not names:
        return []
    notes = []
    if len(names) > _MOST_PANELS:
        notes.append(
            notice(
                f"The first {_MOST_PANELS} of {len(names)} shared curves are drawn; "
                "`--metrics` chooses others."
            )
        )
        names = names[:_MOST_PANELS]
    runs = [entry for entry in entries if any(entry in owners[name] for name in names)]
    if len(runs) > _MOST_LINES:
        notes.append(notice(f"The last {_MOST_LINES} of {len(runs)} runs with curves are drawn."))
        runs = runs[-_MOST_LINES:]
    looks = {entry.name: _look(number) for number, entry in enumerate(runs)}
    try:
        cards = [
            _panel(number, name, [entry for entry in runs if entry in owners[name]], looks)
            for number, name in enumerate(names)
        ]
    except MissingExtraError as err:
        return [Section("Curves", notice(f"The curves are not drawn: {err}"))]
    key = "".join(f"<li>{_key(looks[entry.name])}{escape(entry.name)}</li>" for entry in runs)
    body = f'<ul class="legend">{key}</ul><div class="panels">{"".join(cards)}</div>'
    return [Section("Curves", "\n".join([*notes, body]))]


def _look(number: int) -> Look:
    return Look(CATEGORICAL[number % len(CATEGORICAL)], _DASHES[number // len(CATEGORICAL)])


def _key(look: Look) -> str:
    """A short piece of the line, drawn as in the panels."""
    dashes = {"-": "", "--": "6 3", ":": "1.5 2.5", "-.": "6 2 1.5 2"}[look.dashes]
    return (
        '<svg class="line" viewBox="0 0 28 8" aria-hidden="true">'
        f'<path d="M1 4H27" stroke="{look.color}" stroke-width="2.5" fill="none"'
        f"{f' stroke-dasharray={chr(34)}{dashes}{chr(34)}' if dashes else ''}/></svg>"
    )


def _panel(number: int, name: str, entries: Sequence[Entry], looks: Mapping[str, Look]) -> str:
    series = {entry.name: entry.summary.series[name] for entry in entries}
    panel = Panel(METRICS, name, [(run, run) for run in series])
    svg = draw_panel(panel, series, looks=looks)
    label = f"{name} over steps, of {', '.join(series)}"
    drawing = inline_svg(svg, prefix=f"shared-{number}-", label=label)
    return (
        f'<figure class="card"><figcaption><h3 class="panel">{heading(name)}</h3></figcaption>'
        f'<div class="plot">{drawing}</div></figure>'
    )
