"""Where a batch of sequences is prompt and where it is padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError


def real_tokens(mask: Any, rows: int, length: int, device: torch.device, past: int = 0) -> Tensor:
    """Return which of the new tokens are no padding, bool [rows, length].

    Args:
        mask: What a Hugging Face model takes as ``attention_mask``: None; [rows, past + length];
            or, as ``generate`` makes it for caches of a fixed size, who attends to whom
            [rows, 1, length, …], or several of these by name.
        rows: Number of sequences.
        length: Number of new tokens of each.
        device: Of the result where there is no mask.
        past: Number of tokens of each that the cache holds already.

    Raises:
        SuiteError: The mask has another shape, or is one from which it cannot be seen.
    """
    if isinstance(mask, dict):  # of layers that attend to everything, to a window, to a chunk
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return torch.ones(rows, length, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor):
        raise SuiteError(
            f"attention_mask: expected a tensor, found a {type(mask).__name__}. Prompts are routed "
            "at their last token, and it cannot be found in this one. Load the model with another "
            "attn_implementation, such as 'sdpa'."
        )
    given = mask
    if given.dim() == 2 and len(given) == rows and given.shape[1] >= length:
        return given[:, given.shape[1] - length :].bool()
    if given.dim() == 4 and len(given) in (1, rows) and given.shape[2] == length <= given.shape[3]:
        seen = (given if given.dtype == torch.bool else given == 0)[:, 0]
        at, columns = torch.arange(length, device=seen.device), seen.shape[2]
        if past + length <= columns:
            # A token that is none attends not even to itself, or, where that would leave it with
            # nothing, to all, those after it included. (The last token does not see all others:
            # some layers attend to a window.)
            own = past + at
            later = torch.arange(columns, device=seen.device) > own[:, None]
            real = seen[:, at, own] & ~(seen & later).any(2)
            return real.expand(rows, -1)
        raise SuiteError(
            f"attention_mask: it shows {columns} tokens, and the sequences have {past + length}: "
            "a cache of fixed size has let go of earlier ones. Prompts are routed at their last "
            "token, which cannot be found so. Use a cache that grows."
        )
    raise SuiteError(
        f"attention_mask: expected [{rows}, {length}] or longer, found {tuple(given.shape)}. "
        "Prompts are routed at their last token, and without the mask it cannot be found."
    )


def last_prompt_tokens(real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the position of each row's last prompt token, [rows].

    Args:
        real: Which tokens are no padding, [rows, T].
        lengths: How many of these are prompt, [rows]; None: all.

    Raises:
        SuiteError: A row has no tokens, or fewer than its prompt shall have.
    """
    there = real.sum(1)
    wanted = there if lengths is None else lengths.to(real.device)
    if wanted.shape != there.shape:
        raise SuiteError(f"prompt_lengths: {len(wanted)} for a batch of {len(there)} rows.")
    if bool(((wanted < 1) | (wanted > there)).any()):
        raise SuiteError(
            f"a prompt of {wanted.tolist()} tokens in rows of {there.tolist()}: each needs at "
            "least one, and no more than its row has."
        )
    return (real.cumsum(1) == wanted[:, None]).int().argmax(1)
