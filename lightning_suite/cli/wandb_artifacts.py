"""A run's tables and figures in Weights & Biases: those of its report page, by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.report.lmcd_figures import draw_diagnosis
from lightning_suite.report.runs import open_run
from lightning_suite.report.scen_figures import draw_edits
from lightning_suite.report.style import figure_style
from lightning_suite.report.tables import is_number, read_table
from lightning_suite.report.text import visible
from lightning_suite.run_folder import Artifact, RunFolder, save_png

MOST_ROWS = 10_000  # of a table that W&B shows
_WHOLE = re.compile(r"[+-]?\d+")
_EXACT = re.compile(r"-?(0|[1-9]\d{0,14})")  # a whole number that a double holds


def log_artifacts(loggers: Iterable[Logger], folder: str | Path, step: int) -> None:
    """Give every `WandbLogger` what the run's page shows: tables, and figures as bitmaps.

    The key of an artifact is ``report/<its name>``; the figures that the page draws of tables are
    there too. Of a longer table the first 10,000 rows go. What cannot be read is warned of and
    does not keep the rest from being logged.

    Args:
        loggers: Of the trainer; others than W&B's are passed over.
        folder: The run's, with ``artifacts/index.json``.
        step: The trainer's, at the end of the run.
    """
    chosen = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    run = RunFolder(folder)
    artifacts = run.index() if chosen else []
    for artifact in artifacts:
        try:
            _log(chosen, run.artifacts, artifact, step)
        except (SuiteError, OSError) as err:
            rank_zero_warn(f"W&B: {artifact.kind} '{artifact.name}' is not logged: {err}")
    tables = {
        artifact.name: run.artifacts / artifact.files[0]
        for artifact in artifacts
        if artifact.kind == "table"
    }
    _log_drawings(chosen, tables, step)


def log_run(folder: Path, project: str) -> None:
    """Make a W&B run of what a run has left: its tables, figures and configuration.

    For commands without a logger; `fit` and its like log while they run. With `WANDB_MODE=offline`
    nobody is contacted.

    Args:
        folder: The run's, or one with logs of Lightning; then the newest.
        project: The W&B project.

    Raises:
        SuiteError: There is no run, or W&B cannot be reached.
        MissingExtraError: wandb is not installed.
    """
    wandb = import_extra("wandb", "wandb")
    run = open_run(folder)
    config: Any = run.record.get("config")
    with suppress(yaml.YAMLError, RecursionError):  # else its text
        config = yaml.safe_load(str(config or ""))
    try:
        logger = WandbLogger(project=project, name=visible(run.name))
        logger.log_hyperparams({"lightning_suite": config, "command": run.command})
        for home in dict.fromkeys([run.folder, run.logs]):
            log_artifacts([logger], home, 0)
        logger.experiment.finish()
    except wandb.Error as err:
        raise SuiteError(f"W&B: {err} WANDB_MODE=offline needs no network.") from err


def _log(loggers: Sequence[WandbLogger], folder: Path, artifact: Artifact, step: int) -> None:
    key = f"report/{artifact.name}"
    for path in (folder / name for name in artifact.files):
        if path.suffix == ".csv":
            columns, rows = _typed_table(path)
            for logger in loggers:
                logger.log_table(key, columns=columns, data=rows, step=step)
        elif path.suffix == ".png":
            caption = artifact.caption or artifact.title
            for logger in loggers:
                logger.log_image(key, [str(path)], step=step, caption=[caption])


def _log_drawings(loggers: Sequence[WandbLogger], tables: Mapping[str, Path], step: int) -> None:
    """Log the figures that are no files of the run: the page draws them of its tables."""
    for draw in (draw_edits, draw_diagnosis):
        try:
            drawings = draw(tables)
        except (MissingExtraError, SuiteError, ValueError, KeyError) as err:
            rank_zero_warn(f"W&B: figures of the tables are not logged: {err}")
            continue
        with tempfile.TemporaryDirectory() as place:
            for drawing in drawings:
                path = Path(place, f"{drawing.name}.png")
                with path.open("wb") as file, figure_style():
                    save_png(drawing.figure, file)
                for logger in loggers:
                    key = f"report/{drawing.name}"
                    logger.log_image(key, [str(path)], step=step, caption=[drawing.caption])


def _typed_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    header, rows, _ = read_table(path, MOST_ROWS)
    columns = [_typed([row[i] for row in rows]) for i in range(len(header))]
    return _distinct(header), [list(row) for row in zip(*columns, strict=True)]


def _typed(column: Sequence[str]) -> list[Any]:
    """Return a column as numbers where all of it is, a gap as None.

    Digits that are no number stay text: ``007``, and what a double could not hold.
    """
    filled = [cell for cell in column if cell]
    if all(_EXACT.fullmatch(cell) for cell in filled):
        return [int(cell) if cell else None for cell in column]
    names = any(_WHOLE.fullmatch(cell) and not _EXACT.fullmatch(cell) for cell in filled)
    if names or not all(is_number(cell) for cell in filled):
        return list(column)
    return [float(cell) if cell else None for cell in column]


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that are there twice: W&B takes the columns of a table by name."""
    found: list[str] = []
    for name in names:
        number, new = 1, name
        while new in found:
            number += 1
            new = f"{name} ({number})"
        found.append(new)
    return found
