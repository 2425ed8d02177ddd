"""What a checkpoint says about the callbacks that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
        hooks = (state.get("residual_multiplier", 1.0), state.get("readout_multiplier", 1.0))
        if not fitting and hooks == (1.0, 1.0):
            continue
        arguments = ", ".join(
            f"{key}={state[key]!r}"
            for key in ("base_depth", "base_width", "rule", "p")
            if state.get(key) is not None
        )
        wrong = (
            "learning rates would be wrong"
            if fitting
            else "the model would compute another function"
        )
        return (
            f"the checkpoint was trained with {name}({arguments}), which is not among the "
            f"trainer's callbacks: {wrong}. Add the callback with "
            "the same arguments (command line: -c configs/overlays/depth_mup.yaml)."
        )
    return None


def require_callbacks(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Refuse a checkpoint that was trained with a callback that ``trainer`` lacks.

    Args:
        checkpoint: What ``on_load_checkpoint`` is given.
        trainer: The Trainer that loads it.

    Raises:
        SuiteError: A callback is missing; the message says which one, with its arguments.
    """
    advice = missing_callback_advice(
        checkpoint, trainer.callbacks, fitting=trainer.state.fn == "fit"
    )
    if advice:
        raise SuiteError(advice)
