"""In which order a fit calls its hooks, where a callback stands between others and the module."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer


def may_build_itself_later(module: LightningModule) -> bool:
    """Whether a module has a ``setup`` or ``configure_model`` of its own.

    Lightning calls them after the callbacks' ``setup``.
    """
    return any(
        hook in vars(cls)
        for cls in type(module).__mro__
        for hook in ("setup", "configure_model")
        if cls.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")
    )


class BatchAtHand:
    """The batch that has begun for a callback, and whether it has been trained on meanwhile.

    The callbacks' ``on_train_batch_end`` come one after another, and each may save a checkpoint
    there. A run that goes on from it does not train on this batch again, so callbacks whose turn
    has not come must put into the checkpoint what they have of the batch.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None

    def begin(self, trainer: Trainer) -> None:
        """Note that a batch begins: in ``on_train_batch_start``."""
        self._before = _started_and_processed(trainer)

    def end(self) -> bool:
        """Note that the callback does its part now; return whether that was still to be done.

        It is not where a checkpoint came first, or for None in a batch's place, which never begins.
        """
        begun, self._before = self._before is not None, None
        return begun

    def is_trained_on(self, trainer: Trainer) -> bool:
        """Whether the batch has not ended here, and a resumed run would not see it again.

        A batch with which the module left the epoch (-1 from its ``on_train_batch_start``) never
        started.
        """
        if self._before is None:
            return False
        started, processed = _started_and_processed(trainer)
        return started > self._before[0] and processed > self._before[1]


def _started_and_processed(trainer: Trainer) -> tuple[int, int]:
    # steps do not tell: accumulation makes none of a batch, several optimizers more than one
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total  # typed as what it is made from
    return total.started, total.processed
