"""Made-up word problems: right, different, and always the same."""

from __future__ import annotations

import re

import pytest

from lightning_suite.datamodules.word_problems import word_problems

CALCULATION = re.compile(r"<<([\d+*/-]+)=(\d+)>>(\d+)")


@pytest.fixture(scope="module")
def problems() -> list[dict[str, str]]:
    return word_problems(3000)


def test_every_calculation_is_right(problems: list[dict[str, str]]) -> None:
    for problem in problems:
        steps = CALCULATION.findall(problem["answer"])
        assert len(steps) >= 2
        for expression, value, shown in steps:
            assert eval(expression) == int(value) == int(shown) >= 0, problem
        assert problem["answer"].endswith(f"#### {steps[-1][1]}")


def test_the_numbers_of_a_question_are_used(problems: list[dict[str, str]]) -> None:
    for problem in problems:
        used = set(re.findall(r"\d+", problem["answer"]))
        assert set(re.findall(r"\d+", problem["question"])) <= used | {"1"}, problem


def test_no_question_and_no_id_comes_twice(problems: list[dict[str, str]]) -> None:
    for key in ("id", "question"):
        assert len({problem[key] for problem in problems}) == len(problems)


def test_they_depend_on_the_seed_alone(problems: list[dict[str, str]]) -> None:
    assert word_problems(10) == problems[:10]
    assert word_problems(10, seed=1) != problems[:10]
    assert not {p["id"] for p in word_problems(10, seed=1)} & {p["id"] for p in problems}
