"""Which language models keep samples of one row apart when they are told to by a mask."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_suite.errors import SuiteError

_MASKED = {"full_attention", "sliding_attention", "chunked_attention"}
# Settings that say how far back a layer looks, where it is not the whole sample.
_REACH = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")


def refuse_packed(model: nn.Module, config: Any, longest: int, *, takes_positions: bool) -> None:
    """Refuse rows of several samples where a causal mask and positions do not make them apart.

    Args:
        model: The language model.
        config: Of its text part.
        longest: Tokens of the longest sample.
        takes_positions: Whether the model can be told positions.

    Raises:
        SuiteError: The model does something else than causal attention under the mask.
    """
    if why := _reason(model, config, longest, takes_positions):
        raise SuiteError(
            f"probe: several samples are packed into one row, and {type(model).__name__} would not "
            f"see each as if it were alone: {why}. Give it one sample a row, padded."
        )


def _reason(model: nn.Module, config: Any, longest: int, takes_positions: bool) -> str | None:
    types = set(getattr(config, "layer_types", None) or ())
    reach = [
        (name, width)
        for name in _REACH
        if isinstance(width := getattr(config, name, None), int) and 0 < width < longest
    ]
    kernel = str(getattr(config, "_attn_implementation", ""))
    alibi = getattr(config, "alibi", False)
    reason = None
    if not takes_positions or alibi:
        reason = "its positions go on through the row (ALiBi, or no position_ids)"
    elif getattr(model, "_is_stateful", False) or types - _MASKED:
        others = ", ".join(sorted(types - _MASKED)) or "a state"
        reason = f"it has layers that carry something from token to token ({others})"
    elif reach and types != {"full_attention"}:
        name, width = reach[0]
        reason = f"some layers see less than a sample of {longest} tokens ({name}={width})"
    elif (
        getattr(config, "use_bidirectional_attention", False)
        or getattr(config, "is_causal", True) is False
    ):
        reason = "its attention is not causal"
    elif "flash" in kernel or "flex" in kernel:
        reason = f"its attention ({kernel}) takes no mask; load it with attn_implementation: sdpa"
    return reason
