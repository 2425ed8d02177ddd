"""Subjects: found in texts word for word, and in edits that do not name theirs."""

from __future__ import annotations

import random

import pytest

from lightning_suite.scen.edits import Edit
from lightning_suite.scen.subjects import (
    SubjectIndex,
    edit_aliases,
    edit_subject,
    find_words,
    replaced,
    subject_words,
)


def index(*subjects: str) -> SubjectIndex:
    found = SubjectIndex()
    for slot, subject in enumerate(subjects):
        found.add(subject_words(subject), slot)
    return found


def names(subjects: SubjectIndex, text: str) -> list[str]:
    return [" ".join(match.words) for match in subjects.find(text)]


def test_case_accents_punctuation_and_articles_make_no_difference() -> None:
    assert subject_words("The Côte d'Ivoire") == ("cote", "d", "ivoire")
    subjects = index("the Côte d’Ivoire", "Nestlé", "C-3PO")
    text = "Did NESTLE sell cocoa from Cote d'Ivoire to c 3po?"
    assert names(subjects, text) == ["nestle", "cote d ivoire", "c 3po"]


def test_a_possessive_is_found_and_part_of_a_word_is_not() -> None:
    assert names(index("Peru"), "What is Peru's capital?") == ["peru"]
    assert names(index("Peru"), "Is the Peruvian capital Lima?") == []


def test_a_name_inside_a_longer_one_is_not_meant() -> None:
    subjects = index("Korea", "South Korea", "New York", "York")
    assert names(subjects, "South Korea and New York") == ["south korea", "new york"]
    assert names(subjects, "From South Korea to Korea") == ["south korea", "korea"]


def test_names_inside_longer_ones_are_found_where_they_are_asked_for() -> None:
    subjects = index("New York", "New York City", "York")
    text = "Is New York City in New York?"
    assert names(subjects, text) == ["new york city", "new york"]
    inner = {match.words: match for match in subjects.find_inner(text)}
    assert set(inner) == {("new", "york"), ("york",)}
    assert inner["new", "york"].around == (((), ("city",)),)
    assert replaced(text, inner["new", "york"].spans, "X") == "Is X City in X?"
    assert (("new",), ("city",)) in inner[("york",)].around
    assert subjects.find_inner("Is Peru in York?") == []


def test_all_places_of_a_subject_are_replaced() -> None:
    text = "Is Peru larger than Chile, or is PERU's coast longer?"
    peru, chile = index("Peru", "Chile").find(text)
    assert replaced(text, peru.spans, "X") == "Is X larger than Chile, or is X's coast longer?"
    assert replaced(text, chile.spans, "X") == "Is Peru larger than X, or is PERU's coast longer?"


def test_slots_share_a_subject_until_the_last_is_gone() -> None:
    subjects = index("Peru", "peru")
    assert subjects.slots(("peru",)) == [0, 1]
    subjects.remove(("peru",), 0)
    assert names(subjects, "Peru") == ["peru"]
    subjects.remove(("peru",), 1)
    assert names(subjects, "Peru") == []
    assert len(subjects) == 0


def test_lookup_finds_what_a_search_for_every_subject_finds() -> None:
    rng = random.Random(0)
    for _ in range(200):
        known = {tuple(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(4)}
        text = rng.choices("abcd", k=8)
        subjects = index(*(" ".join(words) for words in known))
        places = [
            (start, start + len(words), words)
            for words in known if words[0] != "a" or len(words) == 1
            for start in range(len(text))
            if tuple(text[start : start + len(words)]) == words
        ]  # fmt: skip
        if any(words[0] == "a" and len(words) > 1 for words in known):
            continue  # "a b" loses its article
        meant = {
            words
            for start, end, words in places
            if not any(s <= start and end <= e and (s, e) != (start, end) for s, e, _ in places)
        }
        assert {match.words for match in subjects.find(" ".join(text))} == meant


@pytest.mark.parametrize(
    ("prompt", "paraphrases", "subject", "expected", "guessed"),
    [
        ("What is the capital of the Netherlands?", (), "the Netherlands", "netherlands", False),
        ("What is the capital of France?", (), None, "france", True),
        ("What is the capital of France?", ("France has which capital?",), None, "france", True),
        ("who wrote war and peace", ("war and peace is by whom",), None, "war and peace", True),
        ("Who founded the Red Cross?", (), None, "red cross", True),
        ("What is the capital of Chad?", ("Name the capital of Chad.",), None, "chad", True),
        ("What is the symbol for tin?", ("Which symbol has tin?",), None, "tin", True),
        ("what colour is grass", (), None, "grass", True),
        ("Who is he?", (), None, "who is he", True),
        ("What is the capital of France?", (), "Germany", "france", True),
    ],
)
def test_the_subject_of_an_edit(
    prompt: str, paraphrases: tuple[str, ...], subject: str | None, expected: str, guessed: bool
) -> None:
    edit = Edit("1", prompt, "x", subject, paraphrases)
    assert edit_subject(edit) == (tuple(expected.split()), guessed)


def test_words_are_given_back_as_they_are_written() -> None:
    assert find_words("Is the CÔTE  d’Ivoire large?", ("cote", "d", "ivoire")) == "CÔTE  d’Ivoire"


def test_aliases_are_other_names_each_once() -> None:
    names = ("The Thailand", "thailand", "SIAM", "", "?")
    edit = Edit("e", "Who rules Siam?", "Ada", "Siam", aliases=names)
    assert edit_aliases(edit) == (("thailand",),)
