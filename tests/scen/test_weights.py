"""What tells weights from others, and a model from itself a moment ago."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glass_lm import glass_model
from torch import nn

from lightning_suite.scen.weights import weights_hash, weights_stamp
from tests.support.versions import TRANSFORMERS_5


class Scaled(nn.Module):
    """A buffer that is saved, and one that is made anew each time."""

    def __init__(self, name: str = "made") -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))
        self.register_buffer(name, torch.tensor([3.0, 0.123456]), persistent=False)


def test_a_hash_sees_every_parameter() -> None:
    model = glass_model()
    before = weights_hash(model)
    assert weights_hash(glass_model()) == before
    for parameter in model.parameters():
        kept = parameter.data.clone()
        parameter.data.add_(1e-3)
        assert weights_hash(model) != before
        parameter.data.copy_(kept)
    assert weights_hash(model.bfloat16()) != before


def test_a_hash_sees_buffers() -> None:
    before = weights_hash(Scaled())
    for name in ("scale", "made"):
        model = Scaled()
        getattr(model, name)[0] += 0.01
        assert weights_hash(model) != before, name


def test_another_base_of_rotary_embeddings_is_another_model() -> None:
    rope: dict[str, Any] = {"rope_theta": 5e5}
    if TRANSFORMERS_5:
        rope = {"rope_parameters": {"rope_type": "default", **rope}}
    assert weights_hash(glass_model(**rope)) != weights_hash(glass_model())


def test_last_digits_and_names_of_what_a_model_makes_itself_do_not_count() -> None:
    model = Scaled("frequencies")
    model.get_buffer("frequencies").mul_(1 + 1e-7)
    assert weights_hash(model) == weights_hash(Scaled())


@pytest.mark.parametrize("name", ["layers.0.mlp.up_proj.weight", "rotary_emb.inv_freq"])
def test_a_stamp_sees_writes_that_nobody_counts(name: str) -> None:
    model = glass_model().model
    before = weights_stamp(model)
    assert weights_stamp(model) == before
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.mul_(1.01)
    assert weights_stamp(model) != before


def test_a_stamp_sees_counted_writes_to_any_number() -> None:
    model = nn.Linear(300, 300)
    before = weights_stamp(model)
    with torch.no_grad():
        model.weight[17, 31] += 1
    assert weights_stamp(model) != before


def test_a_stamp_sees_another_type() -> None:
    model = glass_model()
    before = weights_stamp(model)
    assert weights_stamp(model.bfloat16()) != before
