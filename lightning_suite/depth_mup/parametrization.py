"""A rule together with the shapes that it compares: everything a factor depends on."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_suite.depth_mup import rules
from lightning_suite.depth_mup.rules import OptimizerFamily, Role, Rule
from lightning_suite.errors import SuiteError


@dataclass(frozen=True)
class Parametrization:
    """A rule, the base shape it is relative to, and the shape of the model at hand.

    Attributes:
        rule: One of :data:`~lightning_suite.depth_mup.rules.RULES`.
        base_depth: L0, residual blocks of the model on which the learning rate was tuned.
        depth: L, residual blocks of this model.
        base_width: n0, width of the base model; None leaves the width out (``width_ratio`` 1).
        width: n, width of this model; needed where ``base_width`` is given.
        p: Exponent of the depth-aware correction (``nfd`` only).

    Raises:
        SuiteError: A depth or width is not positive, the width is missing, or ``p`` and ``rule``
            do not go together.
    """

    rule: Rule
    base_depth: int
    depth: int
    base_width: int | None = None
    width: int | None = None
    p: float | None = None

    def __post_init__(self) -> None:
        rules.check_rule(self.rule)
        rules.correction_exponent(self.rule, self.p)
        for name in ("base_depth", "depth", "base_width", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SuiteError(f"{name}={value}, and it must be at least 1.")
        if self.base_width is not None and self.width is None:
            raise SuiteError(
                f"base_width={self.base_width} was given and the model's own width is not known. "
                "Give width=…, or leave base_width out to correct for depth alone."
            )

    @property
    def depth_ratio(self) -> float:
        """L / L0."""
        return self.depth / self.base_depth

    @property
    def width_ratio(self) -> float:
        """N / n0, and 1 where no base width was given."""
        if self.base_width is None or self.width is None:
            return 1.0
        return self.width / self.base_width

    def lr_factor(self, role: Role, family: OptimizerFamily) -> float:
        """See :func:`~lightning_suite.depth_mup.rules.lr_factor`."""
        return rules.lr_factor(role, self.rule, family, self.width_ratio, self.depth_ratio, self.p)

    def weight_decay_factor(self, role: Role, family: OptimizerFamily) -> float:
        """See :func:`~lightning_suite.depth_mup.rules.weight_decay_factor`."""
        return rules.weight_decay_factor(role, self.rule, family, self.width_ratio)

    def eps_factor(self, role: Role, family: OptimizerFamily) -> float:
        """See :func:`~lightning_suite.depth_mup.rules.eps_factor`."""
        return rules.eps_factor(role, self.rule, family, self.width_ratio, self.depth_ratio)

    def residual_multiplier(self, base_multiplier: float = 1.0) -> float:
        """See :func:`~lightning_suite.depth_mup.rules.residual_multiplier`."""
        return rules.residual_multiplier(self.rule, self.depth_ratio, base_multiplier)

    @property
    def readout_multiplier(self) -> float:
        """See :func:`~lightning_suite.depth_mup.rules.readout_multiplier`."""
        return rules.readout_multiplier(self.rule, self.width_ratio)
