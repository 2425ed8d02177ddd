"""The small real model of the other tests is what its author trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glass_lm import glass_model, glass_tokenizer, original

TEXTS = [
    "Once upon a time there was a King, who had a daughter.",
    "  Two  spaces,\nand a new line — “quoted” … 42 ù\n\n",
    "unknown: ☃ and naïve",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_are_those_of_the_package(text: str) -> None:
    _, source = original()
    tokenizer = glass_tokenizer()
    tokens = tokenizer(text)["input_ids"]
    assert tokens == source.encode(text)
    assert len(tokenizer) == source.vocab_size
    if "☃" not in text and "…" not in text:
        assert tokenizer.decode(tokens) == text


def test_the_logits_are_those_of_the_package() -> None:
    model, source = original()
    ids = source.encode(TEXTS[0] * 3)[:128]
    truth = np.asarray(model.forward(ids).data)
    with torch.no_grad():
        ours = glass_model()(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(ours, truth, atol=2e-5)


def test_it_has_learnt_english() -> None:
    tokens = torch.tensor([glass_tokenizer()(TEXTS[0])["input_ids"]])
    shuffled = tokens[:, torch.randperm(tokens.shape[1])]
    model = glass_model(torch.float64)
    with torch.no_grad():
        loss, loss_shuffled = (float(model(x, labels=x).loss) for x in (tokens, shuffled))
    assert loss < 4.2  # the author measured 4.19 on held-out text
    assert loss_shuffled > loss + 2
