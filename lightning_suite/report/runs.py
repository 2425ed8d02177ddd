"""Runs on disk: which folders are one, and what a run has left in its folder."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import Artifact, RunFolder

TRACES = ("run.json", "metrics.csv", "config.yaml", "hparams.yaml", "artifacts", "checkpoints")
# What only a run leaves. A `config.yaml` or a folder `checkpoints` alone may be a project's own.
_OWN = ("run.json", "metrics.csv", "hparams.yaml", "artifacts/index.json")
_VERSION = re.compile(r"version_\d+")
_DEPTH = 5  # levels of folders that are looked into
_MOST_FOLDERS = 20_000  # of a tree that is hardly one of runs


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: What the user named; the page is written here.
        logs: Where the files of a Lightning fit are: ``folder`` itself or its newest version.
        record: Content of ``run.json``, empty without one.
        artifacts: Entries of ``artifacts/index.json``, each with the folder of its files.
    """

    folder: Path
    logs: Path
    record: dict[str, Any]
    artifacts: list[tuple[Path, Artifact]]

    @property
    def name(self) -> str:
        """The folder's name, with its parent's where it is only a number."""
        path = self.folder.resolve()
        return f"{path.parent.name}/{path.name}" if _VERSION.fullmatch(path.name) else path.name

    @property
    def versions(self) -> int:
        """Runs of which this is the newest, itself too; 1 where the folder is the run's own."""
        return 1 if self.logs == self.folder else len(_versions(self.logs.parent, "version_*"))

    @property
    def command(self) -> list[str]:
        """The command line, word by word, without the program's folder; empty if unknown."""
        words = self.record.get("command")
        command = [str(word) for word in words] if isinstance(words, list) else []
        return [Path(command[0]).name, *command[1:]] if command else []

    @property
    def subcommand(self) -> str:
        """The command of this package that made the run, such as ``fit``; empty if unknown."""
        return next((word for word in self.command[1:] if re.fullmatch(r"[a-z][a-z-]*", word)), "")

    @property
    def shell_words(self) -> list[str]:
        """The words of the command line as one would type them."""
        return [shlex.quote(word) for word in self.command]

    @property
    def time(self) -> str | None:
        """When the run began, or when its metrics were last written; None if unknown."""
        if self.record.get("time"):
            return str(self.record["time"]).replace("T", " ").replace("+00:00", " UTC")
        metrics = self.logs / "metrics.csv"
        if not metrics.exists():
            return None
        written = datetime.fromtimestamp(metrics.stat().st_mtime, timezone.utc)
        return f"{written:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def state(self) -> str:
        """``finished``, ``stopped: <why>``, ``not finished``, or empty where nothing says it.

        A run that still works and one that was killed look the same on disk.
        """
        state = self.record.get("state")
        if state == "running":
            return "not finished"
        if state == "stopped":
            return f"stopped: {self.record.get('stopped_by') or 'for an unknown reason'}"
        return "finished" if state == "finished" else ""

    def tables(self) -> dict[str, Path]:
        """CSV files by the name of their artifact."""
        return {
            artifact.name: folder / artifact.files[0]
            for folder, artifact in self.artifacts
            if artifact.kind == "table"
        }

    def configs(self) -> dict[str, str]:
        """The texts of its configuration by what they are; the resolved one first."""
        texts: dict[str, str] = {}
        config = self.record.get("config")
        if isinstance(config, str) and config.strip():
            texts["Configuration of the run"] = config
        titles = {
            "config.yaml": "config.yaml: configuration of the run",
            "hparams.yaml": "hparams.yaml: hyperparameters of model and data",
        }
        for name, title in titles.items():
            path = self.logs / name
            if path.exists():
                text = path.read_text(encoding="utf-8", errors="replace")
                if text.strip() not in {"", "{}"} and text not in texts.values():
                    texts[title] = text
        return texts


def open_run(folder: Path) -> Run:
    """Read what a run has left.

    Args:
        folder: The run's folder, or one that holds Lightning's logs; then the newest version.

    Raises:
        SuiteError: There is no run, or its ``run.json`` or ``artifacts/index.json`` is damaged.
    """
    if not folder.is_dir():
        raise SuiteError(f"{folder}: no such folder. Give the folder that a run has written.")
    logs = _logs(folder)
    if logs is None:
        raise SuiteError(
            f"{folder}: no run in here. Expected one of {', '.join(TRACES)}, "
            "or logs such as lightning_logs/version_0."
        )
    homes = [RunFolder(path) for path in dict.fromkeys([folder, logs])]  # one or two
    return Run(
        folder=folder,
        logs=logs,
        record=next((record for home in homes if (record := home.record())), {}),
        artifacts=[(home.artifacts, artifact) for home in homes for artifact in home.index()],
    )


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs in a tree, in natural order of their paths.

    A run is a folder with a ``run.json``, a ``metrics.csv``, a ``hparams.yaml`` or an index of
    artifacts; each ``version_N`` of Lightning's logs is one. Hidden folders, links, and what is
    inside a run are passed over.

    Args:
        folder: The root; it may be a run itself.

    Raises:
        SuiteError: There is no such folder.
    """
    if not folder.is_dir():
        raise SuiteError(f"{folder}: no such folder. Give a folder that holds runs.")
    found = []
    for number, (place, inside, _) in enumerate(os.walk(folder)):
        here = Path(place)
        if is_run(here):
            found.append(here)
            inside.clear()
        elif len(here.relative_to(folder).parts) >= _DEPTH or number > _MOST_FOLDERS:
            inside.clear()
        inside[:] = [name for name in inside if not name.startswith(".") and name != "wandb"]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder)))


def is_run(folder: Path) -> bool:
    """Whether a run has left its files directly in this folder."""
    return _has_any(folder, *_OWN)


def are_versions(runs: Sequence[Path]) -> bool:
    """Whether these are only the versions of one folder of Lightning's logs."""
    return len({run.parent for run in runs}) == 1 and all(
        _VERSION.fullmatch(run.name) for run in runs
    )


def _versions(folder: Path, *patterns: str) -> list[Path]:
    return [
        path for pattern in patterns for path in folder.glob(pattern) if _has_any(path, *TRACES)
    ]


def _logs(folder: Path) -> Path | None:
    versions = _versions(folder, "version_*", "*/version_*")
    if _has_any(folder, "metrics.csv", "hparams.yaml", "config.yaml", "checkpoints"):
        return folder
    if versions:
        return max(versions, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return folder if _has_any(folder, *TRACES) else None


def _has_any(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
