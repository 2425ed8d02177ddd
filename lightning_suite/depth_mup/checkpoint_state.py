"""What a checkpoint keeps of the correction, and what a resumed run must agree with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_suite.depth_mup.correction import Correction
from lightning_suite.depth_mup.rules import Rule, RuleOrAuto, correction_exponent
from lightning_suite.errors import SuiteError

_VERSION = 1
# In step mode the optimizer's state is that of the user's own groups: a resume without the
# callback would go on with other learning rates, and nothing would tell. A group more in the
# checkpoint makes torch refuse it; the callback takes the group out before the state is restored.
_MARKER: dict[str, Any] = {"params": [], "name": "needs DepthMuPLRCallback"}


def correction_state(
    correction: Correction,
    *,
    rules: Sequence[Rule] = (),
    modes: Sequence[str] = (),
    decay_vectors: bool = True,
) -> dict[str, Any]:
    """Return the state of a run as plain values.

    Args:
        correction: Of its model.
        rules: The rule of each optimizer.
        modes: The mechanism of each optimizer: ``"groups"`` or ``"step"``.
        decay_vectors: Whether norms and biases keep their weight decay.
    """
    # "auto" before there are optimizers, and where they differ
    rule: RuleOrAuto = rules[0] if len(set(rules)) == 1 else correction.rule
    shapes = correction.parametrization
    return {
        "version": _VERSION,
        "rule": rule,
        "p": None if rule == "auto" else correction_exponent(rule, shapes.p),
        "base_depth": shapes.base_depth,
        "base_width": shapes.base_width,
        "depth": shapes.depth,
        "width": shapes.width,
        "residual_multiplier": correction.multipliers.residual,
        "readout_multiplier": correction.multipliers.readout,
        "decay_vectors": decay_vectors,
        "apply": list(modes),
    }


def check_same_correction(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, has_optimizers: bool
) -> None:
    """Compare what a checkpoint holds with the run that goes on from it.

    Args:
        saved: :func:`correction_state` of the run that wrote the checkpoint.
        now: That of this run.
        has_optimizers: Whether this run knows its optimizers; only then rule and mechanism are
            known, where they depend on the optimizer. A state without any ``apply`` knew none.

    Raises:
        SuiteError: They differ; the message names both values.
    """
    # a search for the batch size saves before training begins, and restores its own checkpoint
    without_optimizers = [] if has_optimizers else [now]
    if not saved.get("apply"):
        without_optimizers.append(saved)
    open_yet: set[str] = {"apply"} if without_optimizers else set()
    if any(state.get("rule") == "auto" for state in without_optimizers):
        open_yet |= {"rule", "p"}
    differences = [
        f"{key}: {saved.get(key)!r} in the checkpoint, {value!r} now"
        for key, value in now.items()
        if key not in open_yet and saved.get(key) != value
    ]
    if differences:
        raise SuiteError(
            "the checkpoint was trained with other settings of DepthMuPLRCallback than this "
            f"run has: {'; '.join(differences)}. Use those of the checkpoint."
        )


def mark_states(optimizer_states: Iterable[dict[str, Any]], modes: Sequence[str]) -> None:
    """Let torch refuse the states of optimizers in ``"step"`` mode until they are unmarked."""
    for state, mode in zip(optimizer_states, modes, strict=False):
        if mode == "step":
            state["param_groups"] = [*state["param_groups"], dict(_MARKER)]


def unmark_states(optimizer_states: Iterable[dict[str, Any]]) -> None:
    """Undo :func:`mark_states`."""
    for state in optimizer_states:
        state["param_groups"] = [g for g in state["param_groups"] if g != _MARKER]
