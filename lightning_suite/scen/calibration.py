"""Choose by trial what does not carry over from one model to another.

Learning rates, the layer and the gate's wording depend on the model. They are tried on edits of
nobody's (:func:`~lightning_suite.scen.reference_data.calibration_edits`).
:mod:`~lightning_suite.scen.calibrated` decides what is tried and keeps what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_suite.language.batching import token_budget_batches
from lightning_suite.scen.answers import evaluating
from lightning_suite.scen.augmentation import contexts
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.expert_table import edited_output
from lightning_suite.scen.expert_training import ExpertTask, train_experts
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.layer_choice import causal_lm, find_layer, layer_bias
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.question_readings import PROBE, wording_features
from lightning_suite.scen.reference_data import calibration_edits, relation_wordings
from lightning_suite.scen.relation_metric import recall

PLACEHOLDERS = ("X", "it", "this", "the subject")
PROBES = (PROBE, "", "Answer:")
_TOKENS = 4096


@dataclass(frozen=True)
class ExpertTrial:
    """One setting of the experts, and what came of it.

    Attributes:
        layer: Number of the decoder layer, or dotted name of the map.
        settings: Of the training.
        reliability: Share of the edits' prompts that get the target.
        generality: Share of other wordings that do, under a gate that is always right.
        loss: Mean cross-entropy of the targets' tokens after other wordings, nats.
        seconds: That the trial took.
    """

    layer: str | int
    settings: ExpertSettings
    reliability: float
    generality: float
    loss: float
    seconds: float

    @property
    def right(self) -> float:
        """Return what settings are judged by: reliability and generality together."""
        return self.reliability + self.generality


@dataclass(frozen=True)
class GateTrial:
    """One wording of the gate's question, and the share of rephrased questions that it knows."""

    placeholder: str
    probe: str
    recall: float


def layers_to_try(model: nn.Module) -> list[int]:
    """Return decoder layers at 5/8 (published), 3/4 and 1/2 of the depth, the usual one first."""
    depth = causal_lm(model).config.num_hidden_layers
    return list(dict.fromkeys(round(depth * share) for share in (5 / 8, 3 / 4, 1 / 2)))


def best_first(trials: Iterable[ExpertTrial]) -> list[ExpertTrial]:
    """Order trials by the sum of reliability and generality, where equal by the loss."""
    return sorted(trials, key=lambda trial: (-trial.right, trial.loss))


def try_experts(
    model: nn.Module,
    prompts: PromptFormat,
    trials: Iterable[tuple[str | int, ExpertSettings]],
    *,
    edits: Sequence[Edit] | None = None,
    seconds: float = 600.0,
    on_trial: Callable[[ExpertTrial], None] | None = None,
) -> list[ExpertTrial]:
    """Train experts at several settings and see whether they answer in other words.

    Args:
        model: A Hugging Face causal LM or what holds one; no bank may act in it.
        prompts: How questions and answers are written.
        trials: Layers as for :func:`~lightning_suite.scen.layer_choice.find_layer`, and settings;
            the most promising first.
        edits: Default: 16 of the shipped calibration edits.
        seconds: No trial begins later than this; the first one always does.
        on_trial: Called after each of them.

    Returns:
        The trials that there was time for, as :func:`best_first` orders them.
    """
    edits = calibration_edits()[:16] if edits is None else edits
    lm = causal_lm(model)
    start = time.monotonic()
    done: list[ExpertTrial] = []
    for number, settings in trials:
        begun = time.monotonic()
        if done and begun - start > seconds:
            break
        layer, module = find_layer(lm, number)
        tasks = [ExpertTask.of(e, paraphrases=False, contexts=contexts(e)) for e in edits]
        trained = train_experts(lm, prompts, layer, tasks, settings)
        tensors = trained.experts.tensors()
        own = [(edit.prompt, edit.target, i) for i, edit in enumerate(edits)]
        others = [(text, edit.target, i) for i, edit in enumerate(edits) for text in edit.rephrases]
        right, loss = answers_right(lm, module, prompts, tensors, [*own, *others])
        done.append(
            ExpertTrial(
                number,
                settings,
                float(right[: len(own)].float().mean()),
                float(right[len(own) :].float().mean()),
                float(loss[len(own) :].mean()),
                time.monotonic() - begun,
            )
        )
        if on_trial is not None:
            on_trial(done[-1])
    return best_first(done)


def answers_right(
    model: Any,
    module: nn.Module,
    prompts: PromptFormat,
    experts: dict[str, Tensor],
    asked: Sequence[tuple[str, str, int]],
) -> tuple[Tensor, Tensor]:
    """Return whether greedy generation gives the targets when given experts serve, and their loss.

    Generation is not run: it gives the target, and stops, exactly where every token of the target
    is the likeliest one after those before it.

    Args:
        model: The causal LM.
        module: The edited map in it.
        prompts: How questions and answers are written.
        experts: ``a`` and ``b``, or ``weight``, one expert a row.
        asked: N questions, their targets, and the rows of the experts that serve.

    Returns:
        [N], bool; and the mean cross-entropy of each target's tokens, the end among them, [N].
    """
    encoded = [prompts.encode_answer(question, target) for question, target, _ in asked]
    right = torch.zeros(len(asked), dtype=torch.bool)
    loss = torch.zeros(len(asked), dtype=torch.float32)
    with evaluating(model):
        for rows in token_budget_batches([len(tokens) for tokens, _ in encoded], _TOKENS):
            batch = prompts.batch([encoded[row][0] for row in rows], "right")
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            serving = [asked[row][2] for row in rows]
            weights = {name: e[serving].to(model.device) for name, e in experts.items()}
            place = torch.arange(batch["input_ids"].shape[1], device=model.device)
            first = torch.tensor([encoded[row][1] - 1 for row in rows], device=model.device)
            acts = (place >= first[:, None])[..., None]

            def act(
                layer: nn.Module,
                args: tuple[Tensor],
                out: Tensor,
                weights: dict[str, Tensor] = weights,
                acts: Tensor = acts,
            ) -> Tensor:
                new = edited_output(weights, args[0], out, layer_bias(layer))
                return torch.where(acts, new.to(out.dtype), out)

            handle = module.register_forward_hook(act)
            try:
                logits = model(**batch, use_cache=False).logits
            finally:
                handle.remove()
            for at, row in enumerate(rows):
                tokens, n_prompt = encoded[row]
                given = logits[at, n_prompt - 1 : len(tokens) - 1].float().cpu()
                target = torch.tensor(tokens[n_prompt:])
                right[row] = torch.equal(given.argmax(-1), target)
                loss[row] = cross_entropy(given, target)
    return right, loss


def try_gate(
    encoder: PromptEncoder,
    *,
    placeholders: Sequence[str] = PLACEHOLDERS,
    probes: Sequence[str] = PROBES,
    false_rate: float = 0.03,
    seconds: float = 600.0,
) -> list[GateTrial]:
    """Try what replaces the subject and how the answer begins where the subject gate reads.

    Args:
        encoder: Reads the base model.
        placeholders: The usual one first.
        probes: Likewise; each is tried with the first placeholder, then the best of them with the
            other placeholders.
        false_rate: As for :class:`~lightning_suite.scen.gates.subject.SubjectRelationGate`.
        seconds: No trial begins later than this; the first one always does.

    Returns:
        The trials that there was time for, the best first, the earlier one where equal.
    """
    start = time.monotonic()
    done: list[GateTrial] = []
    # A quarter of the wordings that the gate learns from are enough to compare its questions.
    kinds: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for relation in relation_wordings():
        kinds.setdefault(tuple(sorted(relation.subjects)), []).append(relation.wordings)

    def attempt(placeholder: str, probe: str) -> None:
        if not done or time.monotonic() - start <= seconds:
            relations = wording_features(encoder, placeholder, probe, kinds.values())
            done.append(GateTrial(placeholder, probe, recall(relations, false_rate=false_rate)))

    for probe in probes:
        attempt(placeholders[0], probe)
    best = max(done, key=lambda trial: trial.recall).probe
    for placeholder in placeholders[1:]:
        attempt(placeholder, best)
    return sorted(done, key=lambda trial: -trial.recall)
