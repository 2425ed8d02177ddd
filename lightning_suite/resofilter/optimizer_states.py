"""What an optimizer remembers of the watched weights: the states that ``adam_mean_abs`` reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_suite.depth_mup.param_groups import has_decoupled_decay
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.step_features import AdamState
from lightning_suite.resofilter.targets import Target

_DECOUPLED = "decoupled_weight_decay"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def adam_states(
    optimizers: Sequence[Optimizer],
    saved: Sequence[Mapping[str, Any]],
    targets: Iterable[Target],
) -> tuple[dict[str, AdamState], dict[str, float]]:
    """Return Adam's state of each watched weight, and the settings of its step.

    A saved state knows parameters by their place, so the optimizers must be made as those were
    whose state was saved: the same groups, in the same order.

    Args:
        optimizers: As the module makes them; they are read and not changed.
        saved: The ``state_dict`` of each.
        targets: What is watched.

    Returns:
        State by the target's name, and ``beta1``, ``beta2``, ``eps`` and ``weight_decay`` of
        ``AdamMeanAbs``. The learning rate is left out: it is a factor of the change, and 0 at the
        end of many schedules.

    Raises:
        SuiteError: The states are of other parameters or of another kind of optimizer, hold none
            of the watched weights, or the weights' settings differ.
    """
    if len(optimizers) != len(saved):
        raise SuiteError(
            f"the checkpoint has states of {len(saved)} optimizers, and the model makes "
            f"{len(optimizers)}. Give the model and optimizer of the run that wrote it."
        )
    states: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for optimizer, state in zip(optimizers, saved, strict=True):
        states.update(_by_parameter(optimizer, state))
    found: dict[str, AdamState] = {}
    settings: dict[str, dict[str, float]] = {}
    for target in targets:
        parameter: Tensor = getattr(target.module, target.parameter)
        if id(parameter) not in states:
            continue
        state, group = states[id(parameter)]
        _check(state, group, target.name, parameter)
        found[target.name] = AdamState(
            target.as_matrix(state["exp_avg"]),
            target.as_matrix(state["exp_avg_sq"]),
            int(state["step"]),
        )
        beta1, beta2 = (float(beta) for beta in group["betas"])
        settings[target.name] = {
            "beta1": beta1,
            "beta2": beta2,
            "eps": float(group["eps"]),
            "weight_decay": float(group["weight_decay"]),
        }
    if not found:
        raise SuiteError(
            "the checkpoint's optimizer holds no state of any watched weight: they were frozen, or "
            "no step had been made. Watch weights that were trained (--modules, --layers)."
        )
    (first, common), *rest = settings.items()
    for name, other in rest:
        for key, value in other.items():
            if value != common[key]:
                raise SuiteError(
                    f"the optimizer in the checkpoint has {key}={common[key]:g} for {first} and "
                    f"{value:g} for {name}. Watch them in two runs (--modules, --layers, --out)."
                )
    return found, common


def _by_parameter(
    optimizer: Optimizer, saved: Mapping[str, Any]
) -> Iterator[tuple[int, tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    """Yield ``id`` of each parameter that has a state, with that state and its group's settings."""
    groups, their_groups = optimizer.param_groups, saved["param_groups"]
    sizes, their_sizes = ([len(g["params"]) for g in some] for some in (groups, their_groups))
    if sizes != their_sizes:
        raise SuiteError(
            f"the checkpoint's optimizer has groups of {their_sizes} parameters, and the one that "
            f"the model makes has {sizes}. Give the model and optimizer of the run that wrote it; "
            "groups that a callback split, such as DepthMuPLRCallback, cannot be told apart here."
        )
    decoupled = has_decoupled_decay(optimizer)  # Adam's groups do not say so before torch 2.7
    for group, theirs in zip(groups, their_groups, strict=True):
        for parameter, place in zip(group["params"], theirs["params"], strict=True):
            if place in saved["state"]:
                yield id(parameter), (saved["state"][place], {_DECOUPLED: decoupled, **theirs})


def _check(
    state: Mapping[str, Any], group: Mapping[str, Any], name: str, parameter: Tensor
) -> None:
    if missing := [key for key in _MOMENTS if key not in state]:
        raise SuiteError(
            f"the checkpoint's optimizer remembers {', '.join(state) or 'nothing'} of {name}, and "
            f"not {', '.join(missing)}: adam_mean_abs needs the state of Adam or AdamW."
        )
    if state["exp_avg"].shape != parameter.shape:
        raise SuiteError(
            f"the checkpoint's optimizer has a state of shape {tuple(state['exp_avg'].shape)} for "
            f"{name}, which is {tuple(parameter.shape)}: it is another model's, or another order."
        )
    unlike = [key for key in ("amsgrad", "maximize") if group.get(key)]
    if group["weight_decay"] and not group[_DECOUPLED]:
        unlike.append("an L2 penalty instead of decoupled weight decay")
    if unlike:
        raise SuiteError(
            f"the checkpoint's optimizer uses {', '.join(unlike)}, and adam_mean_abs is a step of "
            "AdamW without it."
        )
