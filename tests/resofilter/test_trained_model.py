"""A trained model and real problems: glassllm-en and GSM8K, against the literal loop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_suite.language.batching import token_budget_batches
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import probe_batches
from lightning_suite.resofilter.ranking import spearman
from lightning_suite.resofilter.targets import find_targets
from tests.reference.resofilter_reference import literal_features
from tests.support.trained_models import glassllm_en

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
N = 64
EXACT, ROUNDED = "adam1_mean_abs", "adam1_mean_abs_rounded"
Sample = tuple[Tensor, Tensor]


@pytest.fixture(scope="module", params=["the first 64", "64 at random"])
def problem(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Sample]]:
    if not GSM8K.exists():
        pytest.skip("GSM8K is not on this machine")
    model, tokenizer = glassllm_en(max_positions=768)
    lines = GSM8K.read_text().splitlines()
    if request.param == "64 at random":
        random.Random(0).shuffle(lines)
    samples = []
    for line in lines[:N]:
        row = json.loads(line)
        question, answer = (tokenizer.encode(row[key]) for key in ("question", "answer"))
        tokens = torch.tensor(question + answer)[:768]
        labels = tokens.clone()
        labels[: len(question)] = -100
        samples.append((tokens, labels))
    return model, samples


def test_the_converted_model_is_the_original() -> None:
    model, tokenizer = glassllm_en()
    original, _ = pytest.importorskip("glassllm").load_pretrained("en")
    ids = tokenizer.encode("Natalia sold clips to 48 of her friends in April.")
    expected = torch.tensor(original(np.array(ids)).data).float()
    torch.testing.assert_close(
        model(torch.tensor([ids])).logits.detach(), expected, rtol=0, atol=1e-4
    )


def ours(
    model: nn.Module, samples: list[Sample], dtype: torch.dtype, names: Sequence[str] = (EXACT,)
) -> list[Tensor]:
    """Return each feature of the last three layers' up projections: [N, 3]."""
    model = model.to(dtype).requires_grad_(True)
    targets = find_targets(model, "mlp.up_proj", "last:3").found
    indices = token_budget_batches([len(tokens) for tokens, _ in samples], 2048)

    def batch(part: list[int]) -> dict[str, object]:
        pad = nn.utils.rnn.pad_sequence
        tokens, labels = zip(*[samples[i] for i in part], strict=True)
        return {
            "ids": [str(i) for i in part],
            "input_ids": pad(tokens, batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=-100),
            "attention_mask": pad([torch.ones_like(t) for t in tokens], batch_first=True),
        }

    found = [torch.zeros(len(samples), 3, dtype=torch.float64) for _ in names]
    for rows in probe_batches(model, map(batch, indices), targets, make_features(names)):
        places = [int(i) for i in rows["sample_id"]]
        for name, values in zip(names, found, strict=True):
            columns = [column for key, column in rows.items() if key.endswith(f".{name}")]
            values[places] = torch.stack(columns, dim=1)
    return found


def literal(
    model: nn.Module, samples: list[Sample], dtype: torch.dtype, lr: float = 1e-5
) -> Tensor:
    def loss(tokens: Tensor, labels: Tensor) -> Callable[[nn.Module], Tensor]:
        return lambda model: nn.functional.cross_entropy(
            model(input_ids=tokens[None], use_cache=False).logits[0, :-1], labels[1:]
        )

    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2, 3)]
    losses = [loss(*sample) for sample in samples]
    return literal_features(model.to(dtype), losses, names, lr=lr)


def scores(values: Tensor) -> list[np.ndarray[Any, Any]]:
    """Return the score of each sample, the mean over layers, then those of single layers."""
    return [values[:, which].mean(1).numpy() for which in ([0, 1, 2], [0], [1], [2])]


@pytest.mark.slow
def test_the_score_of_real_problems(problem: tuple[nn.Module, list[Sample]]) -> None:
    model, samples = problem
    # float32 first: its weights are exact in float64, so that both see the same model
    fast, rounded = ours(model, samples, torch.float32, (EXACT, ROUNDED))
    loop = literal(model, samples, torch.float32)
    long_step = literal(model, samples, torch.float32, lr=1e-3)
    exact, exact_rounded = ours(model, samples, torch.float64, (EXACT, ROUNDED))
    truth = literal(model, samples, torch.float64)

    for found in (exact, exact_rounded):
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=0)
        assert found.mean(1).argsort().tolist() == truth.mean(1).argsort().tolist()

    # In float32 the published step is too short for this model: W and W - 1e-5 have few digits
    # between them, and the loop's ranks agree with its own float64 run to 0.98-0.99 only. So a
    # score that is right agrees with the loop by no more. The one that rounds as the loop does
    # agrees with the loop; the exact one agrees with float64, better than the loop does, and with
    # a loop of a longer step, whose length is a factor of the score and nothing else.
    every = (fast, rounded, loop, long_step, truth)
    for a, r, b, long, c in zip(*map(scores, every), strict=True):
        assert spearman(r, b) >= 0.995
        assert spearman(a, long) >= 0.998
        assert spearman(a, c) >= 0.99
        assert spearman(a, c) > spearman(b, c)
        assert (np.abs(a - c) < np.abs(b - c)).all()
