"""Checkpoints that a kill cannot tear: written beside their place, then renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

from lightning_suite.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints as Lightning does, into the folder where they belong.

    Lightning writes them into the system's folder of temporary files and moves them: onto another
    disk that is a copy, which a kill leaves half done, under the checkpoint's own name.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)

    Attributes:
        written: Checkpoints of this process that were finished, in order.
    """

    def __init__(self) -> None:
        self.written: list[str] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; what is not on a local disk is left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
        self.written.append(str(path))


def write_atomically(trainer: Trainer) -> None:
    """Let ``trainer`` write its checkpoints so, unless another way was chosen for them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def written_checkpoints(trainer: Trainer) -> list[str] | None:
    """Return the checkpoints that ``trainer`` has written and that are still there, in order.

    None where nobody has kept count: another way was chosen to write them.
    """
    io = trainer.strategy.checkpoint_io
    sharded = type(trainer.strategy).save_checkpoint is not Strategy.save_checkpoint
    if type(io) is not AtomicCheckpointIO or sharded:
        return None
    return [path for path in dict.fromkeys(reversed(io.written)) if Path(path).exists()][::-1]
