"""``lightning-suite report``."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_suite.errors import SuiteError


def run(
    folders: list[str],
    index: str | None = None,
    metrics: str | None = None,
    wandb: str | None = None,
) -> int:
    """Make report.html of a run, or one index page over several runs that compares them.

    A run's page holds its metrics, tables, figures, configuration and versions. A folder that
    holds several runs gets FOLDER/index.html: a table of the runs with links to their pages (the
    missing and outdated ones are written), their metrics side by side, shared curves in the same
    axes, differing configuration. Each page is one file that loads nothing from anywhere, and can
    be made again at any time. Of a folder with nothing but version_0, version_1, ... the newest
    run is shown, unless --index is given.

    Args:
        folders: A run folder, as `fit` printed it, or a folder that holds runs; several with
            --index.
        index: Write an index page over all given runs to this file.
        metrics: For an index: what to compare, separated by commas, * for any text; default: what
            several runs share.
        wandb: A W&B project that gets the tables and figures of one run, for commands that have no
            logger: score, select, coord-check, lr-transfer. WANDB_MODE=offline needs no network.

    Example:
        lightning-suite report lightning_logs/version_0
        lightning-suite report runs
        lightning-suite report runs/a runs/b lightning_logs --index compare.html
        lightning-suite report runs --metrics 'val_loss,lmcd/*'
        lightning-suite report runs/scores --wandb my_project
    """
    from lightning_suite.report.index import write_index  # noqa: PLC0415
    from lightning_suite.report.page import write_report  # noqa: PLC0415
    from lightning_suite.report.runs import are_versions, find_runs, is_run  # noqa: PLC0415

    for name in folders:
        if not Path(name).is_dir():
            raise SuiteError(f"{name} is not a folder. Give the run folder that `fit` printed.")
    if wandb is not None and (index is not None or len(folders) > 1):
        raise SuiteError("--wandb is for one run: give its folder alone.")
    chosen = None if metrics is None else [name.strip() for name in metrics.split(",")]
    if index is not None:
        print(write_index(folders, index, chosen))
        return 0
    if len(folders) > 1:
        raise SuiteError("several folders make one index page; say where: --index compare.html")
    folder = Path(folders[0])
    runs = [] if is_run(folder) else find_runs(folder)
    if not runs and not is_run(folder):
        _refuse_unfinished_scores(folder)
    newest_alone = not runs or are_versions(runs)
    if newest_alone and chosen is None:
        print(write_report(folder))
        if wandb is not None:
            from lightning_suite.cli.wandb_artifacts import log_run  # noqa: PLC0415

            log_run(folder, wandb)
        if len(runs) > 1:
            print(
                f"The newest of {len(runs)} runs. All: lightning-suite report {folder} "
                f"--index {folder / 'index.html'}",
                file=sys.stderr,
            )
        return 0
    if is_run(folder):
        raise SuiteError("--metrics is for an index of several runs; this folder is one run.")
    if wandb is not None:
        raise SuiteError(f"--wandb is for one run, and {folder} holds {len(runs)}: name one.")
    print(write_index([folder], folder / "index.html", chosen))
    return 0


def _refuse_unfinished_scores(folder: Path) -> None:
    """Say of scores without a page how far they are; it is written when all are there."""
    from lightning_suite.cli.selecting import read_scores  # noqa: PLC0415
    from lightning_suite.resofilter.manifest import MANIFEST, read_manifest  # noqa: PLC0415
    from lightning_suite.resofilter.store import shard_files  # noqa: PLC0415

    if not (folder / MANIFEST).is_file() or read_manifest(folder).get("mode") != "probe":
        return
    if not shard_files(folder):
        raise SuiteError(
            f"{folder}: no sample is scored yet. Give the command `lightning-suite score` again."
        )
    read_scores(folder)
