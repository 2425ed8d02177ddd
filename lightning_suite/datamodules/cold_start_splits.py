"""Cut answers into parts so that what is asked was never seen; and check that it is so."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from lightning_suite.datamodules.cold_start_sources import ResponseData
from lightning_suite.errors import SuiteError, check_choice

Kind = Literal["random", "exercise", "kc", "domain", "student"]
KINDS = ("random", "exercise", "kc", "domain", "student")
PARTS = ("train", "val", "test", "oracle", "support")


@dataclass(frozen=True)
class Split:
    """Which answers belong to which part.

    Attributes:
        kind: What is cold in ``val`` and ``test``.
        parts: Rows of the data, int64, sorted; parts share no row. ``oracle``: answers to the
            test's exercises for an upper bound, never in ``test``. ``support``: the answers from
            which the students of a student-cold test are attached.
        held_out: Ids of the exercises, KCs, domains or students that only ``test`` has.
        val_kind: What is cold in ``val`` instead; None: the same.
    """

    kind: Kind
    parts: dict[str, Tensor]
    held_out: list[str] = field(default_factory=list)
    val_kind: Kind | None = None


def make_split(
    data: ResponseData,
    kind: Kind,
    *,
    folds: int = 5,
    fold: int = 0,
    val_fraction: float = 0.1,
    val_kind: Kind | None = None,
    seed: int = 0,
    oracle_fraction: float = 0.0,
    support: int = 0,
) -> Split:
    """Hold out one of ``folds`` parts for testing, and of the rest a part for validation.

    Validation is as cold as the test: it is cut in the same way, at least one exercise, KC, domain
    or student. Exercises with the same text (:func:`same_text`) are never on two sides. Exercises
    without answers have no say in it: who adds some later has the same split.

    Args:
        data: All answers.
        kind: ``random`` cuts answers; ``exercise`` exercises; ``kc`` KCs (an exercise with a KC of
            the test is in the test); ``domain`` the domains of KCs likewise; ``student`` students.
        folds: Number of parts.
        fold: Which part is the test, from 0.
        val_fraction: Of what is not tested; 0 for none.
        val_kind: With ``kc`` and ``domain``: ``exercise`` to validate on new exercises of KCs that
            are trained on, where a whole KC or domain would leave too little.
        seed: Of the cut.
        oracle_fraction: Share of the test's answers that is set apart as ``oracle``.
        support: With ``student``: answers of each held-out student to attach them from.

    Raises:
        SuiteError: An argument is out of range, or a part would be empty.
    """
    check_choice("split", kind, KINDS)
    if folds < 2 or not 0 <= fold < folds:
        raise SuiteError(f"fold {fold} of {folds} folds: give 2 or more folds and fold from 0 on.")
    if val_kind not in (None, kind) and (kind not in ("kc", "domain") or val_kind != "exercise"):
        raise SuiteError(
            f"split={kind}: validation cannot be cut by {val_kind}. With split kc or domain it can "
            "be by exercise; else it is cut as the test is."
        )
    groups, names = _groups(data, kind)
    answered = _units(data, kind).unique().tolist()
    present = torch.tensor(sorted({group for unit in answered for group in groups[unit]}))
    number = len(present)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(number, generator=generator)
    place = order.argsort()
    tested = set(present[place * folds // number == fold].tolist())
    rest = [g for g in present[order].tolist() if g not in tested]
    warm = [tested.isdisjoint(group) for group in groups]
    if val_kind not in (None, kind):
        groups = _groups(data, "exercise")[0]
        left = torch.tensor(sorted({g for unit in answered if warm[unit] for g in groups[unit]}))
        rest = left[torch.randperm(len(left), generator=generator)].tolist()
    validated = [False] * len(groups)
    for count in range(max(1, round(val_fraction * len(rest))), len(rest)) if val_fraction else ():
        chosen = set(rest[:count])
        validated = [w and not chosen.isdisjoint(g) for w, g in zip(warm, groups, strict=True)]
        if any(validated):  # else: all exercises with these KCs are in the test
            break
    side = torch.tensor([2 if not w else int(v) for w, v in zip(warm, validated, strict=True)])
    of_answer = side[_units(data, kind)]
    parts = {name: (of_answer == i).nonzero().squeeze(1) for i, name in enumerate(PARTS[:3])}
    parts["test"], parts["oracle"] = _set_apart(parts["test"], oracle_fraction, generator)
    if kind == "student":
        parts["test"], parts["support"] = _support(data, parts["test"], support, generator)
        parts["val"], more = _support(data, parts["val"], support, generator)
        parts["support"] = torch.cat([parts["support"], more]).sort().values
    split = Split(
        kind,
        {name: part for name, part in parts.items() if len(part)},
        [names[i] for i in sorted(tested)] if names else [],
        val_kind,
    )
    needed = ["train", "test", *(["val"] if val_fraction else [])]
    empty = [name for name in needed if name not in split.parts]
    if empty:
        raise SuiteError(
            f"split={kind}, fold {fold} of {folds}: no answers are left to {' and '.join(empty)}. "
            "Take another number of folds or kind of split (most exercises may share a KC)."
        )
    check_leaks(data, split)
    return split


def join_test(
    data: ResponseData,
    test: ResponseData,
    kind: Kind,
    *,
    val_fraction: float,
    seed: int,
    val_kind: Kind | None = None,
) -> tuple[ResponseData, Split]:
    """Join answers that are given as the test to those to train on.

    Args:
        data: To train on and to cut the validation from, as :func:`make_split` does.
        test: Whose students, exercises and KCs begin with those of ``data``, in their order.
        kind: What must be new in ``test``.
        val_fraction: Of ``data``.
        seed: Of the cut.
        val_kind: As for :func:`make_split`.

    Raises:
        SuiteError: An answer is in both, or what must be new is not.
    """
    whole = replace(
        test,
        student=torch.cat([data.student, test.student]),
        exercise=torch.cat([data.exercise, test.exercise]),
        correct=torch.cat([data.correct, test.correct]),
    )
    pairs = whole.student * len(whole.exercises) + whole.exercise
    known = torch.isin(pairs[len(data) :], pairs[: len(data)])
    if known.any():
        row = int(known.nonzero()[0])
        raise SuiteError(
            f"leak: answers of test_source are in source, too ({int(known.sum())}, first that of "
            f"student {whole.students[test.student[row]]!r} to exercise "
            f"{whole.exercises[test.exercise[row]].id!r}). Take them out of one of the two."
        )
    rows = torch.arange(len(whole))
    parts = {"train": rows[: len(data)]}
    if val_fraction:
        folds = max(2, round(1 / val_fraction))
        cut = make_split(data, val_kind or kind, folds=folds, val_fraction=0, seed=seed)
        parts = {"train": cut.parts["train"], "val": cut.parts["test"]}
    split = Split(kind, {**parts, "test": rows[len(data) :]}, val_kind=val_kind)
    check_leaks(whole, split)
    return whole, split


def check_leaks(data: ResponseData, split: Split) -> None:
    """Raise if anything that must be cold in ``val`` or ``test`` is in another part.

    Raises:
        SuiteError: With the ids that are on both sides.
    """
    seen: set[int] = set()
    for name, part in split.parts.items():
        rows = set(part.tolist())
        if rows & seen:
            raise SuiteError(f"leak: {len(rows & seen)} answers of {name} are in another part.")
        seen |= rows
    train = split.parts["train"]
    for name in ("val", "test"):
        held = split.parts.get(name)
        kind = (split.val_kind or split.kind) if name == "val" else split.kind
        if held is None or kind == "random":
            continue
        if name == "test" and "val" in split.parts:
            train = torch.cat([train, split.parts["val"]])  # the best epoch is chosen by it
        if kind == "student":
            both = {data.students[s] for s in _shared(data.student, train, held)}
            _refuse(both, "students", name)
            continue
        both = {data.exercises[e].id for e in _shared(data.exercise, train, held)}
        _refuse(both, "exercises", name)
        here, there = ({int(e) for e in data.exercise[p].unique()} for p in (held, train))
        texts = {same_text(data.exercises[e].text) for e in there}
        copies = {data.exercises[e].id for e in here if same_text(data.exercises[e].text) in texts}
        _refuse(copies, "texts of exercises", name)
        if kind in ("kc", "domain"):
            known = set[str]().union(*(_labels(data, e, kind) for e in there))
            if name == "test":
                _refuse(known & set(split.held_out), f"{kind}s that are held out", name)
            warm = [data.exercises[e].id for e in here if _labels(data, e, kind) <= known]
            if warm:
                raise SuiteError(
                    f"leak: split={kind}, and {len(warm)} exercises of the {name} part have "
                    f"no {kind} that is new: {', '.join(sorted(warm)[:3])}. Take their "
                    "answers out, or choose another kind of split."
                )


def same_text(text: str) -> str:
    """Return what is equal for texts that differ in blanks or in the code of a character alone.

    That is NFKC with runs of blanks as one. Upper and lower case count, and so do superscripts,
    subscripts and fractions, which NFKC would make digits of: 3² is not 32.
    """
    folded = text if text.isascii() else unicodedata.normalize("NFC", "".join(map(_fold, text)))
    return " ".join(folded.split())


@cache
def _fold(character: str) -> str:
    kept = unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))
    return character if kept else unicodedata.normalize("NFKC", character)


def _groups(data: ResponseData, kind: Kind) -> tuple[list[Sequence[int]], list[str]]:
    """Return the groups of each unit (answer, exercise or student), and the groups' names."""
    if kind == "random":
        return [(i,) for i in range(len(data))], []
    if kind == "student":
        return [(i,) for i in range(len(data.students))], data.students
    if kind == "exercise":
        first: dict[str, int] = {}
        same = [(first.setdefault(same_text(e.text), len(first)),) for e in data.exercises]
        ids: dict[int, str] = {}
        for (group,), exercise in zip(same, data.exercises, strict=True):
            ids.setdefault(group, exercise.id)
        return list(same), [ids[i] for i in range(len(first))]
    every = [_labels(data, e, kind) for e in range(len(data.exercises))]
    bare = next((e for e, labels in enumerate(every) if not labels or "" in labels), None)
    if bare is not None:
        raise SuiteError(
            f"split={kind}: exercise {data.exercises[bare].id!r} has no {kind}. "
            f"{'Fill the column domain of kcs.csv.' if kind == 'domain' else 'Give it a KC.'}"
        )
    names = sorted(set[str]().union(*every))
    number = {name: i for i, name in enumerate(names)}
    return [sorted(number[label] for label in labels) for labels in every], names


def _labels(data: ResponseData, exercise: int, kind: str) -> set[str]:
    kcs = set(data.exercises[exercise].kcs)
    return kcs if kind == "kc" else {kc.domain for kc in data.kcs if kc.id in kcs}


def _units(data: ResponseData, kind: Kind) -> Tensor:
    if kind == "random":
        return torch.arange(len(data))
    return data.student if kind == "student" else data.exercise


def _set_apart(rows: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = rows[torch.randperm(len(rows), generator=generator)]
    count = round(fraction * len(rows))
    return order[count:].sort().values, order[:count].sort().values


def _support(
    data: ResponseData, rows: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Take ``count`` random answers of each student."""
    order = rows[torch.randperm(len(rows), generator=generator)]
    order = order[data.student[order].argsort(stable=True)]
    _, sizes = data.student[order].unique_consecutive(return_counts=True)
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[place >= count].sort().values, order[place < count].sort().values


def _shared(values: Tensor, a: Tensor, b: Tensor) -> set[int]:
    return set(values[a].tolist()) & set(values[b].tolist())


def _refuse(both: set[str], what: str, part: str) -> None:
    if both:
        some = ", ".join(sorted(both)[:3])
        raise SuiteError(
            f"leak: {len(both)} {what} of the {part} part are in the training"
            f"{' or validation' if part == 'test' else ''} part, too: "
            f"{some}{', …' if len(both) > 3 else ''}. Take their answers out of one of the two, or "
            "choose another kind of split."
        )
