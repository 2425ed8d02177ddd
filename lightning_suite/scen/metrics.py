"""Reliability, generality and locality as torchmetrics: sums over all ranks, then one ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_suite.errors import SuiteError
from lightning_suite.scen.answers import Answer, right_answer, same_answer


class ExactMatch(Metric):
    """Share of the answers that are right, see `right_answer`; NaN of none."""

    full_state_update = False
    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, answers: Sequence[Answer], targets: Sequence[str]) -> None:
        """Add answers and what they should have been."""
        self.right += sum(right_answer(a, t) for a, t in zip(answers, targets, strict=True))
        self.total += len(answers)

    def compute(self) -> Tensor:
        """Return the share."""
        return self.right / self.total


class Reliability(ExactMatch):
    """Share of the edits whose own prompt is answered with the target."""


class Generality(ExactMatch):
    """Share of the edits' rephrases (never seen in editing) that are answered with the target."""


class Locality(Metric):
    """Share of the prompts that must keep their answers and do, overall and for each kind.

    The answers before are those of the **unedited model**, right or wrong.

    Args:
        kinds: The kinds of locality prompts that will come, such as ``same_subject``; on all
            ranks the same.
    """

    full_state_update = False
    higher_is_better = True
    same: Tensor
    total: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = list(dict.fromkeys(kinds))
        for name in ("same", "total"):
            counts = torch.zeros(len(self.kinds), dtype=torch.long)
            self.add_state(name, counts, dist_reduce_fx="sum")

    def update(self, after: Sequence[str], before: Sequence[str], kinds: Sequence[str]) -> None:
        """Add answers after and before the edits, and the prompts' kinds."""
        for new, old, kind in zip(after, before, kinds, strict=True):
            if kind not in self.kinds:
                raise SuiteError(f"locality kind {kind!r} was not announced: {self.kinds}.")
            place = self.kinds.index(kind)
            self.same[place] += same_answer(new, old)
            self.total[place] += 1

    def compute(self) -> dict[str, Tensor]:
        """Return the share over all prompts (``all``) and that of each kind; NaN of none."""
        shares = self.same / self.total
        return {
            "all": self.same.sum() / self.total.sum(),
            **dict(zip(self.kinds, shares, strict=True)),
        }


def group_metrics(
    notes: Sequence[Mapping[str, Any]], fired: int, seconds: float, edits: int
) -> dict[str, float]:
    """Return what ``fit`` logs of a group of edits.

    Args:
        notes: What training said of each, see
            :func:`~lightning_suite.scen.editing.training_notes`; at least one.
        fired: How many of their own prompts the gate gives to them.
        seconds: That the group took, gate and all.
        edits: In the bank now.
    """
    count = len(notes)
    return {
        "scen/loss": sum(note["loss"] for note in notes) / count,
        "scen/success": sum(note["learned"] for note in notes) / count,
        "scen/fired_rate": fired / count,
        "scen/edits_per_second": count / seconds,
        "scen/edits": float(edits),
    }
