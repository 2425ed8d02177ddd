"""A diagnosis that says nothing says so: below the floor, or all chances on one side."""

from __future__ import annotations

import math

import pytest

from lightning_suite.lmcd.cautions import floor_caution, mastery_caution


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


def test_mastery_that_tells_students_apart_is_not_warned_of() -> None:
    assert mastery_caution(mastery(0.25, 0.31, threshold=0.3)) == []
    assert mastery_caution([]) == []
    assert mastery_caution([{"predicted": "", "mastered": ""}] * 3) == []
    from_file = [{"predicted": "0.2", "mastered": "0"}, {"predicted": "0.7", "mastered": "1"}]
    assert mastery_caution(from_file) == []
