"""A run's tables and figures in Weights & Biases: those of its report page, by name."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from lightning_suite.run_folder import RunFolder

MOST_ROWS = 10_000  # of a table that W&B shows


def log_artifacts(loggers: Iterable[Logger], folder: str | Path, step: int) -> None:
    """Give every `WandbLogger` what ``folder`` has: CSV files as tables, PNG files as images.

    The key of an artifact is ``report/<its name>``. Of a longer table the first 10,000 rows go.

    Args:
        loggers: Of the trainer; others than W&B's are passed over.
        folder: The run's, with ``artifacts/index.json``.
        step: The trainer's, at the end of the run.
    """
    chosen = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    run = RunFolder(folder)
    for artifact in run.index() if chosen else ():
        for name in artifact.files:
            path, key = run.artifacts / name, f"report/{artifact.name}"
            for logger in chosen:
                if path.suffix == ".csv":
                    columns, rows = _read_table(path)
                    logger.log_table(key, columns=columns, data=rows, step=step)
                elif path.suffix == ".png":
                    caption = artifact.caption or artifact.title
                    logger.log_image(key, [str(path)], step=step, caption=[caption])


def _read_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        rows = list(islice(reader, MOST_ROWS))
    typed = [_numbers([row[i] for row in rows]) for i in range(len(columns))]
    return columns, [list(row) for row in zip(*typed, strict=True)]


def _numbers(column: list[str]) -> list[Any]:
    """Return a column as numbers where all of it is; a gap is None."""
    try:
        return [float(value) if value else None for value in column]
    except ValueError:
        return list(column)
