"""Building and loading causal LMs: dtype as asked, weights as saved, nothing random unnoticed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY

from lightning_suite.errors import PlacedError, SuiteError
from lightning_suite.language.loading import (
    add_lora,
    causal_lm_from_config,
    causal_lm_from_pretrained,
    check_config,
)

TOKENS = torch.arange(32).view(2, 16)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A Llama saved in bfloat16, the dtype that most checkpoints of the Hub have."""
    torch.manual_seed(0)
    causal_lm_from_config(TINY["llama"], dtype="bfloat16").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("kind", TINY)
def test_a_saved_model_comes_back_bitwise(tmp_path: Path, kind: str) -> None:
    model = causal_lm_from_config(TINY[kind])
    model.save_pretrained(tmp_path)
    loaded = causal_lm_from_pretrained(str(tmp_path))
    assert loaded.training  # dropout is on, as in a model from scratch
    assert torch.equal(model.eval()(TOKENS).logits, loaded.eval()(TOKENS).logits)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for_and_not_the_checkpoints(saved: Path, dtype: str) -> None:
    from_checkpoint = causal_lm_from_pretrained(str(saved), dtype=dtype)
    from_folder = causal_lm_from_config(saved, dtype=dtype)  # its config.json says bfloat16
    for model in (from_checkpoint, from_folder):
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_default_dtype_is_float32(saved: Path) -> None:
    assert causal_lm_from_pretrained(str(saved)).dtype == torch.float32


def test_a_configuration_is_a_mapping_a_file_or_a_folder(saved: Path) -> None:
    shapes = [
        [p.shape for p in causal_lm_from_config(config).parameters()]
        for config in (TINY["llama"], str(saved / "config.json"), saved)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_attention_is_the_one_asked_for() -> None:
    for name in ("eager", "sdpa"):
        model = causal_lm_from_config(TINY["llama"], attn_implementation=name)
        assert model.config._attn_implementation == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**TINY["llama"], "hiden_size": 8}, "no 'hiden_size'. Did you mean 'hidden_size'"),
        ({"model_type": "vit"}, "no causal LM can be built from it"),
        ({"model_type": "gpt3"}, "model_type 'gpt3' is unknown"),
        ("/no/config.json", "/no/config.json cannot be read .No such file"),
    ],
)
def test_a_configuration_that_describes_no_model_is_refused(config: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        causal_lm_from_config(config)


def test_all_unknown_keys_are_refused_at_their_places() -> None:
    with pytest.raises(PlacedError) as refused:
        check_config({**TINY["llama"], "num_hidden_layer": 2, "kwargs": {}, "hiden_size": 8})
    places = dict(refused.value.places)
    assert list(places) == [("num_hidden_layer",), ("kwargs",), ("hiden_size",)]
    assert "Did you mean 'num_hidden_layers'?" in places["num_hidden_layer",]
    assert all(text in str(refused.value) for text in places.values())
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.parametrize(
    "more",
    [
        {"num_labels": 3, "use_cache": False, "torch_dtype": "float32"},  # of every class
        {"rope_theta": 1e6},  # an older name that the class still reads
        {"architectures": ["LlamaForCausalLM"], "transformers_version": "4.40.0"},
    ],
)
def test_what_a_configuration_class_takes_is_not_refused(more: dict[str, Any]) -> None:
    check_config({**TINY["llama"], **more})


def test_common_and_own_names_of_a_model_type_are_both_known() -> None:
    check_config({"model_type": "gpt2", "n_layer": 2, "hidden_size": 8})  # n_embd is its own


def test_a_file_that_is_no_configuration_is_named(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", "{", "a.json is not JSON"),
        ("b.json", "[1]", "b.json holds a list, expected an object"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(SuiteError, match=message):
            causal_lm_from_config(tmp_path / name)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(SuiteError, match="dtype 'bfloat' is unknown. Did you mean 'bfloat16'"):
        causal_lm_from_config(TINY["llama"], dtype="bfloat")


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY["llama"]))
    with pytest.raises(SuiteError, match="this folder cannot be loaded: .*model.safetensors"):
        causal_lm_from_pretrained(str(tmp_path))


def test_pickled_weights_are_not_loaded(saved: Path) -> None:
    weights = causal_lm_from_pretrained(str(saved)).state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(SuiteError, match="safetensors"):
        causal_lm_from_pretrained(str(saved))


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    causal_lm_from_config(TINY["gpt2"]).transformer.save_pretrained(tmp_path / "whole")
    loaded = causal_lm_from_pretrained(str(tmp_path / "whole"))  # the head is tied: nothing lacks
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    causal_lm_from_config(TINY["llama"]).model.save_pretrained(tmp_path / "headless")
    with pytest.raises(SuiteError, match=r"lacks 1 weights of LlamaForCausalLM.* lm_head.weight"):
        causal_lm_from_pretrained(str(tmp_path / "headless"))


def test_a_name_of_the_hub_is_not_asked_for_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SuiteError, match="no folder here .* HF_HUB_OFFLINE forbids"):
        causal_lm_from_pretrained("no-such/model")


def test_adapters_train_and_the_model_is_frozen() -> None:
    model = add_lora(causal_lm_from_config(TINY["llama"]), {"r": 2})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2}, "lora: peft.LoraConfig has no 'rank'"),
        ({"lora_alfa": 2}, "no 'lora_alfa'. Did you mean 'lora_alpha'"),
        ({"target_modules": ["nothing"]}, "lora: peft refuses it: Target modules"),
    ],
)
def test_adapters_that_peft_does_not_know_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        add_lora(causal_lm_from_config(TINY["llama"]), options)
