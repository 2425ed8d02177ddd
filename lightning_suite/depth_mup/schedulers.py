"""Learning-rate schedulers whose optimizer's groups have been split and scaled.

A scheduler remembers one number (or function) for every group that the optimizer had when the
scheduler was made. After a split these lists must be rebuilt, and learning rates in them scaled, or
the next ``step()`` fails or undoes the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lightning_suite.depth_mup.param_groups import scale

# Schedules that are proportional to the base learning rate, so that scaling the latter scales all.
# By exact class: a subclass may compute anything.
_PROPORTIONAL = {
    torch_schedulers.LambdaLR,
    torch_schedulers.MultiplicativeLR,
    torch_schedulers.StepLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.ConstantLR,
    torch_schedulers.LinearLR,
    torch_schedulers.ExponentialLR,
    torch_schedulers.PolynomialLR,
    torch_schedulers.OneCycleLR,
    torch_schedulers.CyclicLR,
}
# Proportional unless their floor, one number for all groups, is above zero.
_WITH_FLOOR = {
    torch_schedulers.CosineAnnealingLR,
    torch_schedulers.CosineAnnealingWarmRestarts,
}
# Proportional unless it skips reductions that are smaller than its eps, one number for all groups:
# a group with a small factor would stop falling before the others.
_WITH_THRESHOLD = {torch_schedulers.ReduceLROnPlateau}
_NESTED = {torch_schedulers.SequentialLR, torch_schedulers.ChainedScheduler}

_LR_LISTS = ("base_lrs", "_last_lr", "min_lrs", "max_lrs")
_OTHER_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")


def is_proportional(scheduler: Any) -> bool:
    """Whether scaling the numbers that ``scheduler`` remembers scales its whole schedule.

    False for a cosine with ``eta_min > 0``, for a plateau schedule with ``eps > 0`` (torch's
    default) and for every class that is not torch's own.
    """
    cls = type(scheduler)
    if cls in _NESTED:
        return all(is_proportional(inner) for inner in scheduler._schedulers)
    if cls in _WITH_FLOOR:
        return bool(scheduler.eta_min == 0)
    if cls in _WITH_THRESHOLD:
        return bool(scheduler.eps == 0)
    return cls in _PROPORTIONAL


def rescale_schedulers(
    schedulers: Iterable[Any], parents: Sequence[int], factors: Sequence[float]
) -> None:
    """Rebuild, in place, what ``schedulers`` remember about the groups of their optimizer.

    Args:
        schedulers: All schedulers of one optimizer; each must be :func:`is_proportional`.
        parents: For every group that the optimizer has now, the number of its group before.
        factors: Learning-rate factor of every group that the optimizer has now.
    """
    done: set[int] = set()
    waiting = list(schedulers)
    while waiting:
        scheduler = waiting.pop()
        if id(scheduler) in done:
            continue
        done.add(id(scheduler))
        waiting.extend(getattr(scheduler, "_schedulers", ()))
        for name in _LR_LISTS:
            old = getattr(scheduler, name, None)
            if old is not None:
                new = [scale(old[p], f) for p, f in zip(parents, factors, strict=True)]
                setattr(scheduler, name, new)
        for name in _OTHER_LISTS:
            old = getattr(scheduler, name, None)
            if old is not None:
                setattr(scheduler, name, [old[parent] for parent in parents])
