"""The runs of an index: their names in it, what is read of them, and their own pages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.report.page import write_report
from lightning_suite.report.runs import Run
from lightning_suite.report.summaries import Summary, summarise
from lightning_suite.report.tables import Cell


@dataclass(frozen=True)
class Entry:
    """A run with the name that it has in the index.

    Attributes:
        name: What its path does not share with those of the others.
        summary: What is read of it.
        report: Path of its page, relative to the index; empty where it cannot be made.
    """

    name: str
    summary: Summary
    report: str

    @property
    def cell(self) -> Cell:
        """The name, with a link to the run's page."""
        return Cell(self.name, link=self.report)

    @property
    def run(self) -> Run | None:
        """The run; None where it cannot be read."""
        return self.summary.run


def read_entries(places: Mapping[Path, Path], base: Path) -> list[Entry]:
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
        entries.append(Entry(names[resolved], summary, report))
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


def check_metrics(metrics: Sequence[str] | None, entries: Sequence[Entry]) -> Sequence[str] | None:
    """Check that each pattern fits something; a typo would else give an empty comparison.

    Raises:
        SuiteError: A pattern fits no figure and no curve of any run.
    """
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


def chosen(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the names that fit one of the patterns; all of them where there are none.

    >>> chosen(["val_loss", "lmcd/auc", "lr-SGD"], ["lmcd/*", "lr-SGD"])
    ['lmcd/auc', 'lr-SGD']
    """
    if wanted is None:
        return list(names)
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
