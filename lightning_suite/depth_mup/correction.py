"""What a rule asks of one model: the role of each parameter, the shapes, and the multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from torch import nn

from lightning_suite.depth_mup.multipliers import Multipliers, ScaleMode, choose_multipliers
from lightning_suite.depth_mup.param_groups import Factors, role_factors
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.role_table import format_table
from lightning_suite.depth_mup.roles import RoleMap, assign_roles
from lightning_suite.depth_mup.rules import (
    OptimizerFamily,
    Role,
    RuleOrAuto,
    correction_exponent,
    rule_for,
)
from lightning_suite.errors import SuiteError, check_choice


@dataclass(frozen=True)
class Correction:
    """A rule on one model; the model is not changed by it.

    Attributes:
        rule: As it was asked for; ``"auto"`` stands for a rule of each family of optimizers.
        role_map: The model's blocks, and the role of each parameter.
        parametrization: The rule for SGD, and the shapes. The rules that ``"auto"`` stands for
            have the same multipliers and differ in their learning rates: see :meth:`under`.
        multipliers: Who multiplies branches and readout.
    """

    rule: RuleOrAuto
    role_map: RoleMap
    parametrization: Parametrization
    multipliers: Multipliers

    def under(self, family: OptimizerFamily) -> Parametrization:
        """Return the shapes with the rule for optimizers of ``family``."""
        rule = rule_for(self.rule, family, self.parametrization.p)
        return replace(self.parametrization, rule=rule)

    def factors(
        self,
        family: OptimizerFamily,
        *,
        decay_vectors: bool = True,
        decoupled_decay: bool = True,
    ) -> dict[Role, Factors]:
        """Return the factors of every role under optimizers of ``family``.

        Args:
            family: ``"sgd"`` or ``"adam"``.
            decay_vectors: False sets the weight decay of norms and biases to 0.
            decoupled_decay: :func:`~lightning_suite.depth_mup.param_groups.has_decoupled_decay`.
        """
        return role_factors(
            self.under(family),
            family,
            readout_multiplier=self.multipliers.readout_is_scaled,
            decay_vectors=decay_vectors,
            decoupled_decay=decoupled_decay,
        )

    def describe(self, family: OptimizerFamily, factors: Mapping[Role, Factors]) -> str:
        """Say rule, shapes and multipliers in a line, over the table of roles and factors."""
        shapes = self.under(family)
        return (
            f"rule {shapes.rule}, depth {shapes.depth} / {shapes.base_depth}, "
            f"width ratio {shapes.width_ratio:g}, residual multiplier: {self.multipliers.note}, "
            f"readout multiplier by hooks: {self.multipliers.readout:g}\n"
            + format_table(self.role_map, factors)
        )


def check_settings(
    rule: RuleOrAuto,
    p: float | None,
    residual_scale: ScaleMode,
    readout_scale: ScaleMode,
    **sizes: int | None,
) -> None:
    """Check what :func:`plan_correction` is given, as far as that needs no model.

    Args:
        rule: A rule, or ``"auto"``.
        p: Exponent of the depth-aware correction.
        residual_scale: Who multiplies the branches.
        readout_scale: Who multiplies the readout.
        sizes: Depths and widths by their names.

    Raises:
        SuiteError: A value is unknown or out of range, or ``rule`` and ``p`` do not go together.
    """
    for name, value in sizes.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise SuiteError(f"{name}={value!r}, and it must be a whole number of at least 1.")
    correction_exponent(rule_for(rule, "sgd", p), p)
    check_choice("residual_scale", residual_scale, get_args(ScaleMode))
    check_choice("readout_scale", readout_scale, get_args(ScaleMode))


def plan_correction(
    model: nn.Module,
    rule: RuleOrAuto,
    base_depth: int,
    base_width: int | None = None,
    p: float | None = None,
    *,
    blocks: str | None = None,
    preset: str = "auto",
    patterns: Mapping[str, Role] | None = None,
    width: int | None = None,
    residual_scale: ScaleMode = "auto",
    readout_scale: ScaleMode = "auto",
    pretrained: bool | None = None,
) -> Correction:
    """Find a model's blocks and roles, and say what the rule asks of it.

    Args:
        model: Any module with residual blocks in it.
        rule: A rule, or ``"auto"``.
        base_depth: L0, residual blocks of the base model.
        base_width: n0, its width; None corrects for depth alone.
        p: Exponent of the depth-aware correction (``nfd`` only).
        blocks: See :func:`~lightning_suite.depth_mup.roles.assign_roles`; likewise ``preset`` and
            ``patterns``.
        preset: Name of the architecture's preset.
        patterns: Regular expression over parameter names to role.
        width: n, where it cannot be read off the model.
        residual_scale: See :func:`~lightning_suite.depth_mup.multipliers.choose_multipliers`;
            likewise ``readout_scale`` and ``pretrained``.
        readout_scale: Who multiplies the readout.
        pretrained: Whether the weights come from elsewhere.

    Raises:
        SuiteError: Blocks, roles or the width cannot be found, or the model was built with
            multipliers of another rule or base shape.
    """
    role_map = assign_roles(model, blocks=blocks, preset=preset, patterns=patterns)
    own_width = (width or role_map.width) if base_width is not None else None
    parametrization = Parametrization(
        rule_for(rule, "sgd", p), base_depth, role_map.depth, base_width, own_width, p
    )
    multipliers = choose_multipliers(
        model,
        parametrization,
        role_map,
        residual_scale=residual_scale,
        readout_scale=readout_scale,
        pretrained=pretrained,
    )
    return Correction(rule, role_map, parametrization, multipliers)
