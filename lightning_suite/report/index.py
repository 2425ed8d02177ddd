"""One self-contained HTML page over several runs: what there is, and how the runs compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_suite.errors import SuiteError
from lightning_suite.files import atomic_write
from lightning_suite.report.config_differences import config_differences
from lightning_suite.report.entries import Entry, check_metrics, read_entries
from lightning_suite.report.layout import Section, notice, render_page
from lightning_suite.report.runs import find_runs
from lightning_suite.report.shared_curves import shared_curves
from lightning_suite.report.side_by_side import side_by_side
from lightning_suite.report.tables import Cell, html_table, plain_number, short_number
from lightning_suite.report.text import escape

_GENERATOR = '<meta name="generator" content="lightning-suite">'
_IN_ROW = 4  # figures of a run in the table of runs


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
    entries = read_entries(places, target.resolve().parent)
    wanted = check_metrics(metrics, entries)
    sections = [
        _runs(entries),
        *side_by_side(entries, wanted),
        *shared_curves(entries, wanted),
        *config_differences(entries),
    ]
    title = _title(target, folders)
    page = render_page(f"{title} · lightning-suite", _header(title, entries), sections)
    with atomic_write(target) as file:
        file.write(page)
    return target


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


def _title(target: Path, folders: Sequence[str | Path]) -> str:
    if len(folders) == 1:
        return Path(folders[0]).resolve().name or "runs"
    return target.stem if target.stem != "index" else "Comparison"


def _header(title: str, entries: Sequence[Entry]) -> str:
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


def _runs(entries: Sequence[Entry]) -> Section:
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
    told = [n for n in range(len(header)) if any(row[n] for row in rows)]  # by some run
    header, rows = [header[n] for n in told], [[row[n] for n in told] for row in rows]
    table = html_table(header, rows, label="Runs", named_rows=True)
    return Section("Runs", "\n".join([*notes, f'<div class="card">{table}</div>']))


def _state(entry: Entry) -> str:
    return entry.run.state if entry.run else "cannot be read"


def _main_figures(figures: Mapping[str, float]) -> str:
    shown = list(figures.items())[:_IN_ROW]
    return " · ".join(f"{name} {short_number(plain_number(value))}" for name, value in shown)
