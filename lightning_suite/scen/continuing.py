"""May a run go on with a bank that another run has begun?

Experts that are in a bank stay as they are, so what a run asks for and the bank is not would be
left out without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.layer_choice import find_layer
from lightning_suite.scen.records import same_prompt, stored_edit

_SHOWN = 5


def check_settings(
    bank: ExpertBank,
    name: str,
    wanted: Mapping[str, Any],
    model: nn.Module,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to go on with a bank that was made with other settings.

    Args:
        bank: It counts; where it is empty anything goes.
        name: Of its file, for the message.
        wanted: Arguments of :class:`~lightning_suite.scen.module.SCENModule`. What is None is left
            to the bank.
        model: The causal LM, in which the layer that is asked for is found.
        training: How experts would be trained, see :func:`training_plan`; None: however the bank's
            were.

    Raises:
        SuiteError: One of them is another; it is named with both values.
    """
    if not len(bank.table):
        return
    for what, here, asked in _differences(bank, wanted, model):
        raise SuiteError(
            f"{name}: the bank has {what} {here!r}, and this run asks for {asked!r}. "
            "Take the bank's, or another file."
        )
    for what, asked in (training or {}).items():
        here = bank.trained.get(what, asked)  # not said by a bank of an earlier version
        if here != asked:
            raise SuiteError(
                f"{name}: the experts of the bank were trained with {what} {here!r}, and this run "
                f"asks for {asked!r}, which would count for new edits alone. Take the bank's, or "
                "another file; or set allow_other_training, if that is what you want."
            )


def training_plan(
    settings: ExpertSettings, *, learn_paraphrases: bool = True, learn_contexts: bool = True
) -> dict[str, Any]:
    """Return how experts are trained, as plain values that a bank keeps."""
    plan = asdict(settings)
    for known in ("kind", "rank", "positions"):
        del plan[known]  # the bank's own settings
    rates = settings.rates  # what None means
    plan |= {"lr": rates.get("b", rates.get("change")), "lr_a": rates.get("a")}
    return {**plan, "learn_paraphrases": learn_paraphrases, "learn_contexts": learn_contexts}


def split_removed(bank: ExpertBank, edits: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Return the edits that are to be made, and those that were taken out of the bank.

    What the bank holds as it is, is neither. What was removed stays so as long as it is the same
    edit: with another prompt or target it is a new one.
    """
    held = {edit.id: edit for edit in bank.edits}
    last = {record.edit.id: record for record in bank.history.records}
    left = [edit for edit in edits if held.get(edit.id) != stored_edit(edit)]
    out = [
        edit
        for edit in left
        if edit.id not in held
        and (record := last.get(edit.id)) is not None
        and record.status == "removed"
        and record.edit == stored_edit(edit)
    ]
    return [edit for edit in left if edit not in out], out


def said_of_start(bank: ExpertBank, edits: Sequence[Edit], name: str) -> str:
    """Return what to tell of a run that adds to a bank with edits; empty where it has none.

    Args:
        bank: As it is before.
        edits: Of the run.
        name: Of the bank's file.
    """
    if not len(bank):
        return ""
    to_make, out = split_removed(bank, edits)
    ids = {edit.id for edit in bank.edits}
    prompts = {same_prompt(edit.prompt) for edit in bank.edits}
    replacing = sum(edit.id in ids or same_prompt(edit.prompt) in prompts for edit in to_make)
    there = len(edits) - len(to_make) - len(out)
    counts = {
        f"{there:,} {_are(there)} there already": True,
        f"{replacing:,} replace{'s' if replacing == 1 else ''} an earlier version": replacing > 0,
        f"{len(to_make) - replacing:,} {_are(len(to_make) - replacing)} new": True,
        f"{len(out):,} {_are(len(out))} left out (removed from it before)": len(out) > 0,
    }
    said = [text for text, say in counts.items() if say]
    return (
        f"{name}: the bank holds {_edits(len(bank))} already, and keeps them. Of the "
        f"{_edits(len(edits))} of this run {', '.join(said[:-1])} and {said[-1]}. For a bank of "
        "their own: --model.init_args.bank FILE"
    )


def said_of_end(bank: ExpertBank, before: int, name: str) -> str:
    """Return what a run has done to a bank that had edits.

    Args:
        bank: As it is now.
        before: Records that it had.
        name: Of the bank's file.
    """
    made = bank.history.records[before:]
    replaced = sum(record.replaces is not None for record in made)
    return (
        f"{name}: {_edits(len(made) - replaced)} added, {replaced:,} replaced; "
        f"{len(bank):,} in the bank"
    )


def _edits(count: int) -> str:
    return f"{count:,} edit{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def said_of_removed(ids: Sequence[str], bank: str) -> str:
    """Return what to tell about edits that a run has left out because they were removed."""
    shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
    return (
        f"{len(ids)} of the edits were removed from the bank and stay out: {shown}. To have one "
        f"back: lightning-suite bank rollback {bank} {ids[0]}"
    )


def _differences(
    bank: ExpertBank, wanted: Mapping[str, Any], model: nn.Module
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, the bank's value and the one asked for of settings that differ."""
    here = {
        "gate": bank.gate.kind,
        "expert": bank.expert,
        "rank": bank.rank,
        "positions": bank.positions,
        "expert_dtype": bank.dtype,
        "prompt_template": bank.template,
    }
    if bank.expert == "full":
        del here["rank"]  # means nothing there
    for what, value in here.items():
        asked = wanted.get(what)
        if asked is not None and asked != value:
            yield what, value, asked
    if wanted.get("layer") is not None:
        layer = find_layer(model, wanted["layer"])[0]
        if layer != bank.base.layer:
            yield "layer", bank.base.layer, layer
    kept = bank.gate.state_dict().get("_extra_state", {})
    for what, asked in (wanted.get("gate_options") or {}).items():
        if what in kept and kept[what] != asked:
            yield f"gate_options {what}", kept[what], asked
    if wanted.get("calibrate") and not bank.calibration:
        yield "calibrate", False, True
