"""Split an optimizer's parameter groups by role, and scale each share by its factors.

A user's group becomes one group per role, in the order of
:data:`~lightning_suite.depth_mup.rules.ROLES`; inside a group the parameters keep their order. All
other options of the group are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_suite.depth_mup import rules
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.rules import ROLES, OptimizerFamily, Role
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_name

# Options of a group that are learning rates; the last three are written by torch's schedulers.
LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")
# The parameters, and what torch keeps aligned with them.
PER_PARAMETER_KEYS = ("params", "param_names")
_UNDECAYED: tuple[Role, ...] = ("vector", "final_norm", "output_bias")

ParamGroup = dict[str, Any]


@dataclass(frozen=True)
class Factors:
    """By what the options of a group are multiplied."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True)
class Share:
    """One role's share of a user's parameter group.

    Attributes:
        name: Name of the new group, unique in its optimizer: ``depth_mup/hidden_first``.
        role: What these parameters do.
        factors: Their factors.
        indices: Their positions in the user's group.
    """

    name: str
    role: Role
    factors: Factors
    indices: tuple[int, ...]


Plan = list[list[Share]]
"""The shares of every user's group, in order."""


# Classes that add the decay to the gradient (L2), unless a group says otherwise.
_COUPLED_CLASSES = ("Adam", "NAdam", "RAdam", "Adamax", "SparseAdam", "SGD")


def has_decoupled_decay(optimizer: Optimizer) -> bool:
    """Whether ``optimizer`` multiplies weights by 1 - lr x decay, as AdamW does.

    The others (L2 regularisation) add decay x weight to the gradient, which Adam then divides by
    its size. Groups of one optimizer that differ count as coupled.
    """
    default = not any(cls.__name__ in _COUPLED_CLASSES for cls in type(optimizer).__mro__)
    default = bool(getattr(optimizer, "adam_w_mode", default))  # FusedAdam, DeepSpeedCPUAdam
    return all(group.get("decoupled_weight_decay", default) for group in optimizer.param_groups)


def role_factors(
    parametrization: Parametrization,
    family: OptimizerFamily,
    *,
    readout_multiplier: bool = True,
    decay_vectors: bool = True,
    decoupled_decay: bool = True,
) -> dict[Role, Factors]:
    """Return the factors of every role.

    Args:
        parametrization: The rule and the shapes.
        family: The optimizer's family.
        readout_multiplier: Whether the model multiplies its readout's input by 1/r_n; if it does
            not, the readout's learning rate makes up for it.
        decay_vectors: False sets the weight decay of norms and biases to 0.
        decoupled_decay: :func:`has_decoupled_decay`. Decay that is not multiplied by the learning
            rate needs no factor to make up for it.
    """
    factors = {
        role: Factors(
            parametrization.lr_factor(role, family),
            parametrization.weight_decay_factor(role, family) if decoupled_decay else 1.0,
            parametrization.eps_factor(role, family),
        )
        for role in ROLES
    }
    if not readout_multiplier:
        lr = rules.unscaled_readout_lr_factor(
            parametrization.rule, family, parametrization.width_ratio
        )
        factors["output"] = Factors(lr)
    if not decay_vectors:
        for role in _UNDECAYED:
            factors[role] = Factors(factors[role].lr, 0.0, factors[role].eps)
    return factors


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return ``id(parameter)`` to clean name, for the optimizers of ``model``."""
    return {id(p): clean_name(name) for name, p in model.named_parameters()}


def plan_groups(
    param_groups: Sequence[ParamGroup],
    names: Mapping[int, str],
    roles: Mapping[str, Role],
    factors: Mapping[Role, Factors],
) -> Plan:
    """Say how the groups of an optimizer are to be split.

    Args:
        param_groups: ``optimizer.param_groups``.
        names: From :func:`parameter_names`.
        roles: Parameter name to role.
        factors: From :func:`role_factors`.

    Raises:
        SuiteError: A parameter does not belong to the model, or has no role.
    """
    plan: Plan = []
    for number, group in enumerate(param_groups, start=1):
        positions: dict[Role, list[int]] = {}
        for index, parameter in enumerate(group["params"]):
            role = _role_of(parameter, names, roles, number, index)
            positions.setdefault(role, []).append(index)
        prefix = "depth_mup/" + _group_prefix(group, number, len(param_groups))
        plan.append(
            [
                Share(prefix + role, role, factors[role], tuple(positions[role]))
                for role in ROLES
                if role in positions
            ]
        )
    seen = [share.name for shares in plan for share in shares]
    repeated = sorted({name for name in seen if seen.count(name) > 1})
    if repeated:
        raise SuiteError(
            f"two parameter groups of one optimizer have the same name: {', '.join(repeated)}. "
            "Give the groups different names, or none."
        )
    return plan


def planner(
    model: nn.Module, roles: Mapping[str, Role], factors: Mapping[Role, Factors]
) -> Callable[[Sequence[ParamGroup]], Plan]:
    """Return :func:`plan_groups` for the optimizers of ``model``, with the names of its call."""

    def plan(param_groups: Sequence[ParamGroup]) -> Plan:
        return plan_groups(param_groups, parameter_names(model), roles, factors)

    return plan


def _group_prefix(group: ParamGroup, number: int, count: int) -> str:
    if group.get("name"):
        return f"{group['name']}/"
    return f"pg{number}/" if count > 1 else ""


def _role_of(
    parameter: torch.Tensor,
    names: Mapping[int, str],
    roles: Mapping[str, Role],
    number: int,
    index: int,
) -> Role:
    name = names.get(id(parameter))
    if name is None:
        raise SuiteError(
            f"parameter {index} (shape {tuple(parameter.shape)}) of the optimizer's group {number} "
            "does not belong to the LightningModule. Register the module that owns it as an "
            "attribute of the LightningModule, so that it has a name and a role."
        )
    if name not in roles and not parameter.requires_grad:
        raise SuiteError(
            f"the optimizer's group {number} holds the frozen parameter {name!r}, which is no part "
            "of the network whose depth is corrected and has no role. Give the optimizer only what "
            "it trains: (p for p in self.parameters() if p.requires_grad)."
        )
    if name not in roles:
        raise SuiteError(
            f"the parameter {name!r} came into the model after its roles were assigned. Create it "
            "before training starts (in __init__, setup or configure_model)."
        )
    return roles[name]


def scale(value: Any, factor: float) -> Any:
    """Multiply a learning rate; a tensor stays a tensor of its own, factor 1 changes no bit."""
    if isinstance(value, torch.Tensor):
        return value * factor if factor != 1.0 else value.clone()
    return value * factor if factor != 1.0 else value


def scaled_options(group: ParamGroup, factors: Factors) -> ParamGroup:
    """Return the options of ``group``, without its parameters, multiplied by ``factors``."""
    options = dict(group)
    for key in PER_PARAMETER_KEYS:
        options.pop(key, None)
    for key in LR_KEYS:
        if key in options:
            options[key] = scale(options[key], factors.lr)
    if "weight_decay" in options:
        options["weight_decay"] = scale(options["weight_decay"], factors.weight_decay)
    if isinstance(options.get("eps"), float):  # Adafactor's pair is a relative threshold
        options["eps"] = scale(options["eps"], factors.eps)
    return options


def split_group(group: ParamGroup, share: Share, parent: int = 0) -> ParamGroup:
    """Return the new group that holds ``share`` of the user's ``group``, its number ``parent``."""
    new: ParamGroup = {
        key: [group[key][index] for index in share.indices]
        for key in PER_PARAMETER_KEYS
        if key in group
    }
    return {
        **new,
        **scaled_options(group, share.factors),
        "name": share.name,
        "lr_factor": share.factors.lr,
        "lr_parent": parent,
    }


def is_split(optimizer: Optimizer) -> bool:
    """Whether the groups were split before, by an earlier fit with the same optimizer object."""
    return any("lr_factor" in group for group in optimizer.param_groups)


def split_groups(optimizer: Optimizer, plan: Plan) -> list[int]:
    """Split the groups of ``optimizer`` in place.

    Args:
        optimizer: Its state, if any, is kept: torch keys it by parameter.
        plan: From :func:`plan_groups`.

    Returns:
        For every new group, the number of the user's group that it comes from.
    """
    new = [
        (parent, split_group(group, share, parent))
        for parent, (group, shares) in enumerate(zip(optimizer.param_groups, plan, strict=True))
        for share in shares
    ]
    optimizer.param_groups[:] = [group for _, group in new]  # others may hold this very list
    return [parent for parent, _ in new]


def check_already_split(optimizer: Optimizer, plan: Plan) -> None:
    """Check that the groups that an earlier fit left are those that this fit would make.

    Args:
        optimizer: An optimizer whose groups are split.
        plan: :func:`plan_groups` of the split groups.

    Raises:
        SuiteError: They carry other factors.
    """
    for group, shares in zip(optimizer.param_groups, plan, strict=True):
        if [share.factors.lr for share in shares] != [group.get("lr_factor")]:
            raise SuiteError(
                f"the optimizer's group {group.get('name')!r} was scaled by "
                f"{group.get('lr_factor')} in an earlier fit, and this fit asks for "
                f"{', '.join(f'{s.role}: {s.factors.lr:g}' for s in shares)}. Let "
                "configure_optimizers return a new optimizer."
            )
