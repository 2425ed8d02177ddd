"""What is cold in the test was never seen; every answer is in one part; leaks raise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cold_start_folders import write_plain

from lightning_suite.datamodules.cold_start_formats import read_source
from lightning_suite.datamodules.cold_start_manifest import manifest
from lightning_suite.datamodules.cold_start_sources import Exercise, ResponseData, check_responses
from lightning_suite.datamodules.cold_start_splits import (
    KINDS,
    Kind,
    Split,
    check_leaks,
    join_test,
    make_split,
    same_text,
)
from lightning_suite.errors import SuiteError


@pytest.fixture
def data(tmp_path: Path) -> ResponseData:
    return check_responses(*read_source(str(write_plain(tmp_path))))


def cold(data: ResponseData, split: Split, part: str) -> set[str]:
    rows = split.parts[part]
    if split.kind == "student":
        return {data.students[s] for s in data.student[rows].tolist()}
    exercises = {data.exercises[e] for e in data.exercise[rows].tolist()}
    if split.kind == "exercise":
        return {e.id for e in exercises}
    of = {kc.id: kc.domain if split.kind == "domain" else kc.id for kc in data.kcs}
    return {of[kc] for e in exercises for kc in e.kcs}


@pytest.mark.parametrize("kind", KINDS)
def test_the_folds_test_everything_once_and_nothing_cold_was_trained_on(
    kind: Kind, data: ResponseData
) -> None:
    folds = 3
    tested: list[str] = []
    for fold in range(folds):
        split = make_split(data, kind, folds=folds, fold=fold, val_fraction=0.2, seed=1)
        rows = torch.cat(list(split.parts.values()))
        assert len(rows.unique()) == len(rows) == len(data)
        again = make_split(data, kind, folds=folds, fold=fold, val_fraction=0.2, seed=1)
        assert manifest(data, again) == manifest(data, split)
        if kind != "random":
            assert cold(data, split, "train").isdisjoint(split.held_out)
            tested += split.held_out
        if kind in ("student", "exercise"):
            parts = [cold(data, split, name) for name in ("train", "val", "test")]
            assert not parts[0] & parts[1]
            assert not (parts[0] | parts[1]) & parts[2]
    if kind != "random":
        assert len(tested) == len(set(tested))
        assert set(tested) == set().union(
            *(cold(data, split, name) for name in ("train", "val", "test"))
        )


def test_another_seed_is_another_split_and_the_manifest_says_so(data: ResponseData) -> None:
    one, other = (manifest(data, make_split(data, "exercise", seed=s)) for s in (0, 1))
    assert one["sha256"] != other["sha256"]
    assert one["answers"]["test"] == 24


@pytest.mark.parametrize(("kind", "folds"), [("kc", 5), ("domain", 3)])
def test_few_skills_can_be_validated_by_exercises_and_stay_in_training(
    kind: Kind, folds: int, data: ResponseData
) -> None:
    for fold in range(folds):
        test = make_split(data, kind, folds=folds, fold=fold, val_fraction=0.0)
        split = make_split(
            data, kind, folds=folds, fold=fold, val_fraction=0.2, val_kind="exercise"
        )
        assert torch.equal(split.parts["test"], test.parts["test"])
        assert not (cold(data, split, "val") | cold(data, split, "train")) & set(split.held_out)
        exercises = {p: set(data.exercise[split.parts[p]].tolist()) for p in split.parts}
        assert not exercises["val"] & exercises["train"]
        count = len(exercises["val"] | exercises["train"])
        assert len(exercises["val"]) == max(1, round(0.2 * count))
    with pytest.raises(SuiteError, match="leak: 1 exercises of the val part"):
        check_leaks(data, replace(moved(split, "val"), val_kind="exercise"))
    with pytest.raises(SuiteError, match="split=student: validation cannot be cut by exercise"):
        make_split(data, "student", val_kind="exercise")


def test_an_oracle_part_is_set_apart_from_the_test(data: ResponseData) -> None:
    plain = make_split(data, "exercise", seed=1)
    split = make_split(data, "exercise", seed=1, oracle_fraction=0.25)
    both = torch.cat([split.parts["test"], split.parts["oracle"]]).sort().values
    assert torch.equal(both, plain.parts["test"])
    assert len(split.parts["oracle"]) == 6


def test_new_students_keep_a_few_answers_to_be_attached_from(data: ResponseData) -> None:
    split = make_split(data, "student", val_fraction=0.0, support=3)
    students, counts = data.student[split.parts["support"]].unique(return_counts=True)
    assert counts.tolist() == [3] * len(students)
    assert set(students.tolist()) == set(data.student[split.parts["test"]].tolist())
    assert {data.students[s] for s in students} == set(split.held_out)


def test_exercises_with_the_same_text_are_on_one_side(data: ResponseData) -> None:
    twins = [Exercise(e.id, f"text {i // 2}", e.kcs) for i, e in enumerate(data.exercises)]
    data.exercises[:] = twins
    for fold in range(5):
        split = make_split(data, "exercise", fold=fold)
        texts = [
            {data.exercises[e].text for e in data.exercise[split.parts[p]].tolist()}
            for p in ("train", "val", "test")
        ]
        assert not texts[0] & texts[1]
        assert not (texts[0] | texts[1]) & texts[2]


def moved(split: Split, source: str, count: int = 1) -> Split:
    """Move answers of a part to the training part."""
    parts = dict(split.parts)
    parts["train"] = torch.cat([parts["train"], parts[source][:count]])
    parts[source] = parts[source][count:]
    return Split(split.kind, parts, split.held_out)


def test_leaks_raise(data: ResponseData) -> None:
    split = make_split(data, "exercise")
    for part in ("val", "test"):
        with pytest.raises(SuiteError, match=f"leak: 1 exercises of the {part} part"):
            check_leaks(data, moved(split, part))
    with pytest.raises(SuiteError, match="leak: 1 students of the test part"):
        check_leaks(data, moved(make_split(data, "student"), "test"))
    doubled = Split("random", {**split.parts, "val": split.parts["train"][:2]})
    with pytest.raises(SuiteError, match="leak: 2 answers of val are in another part"):
        check_leaks(data, doubled)
    kcs = make_split(data, "kc", folds=3)
    named = Split("kc", kcs.parts, [*kcs.held_out, *cold(data, kcs, "train")])
    with pytest.raises(SuiteError, match="leak: .* kcs that are held out of the test part"):
        check_leaks(data, named)
    data.exercises[0] = Exercise("copy", data.exercises[1].text)
    first = data.exercise == 0
    parts = {"train": (~first).nonzero().squeeze(1), "test": first.nonzero().squeeze(1)}
    with pytest.raises(SuiteError, match="leak: 1 texts of exercises .*: copy"):
        check_leaks(data, Split("exercise", parts))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 1/2 + 1/2?", "What is 1/2  + 1/2? ", True),
        ("What is\u00a01/2?", "What is 1/2?", True),  # a blank that does not break
        ("Caf\u00e9", "Cafe\u0301", True),
        ("\uff12 + 2", "2 + 2", True),  # a wide digit
        ("What", "what", False),
        ("3\u00b2", "32", False),
        ("H\u2082O", "H2O", False),
        ("1\u00bd", "11/2", False),
    ],
)
def test_texts_that_a_reader_cannot_tell_apart_are_on_one_side(
    one: str, other: str, same: bool, data: ResponseData
) -> None:
    assert (same_text(one) == same_text(other)) == same
    exercises = list(data.exercises)
    exercises[0], exercises[1] = (
        replace(e, text=t) for e, t in zip(exercises, (one, other), strict=False)
    )
    near = replace(data, exercises=exercises)
    apart = False
    for fold in range(5):
        split = make_split(near, "exercise", folds=5, fold=fold)
        sides = [{n for n, p in split.parts.items() if e in near.exercise[p]} for e in (0, 1)]
        apart |= sides[0] != sides[1]
    assert apart != same
    tested = (data.exercise == 1).nonzero().squeeze(1)
    rest = (data.exercise != 1).nonzero().squeeze(1)
    leaking = Split("exercise", {"train": rest, "test": tested})
    if same:
        with pytest.raises(SuiteError, match="leak: 1 texts of exercises .*: e1"):
            check_leaks(near, leaking)
    else:
        check_leaks(near, leaking)


@pytest.mark.parametrize(("kind", "new"), [("kc", "graph"), ("domain", "size")])
def test_answers_given_as_the_test_of_new_skills_are_of_new_skills(
    kind: Kind, new: str, tmp_path: Path
) -> None:
    given, exercises, kcs = read_source(str(write_plain(tmp_path)))
    answers = list(given)
    of = {kc.id: kc.domain if kind == "domain" else kc.id for kc in kcs}
    cold = {e.id for e in exercises if any(of[kc] == new for kc in e.kcs)}
    known = [a for a in answers if a.exercise not in cold]
    data = check_responses([a for a in known if a.exercise != "e0"], exercises, kcs)

    def join(asked: set[str]) -> Split:
        chosen = [a for a in answers if a.exercise in asked]
        test = check_responses(chosen, exercises, kcs, students=data.students)
        return join_test(data, test, kind, val_fraction=0, seed=0)[1]

    assert len(join(cold).parts["test"]) == 12 * len(cold)
    with pytest.raises(SuiteError, match=f"leak: .* 1 exercises of the test .* no {kind} .*: e0"):
        join({*cold, "e0"})


@pytest.mark.parametrize("kind", KINDS)
def test_exercises_that_nobody_has_answered_leave_the_split_as_it_is(
    kind: Kind, tmp_path: Path
) -> None:
    given, exercises, kcs = read_source(str(write_plain(tmp_path)))
    answers = list(given)
    new = [Exercise(f"new {i}", f"Something else, {i}.", ("add",)) for i in range(7)]
    for fold in range(3):
        before, after = (
            manifest(data, make_split(data, kind, folds=3, fold=fold, val_fraction=0.2))
            for data in (
                check_responses(answers, exercises, kcs),
                check_responses(answers, [new[0], *exercises, *new[1:]], kcs),
            )
        )
        assert after["sha256"] == before["sha256"]
        assert after["held_out"] == before["held_out"]


def test_what_cannot_be_cut_is_said(data: ResponseData) -> None:
    with pytest.raises(SuiteError, match="fold 5 of 5 folds"):
        make_split(data, "exercise", fold=5)
    data.exercises[3] = Exercise("e3", "text")
    with pytest.raises(SuiteError, match="split=kc: exercise 'e3' has no kc. Give it a KC"):
        make_split(data, "kc")
    every = [
        Exercise(e.id, e.text, ("add", "carry", "read", "graph", "unit")) for e in data.exercises
    ]
    data.exercises[:] = every
    with pytest.raises(SuiteError, match="no answers are left to train and val"):
        make_split(data, "kc")
