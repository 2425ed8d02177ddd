"""Beginnings of prompts are read once; what is read after them is as from the whole prompt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from torch import Tensor

from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.prompts import PromptFormat

HEADER = "Once upon a time there was a little girl who liked to play with her friends. "
OTHER = "The big dog and the small cat were in the garden and saw a red ball. "
QUESTIONS = [HEADER + "Tom", OTHER + "A boat was big", "Who is Tom?", HEADER + "The dog ran to him"]


@pytest.fixture
def encoder() -> PromptEncoder:
    return begun(glass_model().double())


def begun(model: Any, *beginnings: str) -> PromptEncoder:
    encoder = PromptEncoder(model, PromptFormat(glass_tokenizer(), "{prompt} {response}"), 1)
    encoder.beginnings = beginnings or (HEADER, OTHER)
    return encoder


def in_full(model: Any) -> Tensor:
    """Every prompt by itself, from its first token on."""
    encoder = PromptEncoder(model, PromptFormat(glass_tokenizer(), "{prompt} {response}"), 1)
    return torch.stack([encoder.final_states([question])[0] for question in QUESTIONS])


@pytest.fixture
def whole(encoder: PromptEncoder) -> Tensor:
    return in_full(encoder.model)


@pytest.fixture
def tokens_read(encoder: PromptEncoder) -> Iterator[list[int]]:
    """Number of tokens of each pass, padding included."""
    sizes: list[int] = []
    handle = encoder.model.model.register_forward_pre_hook(
        lambda _m, _a, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    yield sizes
    handle.remove()


def exactly(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, atol=1e-9, rtol=1e-9)


def test_states_are_those_of_whole_prompts(encoder: PromptEncoder, whole: Tensor) -> None:
    for _ in range(2):  # the first time the model is put to the test
        exactly(encoder.final_states(QUESTIONS), whole)
    assert encoder.kept.bytes > 0


def test_a_question_is_the_same_alone_and_in_company(encoder: PromptEncoder, whole: Tensor) -> None:
    encoder.final_states(QUESTIONS)
    for question, truth in zip(QUESTIONS, whole, strict=True):
        exactly(encoder.final_states([question])[0], truth)
    many = encoder.final_states(QUESTIONS * 40)  # more than one row holds
    exactly(many, whole.repeat(40, 1))


def test_a_question_reads_its_own_tokens_in_one_pass(
    encoder: PromptEncoder, tokens_read: list[int]
) -> None:
    encoder.final_states(QUESTIONS)
    whole = [len(encoder.format.encode_text(question)) for question in QUESTIONS]
    header = len(encoder.format.encode_text(HEADER + "a")) - 1
    tokens_read.clear()
    encoder.final_states([QUESTIONS[0], QUESTIONS[2]])
    assert tokens_read == [whole[0] - header + whole[2]]
    tokens_read.clear()
    encoder.final_states(QUESTIONS[3:])
    assert tokens_read == [whole[3] - header]


def test_questions_leave_what_is_kept_as_it_is(encoder: PromptEncoder) -> None:
    encoder.final_states(QUESTIONS)
    kept = encoder.kept.get(encoder.model, [HEADER, OTHER], lambda _: pytest.fail("read again"))
    before, size = copy.deepcopy([start.layers for start in kept]), encoder.kept.bytes
    for _ in range(3):
        encoder.final_states(QUESTIONS)
        encoder.final_states(QUESTIONS[:1])
    assert encoder.kept.bytes == size
    torch.testing.assert_close([start.layers for start in kept], before, atol=0, rtol=0)


def in_place(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.1)  # seen by no counter


def loaded(model: Any) -> None:
    model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})


def in_other_precision(model: Any) -> None:
    model.float()


def through_another_precision(model: Any) -> None:
    model.bfloat16().double()


@pytest.mark.parametrize(
    "change", [in_place, loaded, in_other_precision, through_another_precision]
)
def test_a_change_of_the_model_is_noticed(
    encoder: PromptEncoder, change: Callable[[Any], None]
) -> None:
    before = encoder.final_states(QUESTIONS)
    change(encoder.model)
    found = encoder.final_states(QUESTIONS)
    whole = in_full(encoder.model)
    close = 1e-9 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, whole, atol=close, rtol=close)
    if change is not in_other_precision:
        assert (found - before).abs().max() > 1e-4


def test_an_adapter_that_is_switched_off_is_noticed() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        glass_model(),
        peft.LoraConfig(
            target_modules=["up_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM"
        ),
    )
    encoder = begun(adapted, HEADER)
    on = encoder.final_states(QUESTIONS)
    with adapted.disable_adapter():
        off = encoder.final_states(QUESTIONS)
        whole = in_full(adapted)
    torch.testing.assert_close(off, whole, atol=1e-5, rtol=1e-5)
    assert (on - off).abs().max() > 1e-3


def test_copies_begin_anew(encoder: PromptEncoder, whole: Tensor) -> None:
    encoder.final_states(QUESTIONS)
    again = copy.deepcopy(encoder)
    assert again.kept.bytes == 0
    exactly(again.final_states(QUESTIONS), whole)


def test_what_was_read_without_gradients_serves_inference_mode_and_back(
    encoder: PromptEncoder, whole: Tensor
) -> None:
    with torch.inference_mode():
        encoder.final_states(QUESTIONS)
        exactly(encoder.final_states(QUESTIONS), whole)
    exactly(encoder.final_states(QUESTIONS), whole)


def test_a_model_that_mixes_up_sequences_of_a_row_reads_them_apart(
    encoder: PromptEncoder, whole: Tensor, monkeypatch: pytest.MonkeyPatch, tokens_read: list[int]
) -> None:
    forward = encoder.model.model.forward

    def everything_seen(**given: Any) -> Any:
        if given["attention_mask"].dim() == 4:
            given["attention_mask"] = None
        return forward(**given)

    monkeypatch.setattr(encoder.model.model, "forward", everything_seen)
    exactly(encoder.final_states(QUESTIONS), whole)
    tokens_read.clear()
    exactly(encoder.final_states(QUESTIONS), whole)
    assert len(tokens_read) == 3, "one pass a beginning, and one for the rest"


def test_a_model_that_takes_no_positions_reads_them_apart(
    encoder: PromptEncoder, whole: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = encoder.model.model.forward

    def without(input_ids: Tensor, attention_mask: Tensor, **given: Any) -> Any:
        if "position_ids" in given:
            raise TypeError("unexpected position_ids")
        return forward(input_ids=input_ids, attention_mask=attention_mask, **given)

    monkeypatch.setattr(encoder.model.model, "forward", without)
    for _ in range(2):
        exactly(encoder.final_states(QUESTIONS), whole)
