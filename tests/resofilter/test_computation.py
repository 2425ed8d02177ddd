"""What is said of a model besides its weights: all that changes its function, and nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_scoring import MODEL
from torch import nn

from lightning_suite import CausalLMModule
from lightning_suite.resofilter.computation import computation, plain
from lightning_suite.resofilter.manifest import manifest_difference, weights_fingerprint
from tests.support.versions import of_transformers_5


class Net(LightningModule):
    """Everything of it is in its hyperparameters."""

    def __init__(self, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 2)


class Plain(LightningModule):
    """Has no hyperparameters."""

    def __init__(self, act: nn.Module, power: float = 2.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3), nn.Dropout(0.1)])
        self.act, self.power = act, power


def language_model(lora: dict[str, Any] | None = None, **config: Any) -> CausalLMModule:
    torch.manual_seed(0)
    return CausalLMModule({**MODEL, **config}, lora=lora)


def difference(one: nn.Module, other: nn.Module) -> list[str]:
    return manifest_difference(computation(one), computation(other))


def test_the_same_model_twice_is_the_same_and_json_holds_it() -> None:
    said = computation(language_model({"r": 2, "target_modules": ["q_proj", "v_proj"]}))
    again = computation(language_model({"r": 2, "target_modules": ["v_proj", "q_proj"]}))
    said["hparams"], again["hparams"] = {}, {}  # the list is as it was written
    assert json.loads(json.dumps(said)) == again
    assert " at 0x" not in json.dumps(said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_act": "relu"}, '.config.hidden_act: "silu" -> "relu"'),
        ({"rms_norm_eps": 1e-3}, ".config.rms_norm_eps: 1e-06 -> 0.001"),
        pytest.param(
            {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}},
            ".config.rope_parameters.rope_theta: 10000.0 -> 50000.0",
            marks=of_transformers_5,
        ),
    ],
)
def test_a_configuration_that_leaves_the_weights_alone_is_seen(
    config: dict[str, Any], said: str
) -> None:
    one, other = language_model(), language_model(**config)
    assert weights_fingerprint(one) == weights_fingerprint(other)
    assert f"models.model{said}" in difference(one, other)


def test_another_scale_of_an_adapter_is_seen() -> None:
    adapter = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": True}
    one = language_model({**adapter, "lora_alpha": 8})
    other = language_model({**adapter, "lora_alpha": 16, "lora_dropout": 0.1})
    name = "models.model.adapters.default"
    lines = [line for line in difference(one, other) if line.startswith(name)]
    assert lines == [f"{name}.lora_alpha: 8 -> 16"], "and not the dropout, which nothing uses"


def test_an_activation_that_was_exchanged_by_hand_is_seen() -> None:
    other = language_model()
    other.model.model.layers[1].mlp.act_fn = nn.Tanh()
    assert any("activation.Tanh" in line for line in difference(language_model(), other))


def test_hyperparameters_are_compared_by_value_and_those_of_training_are_not() -> None:
    first = Net(scale=1.0, lr=0.1, batch_size=4, pooling={"kind": "mean", "p": 2})
    other = Net(scale=2.0, lr=0.2, batch_size=8, pooling={"p": 2, "kind": "mean"})
    assert difference(first, other) == ["hparams.scale: 1.0 -> 2.0"]


def test_what_is_in_no_hyperparameter_is_seen_in_the_modules() -> None:
    assert difference(Plain(nn.ReLU()), Plain(nn.ReLU())) == []
    lines = difference(Plain(nn.ReLU()), Plain(nn.GELU()))
    assert any(line.startswith("modules.act.class: ") for line in lines)
    assert difference(Plain(nn.ELU(1.0)), Plain(nn.ELU(2.0))) == [
        "modules.act.alpha: 1.0 -> 2.0",
        'modules.act.printed: "alpha=1.0" -> "alpha=2.0"',
    ]
    assert difference(Plain(nn.ReLU()), Plain(nn.ReLU(), power=1.0)) == [
        "modules.(itself).power: 2.0 -> 1.0"
    ]


class Kind(Enum):
    MEAN = 1


class Loss:
    def __init__(self, margin: float) -> None:
        self.margin, self._cache = margin, object()


def test_values_that_are_not_plain_are_told_by_what_they_are() -> None:
    name = __name__
    assert plain(Kind.MEAN) == f"{name}.Kind.MEAN"
    assert plain(Loss(0.5)) == {"class": f"{name}.Loss", "margin": 0.5}
    assert plain(partial(torch.optim.AdamW, lr=0.1)) == {
        "call": "torch.optim.adamw.AdamW",
        "arguments": [],
        "keywords": {"lr": 0.1},
    }
    assert plain({"b": {"y", "x"}, "a": (1, float("nan"))}) == {"a": [1, "nan"], "b": ["x", "y"]}
    assert plain(torch.ones(2)) == plain(torch.ones(2)) != plain(torch.zeros(2))
    assert plain(object()) == {"class": "builtins.object"}
    assert plain("<thing at 0x7f3a>") == "<thing>"
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert "dict" in json.dumps(plain(loop))


def test_paths_count_by_what_lies_there(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "three")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_text(text)
    folders = [plain(str(tmp_path / name)) for name in "abc"]
    assert folders[0] == folders[1] != folders[2]
    files = [plain(tmp_path / name / "weights.bin") for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert plain("no/such/folder") == "no/such/folder"


USERS = '''
from lightning.pytorch import LightningModule
import torch

class Users(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        """{doc}"""
        return self.layer(batch).{step}.mean()  # {comment}

    def on_after_batch_transfer(self, batch, index):
        return batch * {factor}

    def validation_step(self, batch, index):
        self.log("{metric}", 0)
'''
WRITTEN = {"doc": "Step.", "step": "relu()", "comment": "so", "metric": "a", "factor": "1"}


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write and import a user's module; returns what is said of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def said(**words: str) -> dict[str, Any]:
        (tmp_path / "users_net.py").write_text(USERS.format(**{**WRITTEN, **words}))
        sys.modules.pop("users_net", None)
        importlib.invalidate_caches()
        return computation(importlib.import_module("users_net").Users())

    yield said
    sys.modules.pop("users_net", None)


def test_a_user_s_code_is_compared_where_a_score_runs_it(users: Any) -> None:
    before = users()
    assert users(doc="One step.", comment="or so", metric="b") == before
    for change in ({"step": "tanh()"}, {"factor": "2"}):
        (line,) = manifest_difference(before, users(**change))
        assert line.startswith('code: "sha256:')
