"""Settings are chosen by trial, on edits that are nobody's, in bounded time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer

from lightning_suite.scen.answers import Answer, Answerer, right_answer
from lightning_suite.scen.calibration import (
    ExpertTrial,
    answers_right,
    best_first,
    try_experts,
    try_gate,
)
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.expert_training import ExpertTask, train_experts
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.layer_choice import find_layer
from lightning_suite.scen.prompts import PromptFormat

EDITS = [
    Edit("dog", "The dog is", "red", rephrases=("A dog is",)),
    Edit("cat", "The cat was", "very big", rephrases=("That cat was",)),
]
LAYER = 1


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return PromptFormat(glass_tokenizer(), "{prompt} {response}")


def test_likeliest_tokens_tell_what_generation_would(prompts: PromptFormat) -> None:
    """Experts of few to many steps, so that some answers are right and some are not."""
    model = glass_model()
    layer, module = find_layer(model, LAYER)
    outcomes = []
    for steps in (1, 6, 40):
        tasks = [ExpertTask.of(edit) for edit in EDITS]
        settings = ExpertSettings(steps=steps)
        tensors = train_experts(model, prompts, layer, tasks, settings).experts.tensors()
        for slot, edit in enumerate(EDITS):
            for question in (edit.prompt, *edit.rephrases):
                asked = [(question, edit.target, slot)]
                claimed = answers_right(model, module, prompts, tensors, asked)[0].item()
                chosen = {name: tensor[[slot]] for name, tensor in tensors.items()}
                (answer,) = _generated(model, module, prompts, chosen, question)
                assert claimed == right_answer(answer, edit.target)
                outcomes.append(claimed)
    assert set(outcomes) == {True, False}


def _generated(
    model: Any,
    module: torch.nn.Module,
    prompts: PromptFormat,
    experts: dict[str, torch.Tensor],
    question: str,
) -> list[Answer]:
    first = len(prompts.encode(question)) - 1

    def act(_module: object, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        start = first if output.shape[1] > first else 0  # the prompt, then single tokens
        change = args[0] @ experts["a"].mT @ experts["b"].mT
        return torch.cat([output[:, :start], (output + change)[:, start:]], 1)

    handle = module.register_forward_hook(act)
    try:
        return Answerer(model, prompts, max_new_tokens=8)([question])
    finally:
        handle.remove()


def test_the_better_of_two_settings_comes_first(prompts: PromptFormat) -> None:
    trials = [(LAYER, ExpertSettings(lr=1e-9)), (LAYER, ExpertSettings(steps=40))]
    best, worst = try_experts(glass_model(), prompts, trials, edits=EDITS)
    assert best.settings.lr is None
    assert best.reliability == 1.0
    assert worst.reliability < best.reliability


def test_where_all_is_right_the_smaller_loss_comes_first() -> None:
    usual, sure, worse = (
        ExpertTrial(layer, ExpertSettings(), 1.0, generality, loss, 0.0)
        for layer, generality, loss in ((19, 1.0, 0.2), (22, 1.0, 0.1), (15, 0.9, 0.0))
    )
    assert best_first([usual, sure, worse]) == [sure, usual, worse]


def test_the_loss_of_a_target_is_the_models_own(prompts: PromptFormat) -> None:
    """Experts that do nothing: transformers computes the same loss from labels."""
    model = glass_model()
    _, module = find_layer(model, LAYER)
    nothing = {
        "a": torch.zeros(1, 2, module.in_features),
        "b": torch.zeros(1, module.out_features, 2),
    }
    _, (loss,) = answers_right(model, module, prompts, nothing, [("The dog is", "very big", 0)])
    tokens, n_prompt = prompts.encode_answer("The dog is", "very big")
    labels = torch.tensor([[-100] * n_prompt + tokens[n_prompt:]])
    with torch.no_grad():
        truth = model(torch.tensor([tokens]), labels=labels).loss
    torch.testing.assert_close(loss, truth)


def test_no_trial_begins_when_time_is_up(prompts: PromptFormat) -> None:
    trials = [(LAYER, ExpertSettings(steps=steps)) for steps in (1, 2, 3)]
    done = try_experts(glass_model(), prompts, trials, edits=EDITS[:1], seconds=0)
    assert [trial.settings.steps for trial in done] == [1]
    encoder = PromptEncoder(glass_model(), prompts)
    assert [t.placeholder for t in try_gate(encoder, placeholders=("it", "X"), seconds=0)] == ["it"]
