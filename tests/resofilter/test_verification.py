"""The first batch is compared with autograd: faults are named, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import CausalLMProbe
from lightning_suite.resofilter.probe import Rows, SampleProbe
from lightning_suite.resofilter.targets import find_targets
from tests.support.versions import of_transformers_5

NORM = make_features(["grad_norm"])


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, without a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mid = nn.Linear(6, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.mid(self.enc(x)).tanh(), self.enc.weight.t())


class Routed(nn.Module):
    """Two experts; of three samples with two tokens each gets three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rows, out = x.reshape(-1, 6), torch.zeros(x.shape[0] * 2, 6, dtype=x.dtype)
        route = torch.tensor([0, 0, 0, 1, 1, 1])
        for number, expert in enumerate(self.experts):
            chosen = (route == number).nonzero().squeeze(1)
            out = out.index_add(0, chosen, expert(rows[chosen]))
        return out.view_as(x)


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y - y.mean(0)


def scored(model: nn.Module, x: Tensor, probe: Any = None, **options: Any) -> Rows:
    def losses() -> Tensor:
        return model(x).square().flatten(1).sum(1)

    ids = [str(n) for n in range(len(x))]
    if probe is not None:
        return probe.score(ids, losses)
    with SampleProbe(model, find_targets(model, biases=True).found, NORM, **options) as new:
        return new.score(ids, losses)


FAULTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "a weight that is used without its layer": (Tied, (4, 6), r"\n  enc: norm \S+ from its rows"),
    "an expert with as many rows as samples": (Routed, (3, 2, 6), r"\n  experts.0: norm"),
    "samples that see each other": (Mixes, (4, 6), r"\n  layer: norm"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", FAULTS)
def test_rows_that_are_not_the_gradient_are_refused(case: str, dtype: torch.dtype) -> None:
    make, shape, message = FAULTS[case]
    torch.manual_seed(0)
    model, x = make().to(dtype), torch.randn(*shape, dtype=dtype)
    with pytest.raises(SuiteError, match=message) as error:
        scored(model, x)
    assert "Usual reasons" in str(error.value)
    assert "mid" not in str(error.value), "layers that are right are not named"
    assert scored(model, x, verify=False)["status"] == ["ok"] * len(x)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(p._backward_hooks for p in model.parameters())


def test_both_norms_are_told() -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randn(1, 6, dtype=torch.float64)
    weight = model.enc.weight
    (truth,) = torch.autograd.grad(model(x).square().sum(), weight)
    with pytest.raises(SuiteError, match=r"enc: norm") as error:
        scored(model, x)
    told = float(str(error.value).split(" by autograd")[0].rpartition(" ")[2])
    assert told == pytest.approx(truth.norm().item(), rel=0.3), "seen through a random projection"


def test_a_batch_of_one_does_not_show_what_several_do() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Tanh()), torch.randn(3, 6)
    with SampleProbe(model, find_targets(model).found, NORM) as probe:
        scored(model, x[:1], probe)
        model[1].forward = lambda y: y - y.mean(0)
        with pytest.raises(SuiteError, match="samples that see each other"):
            scored(model, x, probe)


class Remembers(nn.Module):
    """Draws random numbers and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return F.dropout(self.layer(x), 0.5, training=True)


def test_it_changes_neither_results_nor_random_numbers_nor_buffers() -> None:
    torch.manual_seed(0)
    model, x, found = Remembers(), torch.randn(4, 6), []
    for verify in (True, False):
        model.passes.zero_()
        torch.manual_seed(1)
        rows = scored(model, x, verify=verify)
        found.append((rows["layer.grad_norm"], rows["loss"], torch.rand(3), model.passes.clone()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_it_costs_one_pass_in_a_run() -> None:
    model, x, passes = nn.Sequential(nn.Linear(6, 4)), torch.randn(4, 6), []
    model.register_forward_hook(lambda *_: passes.append(1))
    with SampleProbe(model, find_targets(model).found, NORM) as probe:
        for _ in range(5):
            scored(model, x, probe)
    assert len(passes) == 6


def test_sixteen_bits_are_not_compared() -> None:
    assert scored(Tied().bfloat16(), torch.randn(3, 6).bfloat16())["status"] == ["ok"] * 3


def test_what_is_not_finite_is_a_status_and_the_next_batch_is_compared() -> None:
    model = Tied()
    with SampleProbe(model, find_targets(model).found, NORM) as probe:
        assert scored(model, torch.full((2, 6), torch.inf), probe)["status"] == ["nonfinite"] * 2
        with pytest.raises(SuiteError, match="enc: norm"):
            scored(model, torch.randn(2, 6), probe)


# --- language models ------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2),
    "llama": lambda: LlamaConfig(**LLAMA),
    "qwen2": lambda: Qwen2Config(**LLAMA),
    "opt": lambda: OPTConfig(
        **SIZES, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64
    ),
    "bloom": lambda: BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2),
    "falcon": lambda: FalconConfig(**SIZES),
    "gemma2": lambda: Gemma2Config(**LLAMA, head_dim=8, sliding_window=4),
}

# They have eager attention alone: a mask of float64's lowest number, which is -inf in the float32
# of its softmax, so that a row of which all is masked is NaN.
EAGER = ("bloom", "gemma2")


def padded(left: bool) -> dict[str, Any]:
    lengths = torch.tensor([9, 5, 2, 12])
    mask = (torch.arange(12) < lengths[:, None]).long()
    mask = mask.flip(1) if left else mask
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, mask.shape, generator=generator) * mask
    return {
        "ids": list("abcd"),
        "input_ids": ids,
        "labels": ids.masked_fill(mask == 0, -100),
        "attention_mask": mask,
    }


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CONFIGS]
    + [(case, torch.float64) for case in CONFIGS if case not in EAGER],
)
def test_sound_models_pass(case: str, dtype: torch.dtype, left: bool) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[case]()).to(dtype).eval()
    targets = find_targets(model, biases=True).found
    with CausalLMProbe(model, targets, NORM) as probe:
        assert probe.score_batch(padded(left))["status"] == ["ok"] * 4
        assert probe._verified == 2


@of_transformers_5
@pytest.mark.filterwarnings("ignore:.* watched layers took no part in the loss")
def test_a_weight_that_a_state_space_model_takes_from_its_layer_is_named() -> None:
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=60)
    model, batch = AutoModelForCausalLM.from_config(config).eval(), padded(left=False)
    with (
        CausalLMProbe(model, find_targets(model).found, NORM) as probe,
        pytest.raises(SuiteError, match=r"layers.0.mixer.dt_proj: norm") as error,
    ):
        probe.score_batch(batch)
    assert "in_proj" not in str(error.value)
    targets = find_targets(model, ["in_proj", "out_proj"]).found
    with CausalLMProbe(model, targets, NORM) as probe:
        assert probe.score_batch(batch)["status"] == ["ok"] * 4
