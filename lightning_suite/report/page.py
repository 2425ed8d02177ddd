"""One self-contained HTML page for one run, from what the run left in its folder."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.files import atomic_write
from lightning_suite.report.curves import draw_panel
from lightning_suite.report.dynamics_section import dynamics_cards
from lightning_suite.report.layout import Section, code_block, heading, notice, prose, render_page
from lightning_suite.report.lmcd_section import diagnosis_cards
from lightning_suite.report.metrics import (
    LEARNING_RATES,
    METRICS,
    Metrics,
    Panel,
    Series,
    panels,
    read_metrics,
)
from lightning_suite.report.runs import Run, open_run
from lightning_suite.report.sample_section import TITLE as SAMPLES
from lightning_suite.report.sample_section import sample_sections
from lightning_suite.report.scen_section import edit_cards
from lightning_suite.report.svg import inline_svg
from lightning_suite.report.tables import IN_VIEW, breakable, html_table, read_table, short_number
from lightning_suite.report.text import escape, relative_link
from lightning_suite.run_folder import Artifact

_DEFAULT_SECTION = "Results"
_LARGE_SVG = 3_000_000  # bytes; a scatter plot above it goes in as PNG
_MANY_PANELS = 48
_GROUPS = {"resofilter": SAMPLES}  # what the prefix of a metric's name does not say
_LOGGED = "Logged values"  # of a run that trained nothing


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` for a run: its tables and figures, curves, configuration and files.

    The folder is one that a command of this package has written, the log folder of a Lightning
    run (``lightning_logs/version_0``), or a folder that holds such logs; then the newest is shown.
    What cannot be read is named on the page and does not keep the rest from being shown. The same
    folder, given in the same words, gives the same page.

    Args:
        folder: The run's folder.

    Returns:
        The path of the page. It loads nothing from anywhere and can be sent as one file.

    Raises:
        SuiteError: The folder holds no run, or its ``run.json`` or ``artifacts/index.json`` is
            damaged.
    """
    run = open_run(Path(folder))
    sections = [section for build in _SECTIONS for section in build(run)]
    path = run.folder / "report.html"
    page = render_page(f"{run.name} · lightning-suite", _header(run), sections)
    with atomic_write(path) as file:
        file.write(page)
    return path


# --- header ---------------------------------------------------------------------------------------


def _header(run: Run) -> str:
    record = run.record
    kicker = f"lightning-suite · {run.subcommand}" if run.subcommand else "lightning-suite"
    title = escape(run.name).replace("/", "/<wbr>")
    parts = [f'<p class="kicker">{escape(kicker)}</p>', f"<h1>{title}</h1>"]
    if run.versions > 1:
        # as it was given: the name alone says nothing to a shell that stands elsewhere
        folder, index = (shlex.quote(str(path)) for path in (run.folder, run.folder / "index.html"))
        parts.append(
            f'<p class="lead">Only {escape(run.logs.name)}, the newest of {run.versions} runs in '
            "this folder. All, typed where this page was made: "
            f"{prose(f'`lightning-suite report {folder} --index {index}`')}</p>"
        )
    if record.get("note"):
        parts.append(f'<p class="lead">{prose(str(record["note"]))}</p>')
    threads, cores = record.get("threads"), record.get("cores")
    facts = {
        "Time": run.time,
        "State": run.state or None,
        "Seed": record.get("seed"),
        "Machine": record.get("platform"),
        "Threads": f"{threads} of {cores} cores" if threads and cores else threads,
    }
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    parts.append(f'<dl class="facts">{shown}</dl>')
    if run.command:
        words = " ".join(f"<span>{escape(word)}</span>" for word in run.shell_words)
        parts.append(
            '<div class="command copyable"><button type="button" class="copy" hidden>Copy</button>'
            f'<pre tabindex="0"><code>{words}</code></pre></div>'
        )
    versions = record.get("versions")
    if isinstance(versions, dict):
        text = " · ".join(f"{name} {version}" for name, version in versions.items())
        parts.append(f'<p class="versions">{escape(text)}</p>')
    return "\n".join(parts)


# --- artifacts ------------------------------------------------------------------------------------


def _artifact_sections(run: Run) -> list[Section]:
    """One section for each `section` of the index, sorted; the order of callbacks is no matter."""

    def key(member: tuple[Path, Artifact]) -> tuple[bool, str, str]:
        title = member[1].section or _DEFAULT_SECTION
        return title != _DEFAULT_SECTION, title.casefold(), title

    # within a section: figures, then tables, each in the order of writing (sorting is stable)
    artifacts = sorted(run.artifacts, key=lambda member: (key(member), member[1].kind))
    sections = []
    for (_, _, title), group in groupby(artifacts, key):
        members = list(group)
        shown = [*_drawn(members), *(_artifact(run, *member) for member in members)]
        sections.append(Section(title, "\n".join(shown)))
    return sections


def _drawn(members: list[tuple[Path, Artifact]]) -> list[str]:
    """What the page itself makes of tables: a run of Lightning draws no figures of them."""
    tables = {
        artifact.name: folder / artifact.files[0]
        for folder, artifact in members
        if artifact.kind == "table"
    }
    return [*dynamics_cards(tables), *edit_cards(tables), *diagnosis_cards(tables)]


def _artifact(run: Run, folder: Path, artifact: Artifact) -> str:
    try:
        shown = _figure(folder, artifact) if artifact.kind == "figure" else _table(folder, artifact)
    except SuiteError as err:
        shown = notice(str(err))
    caption = f"<p>{prose(artifact.caption)}</p>" if artifact.caption else ""
    links = " · ".join(_link(run, folder / name) for name in artifact.files)
    return (
        f'<figure class="card"><figcaption><h3>{heading(artifact.title or artifact.name)}</h3>'
        f'{caption}</figcaption>{shown}<p class="files">{links}</p></figure>'
    )


def _figure(folder: Path, artifact: Artifact) -> str:
    files = {Path(name).suffix: folder / name for name in artifact.files}
    svg, png = files.get(".svg"), files.get(".png")
    label = artifact.title or artifact.name
    try:
        if svg is not None and (png is None or svg.stat().st_size <= _LARGE_SVG):
            text = svg.read_text(encoding="utf-8")
            drawing = inline_svg(text, prefix=f"figure-{artifact.name}-", label=label)
        elif png is not None:
            data = base64.b64encode(png.read_bytes()).decode()
            drawing = f'<img alt="{escape(label)}" src="data:image/png;base64,{data}">'
        else:
            raise SuiteError("no SVG or PNG among its files")
    except (OSError, UnicodeDecodeError, SuiteError) as err:
        raise SuiteError(f"Figure '{artifact.name}' in {folder} cannot be shown: {err}.") from err
    return f'<div class="plot">{drawing}</div>'


def _table(folder: Path, artifact: Artifact) -> str:
    header, rows, total = read_table(folder / artifact.files[0])
    table = html_table(header, rows, label=artifact.title or artifact.name, total=total)
    if total > len(rows):
        table += f'<p class="files">First {len(rows):,} of {total:,} rows; all are in the file.</p>'
    return table


def _link(run: Run, path: Path) -> str:
    link = relative_link(path.relative_to(run.folder))
    return f'<a href="{link}">{breakable(path.name)}</a>'


# --- training -------------------------------------------------------------------------------------


def _training_sections(run: Run) -> list[Section]:
    path = run.logs / "metrics.csv"
    if not path.exists():
        return []
    title = _LOGGED if run.subcommand in {"validate", "test", "predict"} else "Training"
    try:
        metrics = read_metrics(path)
    except SuiteError as err:
        return [Section(title, notice(str(err)))]
    if not metrics.series:
        return [Section(title, notice(f"{path.name} holds no values: nothing was logged."))]
    plan = panels(list(metrics.series))
    notes = []
    if metrics.torn:
        notes.append(notice(f"The last row of {path.name} was cut off and is left out."))
    # one value is no curve: the summary has it
    curves = [
        panel
        for panel in plan
        if any(len(metrics.series[name].values) > 1 for _, name in panel.lines)
    ]
    if len(curves) > _MANY_PANELS:
        text = f"The first {_MANY_PANELS} of {len(curves):,} groups of curves are drawn."
        notes.append(notice(text))
    drawn = _curves(curves[:_MANY_PANELS], metrics)
    return [
        Section(title, "\n".join([*notes, _tiles(plan, metrics), drawn, _summary(plan, metrics)]))
    ]


def _curves(plan: list[Panel], metrics: Metrics) -> str:
    def group_of(panel: Panel) -> str:  # the first two groups are short: one row without headings
        return "" if panel.group in {METRICS, LEARNING_RATES} else panel.group

    parts = []
    for group, members in groupby(enumerate(plan), lambda member: group_of(member[1])):
        try:
            cards = [
                _panel(f"curve-{number}-", panel, metrics, level=4 if group else 3)
                for number, panel in members
            ]
        except MissingExtraError as err:
            return notice(f"The curves are not drawn: {err}")
        if group:
            parts.append(f'<h3 class="group">{heading(_GROUPS.get(group, group))}</h3>')
        parts.append(f'<div class="panels">{"".join(cards)}</div>')
    return "\n".join(parts)


def _panel(prefix: str, panel: Panel, metrics: Metrics, *, level: int) -> str:
    svg = draw_panel(panel, metrics.series)
    drawing = inline_svg(svg, prefix=prefix, label=f"{panel.title} over steps")
    lost = sum(_not_finite(metrics.series[name]) for _, name in panel.lines)
    warning = notice(f"{lost} values are NaN or infinite.") if lost else ""
    return (
        f'<figure class="card"><figcaption><h{level} class="panel">{heading(panel.title)}'
        f"</h{level}></figcaption>"
        f'<div class="plot">{drawing}</div>{warning}</figure>'
    )


def _not_finite(series: Series) -> int:
    return sum(not math.isfinite(value) for value in series.values)


def _tiles(plan: list[Panel], metrics: Metrics) -> str:
    """The last values of the first few metrics of the module, large."""
    names = [name for panel in plan if panel.group == METRICS for _, name in panel.lines]
    tiles = [
        f'<div class="card"><dt>{heading(name)}</dt><dd>{short_number(repr(one.values[-1]))}'
        f"<small>last, at step {one.steps[-1]:.0f}</small></dd></div>"
        for name, one in ((name, metrics.series[name]) for name in names[:4])
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>' if tiles else ""


def _summary(plan: list[Panel], metrics: Metrics) -> str:
    names = [name for panel in plan for _, name in panel.lines]
    if all(len(metrics.series[name].values) == 1 for name in names):  # of a test: nothing to span
        header = ["metric", "value"]
        rows = [[name, repr(metrics.series[name].values[0])] for name in names]
        return _summary_table(header, rows)
    header = ["metric", "first", "last", "lowest", "at step", "highest", "at step"]
    rows = []
    for name in names:
        one = metrics.series[name]
        places = [i for i, value in enumerate(one.values) if not math.isnan(value)]
        low = min(places, key=one.values.__getitem__, default=None)
        high = max(places, key=one.values.__getitem__, default=None)
        extremes = [
            text
            for place in (low, high)
            for text in (
                ("", "") if place is None else (repr(one.values[place]), f"{one.steps[place]:.0f}")
            )
        ]
        rows.append([name, repr(one.values[0]), repr(one.values[-1]), *extremes])
    return _summary_table(header, rows)


def _summary_table(header: list[str], rows: list[list[str]]) -> str:
    table = html_table(header, rows, label="Summary of all logged values")
    return f'<h3 class="group">Summary</h3><div class="card">{table}</div>'


# --- configuration and files ----------------------------------------------------------------------


def _configuration_sections(run: Run) -> list[Section]:
    blocks = "\n".join(code_block(name, text.rstrip("\n")) for name, text in run.configs().items())
    return [Section("Configuration", blocks)] if blocks else []


def _file_sections(run: Run) -> list[Section]:
    folders = dict.fromkeys([run.folder, run.logs])  # once each, in order
    patterns = ("*.csv", "*.yaml", "*.json", "checkpoints/*", "artifacts/*")
    files = dict.fromkeys(
        path
        for folder in folders
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.startswith(".")
    )
    if not files:
        return []
    rows = "\n".join(
        f'<tr><td>{_link(run, path)}</td><td class="soft">'
        f"{breakable(path.relative_to(run.folder).parent.as_posix())}</td>"
        f'<td class="number" data-value="{path.stat().st_size}">{_size(path)}</td></tr>'
        for path in files
    )
    head = "".join(
        f'<th scope="col" aria-sort="none"{kind}><button type="button">{name}</button></th>'
        for name, kind in (("file", ""), ("folder", ""), ("size", ' class="number"'))
    )
    return [
        Section(
            "Files",
            f'<div class="card"><div class="scroll{" tall" if len(files) > IN_VIEW else ""}" '
            'tabindex="0" role="region" aria-label="Files">'
            f'<table class="listing"><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{rows}\n</tbody></table></div></div>",
        )
    ]


def _size(path: Path) -> str:
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} GB"


# The page from top to bottom. A builder returns no section for what a run does not have.
_SECTIONS: tuple[Callable[[Run], list[Section]], ...] = (
    _artifact_sections,
    sample_sections,
    _training_sections,
    _configuration_sections,
    _file_sections,
)
