"""Notice that somebody sets the learning rates of split groups over the factors of their roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup.param_groups import ParamGroup
from lightning_suite.errors import SuiteError

# Learning rates of one user's group may differ by rounding only, relative to the largest one seen
# (a schedule that ends near zero may cancel).
_TOLERANCE = 1e-6
_TENSOR_TOLERANCE = 1e-3  # float32, rounded by the scheduler at each of many steps
_USE_STEP = (
    "Use apply='step': then your code and your scheduler set the base model's learning rate, and "
    "the factor is applied inside the optimizer's step."
)


class RateGuard:
    """Notices, before a step of the optimizer, that somebody overwrote the learning rates.

    Raises a :class:`SuiteError` where groups were added; where groups that come from one user's
    group do not have rates in the ratio of their factors; and where a rate is neither the one that
    training started with (or that a checkpoint restored) nor the one that a scheduler set last.
    Rates that are tensors on an accelerator are not looked at: that would wait for the device.

    Args:
        optimizer: Its groups are split.
        parents: From :func:`split_groups`.
        schedulers: All schedulers of the optimizer.
    """

    def __init__(
        self, optimizer: Optimizer, parents: Sequence[int], schedulers: Iterable[Any] = ()
    ) -> None:
        self._parents = list(parents)
        self._schedulers = list(schedulers)
        self._peak: dict[int, float] = {}
        self._take_as_given(optimizer)
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._check),
            optimizer.register_load_state_dict_post_hook(self._take_as_given),
        ]

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _take_as_given(self, optimizer: Optimizer) -> None:
        self._given = [_rate(group["lr"]) for group in optimizer.param_groups]
        self._passed: list[float | None] = []

    def _check(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        rates = [_rate(group["lr"]) for group in groups]
        if rates == self._passed:  # most steps, within microseconds
            return
        if all(rate == 0 for rate in rates):
            # trains nothing: how torch makes an optimizer's state for a checkpoint of shards
            return
        if len(groups) != len(self._parents):
            raise SuiteError(
                f"the optimizer had {len(self._parents)} parameter groups when training started "
                f"and has {len(groups)} now; the learning rate of the new ones would not be "
                "corrected. Use apply='step', which looks at the groups at every step."
            )
        self._check_siblings(groups, rates)
        self._check_origin(groups, rates)
        self._passed = rates

    def _check_siblings(self, groups: list[ParamGroup], rates: list[float | None]) -> None:
        base: dict[int, float] = {}
        for parent, group, rate in zip(self._parents, groups, rates, strict=True):
            if rate is None:
                continue
            unscaled = rate / group["lr_factor"]
            first = base.setdefault(parent, unscaled)
            peak = self._peak[parent] = max(self._peak.get(parent, 0.0), abs(unscaled))
            if abs(unscaled - first) > _tolerance(group["lr"]) * peak:
                raise SuiteError(
                    f"somebody overwrote the learning rate of the group {group['name']!r}: it is "
                    f"{rate:.6g}, and {first * group['lr_factor']:.6g} would keep the factor "
                    f"{group['lr_factor']:g}. {_USE_STEP}"
                )

    def _check_origin(self, groups: list[ParamGroup], rates: list[float | None]) -> None:
        last_set = [getattr(scheduler, "_last_lr", ()) for scheduler in self._schedulers]
        scheduled = [last for last in last_set if len(last) == len(groups)]
        for index, (group, rate) in enumerate(zip(groups, rates, strict=True)):
            expected = [self._given[index], *(_rate(last[index]) for last in scheduled)]
            if rate is None or rate in expected:
                continue
            slack = _tolerance(group["lr"]) * abs(rate)
            if not any(e is not None and abs(rate - e) <= slack for e in expected):
                raise SuiteError(
                    f"somebody overwrote the learning rate of the group {group['name']!r}: it is "
                    f"{rate:.6g}, which none of the schedulers that Lightning knows has set "
                    f"(expected: {', '.join(f'{e:.6g}' for e in expected if e is not None)}). "
                    f"Return your scheduler from configure_optimizers. Or: {_USE_STEP}"
                )


def _rate(lr: Any) -> float | None:
    """Return a learning rate as a number, None for a tensor on an accelerator."""
    if isinstance(lr, torch.Tensor):
        return float(lr) if lr.device.type == "cpu" else None
    return float(lr)


def _tolerance(lr: Any) -> float:
    return _TENSOR_TOLERANCE if isinstance(lr, torch.Tensor) else _TOLERANCE
