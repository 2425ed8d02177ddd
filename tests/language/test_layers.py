"""Finding the layers, and scaling depth and width, without naming an architecture."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import TINY
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.language.layers import (
    decoder_layers,
    depth_key,
    scaled_config,
    width_keys,
)
from lightning_suite.language.loading import add_lora, causal_lm_from_config

NAMES = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen2": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
}


@pytest.mark.parametrize("kind", TINY)
def test_the_layers_are_found_also_inside_a_wrapper(kind: str) -> None:
    model = causal_lm_from_config(TINY[kind])
    name, layers = decoder_layers(model)
    assert name == NAMES[kind]
    assert len(layers) == 3
    assert model.get_submodule(name) is layers
    assert decoder_layers(nn.ModuleDict({"inner": model}))[0] == f"inner.{name}"


def test_the_layers_are_found_under_peft() -> None:
    model = add_lora(causal_lm_from_config(TINY["llama"]), {"r": 2})
    assert decoder_layers(model)[0] == "base_model.model.model.layers"


def test_what_is_no_causal_lm_is_refused() -> None:
    with pytest.raises(SuiteError, match="Sequential: no module in it has a configuration"):
        decoder_layers(nn.Sequential(nn.Linear(2, 2)))
    model = causal_lm_from_config(TINY["llama"])
    model.twin = nn.ModuleList([nn.Identity()] * 3)
    with pytest.raises(SuiteError, match="one list of 3 layers, found model.layers, twin"):
        decoder_layers(model)


@pytest.mark.parametrize(
    ("kind", "depth", "width"),
    [
        (
            "llama",
            "num_hidden_layers",
            ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"],
        ),
        ("gpt2", "n_layer", ["n_embd", "n_inner", "n_head"]),
        (
            "opt",
            "num_hidden_layers",
            ["hidden_size", "ffn_dim", "num_attention_heads", "word_embed_proj_dim"],
        ),
        (
            "gpt_neox",
            "num_hidden_layers",
            ["hidden_size", "intermediate_size", "num_attention_heads"],
        ),
    ],
)
def test_the_keys_have_the_model_types_own_names(kind: str, depth: str, width: list[str]) -> None:
    assert depth_key(TINY[kind]) == depth
    assert width_keys(TINY[kind]) == width


@pytest.mark.parametrize("kind", TINY)
def test_a_scaled_model_is_deeper_and_wider_with_heads_of_the_same_size(kind: str) -> None:
    before = dict(TINY[kind])
    scaled = scaled_config(TINY[kind], depth=5, width=64)
    assert TINY[kind] == before
    base, model = causal_lm_from_config(TINY[kind]), causal_lm_from_config(scaled)
    assert len(decoder_layers(model)[1]) == 5
    assert model.config.hidden_size == 64
    assert model.config.num_attention_heads == 8
    for parameter, wider in zip(
        decoder_layers(base)[1][0].parameters(),
        decoder_layers(model)[1][0].parameters(),
        strict=True,
    ):
        assert [2 * n for n in parameter.shape] == list(wider.shape)


def test_what_the_user_left_to_the_defaults_is_scaled_too() -> None:
    config = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 4}
    assert scaled_config(config, width=64) == {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 5504,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }


def test_a_common_name_in_the_config_stays_the_only_one() -> None:
    config = {"model_type": "gpt2", "hidden_size": 32, "num_hidden_layers": 2, "n_head": 4}
    assert scaled_config(config, depth=4, width=64) == {
        "model_type": "gpt2",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "n_head": 8,
    }


def test_a_whole_configuration_can_be_scaled_although_it_lists_its_layers() -> None:
    whole = causal_lm_from_config(TINY["qwen2"]).config.to_dict()
    if "layer_types" not in whole:
        pytest.skip("this transformers lists no layers")
    assert len(whole["layer_types"]) == 3
    model = causal_lm_from_config(scaled_config(whole, depth=4))
    assert len(decoder_layers(model)[1]) == 4
    whole["layer_types"] = ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(SuiteError, match="layer_types lists a kind for every layer; another depth"):
        scaled_config(whole, depth=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "hidden size 40 instead of 32 would need num_key_value_heads = 2·40/32"),
        ({"width": 0}, "not a positive whole number"),
        ({"depth": 0}, "depth 0 is not possible"),
    ],
)
def test_a_size_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        scaled_config(TINY["llama"], **change)


def test_a_model_type_that_is_not_there_is_named() -> None:
    with pytest.raises(SuiteError, match="model_type 'lama' is unknown .* Did you mean 'llama'"):
        depth_key({"model_type": "lama"})
    with pytest.raises(SuiteError, match="the key 'model_type' is missing"):
        width_keys({"hidden_size": 3})
