"""Edit a model in a few lines: what a script or a notebook needs.

bank = ExpertBank.for_model(model, tokenizer)
bank.add(model, tokenizer, [Edit("1", "What is the capital of France?", "Lyon")])
save_bank(bank, "facts")

bank = open_bank("facts", model, tokenizer)
with bank.attach(model, tokenizer):
model.generate(...)
bank.explain("Which city is the capital of France?")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from lightning_suite.errors import PlacedError, check_choice, did_you_mean
from lightning_suite.scen.answer_states import Positions
from lightning_suite.scen.attachment import without_experts
from lightning_suite.scen.augmentation import contexts
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import load_bank
from lightning_suite.scen.calibrated import calibrated_experts, calibrated_gate
from lightning_suite.scen.continuing import training_plan
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.encoder import PromptEncoder
from lightning_suite.scen.expert_table import ExpertKind
from lightning_suite.scen.expert_training import ExpertTask, train_experts
from lightning_suite.scen.experts import ExpertSettings, TrainedExperts
from lightning_suite.scen.fingerprint import check_base, identify
from lightning_suite.scen.gates.base import Gate
from lightning_suite.scen.layer_choice import causal_lm, find_layer
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.surroundings import own_precision

# kind -> class; imported when it is wanted
GATES = {
    "bce": "lightning_suite.scen.gates.bce.BCEGate",
    "closed": "lightning_suite.scen.gates.closed.ClosedGate",
    "scen": "lightning_suite.scen.gates.published.PublishedGate",
    "subject": "lightning_suite.scen.gates.subject.SubjectRelationGate",
}
DEFAULT_GATE = "subject"


def make_gate(kind: str, encoder: PromptEncoder | None = None, **options: Any) -> Gate:
    """Make an empty gate.

    Args:
        kind: A key of ``GATES``.
        encoder: Reads the base model; without one the gate can be read and its edits removed, not
            more.
        options: Of the class.

    Raises:
        SuiteError: There is no such gate.
    """
    check_choice("gate", kind, GATES)
    module, _, name = GATES[kind].rpartition(".")
    gate: Gate = getattr(import_module(module), name)(encoder, **options)
    return gate


def encoder_for(
    model: nn.Module, tokenizer: Any, layer: str, template: str | None = None
) -> PromptEncoder:
    """Return what reads the unedited model for a gate, whatever bank is attached to it."""
    lm = causal_lm(model)
    prompts = PromptFormat.for_model(lm, tokenizer, template)
    return PromptEncoder(lm, prompts, layer, unedited=partial(without_experts, lm))


def new_bank(
    model: nn.Module,
    tokenizer: Any,
    *,
    layer: str | int | None = None,
    gate: str = DEFAULT_GATE,
    gate_options: Mapping[str, Any] | None = None,
    expert: ExpertKind = "low_rank",
    rank: int = 4,
    positions: Positions | None = None,
    dtype: str | None = None,
    template: str | None = None,
    calibrate: bool = False,
    training: Mapping[str, Any] | None = None,
) -> ExpertBank:
    """Make an empty bank for a model.

    Args:
        model: A Hugging Face causal LM, or what holds one.
        tokenizer: Of the model.
        layer: See :func:`~lightning_suite.scen.layer_choice.find_layer`.
        gate: Kind of the gate, a key of ``GATES``.
        gate_options: Arguments of its class.
        expert: As for :class:`~lightning_suite.scen.bank.ExpertBank`, and so the others.
        rank: Likewise.
        positions: Likewise.
        dtype: Likewise.
        template: Likewise.
        calibrate: Choose by trial, once for a model, what is not given of layer, learning rate,
            and wording of the gate ``subject``; see :mod:`~lightning_suite.scen.calibrated`.
            Takes minutes, unless it was done before or for a model whose outcome is known.
        training: Fields of :class:`~lightning_suite.scen.experts.ExpertSettings` that the trials
            keep to; only read to calibrate.

    Raises:
        SuiteError: A name is unknown.
    """
    options: dict[str, Any] = {"expert": expert, "rank": rank, "positions": positions}
    options |= {"dtype": dtype, "template": template}
    chosen: dict[str, Any] = {}
    wording: dict[str, Any] = {}
    if calibrate:
        prompts = PromptFormat.for_model(causal_lm(model), tokenizer, template)
        plan = ExpertBank(identify(model, layer), make_gate(gate), **options)
        with without_experts(causal_lm(model)), own_precision():
            chosen["experts"] = calibrated_experts(
                model, prompts, expert_settings(plan, training or {}), layer
            )
            layer = chosen["experts"]["layer"]
            if gate == "subject" and not {"placeholder", "probe"} & {*(gate_options or {})}:
                name = find_layer(model, layer)[0]
                chosen["gate"] = calibrated_gate(model, prompts, name)
                wording = {key: chosen["gate"][key] for key in ("placeholder", "probe")}
    base = identify(model, layer)
    encoder = encoder_for(model, tokenizer, base.layer, template)
    made = make_gate(gate, encoder, **{**wording, **(gate_options or {})})
    return ExpertBank(base, made, **options, calibration=chosen)


def open_bank(
    path: str | Path, model: nn.Module, tokenizer: Any, *, allow_other_weights: bool = False
) -> ExpertBank:
    """Load a bank for use with a model, and for further edits.

    Args:
        path: See :func:`~lightning_suite.scen.bank_file.save_bank`.
        model: The model that the bank was made for.
        tokenizer: Of the model.
        allow_other_weights: See :func:`~lightning_suite.scen.fingerprint.check_base`.

    Raises:
        SuiteError: The file cannot be read, or is of another model.
    """
    bank = load_bank(
        path,
        lambda stored: make_gate(
            stored.gate,
            encoder_for(model, tokenizer, stored.base.layer, stored.settings["template"]),
        ),
    )
    check_base(bank.base, model, allow_other_weights=allow_other_weights)
    return bank


def expert_settings(bank: ExpertBank, training: Mapping[str, Any]) -> ExpertSettings:
    """Return how experts of a bank are trained.

    Args:
        bank: Says kind, rank and positions, and the learning rate where it was calibrated.
        training: Other fields of :class:`~lightning_suite.scen.experts.ExpertSettings`; they count
            before what was calibrated.

    Raises:
        SuiteError: A field is unknown or has a value that means nothing.
    """
    check_training(training)
    fixed: dict[str, Any] = {"kind": bank.expert, "rank": bank.rank, "positions": bank.positions}
    chosen = bank.calibration.get("experts", {})
    return ExpertSettings(**{**fixed, "lr": chosen.get("lr"), **training})


def check_training(training: Mapping[str, Any]) -> None:
    """Refuse what is no setting of how experts are trained.

    Args:
        training: As for :func:`expert_settings`.

    Raises:
        PlacedError: A field is unknown, or is one that the bank says.
    """
    known = {field.name for field in fields(ExpertSettings)} - {"kind", "rank", "positions"}
    unknown = [
        (
            (name,),
            f"{name!r} is not known.{did_you_mean(name, known)} "
            f"Choose from: {', '.join(sorted(known))}.",
        )
        for name in training
        if name not in known
    ]
    if unknown:
        raise PlacedError("training", unknown)


def train_edits(
    bank: ExpertBank,
    model: nn.Module,
    prompts: PromptFormat,
    edits: Sequence[Edit],
    settings: ExpertSettings,
    *,
    learn_paraphrases: bool = True,
    learn_contexts: bool = True,
) -> TrainedExperts:
    """Train experts for a bank, without inserting them.

    Args:
        bank: Says which map is edited.
        model: The causal LM, in which no expert acts.
        prompts: How questions and answers are written.
        edits: At least one.
        settings: How experts are trained.
        learn_paraphrases: Whether experts learn from the edits' paraphrases too.
        learn_contexts: And after prompts on other matters, see
            :mod:`~lightning_suite.scen.augmentation`.
    """
    tasks = [
        ExpertTask.of(
            edit,
            paraphrases=learn_paraphrases,
            contexts=contexts(edit) if learn_contexts else (),
        )
        for edit in edits
    ]
    return train_experts(model, prompts, bank.base.layer, tasks, settings)


def add_edits(
    bank: ExpertBank,
    model: nn.Module,
    tokenizer: Any,
    edits: Sequence[Edit],
    settings: ExpertSettings | None = None,
    *,
    update: bool = False,
    allow_other_weights: bool = False,
) -> TrainedExperts:
    """Train an expert for each edit, and insert all of them.

    Args:
        bank: For this model.
        model: The model; it is not changed.
        tokenizer: Of the model.
        edits: New edits.
        settings: How experts are trained; kind, rank and positions are the bank's in any case.
            None: the defaults, with the learning rate that the bank was calibrated to.
        update: As for :meth:`~lightning_suite.scen.bank.ExpertBank.insert`.
        allow_other_weights: See :func:`~lightning_suite.scen.fingerprint.check_base`.

    Raises:
        SuiteError: As :meth:`~lightning_suite.scen.bank.ExpertBank.insert`, before anything is
            trained; or training is refused.
    """
    check_base(bank.base, model, allow_other_weights=allow_other_weights)
    bank.history.replaced_by(edits, update=update)
    lm = causal_lm(model)
    prompts = PromptFormat.for_model(lm, tokenizer, bank.template)
    chosen = expert_settings(bank, {})
    if settings is not None:
        chosen = replace(settings, kind=chosen.kind, rank=chosen.rank, positions=chosen.positions)
    with without_experts(lm):
        trained = train_edits(bank, lm, prompts, edits, chosen)
    bank.insert(edits, trained.experts.tensors(), training_notes(trained), update=update)
    bank.trained = training_plan(chosen)
    return trained


def training_notes(trained: TrainedExperts) -> list[dict[str, float | str]]:
    """Return what a bank keeps of the training of each edit."""
    columns = (trained.final_loss.tolist(), trained.steps.tolist(), trained.learned.tolist())
    return [
        {"loss": round(loss, 6), "steps": taken, "learned": int(learned)}
        for loss, taken, learned in zip(*columns, strict=True)
    ]
