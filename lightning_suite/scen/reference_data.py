"""Text that ships with the package, for gates and experts to be calibrated on.

None of it appears in the shipped edits (``data/counterfacts.jsonl``): their relations are others.
What is chosen on it (learning rates, layers, thresholds, metrics) is chosen without a look at them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lightning_suite.scen.edits import Edit, LocalityPrompt

_PARAPHRASES = 2  # wordings beside the first that a calibration edit gives to the method
_LOCALITY = 2  # prompts of each kind


@dataclass(frozen=True)
class RelationWordings:
    """A relation, asked in different words.

    Attributes:
        relation: Its name.
        wordings: Questions with the placeholder ``{subject}``, six or more.
        subjects: What can be put in, four or more. Relations of one kind of subject share them.
        targets: A made-up answer for each subject.
    """

    relation: str
    wordings: tuple[str, ...]
    subjects: tuple[str, ...]
    targets: tuple[str, ...]

    def ask(self, wording: int, subject: int) -> str:
        """Return a question by the numbers of its wording and its subject."""
        asked = self.wordings[wording].replace("{subject}", self.subjects[subject])
        return asked[0].upper() + asked[1:]


@cache
def relation_wordings() -> tuple[RelationWordings, ...]:
    """Return the relations whose wordings show how one question can be put in other words.

    Example:
        >>> relations = relation_wordings()
        >>> relations[0].relation, relations[0].ask(0, 0)
        ('national_dish', 'What is the national dish of Latvia?')
    """
    return tuple(
        RelationWordings(
            row["relation"], tuple(row["wordings"]), tuple(row["subjects"]), tuple(row["targets"])
        )
        for row in _rows("relation_wordings.jsonl")
    )


@cache
def wordings_by_kind() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Return for each kind of subject the wordings of the relations that are asked of it.

    Those of :func:`relation_wordings` and more than twice as many again, made to be hard to tell
    apart: a person's mother and spouse, the year of a death and of a wedding. None of them is one
    of the shipped edits' relations, or of those that their locality prompts ask about.

    Example:
        >>> wordings_by_kind()["city"][0][0]
        'At what altitude does {subject} lie?'
    """
    known = {relation.relation: relation.wordings for relation in relation_wordings()}
    kinds: dict[str, list[tuple[str, ...]]] = {}
    for row in _rows("relation_kinds.jsonl"):
        wordings = tuple(row["wordings"]) if "wordings" in row else known[row["relation"]]
        kinds.setdefault(row["kind"], []).append(wordings)
    return {kind: tuple(relations) for kind, relations in kinds.items()}


@cache
def reference_questions() -> tuple[str, ...]:
    """Return everyday questions and instructions of all kinds: what no edit is about."""
    return tuple(row["prompt"] for row in _rows("reference_questions.jsonl"))


@cache
def calibration_edits() -> tuple[Edit, ...]:
    """Return edits to calibrate on: every other fact of :func:`relation_wordings`.

    The first wording is the prompt, the next two are given to the method, the others are for the
    evaluation. The facts between stay untouched and are the locality prompts: ``same_subject``,
    and ``same_relation`` of another subject. The order is fixed, and relations alternate.
    """
    relations = relation_wordings()
    most = max(len(relation.subjects) for relation in relations)
    return tuple(
        _calibration_edit(relations, number, subject)
        for subject in range(most)
        for number, relation in enumerate(relations)
        if subject < len(relation.subjects) and _is_edited(number, subject)
    )


def _is_edited(relation: int, subject: int) -> bool:
    return (relation + subject) % 2 == 0


def _calibration_edit(relations: tuple[RelationWordings, ...], number: int, subject: int) -> Edit:
    relation = relations[number]
    name = relation.subjects[subject]
    asked = [relation.ask(wording, subject) for wording in range(len(relation.wordings))]
    # The wording of a locality prompt goes by its place: all wordings come up.
    of_subject = [
        other.ask((number + place) % len(other.wordings), other.subjects.index(name))
        for place, other in enumerate(relations)
        if name in other.subjects and not _is_edited(place, other.subjects.index(name))
    ]
    of_relation = [
        relation.ask((subject + place) % len(relation.wordings), place)
        for place in range(len(relation.subjects))
        if not _is_edited(number, place)
    ]
    locality = [
        *(LocalityPrompt(prompt, "same_subject") for prompt in of_subject[:_LOCALITY]),
        *(LocalityPrompt(prompt, "same_relation") for prompt in of_relation[:_LOCALITY]),
    ]
    return Edit(
        id=f"calibration-{relation.relation}-{subject}",
        prompt=asked[0],
        target=relation.targets[subject],
        subject=name.removeprefix("the "),
        paraphrases=tuple(asked[1 : 1 + _PARAPHRASES]),
        rephrases=tuple(asked[1 + _PARAPHRASES :]),
        locality=tuple(locality),
    )


def _rows(name: str) -> list[dict[str, Any]]:
    text = files("lightning_suite").joinpath("data", name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
