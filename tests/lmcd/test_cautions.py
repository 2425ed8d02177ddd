"""A diagnosis that says nothing says so: below floor or coin, or all chances alike."""

from __future__ import annotations

import math

import pytest

from lightning_suite.lmcd.cautions import (
    ANSWERS,
    MEANS,
    alike_caution,
    chances_caution,
    floor_caution,
    likelihood_caution,
    mastery_caution,
)


def scores(model: float, floor: float) -> list[dict[str, object]]:
    return [{"system": "lmcd", "auc": model}, {"system": "floor", "auc": str(floor)}]


def mastery(*chances: float, threshold: float = 0.5) -> list[dict[str, object]]:
    return [{"predicted": chance, "mastered": int(chance >= threshold)} for chance in chances]


def test_an_auc_below_the_floor_is_said_with_both_numbers_and_what_to_do() -> None:
    (said,) = floor_caution(scores(0.794, 0.853))
    assert "AUC 0.794 is below 0.853, what each student's own rate gives" in said
    assert "model.init_args.head" in said


@pytest.mark.parametrize(("model", "floor"), [(0.86, 0.853), (0.8, 0.8), (math.nan, 0.8)])
def test_an_auc_that_is_not_below_is_not_warned_of(model: float, floor: float) -> None:
    assert floor_caution(scores(model, floor)) == []
    assert floor_caution(scores(0.1, 0.9)[:1]) == []
    assert floor_caution([]) == []


def test_chances_on_one_side_are_said_with_their_range() -> None:
    (said,) = mastery_caution(mastery(0.25, 0.31, 0.28))
    assert "between 0.25 and 0.31, below what counts" in said
    (said,) = mastery_caution(mastery(0.25, 0.31, threshold=0.2))
    assert "at or above" in said


def test_what_is_compared_with_the_threshold_is_named() -> None:
    """Single predictions may lie on both sides while no mean of a student and skill does."""
    (on_the_page,) = mastery_caution(mastery(0.449, 0.584, threshold=0.6))
    (on_the_console,) = chances_caution(0.449, 0.584, 0.6, of=MEANS)
    for said in (on_the_page, on_the_console):
        assert "mean predicted chances, of each student over the exercises of each skill" in said
        assert "all predicted chances" not in said
    assert "below what counts as mastered (0.6)" in on_the_console
    (in_a_test,) = chances_caution(0.449, 0.584, 0.6, of=ANSWERS)
    assert "single answers" in in_a_test


def test_an_untrained_model_needs_a_checkpoint_and_not_more_epochs() -> None:
    (floor,) = floor_caution([{**row, "trained": "0"} for row in scores(0.5, 0.8)])
    (side,) = mastery_caution(mastery(0.25, 0.31), trained=False)
    (chances,) = chances_caution(0.25, 0.31, 0.5, of=MEANS, trained=False)
    for said in (floor, side, chances):
        assert "--ckpt_path" in said
        assert "epochs" not in said


def test_mastery_that_tells_students_apart_is_not_warned_of() -> None:
    assert mastery_caution(mastery(0.25, 0.31, threshold=0.3)) == []
    assert mastery_caution([]) == []
    assert mastery_caution([{"predicted": "", "mastered": ""}] * 3) == []
    from_file = [{"predicted": "0.2", "mastered": "0"}, {"predicted": "0.7", "mastered": "1"}]
    assert mastery_caution(from_file) == []


def with_nll(model: float, floor: float) -> list[dict[str, object]]:
    return [{"system": "lmcd", "auc": 0.7, "nll": model}, {"system": "floor", "nll": str(floor)}]


def test_chances_that_fit_worse_than_a_coin_or_the_floor_are_said_with_all_numbers() -> None:
    (coin,) = likelihood_caution(with_nll(0.743, 0.61))
    assert "NLL 0.743 is worse than that of a coin, 0.693 (that of each student's own" in coin
    (floor,) = likelihood_caution(with_nll(0.65, 0.61))
    assert "NLL 0.650 is worse than that of each student's own rate, 0.610: on" in floor
    (untrained,) = likelihood_caution([{**row, "trained": 0} for row in with_nll(0.743, 0.61)])
    assert "--ckpt_path" in untrained


@pytest.mark.parametrize("rows", [with_nll(0.6, 0.61), with_nll(math.nan, 0.6), scores(0.5, 0.4)])
def test_a_likelihood_that_is_not_worse_is_not_warned_of(rows: list[dict[str, object]]) -> None:
    assert likelihood_caution(rows) == []


def items(predicted: list[float], observed: list[float], answers: int = 30) -> list[dict[str, str]]:
    return [
        {"predicted": str(p), "observed": str(o), "answers": str(answers)}
        for p, o in zip(predicted, observed, strict=True)
    ]


SPREAD = [0.27, 0.30, 0.34, 0.40, 0.42, 0.45, 0.50, 0.55, 0.58, 0.60, 0.65, 0.67]
FLAT = [0.39 + 0.03 * i / 11 for i in range(12)]


def test_exercises_that_are_not_told_apart_are_said_with_both_ranges() -> None:
    (said,) = alike_caution(items(FLAT, SPREAD))
    assert "between 0.39 and 0.42" in said
    assert "between 0.27 and 0.67 (12 exercises)" in said
    (untrained,) = alike_caution(items(FLAT, SPREAD), trained=False)
    assert "--ckpt_path" in untrained


def test_exercises_that_differ_by_the_chance_of_few_answers_alone_need_not_be_told_apart() -> None:
    assert alike_caution(items(FLAT, SPREAD, answers=6)) == []
    assert alike_caution(items(FLAT, FLAT)) == []


def test_exercises_that_are_told_apart_or_too_few_are_not_warned_of() -> None:
    assert alike_caution(items([0.8 * o for o in SPREAD], SPREAD)) == []
    assert alike_caution(items(FLAT[:3], SPREAD[:3])) == []
    nobody = {"predicted": "0.4", "observed": "", "answers": "0"}
    assert alike_caution([nobody] * 12) == []
