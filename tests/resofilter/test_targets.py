"""Which layers are found, which are skipped and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM
from transformers.pytorch_utils import Conv1D

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.heads.neural import NonNegative
from lightning_suite.resofilter.targets import (
    LAST_LAYERS,
    choose_layers,
    find_targets,
    layer_number,
    matches,
)
from tests.support.versions import of_transformers_5

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}


def llama(**more: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL, **more))


def names(model: nn.Module, *args: object, **kwargs: object) -> list[str]:
    return [target.name for target in find_targets(model, *args, **kwargs).found]


def test_the_depth_is_the_model_s_whatever_is_chosen_or_skipped() -> None:
    model = llama()
    model.model.layers[3].mlp.up_proj.weight.requires_grad_(False)
    assert find_targets(model, "up_proj", "first:1").depth == 4
    assert find_targets(nn.ModuleDict({"head": nn.Linear(1, 1)})).depth is None


def test_the_last_three_up_projections() -> None:
    assert names(llama(), "mlp.up_proj", "last:3") == [
        f"model.layers.{i}.mlp.up_proj" for i in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ("first:2", [0, 1]),
        ("2", [2]),
        (2, [2]),
        ("0,3", [0, 3]),
        ([3, 1], [1, 3]),
        ("last:4", [0, 1, 2, 3]),
    ],
)
def test_layers_can_be_chosen(layers: object, expected: list[int]) -> None:
    found = names(llama(), "up_proj", layers)
    assert [layer_number(name) for name in found] == expected


def test_all_linear_layers_without_the_tied_head() -> None:
    found = find_targets(llama(tie_word_embeddings=True))
    assert len(found.found) == 4 * 7
    assert found.skipped == {
        "model.embed_tokens": "an embedding is a table, not a linear map",
        "lm_head": "its weight is tied to another module's",
    }
    assert "lm_head" in names(llama(tie_word_embeddings=False))


def test_a_transposed_layer_is_a_matrix_of_outputs_by_inputs() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=32))
    targets = find_targets(model, "c_fc", biases=True).found
    assert [t.name for t in targets][:2] == [
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_fc.bias",
    ]
    assert [tuple(t.weight.shape) for t in targets][:2] == [(32, 8), (32, 1)]


def test_a_fused_layer_is_two_matrices() -> None:
    model = Phi3ForCausalLM(Phi3Config(**SMALL, pad_token_id=0))
    targets = find_targets(model, "gate_up_proj.up", 0).found
    assert [t.name for t in targets] == ["model.layers.0.mlp.gate_up_proj.up"]
    whole = model.model.layers[0].mlp.gate_up_proj.weight
    assert torch.equal(targets[0].weight, whole[12:])


def test_adapters_are_watched_and_the_frozen_base_is_not() -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["up_proj"]))
    found = find_targets(model, "up_proj", "last:1")
    assert [t.name.rpartition("mlp.")[2] for t in found.found] == [
        "up_proj.lora_A.default",
        "up_proj.lora_B.default",
    ]
    assert set(found.skipped.values()) == {"its weight is frozen"}
    assert len(names(model, "up_proj", "last:1", include_frozen=True)) == 3


def test_every_weight_and_bias_is_judged_by_itself() -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in "abcdef"})
    model["a"].weight.requires_grad_(False)
    model["b"].bias.requires_grad_(False)
    model["d"].bias = model["c"].bias
    model["f"].weight = model["e"].weight
    found = find_targets(model, biases=True)
    assert [t.name for t in found.found] == ["a.bias", "b", "c", "d", "e.bias", "f.bias"]
    assert found.skipped == {
        "a": "its weight is frozen",
        "b.bias": "its bias is frozen",
        "c.bias": "its bias is tied to another module's",
        "d.bias": "its bias is tied to another module's",
        "e": "its weight is tied to another module's",
        "f": "its weight is tied to another module's",
    }
    frozen = find_targets(model, ["a", "a.bias"], biases=True, include_frozen=True)
    assert [t.name for t in frozen.found] == ["a", "a.bias"]


def test_what_is_not_one_matrix_is_skipped() -> None:
    model = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(4, 4, 3, groups=4),  # its bias is one
            "attention": nn.MultiheadAttention(4, 2),
            "plain": nn.Linear(4, 4),
        }
    )
    both = find_targets(model, biases=True)
    assert [t.name for t in both.found] == ["depthwise.bias", "plain", "plain.bias"]
    found = find_targets(model)
    assert [t.name for t in found.found] == ["plain"]
    assert found.skipped == {
        "depthwise": "a convolution with groups is not one matrix",
        "attention.out_proj": "its parent uses the weight without calling the layer",
    }


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.25 * x)


class StandardisedConv(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class TransposedScaled(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """Only its construction is its own."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)


class RenamedTransposed(Conv1D):
    pass


def test_a_layer_with_a_forward_of_its_own_is_skipped_and_named() -> None:
    patched = nn.Linear(4, 4)
    patched.forward = lambda x: x @ patched.weight  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "scaled": Scaled(4, 4),
            "non_negative": NonNegative(4, 4),
            "standardised": StandardisedConv(2, 3, 3),
            "transposed": TransposedScaled(4, 4),
            "patched": patched,
            "renamed": Renamed(4),
            "renamed_transposed": RenamedTransposed(3, 4),
        }
    )
    found = find_targets(model, biases=True)
    assert [t.name for t in found.found] == [
        "renamed",
        "renamed.bias",
        "renamed_transposed",
        "renamed_transposed.bias",
    ]
    assert found.found[2].weight.shape == (3, 4)
    expected = "has a forward of its own, maybe not W·x + b"
    assert found.skipped["scaled"] == f"Scaled {expected}"
    assert found.skipped["scaled.bias"] == f"Scaled {expected}"
    assert set(found.skipped) >= {"non_negative", "standardised", "transposed", "patched"}
    with pytest.raises(
        SuiteError, match=r"all that match 'scaled' are skipped \(scaled: Scaled has"
    ):
        find_targets(model, "scaled")


def test_falcon_s_own_linear_layer_is_one() -> None:
    config = FalconConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    assert "transformer.h.0.mlp.dense_h_to_4h" in names(FalconForCausalLM(config))


@pytest.mark.parametrize(
    "reparametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight norm", "orthogonal", "spectral norm, as a hook", "pruned"],
)
def test_a_weight_that_is_computed_is_skipped_and_its_bias_is_not(reparametrize: Any) -> None:
    model = nn.ModuleDict({"made": reparametrize(nn.Linear(4, 4)), "plain": nn.Linear(4, 4)})
    found = find_targets(model, biases=True)
    assert [t.name for t in found.found] == ["made.bias", "plain", "plain.bias"]
    assert found.skipped["made"].startswith("its weight is computed from other parameters")


@of_transformers_5
def test_experts_in_one_tensor_are_named() -> None:
    sizes = {**SMALL, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 6}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2))
    reason = "it is several matrices in one tensor, as of experts"
    found = find_targets(model, "up_proj", "last:1")
    assert [t.name for t in found.found] == ["model.layers.3.mlp.shared_expert.up_proj"]
    assert found.skipped["model.layers.3.mlp.experts.gate_up_proj"] == reason
    assert find_targets(model).skipped["model.layers.0.mlp.experts.down_proj"] == reason
    with pytest.raises(SuiteError, match="experts.down_proj: it is several matrices in one"):
        find_targets(model, "experts.down_proj")


@pytest.mark.parametrize(
    ("modules", "layers", "message"),
    [
        ("up_prj", "all", r"nothing matches 'up_prj'. Did you mean 'up_proj'\? There are: lm_head"),
        ("up_proj", "last:0", "cannot be read"),
        ("up_proj", "latest:3", "cannot be read"),
        ("up_proj", "last:5", r"asks for 5 layers, and there are 4 .*: 0, 1, 2, 3\. Write last:4"),
        ("up_proj", "first:99", r"asks for 99 layers, and there are 4 .* Write first:4, or all"),
        ("up_proj", [9], r"there is no layer 9; the watched modules are in layers 0, 1, 2, 3"),
        ("lm_head", "all", r"are skipped \(lm_head: its weight is tied"),
    ],
)
def test_what_cannot_be_found_is_explained(modules: str, layers: object, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        find_targets(llama(tie_word_embeddings=modules == "lm_head"), modules, layers)


def test_the_default_takes_every_layer_of_a_model_with_fewer() -> None:
    assert choose_layers([0, 1], LAST_LAYERS) == {0, 1}


def test_patterns_match_whole_pieces_or_globs() -> None:
    assert matches("model.layers.1.mlp.up_proj", "mlp.up_proj")
    assert not matches("model.layers.1.mlp.gate_up_proj", "up_proj")
    assert matches("model.layers.1.mlp.gate_up_proj", "*up_proj")
