"""With which trainers a correction of the learning rates can be right."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateFinder

from lightning_suite.errors import SuiteError
from lightning_suite.strategies import refuse_flattened_parameters


def refuse_unsupported_trainer(trainer: Trainer, callback: Callback) -> None:
    """Refuse a trainer under which ``callback`` would correct the wrong learning rates.

    Raises:
        SuiteError: The trainer has another instance of the callback, searches for a learning
            rate without it, or flattens the parameters of all roles into one tensor.
    """
    name = type(callback).__name__
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # by a connector
    count = sum(isinstance(other, type(callback)) for other in callbacks)
    if count > 1:
        raise SuiteError(more_than_one(name, count))
    if any(isinstance(other, LearningRateFinder) for other in callbacks):
        raise SuiteError(
            "LearningRateFinder searches with all other callbacks off: its learning rate "
            "belongs to this model without the correction, and the correction asks for the one "
            "of the base model. Find that on the base model, and take the finder out (after "
            "Tuner.lr_find: make a new Trainer)."
        )
    refuse_flattened_parameters(trainer.strategy)


def more_than_one(name: str, count: int) -> str:
    """Return why a trainer takes one callback of this name, and not ``count`` of them."""
    return (
        f"the trainer has {count} {name}s, which would multiply the learning rates more than "
        "once. Keep one (an overlay that is given twice adds two)."
    )
