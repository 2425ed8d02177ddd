"""The layer that experts are added to, and whether a model is the one a bank was made for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from glass_lm import glass_model
from tiny import TINY
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import add_lora, causal_lm_from_config
from lightning_suite.scen.fingerprint import check_base, identify
from lightning_suite.scen.layer_choice import causal_lm, find_layer, layer_bias, layer_shape

MAPS = {
    "llama": "model.layers.{}.mlp.down_proj",
    "mistral": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "opt": "model.decoder.layers.{}.fc2",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}


def tiny(kind: str, **config: Any) -> Any:
    return causal_lm_from_config({**TINY[kind], **config})


class TestFindingTheLayer:
    @pytest.mark.parametrize("kind", sorted(MAPS))
    def test_by_number_in_every_architecture(self, kind: str) -> None:
        model = tiny(kind)
        for number, path in ((0, 0), (2, 2), (-1, 2), (-3, 0)):
            name, layer = find_layer(model, number)
            assert name == MAPS[kind].format(path)
            assert layer is model.get_submodule(name)
            d_in, d_out = layer_shape(name, layer)
            assert (d_in > d_out, d_out) == (True, 32)

    def test_a_number_may_come_as_text_from_a_command_line(self) -> None:
        model = tiny("llama")
        for text, number in (("1", 1), ("-1", -1)):
            assert find_layer(model, text)[0] == find_layer(model, number)[0]
        with pytest.raises(SuiteError, match="layer=7, and the model has 3"):
            find_layer(model, "7")

    def test_by_itself_at_the_published_share_of_the_depth(self) -> None:
        for depth, number in ((32, 20), (30, 19), (3, 2), (1, 0)):
            config = {**TINY["llama"], "num_hidden_layers": depth, "hidden_size": 8}
            model = causal_lm_from_config({**config, "num_attention_heads": 2})
            assert find_layer(model)[0] == f"model.layers.{number}.mlp.down_proj"

    def test_by_name_whatever_is_wrapped_around_the_model(self) -> None:
        model = glass_model()
        name = find_layer(model)[0]
        wrapped = nn.ModuleDict({"inner": add_lora(model, {"target_modules": ["down_proj"]})})
        assert causal_lm(wrapped) is model
        found, layer = find_layer(wrapped, name)
        assert (found, find_layer(wrapped)[0]) == (name, name)
        assert type(layer).__module__.startswith("peft")
        assert layer_shape(found, layer) == (341, 128)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("model.layers.0.mlp.downproj", "Did you mean 'model.layers.0.mlp.down_proj'"),
            (3, "layer=3, and the model has 3 decoder layers"),
            (-4, "layer=-4, and the model has 3"),
        ],
    )
    def test_what_is_not_there_is_refused(self, layer: str | int, message: str) -> None:
        with pytest.raises(SuiteError, match=message):
            find_layer(tiny("llama"), layer)

    def test_what_has_no_single_output_map_needs_a_name(self) -> None:
        model = tiny("llama")
        model.model.layers[1].mlp.fc2 = nn.Linear(4, 4)
        with pytest.raises(SuiteError, match="expected one module .*fc2.*down_proj"):
            find_layer(model, 1)

    def test_what_holds_no_model_is_refused(self) -> None:
        with pytest.raises(SuiteError, match="Sequential holds no Hugging Face model"):
            find_layer(nn.Sequential(nn.Linear(2, 2)))

    def test_what_is_no_linear_map_is_refused(self) -> None:
        with pytest.raises(SuiteError, match="'norm' is a LayerNorm"):
            layer_shape("norm", nn.LayerNorm(3))

    def test_the_bias_is_the_maps_own(self) -> None:
        model = tiny("gpt2")
        layer = find_layer(model)[1]
        own = layer_bias(layer)
        assert own is layer.bias
        add_lora(model, {"target_modules": ["c_proj"], "fan_in_fan_out": True})
        assert layer_bias(find_layer(model)[1]) is own
        assert layer_bias(find_layer(tiny("llama"))[1]) is None


class TestTheBaseModel:
    def test_is_told_by_its_own_weights_and_sizes(self) -> None:
        first = identify(glass_model())
        assert identify(glass_model()) == first
        assert (first.d_in, first.d_out) == (341, 128)
        check_base(first, glass_model())

    @pytest.mark.parametrize("kind", sorted(MAPS))
    def test_is_recognised_in_every_architecture(self, kind: str) -> None:
        torch.manual_seed(0)
        model = tiny(kind)
        check_base(identify(model), model)
        with pytest.raises(SuiteError, match="the weights here"):
            check_base(identify(model), tiny(kind))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_is_the_same_in_another_precision(self, dtype: torch.dtype) -> None:
        bank = identify(glass_model())
        assert identify(glass_model(dtype)).sha256 != bank.sha256
        check_base(bank, glass_model(dtype))
        check_base(identify(glass_model(dtype)), glass_model())

    def test_rounded_once_in_each_of_two_ways_is_another(self) -> None:
        """bfloat16 has lost digits that float16 has, and the other way round."""
        exact = glass_model()
        with torch.no_grad():
            for weight in exact.parameters():
                weight.add_(1e-3 * torch.randn_like(weight))  # no numbers that both can write
        bank = identify(copy.deepcopy(exact).bfloat16())
        check_base(bank, exact)
        with pytest.raises(SuiteError, match=r"0\..% apart"):
            check_base(bank, exact.half())

    def test_is_another_with_other_weights_in_the_map_or_the_embedding(self) -> None:
        bank = identify(glass_model())
        for name in (bank.layer, "model.embed_tokens"):
            model = glass_model()
            weight = model.get_submodule(name).weight
            with torch.no_grad():
                weight += 0.05 * weight.std() * torch.randn_like(weight)
            with pytest.raises(SuiteError, match=r"the weights here .* differ: .* % apart|apart"):
                check_base(bank, model)
            with pytest.warns(
                UserWarning, match=r"the weights here .* apart\. allow_other_weights"
            ):
                check_base(bank, model, allow_other_weights=True)

    def test_is_another_after_a_light_fine_tuning(self) -> None:
        """Closer than another precision is: the sketch is the same within a hundredth."""
        bank = identify(glass_model())
        model = glass_model()
        weight = model.get_submodule(bank.layer).weight
        with torch.no_grad():
            weight[0, 0] += 0.01
        with pytest.raises(SuiteError, match=r"0\..% apart\. If it is that model after a fine-tun"):
            check_base(bank, model)
        with pytest.warns(UserWarning, match=r"0\..% apart"):
            check_base(bank, model, allow_other_weights=True)

    def test_of_a_bank_of_an_earlier_version_is_known_in_its_own_precision_alone(self) -> None:
        bank = replace(identify(glass_model()), rounded={})
        check_base(bank, glass_model())
        with pytest.raises(SuiteError, match="another precision"):
            check_base(bank, glass_model(torch.bfloat16))

    def test_is_another_with_other_sizes_even_if_other_weights_are_allowed(self) -> None:
        bank = identify(tiny("llama"))
        with pytest.raises(SuiteError, match="its sizes are"):
            check_base(bank, tiny("llama", vocab_size=300), allow_other_weights=True)
        with pytest.raises(SuiteError, match="its shape of .* are .64, 32., here"):
            check_base(bank, tiny("llama", intermediate_size=96), allow_other_weights=True)

    def test_may_be_called_otherwise(self) -> None:
        check_base(replace(identify(glass_model()), name="somewhere else"), glass_model())

    def test_adapters_and_hooks_do_not_count(self) -> None:
        model = glass_model()
        bank = identify(model)
        calls = []
        model.get_submodule(bank.layer).register_forward_hook(lambda *call: calls.append(call))
        add_lora(model, {"target_modules": ["down_proj"], "init_lora_weights": False})
        assert identify(model) == bank
        assert calls == []

    def test_a_quantised_map_is_read_through_its_forward_pass(self) -> None:
        class Int8(nn.Module):
            """Eight bits a weight, as quantised linear maps keep them."""

            def __init__(self, linear: nn.Linear) -> None:
                super().__init__()
                self.in_features, self.out_features = linear.in_features, linear.out_features
                scale = linear.weight.abs().amax(1, keepdim=True) / 127
                self.register_buffer("packed", (linear.weight / scale).round().to(torch.int8))
                self.register_buffer("scale", scale)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x @ (self.packed * self.scale).T

        bank = identify(glass_model())
        model = glass_model()
        parent, _, child = bank.layer.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Int8(getattr(owner, child)).requires_grad_(False))
        found = identify(model, bank.layer)
        assert found.sha256 != bank.sha256
        assert len(found.sketch) == len(bank.sketch)
        with pytest.warns(UserWarning, match="the weights here"):
            check_base(bank, model, allow_other_weights=True)
