"""A model that is run in parts gives what it gives as a whole, whatever its family."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import TINY
from torch.nn import functional as F

from lightning_suite.errors import SuiteError
from lightning_suite.language.frozen import frozen
from lightning_suite.language.layers import decoder_layers
from lightning_suite.language.loading import add_lora, causal_lm_from_config
from lightning_suite.scen.answer_states import AnswerRow
from lightning_suite.scen.linear_maps import linear_shape
from lightning_suite.scen.split_choice import open_cache
from tests.support.versions import of_transformers_5

LLAMA = TINY["llama"]
FAMILIES = {
    **TINY,
    "window of 4": {**LLAMA, "model_type": "mistral", "sliding_window": 4},
    # These two normalize what the edited map returns before it is added; Gemma 2's layers
    # alternate between windows and full attention, and it caps its logits.
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 8, "sliding_window": 4},
    "olmo2": {**LLAMA, "model_type": "olmo2"},
    "bloom": {"model_type": "bloom", "vocab_size": 256, "hidden_size": 32, "n_layer": 3,
              "n_head": 4},  # its positions come from the attention mask
}  # fmt: skip
ONLY_EAGER = ("gemma2", "bloom")
LAST_MAP = {"gpt2": "mlp.c_proj", "opt": "fc2", "gpt_neox": "mlp.dense_4h_to_h",
            "bloom": "mlp.dense_4h_to_h"}  # fmt: skip


def a_model(family: str, attention: str):
    torch.manual_seed(0)
    model = causal_lm_from_config(
        FAMILIES[family], dtype="float64", attn_implementation=attention
    ).eval()
    for weight in model.parameters():  # as it is initialised, next to nothing depends on anything
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model, f"{decoder_layers(model)[0]}.1.{LAST_MAP.get(family, 'mlp.down_proj')}"


def some_rows(*, begin_alike: bool = False) -> list[AnswerRow]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(11, 7), (6, 4), (9, 7), (3, 1)]  # tokens, of which prompt; one prompt is one token
    rows = [torch.randint(3, 256, (n,), generator=generator).tolist() for n, _ in sizes]
    rows[2][:7] = rows[0][:7]  # the same prompt with another answer
    if begin_alike:
        rows, sizes = [[7, 8, *row] for row in rows], [(n + 2, p + 2) for n, p in sizes]
    return [AnswerRow(tuple(row), p) for row, (_, p) in zip(rows, sizes, strict=True)]


def loss_of_whole_model(model, layer: str, row: AnswerRow, change: torch.Tensor) -> torch.Tensor:
    """Run every layer on the whole sequence, with ``change`` added from its place on."""
    linear = model.get_submodule(layer)
    before = len(row.tokens) - 1 - len(change)
    change = F.pad(change, (0, 0, before, 0))
    handle = linear.register_forward_hook(lambda _m, _i, out: out + change.reshape(out.shape))
    logits = model(torch.tensor([row.tokens[:-1]])).logits[0]
    handle.remove()
    answer = torch.tensor(row.tokens[row.n_prompt :])
    return F.cross_entropy(logits[row.n_prompt - 1 :], answer)


@pytest.mark.parametrize(
    ("positions", "begin_alike"), [("last", False), ("last", True), ("all", False)]
)
@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if a == "eager" or f not in ONLY_EAGER],
)
def test_losses_and_gradients_are_those_of_the_whole_model(
    family, attention, positions, begin_alike
) -> None:
    model, layer = a_model(family, attention)
    rows = some_rows(begin_alike=begin_alike)
    with frozen(model):
        cache = open_cache(model, layer, rows, positions)
        assert cache.split.additive == (family not in ("gemma2", "olmo2"))
        states = cache.build(rows)
        order = [3, 0, 2]
        batch = states.select(torch.tensor(order))
        d_out = linear_shape(cache.split.linear)[1]
        generator = torch.Generator().manual_seed(2)
        change = torch.randn(*batch.x.shape[:2], d_out, generator=generator, dtype=torch.float64)
        change = (change * batch.acts[..., None]).requires_grad_()
        losses, right = batch.losses(change)
        (gradient,) = torch.autograd.grad(losses.sum(), [change])
        for n, index in enumerate(order):
            row = rows[index]
            acting = len(row.tokens) - (row.n_prompt if positions == "last" else 1)
            assert int(batch.acts[n].sum()) == acting
            part = change[n, :acting].detach().requires_grad_()
            expected = loss_of_whole_model(model, layer, row, part)
            (slope,) = torch.autograd.grad(expected, [part])
            torch.testing.assert_close(losses[n], expected, atol=1e-11, rtol=0)
            torch.testing.assert_close(gradient[n, :acting], slope, atol=1e-11, rtol=0)
            assert not gradient[n, acting:].any()
    assert right.dtype == torch.bool


def test_the_input_of_the_map_is_the_models() -> None:
    model, layer = a_model("llama", "sdpa")
    rows = some_rows()
    with frozen(model):
        batch = open_cache(model, layer, rows).build(rows).select(torch.tensor([1]))
        seen = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda _m, inputs, _o: seen.append(inputs[0])
        )
        model(torch.tensor([rows[1].tokens[:-1]]))
        handle.remove()
    torch.testing.assert_close(batch.x[0], seen[0][0, rows[1].n_prompt - 1 :])


def test_a_prompt_that_many_learn_from_is_read_once(monkeypatch) -> None:
    model, layer = a_model("llama", "sdpa")
    rows = some_rows()
    with frozen(model):
        cache = open_cache(model, layer, rows[:1], shared=frozenset({rows[0].tokens[:6]}))
        read = []
        reading = cache.split.prompt_key_values
        monkeypatch.setattr(
            cache.split,
            "prompt_key_values",
            lambda tokens, *begun: read.append(tuple(tokens.shape)) or reading(tokens, *begun),
        )
        cache.build(rows[:2])
        cache.build(rows[1:3])
        assert read == [(1, 3), (1, 3)]  # the second one, twice; the first was kept from the trial
        read.clear()
        begin_alike = [AnswerRow((5, 6, 7, *row.tokens), row.n_prompt + 3) for row in rows]
        cache.build(begin_alike)
        assert read == [(1, 2), (3, 7)]  # the common beginning, and the rests of three prompts


def test_a_peft_model_is_run_with_its_adapters() -> None:
    pytest.importorskip("peft")
    model, _ = a_model("llama", "sdpa")
    wrapped = add_lora(model, {"r": 2, "target_modules": ["down_proj", "q_proj"]})
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    layer = "base_model.model.model.layers.1.mlp.down_proj"
    row = some_rows()[0]
    with frozen(wrapped):
        batch = open_cache(wrapped, layer, [row]).build([row]).select(torch.tensor([0]))
        change = torch.ones(1, 4, 32, dtype=torch.float64)
        expected = loss_of_whole_model(wrapped, layer, row, change[0])
        torch.testing.assert_close(batch.losses(change)[0][0], expected, atol=1e-11, rtol=0)


@of_transformers_5
def test_where_keys_and_values_cannot_be_kept_whole_sequences_run() -> None:
    """The states of a recurrent model are no keys and values."""
    config = {k: v for k, v in LLAMA.items() if k != "max_position_embeddings"}
    config |= {"model_type": "recurrent_gemma", "attention_window_size": 8}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its recurrence is slow without a package
        model = causal_lm_from_config(config, dtype="float64").eval()
    layer, rows = "model.layers.1.mlp_block.down_proj", some_rows()
    with frozen(model):
        with pytest.warns(UserWarning, match="cannot be kept"):
            cache = open_cache(model, layer, rows)
        batch = cache.build(rows[:2]).select(torch.arange(2))
        change = torch.randn(2, 10, 32, dtype=torch.float64) * batch.acts[..., None]
        for n, row in enumerate(rows[:2]):
            expected = loss_of_whole_model(model, layer, row, change[n, : len(row.tokens) - 1])
            torch.testing.assert_close(batch.losses(change)[0][n], expected, atol=1e-9, rtol=0)


def test_a_model_that_is_built_otherwise_is_refused() -> None:
    config = {"model_type": "rwkv", "vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 3,
              "context_length": 64}  # fmt: skip
    model = causal_lm_from_config(config).eval()
    with pytest.raises(SuiteError, match="RwkvForCausalLM cannot be run from layer"):
        open_cache(model, "rwkv.blocks.1.feed_forward.value", some_rows())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("model.layers.1.mlp.down_projj", "Did you mean 'model.layers.1.mlp.down_proj'"),
        ("model.layers.1.mlp", "is a LlamaMLP; an expert edits a linear map"),
        ("lm_head", "not inside one decoder layer of model.layers"),
    ],
)
def test_a_layer_that_cannot_be_edited_is_refused(layer, message) -> None:
    model, _ = a_model("llama", "sdpa")
    with pytest.raises(SuiteError, match=message):
        open_cache(model, layer, some_rows())
