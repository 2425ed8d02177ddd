"""Whether a backbone lets students share a prefix: asked of its config, and tried out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.layout import Prefixes

Read = Callable[[Prefixes, Tensor, Tensor], tuple[Tensor, Tensor]]

# How far shared states may be from those of rows. Rounding is a thousand times smaller in float32
# and was .005 in bfloat16; a mask or position that is not obeyed gave .16 to .47 (Llama, Qwen2,
# GPT-2 and SmolLM2-135M).
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.05


def refuse_window(config: Any, longest: int) -> str | None:
    """Say what is wrong if prefixes are longer than a sliding window: a mask would replace it.

    Args:
        config: Of the backbone.
        longest: Tokens of the longest prefix.
    """
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True) or window is None or longest < window:
        return None
    return f"its sliding window of {window} tokens is shorter than a prefix"


def check_positions(config: Any, longest: int) -> None:
    """Refuse a prefix that leaves no position for the student behind it.

    Args:
        config: Of the backbone.
        longest: Tokens of the longest prefix.

    Raises:
        SuiteError: With both lengths.
    """
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and longest >= most:
        raise SuiteError(
            f"a text has {longest:,} tokens, and the backbone reads {most:,} at most, the student "
            f"among them. Set the data's max_length to {most - 1:,}, which names the exercise, and "
            "shorten its text; or take a backbone that reads more."
        )


@torch.no_grad()
def refuse_mask(backbone: Any, row: Read, shared: Read, prefixes: Prefixes) -> str | None:
    """Read a few tokens for three vectors both ways, and say what is wrong, if anything.

    Without autocast, whose rounding is no sign of a mask that is not obeyed.

    Args:
        backbone: Whose dropout is off meanwhile.
        row: Reads one row a student: the truth.
        shared: Reads with a shared prefix.
        prefixes: Of which a few tokens are taken.
    """
    ids = prefixes.input_ids[:1, :4].expand(2, -1)
    lengths = prefixes.lengths[:1].clamp(max=4).repeat(2)
    lengths[1] = (lengths[1] - 1).clamp(min=1)
    part = Prefixes(ids, lengths)
    rows = torch.tensor([0, 0, 1], device=ids.device)
    table = backbone.get_input_embeddings().weight
    vectors = table[:3].float()
    training = backbone.training
    backbone.eval()
    try:
        with torch.autocast(ids.device.type, enabled=False):
            truth, tried = (torch.stack(way(part, rows, vectors)).double() for way in (row, shared))
    except (ValueError, RuntimeError, TypeError, NotImplementedError, AssertionError) as err:
        return f"it refuses the mask: {err}"
    finally:
        backbone.train(training)
    error = float((tried - truth).norm() / truth.norm())
    allowed = _TOLERANCE.get(table.dtype, _LOW_PRECISION_TOLERANCE)
    return None if error <= allowed else f"its states differ by {error:.1e} with the mask"
