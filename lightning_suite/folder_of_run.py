"""The folder of a run of its own, whatever logs it."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def folder_of_run(trainer: Trainer) -> str | None:
    """Return the folder that only this run writes into; call it on every rank.

    ``trainer.log_dir`` is that where `CSVLogger` or `TensorBoardLogger` comes first. Of any other
    logger it is the folder that all its runs share; then this is the log folder of one of these
    two, if there is one, or else that in which `ModelCheckpoint` makes its ``checkpoints``:
    the logger's ``save_dir``, name and version (of W&B the project and the run's id).

    Returns:
        The same path on all ranks; without a logger ``trainer.log_dir``.
    """
    shared = trainer.log_dir  # a broadcast
    if not trainer.loggers:
        return shared
    filed = [item for item in trainer.loggers if isinstance(item, CSVLogger | TensorBoardLogger)]
    if filed:
        own: str | None = filed[0].log_dir
    else:
        first = trainer.loggers[0]
        version = first.version  # known on rank zero only, where the run was begun
        named = version if isinstance(version, str) else f"version_{version}"
        own = str(Path(shared or trainer.default_root_dir, str(first.name), named))
    return trainer.strategy.broadcast(own)
