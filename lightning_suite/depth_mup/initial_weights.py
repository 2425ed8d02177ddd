r"""Tell users whose fresh weights are not those that the rules assume.

The rules assume matrices whose entries have a variance of about 1/fan-in at every width and depth
(:math:`s = \mathrm{RMS}(W) \sqrt{\text{fan-in}}` of order one). Two customs break that: an initial
standard deviation that is one number for all widths, and ends of branches that start smaller by
:math:`1/\sqrt{2L}` (GPT-2), which is a residual multiplier of its own.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import fan_in
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.depth_mup.rules import Role
from lightning_suite.module_names import clean_name

_LEAST_DEPTH = 4  # below it 1/sqrt(2L) is no clear signal
_LEAST_SHARE = 0.6  # of sqrt(2L)
_ORDER_ONE = (1 / 3, 3.0)


@torch.no_grad()
def initial_scales(model: nn.Module, role_map: RoleMap) -> dict[Role, float]:
    """Return RMS(W) sqrt(fan-in) of the branches' matrices, a geometric mean for each role.

    Matrices of zeros are left out: they are a choice of their own.

    Args:
        model: A model whose weights are fresh.
        role_map: From :func:`~lightning_suite.depth_mup.roles.assign_roles`.
    """
    modules = dict(model.named_modules())
    logs: dict[Role, list[float]] = {}
    for name, parameter in model.named_parameters():
        role = role_map.roles.get(clean_name(name))
        if role not in ("hidden_first", "hidden_last") or parameter.ndim < 2 or parameter.is_meta:
            continue
        rms = float(parameter.float().square().mean().sqrt())
        if rms > 0:
            owner = modules[name.rpartition(".")[0]]
            logs.setdefault(role, []).append(math.log(rms * fan_in(parameter, owner, role) ** 0.5))
    return {role: math.exp(sum(values) / len(values)) for role, values in logs.items()}


def initial_weights_warning(
    model: nn.Module, role_map: RoleMap, parametrization: Parametrization
) -> str:
    """Return what to tell a user whose initial weights break the assumption; empty if none do.

    Args:
        model: A model whose weights are fresh and whose branches hooks will multiply.
        role_map: Its roles.
        parametrization: The rule and the shapes.
    """
    scales = initial_scales(model, role_map)
    found = []
    if role_map.depth >= _LEAST_DEPTH and len(scales) == 2:
        ratio = scales["hidden_first"] / scales["hidden_last"]
        if ratio > _LEAST_SHARE * math.sqrt(2 * role_map.depth):
            found.append(
                f"the last matrices of the branches are {ratio:.2g} times smaller than the others "
                f"(sqrt(2 x {role_map.depth} blocks) = {math.sqrt(2 * role_map.depth):.2g}): their "
                "initialisation holds a residual multiplier of its own, and the callback's comes "
                "on top"
            )
    if parametrization.base_width is not None:
        off = {r: s for r, s in scales.items() if not _ORDER_ONE[0] <= s <= _ORDER_ONE[1]}
        if off:
            listed = ", ".join(f"{role} {scale:.2g}" for role, scale in off.items())
            found.append(
                f"RMS(W) sqrt(fan-in) is {listed}, and learning rates move between widths only "
                "where it is about 1 at every width"
            )
    if not found:
        return ""
    return (
        f"initial weights: {'; and '.join(found)}. Say reinit=True to draw the weights that the "
        "rule assumes (and tune the base model with it as well), or initialise them so yourself."
    )
