"""The initial weights that the theory assumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign import PATTERNS, ForeignNet
from torch import nn

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import reinitialize
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
