"""Apply the factors inside the optimizer's step only, and leave its groups alone outside.

Right for every scheduler and for code that assigns ``group["lr"]`` by hand: between two steps the
optimizer has the user's own groups with the base model's learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup.param_groups import (
    LR_KEYS,
    PER_PARAMETER_KEYS,
    ParamGroup,
    Plan,
    Share,
    scaled_options,
    split_group,
)
from lightning_suite.errors import SuiteError

_REPLACED_KEYS = (*LR_KEYS, *PER_PARAMETER_KEYS, "weight_decay", "eps", "name")


class ScaledStep:
    """Hooks that give ``optimizer`` split and scaled groups while it updates the weights.

    A closure (Lightning's automatic optimization runs forward and backward in one) still sees the
    user's groups. ``optimizer.state_dict()`` never holds a scaled value, not even after a step
    that failed half-way.

    Args:
        optimizer: Any torch optimizer that calls its closure before it uses its groups.
        make_plan: Returns the plan for given groups (see
            :func:`~lightning_suite.depth_mup.param_groups.plan_groups`); called again when
            groups or parameters are added.
    """

    def __init__(
        self, optimizer: Optimizer, make_plan: Callable[[Sequence[ParamGroup]], Plan]
    ) -> None:
        self._optimizer = optimizer
        self._make_plan = make_plan
        self._plan: Plan = []
        self._sizes: list[int] = []
        self._scaled: list[ParamGroup] = []
        self._split()
        self._own: list[ParamGroup] | None = None
        self._checked = False
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(lambda _: self._leave()),
        ]

    @property
    def plan(self) -> Plan:
        """How the groups are split during a step."""
        return self._plan

    def remove(self) -> None:
        """Take all hooks off the optimizer; its groups are the user's own."""
        self._leave()
        for handle in self._handles:
            handle.remove()

    def _current_sizes(self) -> list[int]:
        return [len(group["params"]) for group in self._optimizer.param_groups]

    def _shares(self) -> Iterator[tuple[ParamGroup, Share]]:
        """Every share with the user's group that it belongs to."""
        for group, shares in zip(self._optimizer.param_groups, self._plan, strict=True):
            for share in shares:
                yield group, share

    def _split(self) -> None:
        self._plan = self._make_plan(self._optimizer.param_groups)
        self._sizes = self._current_sizes()
        self._scaled = [split_group(group, share) for group, share in self._shares()]

    def _enter(self) -> None:
        if self._sizes != self._current_sizes():
            self._split()
        for scaled, (group, share) in zip(self._scaled, self._shares(), strict=True):
            scaled.update(scaled_options(group, share.factors))
        self._own = self._optimizer.param_groups
        self._optimizer.param_groups = self._scaled

    def _leave(self) -> None:
        if self._own is not None:
            self._optimizer.param_groups = self._own
            self._own = None

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._leave()  # the last step may have failed half-way
        by_position = len(args) > 1  # args[0] is the optimizer
        closure = args[1] if by_position else kwargs.get("closure")
        if closure is None:
            self._enter()
            return None

        def then_enter() -> Any:
            self._leave()
            result = closure()
            self._enter()
            return result

        if by_position:
            return (optimizer, then_enter, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_enter}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._own is None:
            raise SuiteError(
                f"{type(optimizer).__name__} updated the weights without calling its closure, so "
                "that the learning-rate factors were not applied. Use apply='groups'."
            )
        if not self._checked:
            self._leave()
            self._check_options_kept()
            self._checked = True
        self._leave()

    def _check_options_kept(self) -> None:
        for after, (group, _) in zip(self._scaled, self._shares(), strict=True):
            for key, value in group.items():
                if key not in _REPLACED_KEYS and after[key] is not value:
                    raise SuiteError(
                        f"{type(self._optimizer).__name__} keeps a running value ({key!r}) in its "
                        "parameter groups, which apply='step' would lose. Use apply='groups' "
                        "with a scheduler whose schedule is proportional to its base rate."
                    )
