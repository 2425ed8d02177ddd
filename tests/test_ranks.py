"""Each rank's numbers are in a checkpoint, and are gone on with once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign import quiet_trainer

from lightning_suite.ranks import of_all_ranks, share_of_rank


class Ranks:
    """A trainer of two ranks, seen from the second."""

    world_size, global_rank, interrupted = 2, 1, False

    @property
    def strategy(self) -> Any:
        return self

    root_device = torch.device("cpu")

    def all_gather(self, mine: torch.Tensor) -> torch.Tensor:
        return torch.stack([mine + 10, mine])


def test_one_rank_has_its_own() -> None:
    assert of_all_ranks(quiet_trainer(), [(1, 2.5)]) == [[[1.0, 2.5]]]


def test_all_ranks_come_together_but_after_an_error() -> None:
    ranks: Any = Ranks()
    assert of_all_ranks(ranks, [(1, 2), (3, 4)]) == [[[11, 12], [13, 14]], [[1, 2], [3, 4]]]
    ranks.interrupted = True
    assert of_all_ranks(ranks, [(1, 2)]) == [[[1, 2]]]


def test_where_processes_have_ended_there_is_one() -> None:
    ranks: Any = Ranks()
    ranks.all_gather = lambda mine: mine
    assert of_all_ranks(ranks, [(1, 2)]) == [[[1, 2]]]


@pytest.mark.parametrize(("now", "of_each"), [(2, [["a"], ["b"]]), (1, [["a", "b"]])])
def test_each_is_gone_on_with_once(now: int, of_each: Any) -> None:
    ranks: Any = Ranks()
    ranks.world_size = now
    for rank, share in enumerate(of_each):
        ranks.global_rank = rank
        assert share_of_rank(ranks, ["a", "b"]) == share  # type: ignore[list-item]


def test_of_more_ranks_than_before_the_first_takes_all() -> None:
    ranks: Any = Ranks()
    assert share_of_rank(ranks, [[[1.0]]]) == []
    ranks.global_rank = 0
    assert share_of_rank(ranks, [[[1.0]]]) == [[[1.0]]]
