r"""The coordinate check: how each quantity of the feature dynamics scales with depth (or width).

A few optimizer steps at every size, then the slope of log(quantity) against log(size). A rule is
what it says it is where the slopes are what theory or an earlier measurement says.

The expected slopes in L were measured for tanh residual nets with two matrices a branch,
``branch_input="activation"`` and a normal readout, one step at a small learning rate, SGD; Adam
was within 0.05. What they say about the correction ``nfd`` (arXiv 2512.21075): it restores
learning in the first matrices (slope 0 instead of -1/2), and the sum of what they add to the
stream grows like :math:`L^{1/2}`, because :math:`W_2 D^2 W_2^\top` has a coherent mean. That drift
is gone when the backward pass uses independent weights (:func:`attach_independent_backward`), the
assumption of a gradient-independence analysis. The check reports both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup import dynamics, rules
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.probe import StreamProbe
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.depth_mup.rules import OptimizerFamily, Rule
from lightning_suite.depth_mup.slopes import Slope, fit_slope
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_name, modules_by_name

Axis = Literal["depth", "width"]

# The quantities whose slopes are judged.
CHECKED = ("first_update", "last_update", "first_stream", "last_stream")

# Slopes in L of CHECKED, in this order. Measured, see the module's docstring.
_EXPECTED_IN_DEPTH: dict[Rule, tuple[float, float, float, float]] = {
    "depth_mup": (-0.51, -0.51, -0.06, -0.01),
    "nfd": (-0.01, -0.51, +0.44, -0.01),
    "completep": (-0.02, -0.02, -0.06, -0.02),
}


def expected_slope(quantity: str, axis: Axis, rule: Rule, p: float | None = None) -> float | None:
    """Return the slope that ``quantity`` should have, or None where none is known.

    Args:
        quantity: One of :data:`CHECKED`; None for every other.
        axis: In ``"width"``, every muP rule keeps all checked quantities constant (slope 0).
        rule: The rule; ``sp`` and ``mup`` promise nothing in depth.
        p: Exponent of the correction of ``nfd``; p shifts the slopes of the first matrices.
    """
    if quantity not in CHECKED or rule == "sp":
        return None
    if axis == "width":
        return 0.0
    if rule not in _EXPECTED_IN_DEPTH:
        return None
    if rule == "nfd":
        correction = rules.correction_exponent("nfd", p)
        restored = dict(zip(CHECKED, _EXPECTED_IN_DEPTH["nfd"], strict=True))[quantity]
        return restored - (0.5 - correction if quantity.startswith("first") else 0.0)
    return dict(zip(CHECKED, _EXPECTED_IN_DEPTH[rule], strict=True))[quantity]


def make_optimizer(
    model: nn.Module,
    role_map: RoleMap,
    parametrization: Parametrization,
    family: OptimizerFamily,
    lr: float,
) -> Optimizer:
    """Return plain SGD or Adam whose groups carry the rule's factors; no decay, no momentum in SGD.

    Args:
        model: The model, at the shape that ``parametrization`` states.
        role_map: Its roles.
        parametrization: Rule and shapes.
        family: ``"sgd"`` or ``"adam"``.
        lr: Learning rate of the base model.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = role_map.roles[clean_name(name)]
            shapes = (parametrization.width_ratio, parametrization.depth_ratio)
            eps = rules.eps_factor(role, parametrization.rule, family, *shapes)
            groups[parametrization.lr_factor(role, family), eps].append(parameter)
    if family == "sgd":
        return SGD([{"params": ps, "lr": lr * f} for (f, _), ps in groups.items()], lr=lr)
    # the default 1e-8 is not small against the gradients of a deep net at initialisation
    return Adam(
        [{"params": ps, "lr": lr * f, "eps": 1e-12 * e} for (f, e), ps in groups.items()], lr=lr
    )


def measure_steps(
    model: nn.Module,
    loss: Callable[[], Tensor],
    role_map: RoleMap,
    optimizer: Optimizer,
    *,
    steps: int,
    rows: int,
) -> list[dict[str, float]]:
    """Train for ``steps`` steps and measure after each one.

    Args:
        model: The model.
        loss: Runs the model on the batch of this check, always the same, and returns the loss.
        role_map: The model's roles.
        optimizer: Its optimizer.
        steps: Optimizer steps.
        rows: Rows of the batch on which is measured.

    Returns:
        One row a step: ``step`` (from 1), ``loss`` (after the step), and
        :meth:`~lightning_suite.depth_mup.dynamics.Dynamics.summary`.
    """
    probe = StreamProbe(model, role_map, rows=rows)
    reference = probe.snapshot()
    out = []
    with probe.attached():
        for step in range(steps + 1):
            optimizer.zero_grad()
            if step:
                probe.arm(step=0)  # the same rows each time
            value = loss()
            value.backward()
            if step:
                measured = dynamics.unpack(dynamics.pack(probe.measure(reference)))
                out.append({"step": step, "loss": value.item(), **measured.summary()})
            optimizer.step()
    return out


def attach_independent_backward(
    model: nn.Module, role_map: RoleMap, generator: torch.Generator | None = None
) -> list[RemovableHandle]:
    """Let gradients flow back through independent copies of the hidden matrices.

    The forward pass and each matrix's own gradient stay as they are; the gradient in a matrix's
    input uses an independent draw from N(0, 1/fan-in). This is the gradient-independence
    assumption made true, and the control that explains the drift of ``nfd``.

    Args:
        model: A model whose hidden matrices are ``nn.Linear``.
        role_map: Its roles.
        generator: Source of the independent matrices.

    Returns:
        Handles that undo it.

    Raises:
        SuiteError: A hidden matrix is not an ``nn.Linear``.
    """
    handles = []
    modules = modules_by_name(model)
    for name, role in role_map.roles.items():
        if role not in ("hidden_first", "hidden_last"):
            continue
        module = modules[name.rpartition(".")[0]]
        if not isinstance(module, nn.Linear):
            raise SuiteError(
                f"independent backward weights need nn.Linear, and {name!r} is in a "
                f"{type(module).__name__}."
            )
        copy = torch.empty_like(module.weight).normal_(
            0, module.in_features**-0.5, generator=generator
        )

        handles.append(module.register_forward_hook(partial(_independent_backward, copy)))
    return handles


def _independent_backward(
    copy: Tensor, linear: nn.Module, args: tuple[Tensor], _: Tensor
) -> Tensor:
    assert isinstance(linear, nn.Linear)
    through = F.linear(args[0], copy)
    # the second term adds exactly zero to the value, and the independent path to the gradient
    return F.linear(args[0].detach(), linear.weight, linear.bias) + (through - through.detach())


@dataclass(frozen=True)
class SlopeCheck:
    """One fitted slope beside what was expected of it.

    Attributes:
        axis: ``"depth"`` or ``"width"``.
        rule: The rule.
        step: After how many optimizer steps.
        quantity: What was measured.
        slope: The fit.
        expected: None where nothing is expected.
    """

    axis: Axis
    rule: Rule
    step: int
    quantity: str
    slope: Slope
    expected: float | None

    @property
    def deviation(self) -> float:
        """Slope minus expectation; NaN without one."""
        return math.nan if self.expected is None else self.slope.value - self.expected

    def outside(self, tolerance: float) -> bool:
        """Whether the slope is further than ``tolerance`` from what was expected."""
        return self.expected is not None and not abs(self.deviation) <= tolerance

    def row(self) -> dict[str, Any]:
        """Return the row of a table."""
        return {
            "axis": self.axis,
            "rule": self.rule,
            "step": self.step,
            "quantity": self.quantity,
            "slope": self.slope.value,
            "standard_error": self.slope.standard_error,
            "expected": "" if self.expected is None else self.expected,
            "deviation": "" if self.expected is None else self.deviation,
        }


def fit_slopes(
    rows: Iterable[Mapping[str, Any]],
    quantities: Sequence[str] = (*CHECKED, "product", "relative_change"),
    p: float | None = None,
) -> list[SlopeCheck]:
    """Fit the slope of every quantity for every axis, rule and step.

    Args:
        rows: With ``axis``, ``rule``, ``size``, ``step`` and the quantities; seeds are repeats.
        quantities: Which ones; one that is missing in a row is left out.
        p: Exponent of the correction that ``nfd`` ran with.

    Raises:
        SuiteError: A run has diverged, or a quantity is zero: nothing was learned there.
    """
    rows = list(rows)
    for row in rows:
        if not math.isfinite(row.get("loss", 0.0)):
            raise SuiteError(
                f"training has diverged: under {row['rule']!r} at {row['axis']} {row['size']} the "
                f"loss is {row['loss']} after step {row['step']}. Use a smaller lr."
            )
    found: dict[tuple[Axis, Rule, int, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for name in quantities:
            value = row.get(name)
            if value is not None and value != "":
                key = (row["axis"], row["rule"], int(row["step"]), name)
                found[key].append((float(row["size"]), float(value)))
    checks = []
    for (axis, rule, step, name), points in found.items():
        sizes, values = zip(*points, strict=True)
        if min(values) <= 0:
            raise SuiteError(
                f"{name} is zero after step {step} under {rule!r}: no gradient has reached these "
                "matrices. With a readout that starts at zero the first step teaches only the "
                "readout; use readout_init: normal."
            )
        slope = fit_slope(sizes, values)
        checks.append(
            SlopeCheck(axis, rule, step, name, slope, expected_slope(name, axis, rule, p))
        )
    return checks
