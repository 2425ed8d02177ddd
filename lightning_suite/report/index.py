"""One self-contained HTML page over several runs: what there is, and how the runs compare."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from itertools import groupby
from pathlib import Path

from lightning_suite.errors import MissingExtraError, SuiteError, did_you_mean
from lightning_suite.files import atomic_write
from lightning_suite.report.curves import Look, draw_panel
from lightning_suite.report.layout import Section, notice, render_page
from lightning_suite.report.metrics import METRICS, Panel, panels
from lightning_suite.report.page import write_report
from lightning_suite.report.runs import Run, find_runs
from lightning_suite.report.style import CATEGORICAL
from lightning_suite.report.summaries import Better, Summary, better, summarise
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import Cell, html_table, short_number

_GENERATOR = '<meta name="generator" content="lightning-suite">'
_DASHES = ("-", "--", ":", "-.")
_MOST_LINES = len(CATEGORICAL) * len(_DASHES)  # runs that a reader can tell apart in one panel
_MOST_PANELS = 24
_MOST_COLUMNS = 12
_MOST_KEYS = 200
_IN_ROW = 4  # figures of a run in the table of runs


@dataclass(frozen=True)
class _Entry:
    """A run with the name that it has on this page."""

    name: str
    summary: Summary
    report: str  # path of its page, relative to the index; empty if it cannot be made

    @property
    def cell(self) -> Cell:
        return Cell(self.name, link=self.report)

    @property
    def run(self) -> Run | None:
        return self.summary.run


def write_index(
    folders: Sequence[str | Path], path: str | Path, metrics: Sequence[str] | None = None
) -> Path:
    """Write one page over several runs, and the pages of those runs that have none or an old one.

    The page holds a table of the runs (with a link to each run's page), their summary metrics side
    by side, the curves that several of them share in the same axes, and the keys in which the
    configurations of runs of one command differ. A run that cannot be read is named with the
    reason and does not keep the others from being shown.

    Args:
        folders: Runs, or folders in which runs are looked for.
        path: The page, ``*.html``; links to the runs are relative to it.
        metrics: Names of figures and curves to compare, with ``*`` for any text; None chooses
            those that several runs share.

    Returns:
        The path of the page.

    Raises:
        SuiteError: There is no run, no run has such a metric, or the file is not one that this
            function may replace.
    """
    target = Path(path)
    _check_target(target)
    places: dict[Path, Path] = {}
    for folder in folders:
        for run in find_runs(Path(folder)):
            places.setdefault(run.resolve(), run)
    if not places:
        where = ", ".join(str(folder) for folder in folders)
        raise SuiteError(
            f"{where}: no run in here. A run has a run.json, a metrics.csv or a hparams.yaml."
        )
    entries = _entries(places, target.resolve().parent)
    wanted = _wanted(metrics, entries)
    sections = [
        _runs(entries),
        *_compared(entries, wanted),
        *_curves(entries, wanted),
        *_differences(entries),
    ]
    title = _title(target, folders)
    page = render_page(f"{title} · lightning-suite", _header(title, entries), sections)
    with atomic_write(target) as file:
        file.write(page)
    return target


def is_fresh(run: Run) -> bool:
    """Whether the run's page is there and younger than everything that it shows."""
    page = run.folder / "report.html"
    if not page.is_file():
        return False
    homes = dict.fromkeys([run.folder, run.logs])
    names = ("run.json", "metrics.csv", "config.yaml", "hparams.yaml", "artifacts/*")
    shown = [file for home in homes for name in names for file in home.glob(name)]
    written = page.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= written for file in shown)


# --- what goes in ---------------------------------------------------------------------------------


def _check_target(path: Path) -> None:
    if path.suffix != ".html":
        raise SuiteError(f"{path}: an index is a page; give it a name that ends in .html.")
    if path.is_dir():
        raise SuiteError(f"{path} is a folder. Give the name of a file.")
    try:
        head = path.read_bytes()[:4096] if path.exists() else b""
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
    if path.exists() and _GENERATOR.encode() not in head:
        raise SuiteError(
            f"{path} exists and was not made by lightning-suite. Choose another name or delete it."
        )


def _entries(places: Mapping[Path, Path], base: Path) -> list[_Entry]:
    """Summarise runs, resolved path -> path as the user gave it, and see to their pages."""
    names = _names(list(places))
    entries = []
    for resolved, folder in places.items():
        summary, report = summarise(folder), ""
        if summary.run is not None:
            try:
                page = resolved / "report.html"
                if not is_fresh(summary.run):
                    write_report(folder)
                report = Path(os.path.relpath(page, base)).as_posix()
            except (SuiteError, OSError) as err:
                text = f"{summary.problem} {folder}: no page was made ({err})".strip()
                summary = Summary(folder, None, text)
        entries.append(_Entry(names[resolved], summary, report))
    return entries


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Name runs by what their paths do not share."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    if len(folders) == 1 and folders[0].name.startswith("version_"):
        common = common.parent
    names = {
        folder: "/".join(
            part for part in folder.relative_to(common).parts if part != "lightning_logs"
        )
        for folder in folders
    }
    if len(set(names.values())) < len(names):  # a/version_0 and a/lightning_logs/version_0
        names = {folder: folder.relative_to(common).as_posix() for folder in folders}
    return names


def _wanted(metrics: Sequence[str] | None, entries: Sequence[_Entry]) -> Sequence[str] | None:
    """Check that each pattern fits something; a typo would else give an empty comparison."""
    if metrics is None:
        return None
    known = {name for entry in entries for name in (*entry.summary.figures, *entry.summary.series)}
    for pattern in metrics:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise SuiteError(
                f"no run has the metric {pattern!r}.{did_you_mean(pattern, known)} "
                f"There are: {', '.join(sorted(known)[:30]) or 'none'}."
            )
    return metrics


def _chosen(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return list(names)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]


# --- header and table -----------------------------------------------------------------------------


def _title(target: Path, folders: Sequence[str | Path]) -> str:
    if len(folders) == 1:
        return Path(folders[0]).resolve().name or "runs"
    return target.stem if target.stem != "index" else "Comparison"


def _header(title: str, entries: Sequence[_Entry]) -> str:
    methods = {method for entry in entries for method in entry.summary.methods}
    times = sorted(str(entry.run.time) for entry in entries if entry.run and entry.run.time)
    facts = {
        "Runs": f"{len(entries):,}",
        "Methods": ", ".join(sorted(methods, key=str.casefold)),
        "From": times[0] if times else "",
        "To": times[-1] if len(times) > 1 else "",
    }
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
        if value
    )
    return (
        f'<p class="kicker">lightning-suite · report</p>\n<h1>{escape(title)}</h1>\n'
        f'<dl class="facts">{shown}</dl>'
    )


def _runs(entries: Sequence[_Entry]) -> Section:
    notes = [notice(entry.summary.problem) for entry in entries if entry.summary.problem]
    header = ["run", "method", "command", "began", "state", "main figures"]
    rows: list[list[str | Cell]] = [
        [
            entry.cell,
            ", ".join(entry.summary.methods),
            entry.run.subcommand if entry.run else "",
            (entry.run.time or "").removesuffix(" UTC") if entry.run else "",
            _state(entry),
            _main_figures(entry.summary.figures),
        ]
        for entry in entries
    ]
    table = html_table(header, rows, label="Runs", named_rows=True)
    return Section("Runs", "\n".join([*notes, f'<div class="card">{table}</div>']))


def _state(entry: _Entry) -> str:
    return entry.run.state if entry.run else "cannot be read"


def _main_figures(figures: Mapping[str, float]) -> str:
    shown = list(figures.items())[:_IN_ROW]
    return " · ".join(f"{name} {short_number(_plain(value))}" for name, value in shown)


def _plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)


# --- comparison -----------------------------------------------------------------------------------


def _compared(entries: Sequence[_Entry], wanted: Sequence[str] | None) -> list[Section]:
    owners: dict[str, list[_Entry]] = {}
    for entry in entries:
        for name in entry.summary.figures if wanted is None else _all_names(entry.summary):
            owners.setdefault(name, []).append(entry)
    names = _chosen([name for name, has in owners.items() if len(has) > 1 or wanted], wanted)
    if not names or len(entries) < 2:
        return []
    notes = []
    if len(names) > _MOST_COLUMNS:
        notes.append(
            notice(
                f"The first {_MOST_COLUMNS} of {len(names)} shared metrics are shown; "
                "`--metrics` chooses others."
            )
        )
        names = names[:_MOST_COLUMNS]
    header, columns = ["run"], list[dict[str, Cell]]()
    for name in names:
        last = {entry.name: _last(entry.summary, name) for entry in owners[name]}
        header.append(name)
        columns.append(_column(last, better(name)))
        best = {entry.name: _best(entry.summary, name) for entry in owners[name]}
        if any(value is not None and value != last[run] for run, value in best.items()):
            header.append(f"{'lowest' if better(name) is min else 'highest'} {name}")
            columns.append(_column(best, better(name)))
    shown = [entry for entry in entries if any(entry in owners[name] for name in names)]
    rows = [
        [entry.cell, *(column.get(entry.name, Cell("")) for column in columns)] for entry in shown
    ]
    table = html_table(header, rows, label="Metrics side by side", named_rows=True)
    text = "Figures of the methods' tables, and the last value of each curve; ★ marks the best."
    body = f'<div class="card"><p>{text}</p>{table}</div>'
    return [Section("Side by side", "\n".join([*notes, body]))]


def _all_names(summary: Summary) -> list[str]:
    return list(dict.fromkeys([*summary.figures, *summary.series]))


def _last(summary: Summary, name: str) -> float | None:
    if name in summary.figures:
        return summary.figures[name]
    return summary.series[name].values[-1] if name in summary.series else None


def _best(summary: Summary, name: str) -> float | None:
    """The best value of a curve, where one can say which that is."""
    pick = better(name)
    if pick is None or name not in summary.series:
        return None
    values = [value for value in summary.series[name].values if not math.isnan(value)]
    return pick(values) if values else None


def _column(values: Mapping[str, float | None], pick: Better | None) -> dict[str, Cell]:
    """Mark the best as it is shown: runs of which one reads the same number share the mark."""
    known = [value for value in values.values() if value is not None and not math.isnan(value)]
    best = None
    if pick is not None and len({short_number(_plain(value)) for value in known}) > 1:
        best = short_number(_plain(pick(known)))
    return {
        name: Cell(text, best=bool(text) and short_number(text) == best)
        for name, value in values.items()
        for text in ["" if value is None else _plain(value)]
    }


# --- curves ---------------------------------------------------------------------------------------


def _curves(entries: Sequence[_Entry], wanted: Sequence[str] | None) -> list[Section]:
    owners: dict[str, list[_Entry]] = {}
    for entry in entries:
        for name, series in entry.summary.series.items():
            if len(series.values) > 1:
                owners.setdefault(name, []).append(entry)
    plan = panels([name for name, has in owners.items() if len(has) > 1])
    # the module's own metrics first, then the rest; one panel a metric, one line a run
    names = _chosen([name for panel in plan for _, name in panel.lines], wanted)
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


def _panel(number: int, name: str, entries: Sequence[_Entry], looks: Mapping[str, Look]) -> str:
    series = {entry.name: entry.summary.series[name] for entry in entries}
    panel = Panel(METRICS, name, [(run, run) for run in series])
    svg = draw_panel(panel, series, looks=looks)
    label = f"{name} over steps, of {', '.join(series)}"
    drawing = inline_svg(svg, prefix=f"shared-{number}-", label=label)
    return (
        f'<figure class="card"><figcaption><h3 class="panel">{escape(name)}</h3></figcaption>'
        f'<div class="plot">{drawing}</div></figure>'
    )


# --- configurations -------------------------------------------------------------------------------


def _differences(entries: Sequence[_Entry]) -> list[Section]:
    """What differs between the configurations of runs of one command."""

    def kind(entry: _Entry) -> tuple[str, str]:
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
        rows = [
            [key, *(entry.summary.config.get(key, "—") for entry in members)]
            for key in differing[:_MOST_KEYS]
        ]
        header = ["key", *(entry.name for entry in members)]
        table = html_table(header, rows, label=f"Configuration: {title}", named_rows=True)
        parts.append(f'<div class="card">{table}</div>')
    return [Section("Differing configuration", "\n".join(parts))] if parts else []


def _differing(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ.

    Where only some have a class, its arguments say no more than its own line, unless those that
    have it differ in them.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]

    def told(key: str) -> bool:
        parts = key.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts))}
        values = {config[key] for config in configs if key in config}
        return len(values) == 1 and not above.isdisjoint(differing)

    return [key for key in differing if not told(key)]
