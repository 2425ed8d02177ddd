from __future__ import annotations

import math

import pytest
import torch

from lightning_suite.errors import SuiteError
from lightning_suite.scen.answers import Answer
from lightning_suite.scen.metrics import Generality, Locality, Reliability


@pytest.mark.parametrize("kind", [Reliability, Generality])
def test_share_of_right_answers(kind: type[Reliability]) -> None:
    metric = kind()
    metric.update([Answer("Paris.", True), Answer("Lyon", True)], ["Paris", "Paris"])
    metric.update([Answer("Paris", False), Answer("the Paris", True)], ["Paris", "Paris"])
    assert metric.compute() == 0.5


def test_locality_overall_and_by_kind() -> None:
    metric = Locality(["same_subject", "random", "unused"])
    metric.update(["a1", "b1", "c"], ["a1", "B1!", "d"], ["random", "random", "same_subject"])
    metric.update(["x y"], ["x y"], ["same_subject"])
    found = metric.compute()
    assert found["all"] == 0.75
    assert found["random"] == 1
    assert found["same_subject"] == 0.5
    assert math.isnan(found["unused"])


def test_an_unannounced_kind_is_refused() -> None:
    with pytest.raises(SuiteError, match="'other' was not announced"):
        Locality(["random"]).update(["a"], ["a"], ["other"])


def both(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    reliability, locality = Reliability(), Locality(["random"])
    # ranks hold different numbers of edits: a mean of the ranks' means would be wrong
    answers = [Answer("yes", True)] * (1 + 2 * rank)
    reliability.update(answers, ["no" if rank else "yes"] * len(answers))
    locality.update(
        ["a"] * (1 + rank), ["b" if rank else "a"] * (1 + rank), ["random"] * (1 + rank)
    )
    assert reliability.compute() == 0.25
    assert locality.compute()["random"].item() == pytest.approx(1 / 3)
    torch.distributed.destroy_process_group()


def test_two_ranks_sum_before_they_divide(tmp_path: object) -> None:
    context = torch.multiprocessing.get_context("spawn")
    ranks = [context.Process(target=both, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(180)  # a busy machine imports torch for a minute
        assert process.exitcode == 0
