"""Where prefixes, students and pads lie in one packed row, and who sees whom.

A packed row is ``[prefix, pads | student, student, …]``: the prefix is causal, each student sees
the prefix and itself, and all students of a row stand at the same position, the one after the
prefix. Causal attention then gives each student token the states that it has in a row of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Prefixes(NamedTuple):
    """Tokens of the exercises of a batch.

    Attributes:
        input_ids: int64 [E, P], padded on the right with any token.
        lengths: Tokens of each exercise: int64 [E], 1 or more.
    """

    input_ids: Tensor
    lengths: Tensor


class Slots(NamedTuple):
    """Which place each of N students has among those of its exercise.

    Attributes:
        rows: The exercise of each student: int64 [N].
        places: The student's place in that exercise's row: int64 [N].
        width: Most students of one exercise.
    """

    rows: Tensor
    places: Tensor
    width: int


def assign_slots(rows: Tensor, exercises: int) -> Slots:
    """Give the students of each exercise the places 0, 1, 2, … in the order that they come.

    Args:
        rows: The exercise of each student: int64 [N], below ``exercises``.
        exercises: E.
    """
    counts = torch.bincount(rows, minlength=exercises)
    order = rows.argsort(stable=True)
    first = counts.cumsum(0) - counts
    places = torch.empty_like(rows)
    places[order] = torch.arange(len(rows), device=rows.device) - first[rows[order]]
    return Slots(rows, places, int(counts.max()))


def split_wide(slots: Slots, most: int) -> tuple[Slots, Tensor]:
    """Give an exercise with more than ``most`` students several rows.

    Each student is compared with all tokens of its row: many short rows of a text that has been
    read before cost less than a long one.

    Returns:
        Slots in the new rows, and the exercise of each new row: int64 [rows].
    """
    parts = -(-slots.width // most)
    wanted = slots.rows * parts + slots.places // most
    kept, rows = wanted.unique(return_inverse=True)
    return Slots(rows, slots.places % most, min(slots.width, most)), kept // parts


def spread(vectors: Tensor, slots: Slots, exercises: int) -> Tensor:
    """Put the students' vectors [N, H] into their slots: [E, width, H], zero where none is."""
    grid = vectors.new_zeros(exercises, slots.width, vectors.shape[-1])
    return grid.index_put((slots.rows, slots.places), vectors)


def packed_mask(lengths: Tensor, prefix: int, students: int) -> Tensor:
    """Return who sees whom in packed rows.

    Args:
        lengths: Tokens of each exercise: int64 [E].
        prefix: P, the padded length of the prefixes.
        students: S, the students of a row, empty slots included.

    Returns:
        bool [E, P + S, P + S]: row (query) sees column (key). Pads of the prefix see what is
        before them, so that no row of the softmax is empty; nobody sees them.
    """
    place = torch.arange(prefix + students, device=lengths.device)
    query, key = place[:, None], place[None, :]
    causal = (key <= query) & (key < prefix)
    in_prefix = key < lengths[:, None, None]
    of_student = in_prefix | (key == query)
    return torch.where(query < prefix, causal, of_student)


def packed_positions(lengths: Tensor, prefix: int, students: int) -> Tensor:
    """Return the position of each token of packed rows: int64 [E, P + S]."""
    own = torch.arange(prefix, device=lengths.device).expand(len(lengths), -1)
    return torch.cat([own, lengths[:, None].expand(-1, students)], dim=1)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn ``seen`` [E, Q, K] into the mask [E, 1, Q, K] that is added to attention scores.

    Transformers passes a four-dimensional mask on as it is: eager attention adds it, and
    ``scaled_dot_product_attention`` takes it in the dtype of the queries. (A boolean one would be
    added as 0 and 1 by eager attention.)
    """
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
