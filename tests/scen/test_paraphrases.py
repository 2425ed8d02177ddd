"""Wordings that are made for an edit: what is let through, and that nothing of the test is."""

from __future__ import annotations

import pytest

from lightning_suite.scen.answers import Answer
from lightning_suite.scen.edits import Edit, LocalityPrompt
from lightning_suite.scen.paraphrases import (
    INSTRUCTIONS,
    by_model,
    by_template,
    cleaned,
    usable,
    with_wordings,
)

EDIT = Edit(
    "fr",
    "What is the capital of France?",
    "Lyon",
    "France",
    ("Name France's capital?",),
    ("From which city is France governed?",),
    (LocalityPrompt("What is the currency of France?", "same_subject"),),
    aliases=("the French Republic",),
)


class TestWhatMayBeLearnt:
    @pytest.mark.parametrize(
        "text",
        [
            "Which city is the capital of France?",
            "the capital of the FRENCH REPUBLIC is which city?",
            "What do I write on a letter to the government of France?",
        ],
    )
    def test_another_question_about_the_subject(self, text: str) -> None:
        assert usable(EDIT, text)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("what is  the capital of france?", "the prompt itself"),
            ("Name France's capital?", "known already"),
            ("From which city is France GOVERNED?", "kept for the evaluation"),
            ("What is the currency of France?", "must keep its answer"),
            ("What is the capital of that country?", "has lost the subject"),
            ("Is Lyon the capital of France?", "tells the target"),
            ("The capital of France is a city.", "asks nothing"),
            ("France? " + "and so on " * 20 + "?", "a speech"),
            ("What is the capital?\nOf France?", "several lines"),
            ("", "nothing"),
        ],
    )
    def test_is_no_wording_that(self, text: str, why: str) -> None:
        assert not usable(EDIT, text), why

    def test_a_target_that_the_prompt_names_may_be_named(self) -> None:
        edit = Edit("or", "Is tea or milk drunk in Peru?", "milk", "Peru")
        assert usable(edit, "Do people in Peru drink milk or tea?")

    def test_a_prompt_that_is_no_question_needs_none(self) -> None:
        assert usable(Edit("b", "The capital of Peru is", "Oslo", "Peru"), "Peru is ruled from")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('1. "Which city leads France?"', "Which city leads France?"),
        ("New question: Which city leads France?\nIt is Paris.", "Which city leads France?"),
        ("\n- Which city leads France?", "Which city leads France?"),
        ("Which city leads France?", "Which city leads France?"),
        ("", ""),
        ("What a question! Which city leads France?", ""),
        ('A child might ask, "Which city leads France?"', ""),
        ("St Paul's is in which city?", "St Paul's is in which city?"),
    ],
)
def test_labels_numbers_and_further_lines_are_cut_off(written: str, text: str) -> None:
    assert cleaned(written) == text


def test_the_first_useful_ones_are_added_each_once() -> None:
    texts = [
        "Is it Lyon in France?",
        "France's capital?",
        "france's  CAPITAL?",
        "France has which?",
    ]
    edit = with_wordings(EDIT, [*texts, "France, its capital?"], 2)
    assert edit.paraphrases == (*EDIT.paraphrases, "France's capital?", "France has which?")
    assert (edit.prompt, edit.rephrases) == (EDIT.prompt, EDIT.rephrases)


def test_templates_hold_the_prompt_and_come_in_order() -> None:
    (two,), (three,) = by_template([EDIT], 2), by_template([EDIT], 3)
    assert len(three.paraphrases) == 4
    assert three.paraphrases[:3] == two.paraphrases
    assert all(EDIT.prompt in text for text in three.paraphrases[1:])


class Writer:
    """Stands for a model: answers by a rule, and notes what it was asked."""

    batch_size = 16

    def __init__(self, rule: str, finished: bool = True) -> None:
        self.rule, self.finished = rule, finished
        self.asked: list[str] = []

    def __call__(self, questions: list[str]) -> list[Answer]:
        self.asked += questions
        numbers = range(len(self.asked) - len(questions), len(self.asked))
        return [Answer(self.rule.format(n % len(INSTRUCTIONS)), self.finished) for n in numbers]


class TestWrittenByAModel:
    def test_each_edit_gets_its_own(self) -> None:
        edits = [Edit(n, f"Who rules {n}?", "Ada", n) for n in ("Peru", "Chad", "Mali", "Cuba")]
        writer = Writer("Peru and Chad and Mali and Cuba, way {}?")
        seen: list[str] = []
        made = by_model(edits, 2, writer, lambda edit: seen.append(edit.id))  # type: ignore[arg-type]
        assert [edit.id for edit in made] == seen == ["Peru", "Chad", "Mali", "Cuba"]
        assert all(len(edit.paraphrases) == 2 for edit in made)
        assert len(writer.asked) == 4 * len(INSTRUCTIONS)

    def test_the_model_sees_the_prompt_and_nothing_of_the_answer_or_the_test(self) -> None:
        writer = Writer("France {}?")
        by_model([EDIT], 3, writer)  # type: ignore[arg-type]
        assert all(EDIT.prompt in text for text in writer.asked)
        hidden = (EDIT.target, *EDIT.rephrases, *(p.prompt for p in EDIT.locality))
        assert not any(text in asked for text in hidden for asked in writer.asked)

    def test_what_it_did_not_finish_is_left_out(self) -> None:
        (edit,) = by_model([EDIT], 3, Writer("France {}?", finished=False))  # type: ignore[arg-type]
        assert edit == EDIT
