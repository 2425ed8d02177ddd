"""What a checkpoint says about the callbacks that it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# State keys of callbacks without which a checkpoint means something else: they change learning
# rates or the function that the weights compute.
_NEEDED = ("DepthMuPLRCallback",)


def missing_callback_advice(
    checkpoint: Mapping[str, Any], callbacks: Iterable[object]
) -> str | None:
    """Return what to tell a user who resumes without a callback that the training depended on.

    Args:
        checkpoint: A loaded Lightning checkpoint.
        callbacks: ``trainer.callbacks``.

    Returns:
        The advice, or None where nothing is missing.
    """
    present = {str(getattr(callback, "state_key", "")) for callback in callbacks}
    for name in _NEEDED:
        state = (checkpoint.get("callbacks") or {}).get(name)
        if state is None or name in present:
            continue
        arguments = ", ".join(
            f"{key}={state[key]!r}"
            for key in ("base_depth", "base_width", "rule", "p")
            if state.get(key) is not None
        )
        return (
            f"the checkpoint was trained with {name}({arguments}), which is not among the "
            "trainer's callbacks: learning rates and residual multipliers would be wrong. Add it "
            "with the same arguments (command line: -c configs/overlays/depth_mup.yaml)."
        )
    return None
