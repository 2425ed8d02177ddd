"""Apply the factors to one optimizer and its schedulers, by the mechanism that suits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_suite.depth_mup.param_groups import (
    ParamGroup,
    Plan,
    check_already_split,
    is_split,
    split_groups,
)
from lightning_suite.depth_mup.rate_guard import RateGuard
from lightning_suite.depth_mup.scaled_step import ScaledStep
from lightning_suite.depth_mup.schedulers import is_proportional, rescale_schedulers
from lightning_suite.errors import SuiteError

ApplyMode = Literal["auto", "groups", "step"]


class AppliedFactors:
    """The factors on one optimizer, until :meth:`remove`.

    Args:
        optimizer: A torch optimizer whose schedulers exist and whose checkpoint is not restored
            yet.
        schedulers: All schedulers of that optimizer.
        make_plan: Returns the plan for given groups (see
            :func:`~lightning_suite.depth_mup.param_groups.plan_groups`).
        apply: ``"groups"`` splits and scales the groups and what the schedulers remember;
            ``"step"`` scales inside the optimizer's step; ``"auto"`` takes ``"groups"`` where
            every scheduler is proportional to its base learning rate.

    Attributes:
        mode: The mechanism that was taken.

    Raises:
        SuiteError: ``"groups"`` would be wrong for a scheduler.
    """

    mode: Literal["groups", "step"]

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Iterable[Any],
        make_plan: Callable[[Sequence[ParamGroup]], Plan],
        apply: ApplyMode = "auto",
    ) -> None:
        self._optimizer = optimizer
        self._hooks: Any
        self._scaled_step: ScaledStep | None = None
        schedulers = list(schedulers)
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise SuiteError(
                f"{type(optimizer).__name__} has no learning rate (lr=None) and would choose its "
                "own, to which no factor can be applied. Give it one (Adafactor: lr=…, "
                "relative_step=False)."
            )
        odd = [s for s in schedulers if not is_proportional(s)]
        if is_split(optimizer):  # by an earlier fit; the factors are in the groups already
            if odd or apply == "step":
                raise SuiteError(
                    "the optimizer's groups were split and scaled by an earlier fit with "
                    "apply='groups', and this fit needs apply='step'. Let configure_optimizers "
                    "return a new optimizer, or say apply='step' in both fits."
                )
            check_already_split(optimizer, make_plan(optimizer.param_groups))
            parents = [group["lr_parent"] for group in optimizer.param_groups]
            self.mode, self._hooks = "groups", RateGuard(optimizer, parents, schedulers)
        elif apply == "step" or (apply == "auto" and odd):
            self._scaled_step = ScaledStep(optimizer, make_plan)
            self.mode, self._hooks = "step", self._scaled_step
        elif odd:
            raise SuiteError(
                f"apply='groups' cannot scale {type(odd[0]).__name__}: its schedule is not known "
                "to be proportional to the base learning rate (a floor such as eta_min > 0, a "
                "threshold such as ReduceLROnPlateau's eps > 0, or a class of your own). Use "
                "apply='step' or apply='auto'."
            )
        else:
            parents = split_groups(optimizer, make_plan(optimizer.param_groups))
            factors = [group["lr_factor"] for group in optimizer.param_groups]
            rescale_schedulers(schedulers, parents, factors)
            self.mode, self._hooks = "groups", RateGuard(optimizer, parents, schedulers)

    def effective_lrs(self) -> dict[str, float]:
        """Return group name (``depth_mup/hidden_first``) to the learning rate of the next step."""
        groups = self._optimizer.param_groups
        if self._scaled_step is None:
            return {group["name"]: float(group["lr"]) for group in groups}
        return {
            share.name: float(group["lr"]) * share.factors.lr
            for group, shares in zip(groups, self._scaled_step.plan, strict=True)
            for share in shares
        }

    def remove(self) -> None:
        """Take the hooks off. Split groups stay, so that they can still be saved."""
        self._hooks.remove()


def logged_lrs(optimizers: Sequence[AppliedFactors]) -> dict[str, float]:
    """Return metric key to the learning rate with which that role's parameters are trained."""
    lrs: dict[str, float] = {}
    for number, applied in enumerate(optimizers, start=1):
        prefix = f"optimizer{number}/" if len(optimizers) > 1 else ""
        for name, lr in applied.effective_lrs().items():
            lrs[f"depth_mup/lr/{prefix}{name.removeprefix('depth_mup/')}"] = lr
    return lrs
