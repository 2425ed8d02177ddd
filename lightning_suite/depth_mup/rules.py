r"""The learning-rate rules as pure functions of a role, a width ratio and a depth ratio.

Every factor is relative to a *base model* of width :math:`n_0` and depth :math:`L_0`, the one on
which the learning rate was tuned: with ``width_ratio = n / n0`` and ``depth_ratio = L / L0``, all
factors are exactly 1 at the base shape.

Where each statement comes from:

* ``mup`` and ``depth_mup``: Yang et al., arXiv 2310.02244 (Tensor Programs VI).
* ``completep``: Dey et al., arXiv 2505.01618, with its AdamW table (weight decay, epsilon); its
  SGD rates for vectors: Zheng et al., arXiv 2603.00541.
* ``nfd``: the depth-aware correction of Neural Feature Dynamics, arXiv 2512.21075. The formula was
  derived from the abstract and checked numerically. The paper treats SGD; the Adam form here is
  an extrapolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_suite.errors import SuiteError, did_you_mean

Rule = Literal["sp", "mup", "depth_mup", "nfd", "completep"]
RuleOrAuto = Literal["auto", "sp", "mup", "depth_mup", "nfd", "completep"]
Role = Literal[
    "input",
    "hidden_first",
    "hidden_last",
    "hidden_stream",
    "vector",
    "output",
    "output_bias",
    "final_norm",
]
OptimizerFamily = Literal["sgd", "adam"]

RULES: tuple[Rule, ...] = get_args(Rule)
ROLES: tuple[Role, ...] = get_args(Role)
FAMILIES: tuple[OptimizerFamily, ...] = get_args(OptimizerFamily)

# The exponent alpha of the residual multiplier c = c0 * depth_ratio ** -alpha.
_RESIDUAL_EXPONENT: dict[Rule, float] = {
    "sp": 0.0,
    "mup": 0.0,
    "depth_mup": 0.5,
    "nfd": 0.5,
    "completep": 1.0,
}

# p of the paper's correction: W1's rate grows like depth_ratio ** p relative to depth_mup.
_DEFAULT_CORRECTION = 0.5


@dataclass(frozen=True)
class _Exponents:
    """A factor is ``width_ratio ** width * depth_ratio ** depth``."""

    width: float = 0.0
    depth: float = 0.0


def check_rule(rule: str) -> Rule:
    """Return ``rule``, or raise a :class:`SuiteError` that lists the rules that exist."""
    if rule not in RULES:
        raise SuiteError(
            f"unknown rule {rule!r}.{did_you_mean(rule, RULES)} The rules are: {', '.join(RULES)}."
        )
    return rule


def rule_for(rule: RuleOrAuto, optimizer_family: OptimizerFamily, p: float | None = None) -> Rule:
    """Return the rule that ``"auto"`` stands for; any other rule is returned as it is.

    The correction of ``nfd`` was derived for SGD. Its Adam form is an extrapolation that moved the
    best rate with depth where ``depth_mup`` did not (docs/depth_mup.md), so it is not a default.
    Both rules have the same multipliers on branches and readout.

    Args:
        rule: One of :data:`RULES`, or ``"auto"``.
        optimizer_family: ``"sgd"`` or ``"adam"``.
        p: The exponent that the user gave for the correction; it asks for ``nfd``.

    Returns:
        For ``"auto"``: ``nfd`` under SGD or where ``p`` is given, ``depth_mup`` under Adam.

    Raises:
        SuiteError: There is no such rule.

    Example:
        >>> rule_for("auto", "sgd"), rule_for("auto", "adam"), rule_for("auto", "adam", p=0.25)
        ('nfd', 'depth_mup', 'nfd')
    """
    if rule != "auto":
        if rule not in RULES:
            choices = ("auto", *RULES)
            raise SuiteError(
                f"unknown rule {rule!r}.{did_you_mean(rule, choices)} The rules are: "
                f"{', '.join(choices)}."
            )
        return rule
    return "nfd" if optimizer_family == "sgd" or p is not None else "depth_mup"


def check_role(role: str) -> Role:
    """Return ``role``, or raise a :class:`SuiteError` that lists the roles that exist."""
    if role not in ROLES:
        raise SuiteError(
            f"unknown role {role!r}.{did_you_mean(role, ROLES)} The roles are: {', '.join(ROLES)}."
        )
    return role


def correction_exponent(rule: Rule, p: float | None) -> float:
    """Return the exponent p of the depth-aware correction that ``rule`` uses.

    Args:
        rule: One of :data:`RULES`.
        p: Between 0 (plain depth-muP) and 1/2 (the paper's correction); None for the rule's own.

    Returns:
        1/2 for ``nfd`` unless ``p`` says otherwise, 0 for every other rule.

    Raises:
        SuiteError: ``p`` is outside [0, 1/2], or a rule without a correction was given one.
    """
    if rule != "nfd":
        if p not in (None, 0, 0.0):
            raise SuiteError(
                f"the correction exponent p={p} belongs to the rule 'nfd', and the rule is "
                f"{rule!r}. Leave p out, or use rule='nfd'."
            )
        return 0.0
    if p is None:
        return _DEFAULT_CORRECTION
    if not 0.0 <= p <= _DEFAULT_CORRECTION:
        raise SuiteError(
            f"the correction exponent is p={p}, and it must lie between 0 (plain depth-muP) and "
            "0.5 (the paper's correction)."
        )
    return float(p)


def _check_ratio(name: str, ratio: float) -> None:
    if not (math.isfinite(ratio) and ratio > 0):
        raise SuiteError(f"{name} is {ratio}, and it must be a positive finite number.")


def _sgd_exponents(role: Role, rule: Rule, p: float) -> _Exponents:
    completep = rule == "completep"
    match role:
        case "hidden_first":
            return _Exponents(depth=1.0 if completep else p)
        case "hidden_last":
            return _Exponents(depth=1.0 if completep else 0.0)
        case "vector":
            return _Exponents(width=1.0, depth=1.0 if completep else 0.0)
        case "input" | "final_norm" | "output":
            return _Exponents(width=1.0)
        case _:  # hidden_stream: a hidden matrix outside the branches; output_bias: no width
            return _Exponents()


def _adam_exponents(role: Role, rule: Rule, p: float) -> _Exponents:
    # TP6: every update inside a block must shrink by the branch multiplier's own exponent;
    # CompleteP's multiplier 1/L does that on its own.
    depth = -0.5 if rule in ("depth_mup", "nfd") else 0.0
    match role:
        case "hidden_first":
            return _Exponents(width=-1.0, depth=depth + p)
        case "hidden_last":
            return _Exponents(width=-1.0, depth=depth)
        case "hidden_stream":
            return _Exponents(width=-1.0)
        case "vector":
            return _Exponents(depth=depth)
        case _:
            return _Exponents()


def lr_factor(
    role: Role,
    rule: Rule,
    optimizer_family: OptimizerFamily,
    width_ratio: float = 1.0,
    depth_ratio: float = 1.0,
    p: float | None = None,
) -> float:
    """Return the factor by which the base model's learning rate is multiplied.

    The factors of ``output`` assume the readout multiplier of :func:`readout_multiplier`; see
    :func:`unscaled_readout_lr_factor` for a model that has none.

    Args:
        role: What the parameter does in the network, one of :data:`ROLES`.
        rule: One of :data:`RULES`.
        optimizer_family: ``"sgd"`` or ``"adam"`` (see
            :func:`~lightning_suite.depth_mup.families.optimizer_family`).
        width_ratio: n / n0.
        depth_ratio: L / L0.
        p: Exponent of the depth-aware correction, for ``nfd`` only; default 1/2.

    Returns:
        A positive number; exactly 1.0 where both ratios are 1.

    Raises:
        SuiteError: An argument is not one of the values above.

    Example:
        >>> lr_factor("hidden_first", "nfd", "sgd", depth_ratio=16)
        4.0
        >>> lr_factor("hidden_first", "depth_mup", "adam", width_ratio=2, depth_ratio=16)
        0.125
    """
    check_rule(rule)
    check_role(role)
    if optimizer_family not in FAMILIES:
        raise SuiteError(
            f"unknown optimizer family {optimizer_family!r}; the families are: "
            f"{', '.join(FAMILIES)}."
        )
    _check_ratio("width_ratio", width_ratio)
    _check_ratio("depth_ratio", depth_ratio)
    correction = correction_exponent(rule, p)
    if rule == "sp":
        return 1.0
    exponents = (_sgd_exponents if optimizer_family == "sgd" else _adam_exponents)(
        role, rule, correction
    )
    return float(width_ratio**exponents.width * depth_ratio**exponents.depth)


def unscaled_readout_lr_factor(
    rule: Rule, optimizer_family: OptimizerFamily, width_ratio: float = 1.0
) -> float:
    """Return the factor of the readout's matrix in a model *without* a readout multiplier.

    Moving the multiplier 1/r_n into the weight (v' = v / r_n) divides an Adam rate by r_n and an
    SGD rate by r_n squared; both end at 1/r_n.
    """
    _check_ratio("width_ratio", width_ratio)
    scaled = lr_factor("output", rule, optimizer_family, width_ratio)
    if rule == "sp":
        return scaled
    return float(scaled / width_ratio ** (1.0 if optimizer_family == "adam" else 2.0))


def weight_decay_factor(
    role: Role, rule: Rule, optimizer_family: OptimizerFamily, width_ratio: float = 1.0
) -> float:
    """Return the factor of the weight decay (CompleteP's AdamW table).

    AdamW multiplies the decay by the learning rate, which shrinks like 1/r_n for hidden matrices;
    the decay grows by r_n to keep the product. It is 1 for every other role, for SGD (whose
    hidden rates do not depend on the width) and for ``sp``.
    """
    _check_ratio("width_ratio", width_ratio)
    hidden = role in ("hidden_first", "hidden_last", "hidden_stream")
    if rule == "sp" or optimizer_family != "adam" or not hidden:
        return 1.0
    return float(width_ratio)


def eps_factor(
    role: Role,
    rule: Rule,
    optimizer_family: OptimizerFamily,
    width_ratio: float = 1.0,
    depth_ratio: float = 1.0,
) -> float:
    """Return the factor of Adam's epsilon (CompleteP's AdamW table).

    Epsilon must shrink with the gradients that it is compared with, or it takes over in a wide or
    deep model: like r_n^-1 r_L^-alpha inside the residual blocks, like r_n^-1 outside of them. The
    gradient of a readout's bias depends on neither.
    """
    _check_ratio("width_ratio", width_ratio)
    _check_ratio("depth_ratio", depth_ratio)
    if rule == "sp" or optimizer_family != "adam" or role == "output_bias":
        return 1.0
    inside = role in ("hidden_first", "hidden_last", "vector")
    depth = depth_ratio ** -residual_exponent(rule) if inside else 1.0
    return float(width_ratio**-1.0 * depth)


def residual_exponent(rule: Rule) -> float:
    """Return alpha of the residual multiplier c = c0 r_L^-alpha."""
    return _RESIDUAL_EXPONENT[check_rule(rule)]


def residual_multiplier(
    rule: Rule, depth_ratio: float = 1.0, base_multiplier: float = 1.0
) -> float:
    """Return c = c0 r_L^-alpha, the factor on every residual branch.

    Args:
        rule: One of :data:`RULES`.
        depth_ratio: L / L0.
        base_multiplier: c0, the branch multiplier of the base model.
    """
    _check_ratio("depth_ratio", depth_ratio)
    return float(base_multiplier * depth_ratio ** -residual_exponent(rule))


def readout_multiplier(rule: Rule, width_ratio: float = 1.0) -> float:
    """Return the factor on the readout's input: 1 / r_n, and 1 under ``sp``."""
    _check_ratio("width_ratio", width_ratio)
    return 1.0 if check_rule(rule) == "sp" else 1.0 / width_ratio
