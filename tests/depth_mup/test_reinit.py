"""The initial weights that the theory assumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign import PATTERNS, ForeignNet
from torch import nn

from lightning_suite.depth_mup.correction import plan_correction
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import draw_initial_weights, reinitialize
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError

WIDTH = 256


def redrawn(model: nn.Module, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    patterns = PATTERNS if isinstance(model, ForeignNet) else None
    shapes = Parametrization("nfd", 1, 2, base_width=64, width=WIDTH)
    reinitialize(
        model,
        assign_roles(model, patterns=patterns),
        shapes,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_matrices_have_variance_one_over_fan_in_and_vectors_are_trivial() -> None:
    new = redrawn(ForeignNet(2, WIDTH))
    assert new["stem.weight"].std() == pytest.approx(4**-0.5, rel=0.1)
    assert new["tower.1.up.weight"].std() == pytest.approx(WIDTH**-0.5, rel=0.02)
    assert new["tower.1.down.weight"].std() == pytest.approx((2 * WIDTH) ** -0.5, rel=0.02)
    for name, value in new.items():
        if value.ndim == 1:
            assert torch.all(value == (1.0 if "norm.weight" in name else 0.0)), name


def test_readout_has_the_base_models_variance_under_its_multiplier() -> None:
    # muP: the effective readout is N(0, 1/n0) / r_n, with the factor in a multiplier or not
    with_multiplier = redrawn(ForeignNet(2, WIDTH))["head.weight"]
    without = redrawn(ForeignNet(2, WIDTH), readout_multiplier=False)["head.weight"]
    assert with_multiplier.std() == pytest.approx(64**-0.5, rel=0.1)
    torch.testing.assert_close(without, with_multiplier / 4)


def test_one_seed_draws_one_set_of_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    nets = [ForeignNet(2, 8) for _ in range(3)]
    torch.set_rng_state(before)
    one, same, other = redrawn(nets[0], 1), redrawn(nets[1], 1), redrawn(nets[2], 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.weight"], other["stem.weight"])


def small(config: str, auto: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    shapes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    made = getattr(transformers, config)(**shapes, **options)
    return getattr(transformers, auto).from_config(made)


VISION = {"auto": "AutoModelForImageClassification", "image_size": 16, "patch_size": 8}
# a vector that is no bias, and what it multiplies by
KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "DINOv2's layer scales": (
        {"config": "Dinov2Config", **VISION, "layerscale_value": 0.5},
        "layer_scale1.lambda1",
    ),
    "BEiT's layer scales": (
        {"config": "BeitConfig", **VISION, "layer_scale_init_value": 0.5},
        "lambda_1",
    ),
    "Gemma's gains, which are 1 + w": (
        {
            "config": "GemmaConfig",
            "auto": "AutoModelForCausalLM",
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 50,
            "pad_token_id": 0,
        },
        "layernorm.weight",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_vectors_that_are_no_biases_keep_the_value_they_were_built_with(case: str) -> None:
    options, suffix = KEPT[case]
    model = small(**options)
    vectors = {n: p for n, p in model.named_parameters() if n.endswith(suffix)}
    assert vectors
    before = {name: p.detach().clone() for name, p in vectors.items()}
    matrix = next(
        p
        for n, p in model.named_parameters()
        if n.endswith(("proj.weight", "query.weight")) or ".fc1" in n
    )
    drawn_before = matrix.detach().clone()
    reinitialize(model, assign_roles(model), Parametrization("nfd", 2, 2))
    assert all(torch.equal(p, before[name]) for name, p in vectors.items())
    assert not torch.equal(matrix, drawn_before)


def test_a_vector_that_is_stored_as_a_tensor_of_more_dimensions_is_no_matrix() -> None:
    net = ForeignNet(2, 8)
    for block in net.tower:
        block.gamma = nn.Parameter(torch.full((8, 1, 1), 0.25))
    roles = assign_roles(net, patterns=PATTERNS | {r"gamma$": "vector"})
    reinitialize(net, roles, Parametrization("nfd", 2, 2))
    assert all(torch.all(block.gamma == 0.25) for block in net.tower)


def gpt2(**options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=WIDTH, n_head=2, vocab_size=101, n_positions=8, **options
    )
    return transformers.GPT2LMHeadModel(config)


def test_transposed_matrices_and_embedding_tables() -> None:
    new = redrawn(gpt2(tie_word_embeddings=False))
    assert new["transformer.h.0.mlp.c_fc.weight"].std() == pytest.approx(WIDTH**-0.5, rel=0.02)
    assert new["transformer.h.0.mlp.c_proj.weight"].std() == pytest.approx(
        (4 * WIDTH) ** -0.5, rel=0.02
    )
    assert new["transformer.wte.weight"].std() == pytest.approx(1.0, rel=0.02)
    assert new["transformer.ln_f.weight"].eq(1).all()


def test_a_tied_table_is_drawn_as_the_readout() -> None:
    new = redrawn(gpt2())
    assert new["transformer.wte.weight"].std() == pytest.approx(64**-0.5, rel=0.02)


def test_what_must_not_be_drawn_is_refused() -> None:
    with torch.device("meta"):
        meta = ForeignNet(2, 8)
    with pytest.raises(SuiteError, match="meta device"):
        redrawn(meta)
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    with pytest.raises(SuiteError, match="adapter, which belongs to pretrained weights"):
        redrawn(peft.get_peft_model(gpt2(), config))


def test_a_model_that_is_to_be_trained_is_drawn_by_the_seed_of_the_process() -> None:
    drawn = []
    for seed in (1, 1, 2):
        net = ForeignNet(2, 8)
        torch.manual_seed(seed)
        torch.randn(seed)  # what was drawn since does not count
        draw_initial_weights(net, plan_correction(net, "nfd", 1, patterns=PATTERNS))
        drawn.append(net.stem.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_weights_that_somebody_wants_are_not_overwritten() -> None:
    net = ForeignNet(2, 8)
    before = net.stem.weight.detach().clone()
    pretrained = plan_correction(net, "nfd", 1, patterns=PATTERNS, pretrained=True)
    with pytest.raises(SuiteError, match="would overwrite pretrained weights"):
        draw_initial_weights(net, pretrained)
    fresh = plan_correction(net, "nfd", 1, patterns=PATTERNS)
    with pytest.raises(SuiteError, match="builds its network in __init__"):
        draw_initial_weights(net, fresh, built_late=True)
    assert torch.equal(net.stem.weight, before)
