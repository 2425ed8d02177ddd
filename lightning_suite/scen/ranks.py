"""What ranks tell each other while each works on edits of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_suite.scen.edits import Edit

T = TypeVar("T")


def gather(items: Sequence[T]) -> list[list[T]]:
    """Return the items of every rank, by rank."""
    if not dist.is_initialized():
        return [list(items)]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, list(items))
    return found


def shared_out(asked: Sequence[Edit], made: Sequence[str]) -> tuple[list[Edit], set[str]]:
    """Return the edits of all ranks, each once, and which of them are this rank's to score.

    Args:
        asked: The edits of this rank; some may be another's too.
        made: Ids in the order in which edits were made, which is that of the edits returned.
    """
    everywhere = gather(asked)
    order = {edit_id: place for place, edit_id in enumerate(made)}
    edits = list({edit.id: edit for of_rank in everywhere for edit in of_rank}.values())
    edits.sort(key=lambda edit: order.get(edit.id, len(order)))
    rank = dist.get_rank() if dist.is_initialized() else 0
    taken = {edit.id for of_rank in everywhere[:rank] for edit in of_rank}
    return edits, {edit.id for edit in asked} - taken


def gather_experts(
    edits: Sequence[Edit],
    notes: Sequence[dict[str, Any]],
    experts: dict[str, Tensor] | None,
    device: torch.device,
) -> tuple[list[Edit], list[dict[str, Any]], dict[str, Tensor]]:
    """Return what all ranks have trained, the first rank's first; an edit of several ranks once.

    Args:
        edits: n edits of this rank.
        notes: On each of them.
        experts: Their experts by name, [n, …] each; None where n is 0.
        device: On which the ranks exchange tensors.
    """
    pairs = [pair for of_rank in gather(list(zip(edits, notes, strict=True))) for pair in of_rank]
    rows = gather_rows(experts, device)
    first = {edit.id: row for row, (edit, _) in reversed(list(enumerate(pairs)))}
    kept = sorted(first.values())
    every, said = [pairs[row][0] for row in kept], [pairs[row][1] for row in kept]
    return every, said, {name: tensor[kept] for name, tensor in rows.items()}


def gather_rows(rows: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
    """Return the rows of all ranks, one below the other, on the CPU.

    Args:
        rows: By name, [n, …] each; n may differ between ranks, and None is n = 0.
        device: On which the ranks exchange tensors.
    """
    if not dist.is_initialized():
        return rows or {}
    said = gather([(name, tuple(t.shape), t.dtype) for name, t in (rows or {}).items()])
    names = {name: (shape[1:], dtype) for of_rank in said for name, shape, dtype in of_rank}
    counts = [of_rank[0][1][0] if of_rank else 0 for of_rank in said]
    joined = {}
    for name, (shape, dtype) in names.items():
        parts = []
        for rank, count in enumerate(counts):
            if not count:
                continue
            part = torch.empty(count, *shape, dtype=dtype, device=device)
            if rows and rank == dist.get_rank():
                part.copy_(rows[name])
            dist.broadcast(part, rank)
            parts.append(part.cpu())
        joined[name] = torch.cat(parts)
    return joined
