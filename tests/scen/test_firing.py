"""Shares over sequences and means over batches, however the batches are cut."""

from __future__ import annotations

import torch

from lightning_suite.scen.firing import Firing


def test_the_share_is_of_sequences_and_the_number_of_edits_of_batches() -> None:
    first = Firing.of_batch(torch.tensor([True, False, False]), edits=2)
    both = first.plus(Firing.of_batch(torch.tensor([True]), edits=4))
    assert both == (2, 4, 6, 2)
    assert (both.share, both.mean_edits) == (0.5, 3)


def test_of_nothing_both_are_zero() -> None:
    assert (Firing().share, Firing().mean_edits) == (0, 0)
    assert Firing(1, 2, 3, 4).plus(Firing()) == (1, 2, 3, 4)
