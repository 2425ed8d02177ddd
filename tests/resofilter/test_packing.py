"""Rows of several samples: as if each were alone, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import CausalLMProbe
from lightning_suite.resofilter.probe import Rows
from lightning_suite.resofilter.targets import find_targets

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
LENGTHS = (9, 5, 3, 7)


def make(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.double().eval()


def samples() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 60, (n,), generator=generator) for n in LENGTHS]


def packed(rows: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Return a batch whose rows hold these samples, one after the other."""
    tokens = samples()
    order = [n for row in rows for n in row]
    width = max(sum(LENGTHS[n] for n in row) for row in rows) + 1
    ids, segments = torch.zeros(len(rows), width).long(), torch.full((len(rows), width), -1)
    for b, row in enumerate(rows):
        start = 0
        for n in row:
            part = slice(start, start + LENGTHS[n])
            ids[b, part], segments[b, part] = tokens[n], order.index(n)
            start = part.stop
    labels = ids.masked_fill(segments < 0, -100)
    return {"ids": list(map(str, order)), "input_ids": ids, "labels": labels, "segments": segments}


def score(model: nn.Module, batch: dict[str, Any]) -> Rows:
    targets = find_targets(model, ["mlp", "self_attn"]).found
    with CausalLMProbe(model, targets, make_features(["grad_norm"])) as probe:
        return probe.score_batch(batch)


SOUND: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**LLAMA),
    "mistral, a window of a sample": MistralConfig(**LLAMA, sliding_window=9),
    "gemma2, a window of a sample": Gemma2Config(**LLAMA, sliding_window=9),
    "qwen2, a window that is not used": Qwen2Config(
        **LLAMA, sliding_window=4, use_sliding_window=False
    ),
}
# the last has as many rows as samples, two of which share a row
ROWS = (((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0, 3), (2,), ()))


@pytest.mark.parametrize("rows", ROWS, ids=["one row", "two rows", "as many rows as samples"])
@pytest.mark.parametrize("case", SOUND)
def test_packed_samples_are_scored_as_if_alone(
    case: str, rows: tuple[tuple[int, ...], ...]
) -> None:
    model, batch = make(SOUND[case]), packed(rows)
    found = score(model, batch)
    for place, name in enumerate(batch["ids"]):
        tokens = samples()[int(name)][None]
        alone = score(model, {"ids": [name], "input_ids": tokens, "labels": tokens})
        for column in (c for c in found if c.endswith("grad_norm") or c == "loss"):
            torch.testing.assert_close(found[column][place], alone[column][0], rtol=1e-4, atol=0)


REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "mistral": (
        MistralConfig(**LLAMA, sliding_window=8),
        r"see less than a sample of 9 tokens \(sliding_window=8\)",
    ),
    "gemma2": (Gemma2Config(**LLAMA, sliding_window=4), r"sliding_window=4"),
    "bloom": (BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2), "ALiBi"),
    "falcon with alibi": (FalconConfig(**SIZES, alibi=True), "ALiBi"),
    "mamba": (
        MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=60),
        "no position_ids",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_would_not_keep_samples_apart_are_refused(case: str) -> None:
    config, message = REFUSED[case]
    model = make(config)
    targets = find_targets(model).found
    with (
        CausalLMProbe(model, targets, make_features(["grad_norm"])) as probe,
        pytest.raises(SuiteError, match=rf"packed into one row, .*{message}.*one sample a row"),
    ):
        probe.score_batch(packed(((0, 1), (2, 3))))
