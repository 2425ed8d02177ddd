"""Apply factors to optimizers and their schedulers, by the mechanism that suits each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lightning_suite.depth_mup.correction import Correction
from lightning_suite.depth_mup.param_groups import (
    ParamGroup,
    Plan,
    check_already_split,
    has_decoupled_decay,
    is_split,
    planner,
    split_groups,
)
from lightning_suite.depth_mup.rate_guard import RateGuard
from lightning_suite.depth_mup.rules import OptimizerFamily, Rule
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


class AppliedCorrection:
    """A correction on the optimizers of a training, until :meth:`remove`.

    Attributes:
        rules: The rule of each optimizer; kept after :meth:`remove`.
        modes: The mechanism of each optimizer; kept likewise.
    """

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.modes: list[str] = []
        self._applied: list[AppliedFactors] = []

    @property
    def is_active(self) -> bool:
        """Whether there is an optimizer whose rates are corrected."""
        return bool(self._applied)

    def add(
        self,
        optimizer: Optimizer,
        schedulers: Iterable[Any],
        model: nn.Module,
        correction: Correction,
        *,
        family: OptimizerFamily,
        apply: ApplyMode = "auto",
        decay_vectors: bool = True,
    ) -> str:
        """Correct the rates of one more optimizer.

        Args:
            optimizer: As for :class:`AppliedFactors`.
            schedulers: Those of all optimizers.
            model: Whose parameters are trained.
            correction: Of the model.
            family: The law that the optimizer follows.
            apply: As for :class:`AppliedFactors`.
            decay_vectors: Whether norms and biases keep their weight decay.

        Returns:
            What was done, with the table of roles and factors.

        Raises:
            SuiteError: The rates cannot be corrected in this way.
        """
        factors = correction.factors(
            family, decay_vectors=decay_vectors, decoupled_decay=has_decoupled_decay(optimizer)
        )
        own = [s for s in schedulers if getattr(s, "optimizer", optimizer) is optimizer]
        plan = planner(model, correction.role_map.roles, factors)
        applied = AppliedFactors(optimizer, own, plan, apply)
        self._applied.append(applied)
        self.modes.append(applied.mode)
        self.rules.append(correction.under(family).rule)
        described = correction.describe(family, factors)
        return f"{type(optimizer).__name__} ({applied.mode}): {described}"

    def effective_lrs(self) -> dict[str, float]:
        """Return metric key to the learning rate with which that role's parameters are trained."""
        lrs: dict[str, float] = {}
        for number, applied in enumerate(self._applied, start=1):
            prefix = f"optimizer{number}/" if len(self._applied) > 1 else ""
            for name, lr in applied.effective_lrs().items():
                lrs[f"depth_mup/lr/{prefix}{name.removeprefix('depth_mup/')}"] = lr
        return lrs

    def remove(self) -> None:
        """Take the hooks off all optimizers, and let them go."""
        for applied in self._applied:
            applied.remove()
        self._applied = []
