"""What a batch's loss is the mean of, by the model that makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.online import read_samples
from lightning_suite.resofilter.recorder import FeatureRecorder
from lightning_suite.resofilter.reduction import reduction_of_tokens
from lightning_suite.resofilter.targets import find_targets

BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
)
T5 = T5Config(
    vocab_size=50,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=1,
    num_heads=2,
    decoder_start_token_id=0,
    pad_token_id=0,
)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
XLNET = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=24)
INPUT_IDS = torch.arange(3, 24).view(3, 7)


def labels_of_tokens() -> torch.Tensor:
    labels = INPUT_IDS % 2
    labels[0, 1:], labels[1, 5:] = -100, -100  # the first sample has its first label only
    return labels


CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, list[str]]] = {
    "one label a sample": (
        lambda: BertForSequenceClassification(BERT),
        torch.tensor([0, 1, 1]),
        ["ok"] * 3,
    ),
    "one of its own for each token": (
        lambda: BertForTokenClassification(BERT),
        labels_of_tokens(),
        ["ok"] * 3,
    ),
    "an encoder-decoder": (lambda: T5ForConditionalGeneration(T5), labels_of_tokens(), ["ok"] * 3),
    "the next token": (
        lambda: GPT2LMHeadModel(GPT2),
        labels_of_tokens(),
        ["no_labels", "ok", "ok"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_takes_the_model_s_own_loss_apart(case: str) -> None:
    make, labels, status = CASES[case]
    torch.manual_seed(0)
    model = make().double().eval()
    batch: dict[str, Any] = {"input_ids": INPUT_IDS, "labels": labels}
    target = find_targets(model, layers="last:1").found[-1]
    samples = read_samples(batch, of_tokens=reduction_of_tokens(nn.Sequential(model)))
    with FeatureRecorder([target], make_features(["grad_norm"])) as recorder:
        recorder.start(3, multipliers=samples.multipliers)
        model(**batch).loss.backward()
        rows = samples.rows(recorder.finish())
    assert rows["status"] == status
    for n in range(3):
        if status[n] == "ok":
            loss = model(input_ids=INPUT_IDS[n : n + 1], labels=labels[n : n + 1]).loss
            (gradient,) = torch.autograd.grad(loss, target.module.weight)
            found = rows[f"{target.name}.grad_norm"][n].item()
            assert found == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_xlnet_is_called_like_a_model_of_the_next_token_and_is_none() -> None:
    assert reduction_of_tokens(XLNetLMHeadModel(XLNET)) == "label_mean"


def test_a_loss_that_is_not_known_must_be_told() -> None:
    batch = {"input_ids": INPUT_IDS, "labels": labels_of_tokens()}
    own, both = (
        nn.Linear(2, 2),
        nn.ModuleList([GPT2LMHeadModel(GPT2), T5ForConditionalGeneration(T5)]),
    )
    for model in (own, both):
        assert reduction_of_tokens(model) is None
    with pytest.raises(
        SuiteError, match=r"reduction=auto: .*Set reduction: token_mean .*label_mean"
    ):
        read_samples(batch)
    assert read_samples(batch, reduction="label_mean").status == ["ok"] * 3


@pytest.mark.parametrize("batch", [{"input_ids": INPUT_IDS, "labels": INPUT_IDS[:, 0]}, INPUT_IDS])
def test_labels_of_tokens_are_needed_where_they_are_counted(batch: Any) -> None:
    with pytest.raises(SuiteError, match="reduction=token_mean needs a label for each token"):
        read_samples(batch, reduction="token_mean")
