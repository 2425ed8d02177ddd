"""What a checkpoint says about the callbacks that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_suite.errors import SuiteError

# State keys of callbacks without which a checkpoint means something else: they change learning
# rates or the function that the weights compute.
_NEEDED = ("DepthMuPLRCallback",)


def missing_callback_advice(
    checkpoint: Mapping[str, Any], callbacks: Iterable[object], *, fitting: bool = True
) -> str | None:
    """Return what to tell a user who goes on without a callback that the training depended on.

    Args:
        checkpoint: A loaded Lightning checkpoint.
        callbacks: ``trainer.callbacks``.
        fitting: Whether training goes on; evaluation needs the callback only where its hooks are
            part of the model's function.

    Returns:
        The advice, or None where nothing is missing.
    """
    present = {str(getattr(callback, "state_key", "")) for callback in callbacks}
    for name in _NEEDED:
        state = (checkpoint.get("callbacks") or {}).get(name)
        if state is None or name in present:
            continue
        if not fitting and _hooked(state) == (1.0, 1.0):
            continue
        wrong = (
            "learning rates would be wrong"
            if fitting
            else "the model would compute another function"
        )
        return (
            f"the checkpoint was trained with {name}({_arguments(state)}), which is not among the "
            f"trainer's callbacks: {wrong}. Add the callback with "
            "the same arguments (command line: -c configs/overlays/depth_mup.yaml)."
        )
    return None


def _hooked(state: Mapping[str, Any]) -> tuple[float, float]:
    """The factors on branches and readout that hooks applied, not those of the model's own."""
    return state.get("residual_multiplier", 1.0), state.get("readout_multiplier", 1.0)


def _arguments(state: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={state[key]!r}"
        for key in ("base_depth", "base_width", "rule", "p")
        if state.get(key) is not None
    )


def _warn_of_missing_hooks(checkpoint: Mapping[str, Any]) -> None:
    for name in _NEEDED:
        state = (checkpoint.get("callbacks") or {}).get(name, {})
        residual, readout = _hooked(state)
        if (residual, readout) != (1.0, 1.0):
            rank_zero_warn(
                f"the checkpoint was trained with {name}({_arguments(state)}), whose hooks "
                f"multiplied the branches' outputs by {residual:.4g} and the readout's input by "
                f"{readout:.4g}: without them this model computes another function. Evaluate it "
                "in a trainer with that callback; or move the factors into the weights: "
                f"fold_residual_scale(model, assign_roles(model), c={residual!r}, m={readout!r})."
            )


def require_callbacks(checkpoint: Mapping[str, Any], trainer: Any | None) -> None:
    """Refuse a checkpoint that was trained with a callback that ``trainer`` lacks.

    Without a trainer (``load_from_checkpoint``) warn where the callback's hooks were part of the
    model's function: the model is loaded, and who uses it must know.

    Args:
        checkpoint: What ``on_load_checkpoint`` is given.
        trainer: The Trainer that loads it, if one does.

    Raises:
        SuiteError: A callback is missing; the message says which one, with its arguments.
    """
    if trainer is None:
        _warn_of_missing_hooks(checkpoint)
        return
    advice = missing_callback_advice(
        checkpoint, trainer.callbacks, fitting=trainer.state.fn == "fit"
    )
    if advice:
        raise SuiteError(advice)
