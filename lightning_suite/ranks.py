"""What each rank has of a training, brought together for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

Numbers = list[list[float]]


def of_all_ranks(trainer: Trainer, mine: Sequence[Sequence[float]]) -> list[Numbers]:
    """Return a table of numbers of each rank; on all ranks, where none has an error.

    Args:
        trainer: Whose ranks they are. One that an error has interrupted gives this rank's alone:
            others, which may have none, would not come to meet it.
        mine: This rank's, of the same shape on each.
    """
    own = [[float(number) for number in row] for row in mine]
    if trainer.world_size == 1 or trainer.interrupted:
        return [own]
    device = trainer.strategy.root_device
    gathered = trainer.strategy.all_gather(torch.tensor(own, dtype=torch.float64, device=device))
    # one table only where the processes have ended, as of a spawned training
    ranks: list[Numbers] = gathered.view(-1, *gathered.shape[-2:]).tolist()
    return ranks


def share_of_rank(trainer: Trainer, ranks: Sequence[Numbers]) -> list[Numbers]:
    """Return which of these tables this rank goes on with, so that each is gone on with once.

    Args:
        trainer: Of the training that goes on.
        ranks: As :func:`of_all_ranks` returned them. Where there were not as many ranks as now,
            the first one takes all.
    """
    if len(ranks) == trainer.world_size:
        return [ranks[trainer.global_rank]]
    return [] if trainer.global_rank else list(ranks)
