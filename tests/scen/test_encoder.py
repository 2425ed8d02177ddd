"""States of the base model at the last prompt token, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from transformers import DynamicCache

from lightning_suite.errors import SuiteError
from lightning_suite.scen import encoder as encoder_module
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.prompts import PromptFormat

LAYER = "model.layers.1.mlp.down_proj"
QUESTIONS = ["The dog", "Once upon a time there was a little girl", "Tom", "A big red boat was"]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    prompts = PromptFormat(glass_tokenizer(), "{prompt} {response}")
    return PromptEncoder(glass_model(), prompts, LAYER)


def test_states_are_those_of_one_full_forward_pass_each(encoder: PromptEncoder) -> None:
    seen = []
    module = encoder.model.get_submodule(LAYER)
    handle = module.register_forward_hook(lambda _m, x, _y: seen.append(x[0][0, -1]))
    finals = []
    for question in QUESTIONS:
        ids = torch.tensor([encoder.format.encode(question)])
        with torch.no_grad():
            finals.append(encoder.model.model(ids).last_hidden_state[0, -1])
    handle.remove()
    prompts = encoder.prompts(QUESTIONS)
    torch.testing.assert_close(encoder.layer_inputs(prompts), torch.stack(seen))
    torch.testing.assert_close(encoder.final_states(prompts), torch.stack(finals))


def test_a_prompt_has_the_same_states_in_any_batch(encoder: PromptEncoder) -> None:
    prompts = encoder.prompts(QUESTIONS)
    small = PromptEncoder(encoder.model, encoder.format, LAYER, token_budget=1)
    torch.testing.assert_close(small.layer_inputs(prompts), encoder.layer_inputs(prompts))
    torch.testing.assert_close(small.final_states(prompts), encoder.final_states(prompts))


def test_the_model_is_left_as_it_was(encoder: PromptEncoder) -> None:
    model = encoder.model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    encoder.layer_inputs(encoder.prompts(QUESTIONS))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()


def test_no_prompts_have_no_states(encoder: PromptEncoder) -> None:
    assert encoder.layer_inputs([]).shape[0] == 0


def test_an_unknown_layer_is_named(encoder: PromptEncoder) -> None:
    with pytest.raises(SuiteError, match=r"model\.layers\.7\.mlp\.down_proj"):
        PromptEncoder(encoder.model, encoder.format, "model.layers.7.mlp.down_proj")


def test_a_beginning_that_prompts_share_is_read_once_and_changes_nothing(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = "Once upon a time there was a little girl who liked to play with her friends. "
    prompts = [header + question for question in QUESTIONS]
    alone = [encoder.final_states([prompt])[0] for prompt in prompts]
    inputs = [encoder.layer_inputs([prompt])[0] for prompt in prompts]
    monkeypatch.setattr(encoder_module, "_WORTH_SHARING", 1)
    sharing = PromptEncoder(encoder.model, encoder.format, LAYER)
    sizes: list[int] = []
    handle = encoder.model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    torch.testing.assert_close(sharing.final_states(prompts), torch.stack(alone))
    torch.testing.assert_close(sharing.layer_inputs(prompts), torch.stack(inputs))
    sizes.clear()
    sharing.final_states(prompts)
    handle.remove()
    header_length, longest_rest = sizes
    assert header_length > longest_rest
    small = PromptEncoder(encoder.model, encoder.format, LAYER, token_budget=1)
    torch.testing.assert_close(small.final_states(prompts), torch.stack(alone))


def test_a_model_that_cannot_go_on_from_a_beginning_reads_all(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that forgets what its cache holds is found out by its states."""
    prompts = ["The dog sees a cat", "The dog sees a tree"]
    expected = encoder.final_states(prompts)
    forward = encoder.model.model.forward
    monkeypatch.setattr(encoder_module, "_WORTH_SHARING", 1)
    monkeypatch.setattr(
        encoder.model.model,
        "forward",
        lambda **given: forward(input_ids=given["input_ids"], past_key_values=DynamicCache()),
    )
    forgetful = PromptEncoder(encoder.model, encoder.format, LAYER)
    torch.testing.assert_close(forgetful.final_states(prompts), expected)
