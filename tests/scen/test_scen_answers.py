from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.errors import SuiteError
from lightning_suite.scen.answers import (
    Answer,
    Answerer,
    contains_answer,
    normalise,
    right_answer,
    same_answer,
)
from lightning_suite.scen.prompts import PromptFormat

QUESTIONS = [
    "Once upon a time",
    "The dog",
    "Alice was beginning to get very tired of sitting by her",
    "Tom and Lily went to",
    "Why",
]


@pytest.fixture(scope="module")
def model() -> Any:
    """In float64, so that no tie is decided by rounding."""
    return glass_model(torch.float64)


@pytest.fixture(scope="module")
def prompts(model: Any) -> PromptFormat:
    # a letter that the model writes soon ends answers, so that some stop and some do not
    tokenizer = glass_tokenizer()
    end = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    return PromptFormat(tokenizer, "{prompt} {response}", [end])


# --- generation -----------------------------------------------------------------------------------


def one_by_one(model: Any, prompts: PromptFormat, question: str, limit: int) -> Answer:
    """Greedy decoding as it is written in textbooks: the whole sequence again for each token."""
    ids = prompts.encode(question)
    new: list[int] = []
    while len(new) < limit:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new])).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] in prompts.end_token_ids:
            return Answer(prompts.decode(new), True)
    return Answer(prompts.decode(new), False)


def test_answers_are_those_of_plain_greedy_decoding_whatever_the_batch(
    model: Any, prompts: PromptFormat
) -> None:
    expected = [one_by_one(model, prompts, question, 5) for question in QUESTIONS]
    assert len({answer.finished for answer in expected}) == 2, "some stop, some do not"
    for batch_size in (1, 2, 5):
        answerer = Answerer(model, prompts, batch_size=batch_size, max_new_tokens=5)
        assert answerer(QUESTIONS) == expected


def test_order_and_repetition_do_not_matter(model: Any, prompts: PromptFormat) -> None:
    answerer = Answerer(model, prompts, batch_size=2, max_new_tokens=6)
    answers = answerer(QUESTIONS)
    assert answerer([*QUESTIONS[::-1], QUESTIONS[0]]) == [*answers[::-1], answers[0]]
    assert answerer([]) == []


def test_beams_are_those_of_each_prompt_alone(model: Any, prompts: PromptFormat) -> None:
    answers = Answerer(model, prompts, num_beams=3, max_new_tokens=5)(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids = torch.tensor([prompts.encode(question)])
        (out,) = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=3,
            max_new_tokens=5,
            eos_token_id=list(prompts.end_token_ids),
            pad_token_id=0,
        ).tolist()
        assert answer.text == prompts.decode(out[ids.shape[1] :])
    assert answers != Answerer(model, prompts, max_new_tokens=5)(QUESTIONS)


def test_the_model_is_left_as_it_was(model: Any, prompts: PromptFormat) -> None:
    own = copy.deepcopy(model).train()
    own.model.norm.eval()  # as a user froze it
    before = [module.training for module in own.modules()]
    Answerer(own, prompts, max_new_tokens=2)(QUESTIONS[:1])
    assert [module.training for module in own.modules()] == before
    assert torch.is_grad_enabled()


def test_teacher_forcing_is_that_of_one_whole_sequence(model: Any, prompts: PromptFormat) -> None:
    targets = ["there was a cat", "ran", "sister on the bank", "the shop", "not"]
    found = Answerer(model, prompts, batch_size=3).teacher_forced(QUESTIONS, targets)
    for n, (question, target) in enumerate(zip(QUESTIONS, targets, strict=True)):
        ids, start = prompts.encode_answer(question, target)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
        wanted = torch.tensor(ids[start:])
        nll = torch.nn.functional.cross_entropy(logits, wanted)
        assert found.nll[n].item() == pytest.approx(nll.item(), rel=1e-5)
        accuracy = (logits.argmax(-1) == wanted).float().mean()
        assert found.accuracy[n].item() == pytest.approx(accuracy.item())


def test_a_prompt_over_the_context_is_named(model: Any, prompts: PromptFormat) -> None:
    with pytest.raises(SuiteError, match=r"'word word .*…' needs \d+ tokens .* context has 128"):
        Answerer(model, prompts)(["word " * 150])
    with pytest.raises(SuiteError, match="context has 128"):
        Answerer(model, prompts).teacher_forced(["word"], ["word " * 150])


def test_bad_numbers_are_refused(model: Any, prompts: PromptFormat) -> None:
    for name in ("batch_size", "max_new_tokens", "num_beams"):
        with pytest.raises(SuiteError, match=f"{name}=0"):
            Answerer(model, prompts, **{name: 0})


# --- comparison -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("U.S.A.", "usa"),
        ("«Нью-Йорк»", "ньюйорк"),
        ("ﬁnance", "finance"),
        ("a theatre", "theatre"),
        ("$5 < 6", "5 6"),
        ("The", ""),
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalise(text) == plain


def test_an_answer_without_letters_equals_only_itself() -> None:
    assert same_answer("?", "? ")
    assert not same_answer("?", "!")
    assert not same_answer("The", "A")


def test_a_right_answer_has_ended() -> None:
    assert right_answer(Answer("the Paris.", True), "Paris")
    assert not right_answer(Answer("Paris", False), "Paris")
    assert not right_answer(Answer("Paris, France", True), "Paris")


def test_contained_answers_are_whole_words() -> None:
    assert contains_answer("The capital is Paris.", "paris")
    assert not contains_answer("The capital is Parisian.", "paris")
    assert contains_answer("The blood group is A", "A")
    assert not contains_answer("The", "A")
