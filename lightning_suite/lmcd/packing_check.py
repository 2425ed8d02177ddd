"""Whether a backbone lets students share a prefix: asked of its config, and tried out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.layout import Prefixes

Read = Callable[[Prefixes, Tensor, Tensor], tuple[Tensor, Tensor]]

# How far a shared state may be from that of a row. Rounding is a thousand times smaller in float32
# and was up to .031 in bfloat16 (SmolLM2-135M, 64 students behind 125 tokens); a mask or position
# that is not obeyed gave .43 to .66 in the short trial, and .1 to .2 in that long one.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.08
# Windows that are part of the mask, and by what to divide for the tokens that are seen before.
_WINDOWS = {
    "sliding_window": 1,
    "attention_window": 1,
    "attention_window_size": 1,
    "attention_chunk_size": 1,
    "local_attention": 2,
}
_VECTORS = 3  # different ones in a probe


def refuse_window(config: Any, longest: int, width: int = 1) -> str | None:
    """Say what is wrong if a window is shorter than what students look back over.

    Where a window is part of the mask, ours replaces it, and prefixes must be shorter. GPT-Neo
    counts places in its attention itself, whatever the mask: there the whole row must be shorter,
    or the last of many students would not see where the text begins.

    Args:
        config: Of the backbone.
        longest: Tokens of the longest prefix.
        width: Most students of a row.
    """
    if getattr(config, "use_sliding_window", True):
        for key, share in _WINDOWS.items():
            for window in _numbers(getattr(config, key, None)):
                if longest >= window // share:
                    return (
                        f"its {key.replace('_', ' ')} of {window} tokens is shorter than a prefix"
                    )
    local = "local" in str(getattr(config, "attention_types", "local"))
    for window in _numbers(getattr(config, "window_size", None)) if local else ():
        if longest + width > window:
            return f"its window of {window} places is shorter than a prefix with its students"
    return None


def _numbers(value: Any) -> list[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, int) and v > 0]


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
def refuse_mask(
    backbone: Any, row: Read, shared: Read, prefixes: Prefixes, width: int = 1
) -> str | None:
    """Read some pairs both ways, and say what is wrong, if anything.

    Once a few tokens for three vectors, where any mistake weighs most; and once the longest prefix
    with as many vectors as the batch has, whose first and last are compared: a backbone that looks
    at places shows it nowhere else. Without autocast, whose rounding is no sign of a mask that is
    not obeyed.

    Args:
        backbone: Whose dropout is off meanwhile.
        row: Reads one row a student: the truth.
        shared: Reads with a shared prefix.
        prefixes: Of which one is taken.
        width: Most students of a row.

    Raises:
        torch.OutOfMemoryError: As the batch would.
    """
    table = backbone.get_input_embeddings().weight
    longest = int(prefixes.lengths.argmax())
    allowed = _TOLERANCE.get(table.dtype, _LOW_PRECISION_TOLERANCE)
    training = backbone.training
    backbone.eval()
    try:
        for tokens, students in ((4, 2), (int(prefixes.lengths.max()), width)):
            part = _twice(prefixes, longest, tokens)
            rows = torch.tensor([0] * students + [1], device=table.device)
            asked = torch.tensor([0, students - 1, students], device=table.device)
            vectors = table[torch.arange(len(rows), device=table.device) % _VECTORS].float()
            with torch.autocast(table.device.type, enabled=False):
                truth = torch.stack(row(part, rows[asked], vectors[asked])).double()
                tried = torch.stack(shared(part, rows, vectors))[:, asked].double()
            error = float(((tried - truth).norm(dim=2) / truth.norm(dim=2)).max())
            if not error <= allowed:
                return f"its states differ by {error:.1e} with the mask"
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as err:  # whatever a backbone of any kind says to a mask or cache it cannot use
        return f"it refuses the mask: {type(err).__name__}: {err}"
    finally:
        backbone.train(training)
    return None


def _twice(prefixes: Prefixes, place: int, most: int) -> Prefixes:
    """Return the first tokens of one prefix, and the same without its last as a second one."""
    lengths = prefixes.lengths[place].clamp(max=most).repeat(2)
    ids = prefixes.input_ids[place, : int(lengths[0])].expand(2, -1)
    lengths[1] = (lengths[1] - 1).clamp(min=1)
    return Prefixes(ids, lengths)
