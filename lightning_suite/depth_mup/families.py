"""Which learning-rate law an optimizer follows: that of SGD or that of Adam."""

from __future__ import annotations

import inspect
from typing import Any

from torch.optim import Optimizer

from lightning_suite.depth_mup.rules import FAMILIES, OptimizerFamily
from lightning_suite.errors import SuiteError

# By class name, so that optimizers of other packages need not be installed to be known.
# Sign-like optimizers move every entry by about lr, as Adam does.
_FAMILY_OF_CLASS: dict[str, OptimizerFamily] = {
    "SGD": "sgd",
    "SGDScheduleFree": "sgd",
    **dict.fromkeys(
        (
            "Adam",
            "AdamW",
            "NAdam",
            "RAdam",
            "Adamax",
            "Adafactor",
            "SparseAdam",
            "FusedAdam",
            "DeepSpeedCPUAdam",
            "Adam8bit",
            "AdamW8bit",
            "PagedAdam",
            "PagedAdamW",
            "PagedAdam8bit",
            "PagedAdamW8bit",
            "AdamWScheduleFree",
            "StableAdamW",
            "Lion",
            "Lion8bit",
            "SignSGD",
        ),
        "adam",
    ),
}


def _step(cls: Any) -> object:
    return inspect.unwrap(cls.step)  # torch wraps it in the first class that is instantiated


def optimizer_family(optimizer: Optimizer) -> OptimizerFamily:
    """Return the family of ``optimizer``, by the name of its class.

    A subclass of a known class belongs to it if it inherits ``step``; one with a ``step`` of its
    own (LARS on top of SGD) may move the weights by any law.

    Args:
        optimizer: Any torch optimizer.

    Raises:
        SuiteError: The class is of neither family, so that no factor would be right.
    """
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _FAMILY_OF_CLASS and _step(cls) is _step(type(optimizer)):
            return _FAMILY_OF_CLASS[cls.__name__]
    known = {
        family: ", ".join(n for n, f in _FAMILY_OF_CLASS.items() if f == family)
        for family in FAMILIES
    }
    raise SuiteError(
        f"the optimizer {type(optimizer).__name__} is of no family whose learning-rate law is "
        f"known. SGD-like: {known['sgd']}. Adam-like: {known['adam']}. If yours follows one of "
        "the two laws, say optimizer_family='sgd' or optimizer_family='adam'."
    )
