"""Fine-tuning for the quality study, and a learning rate chosen for it as the others' are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scen_quality_answers import Asked, Expert, KeptAnswers, Served
from scen_quality_model import KeptEncoder, mean

from lightning_suite.files import write_json
from lightning_suite.scen.answers import Answerer, right_answer, same_answer
from lightning_suite.scen.baselines.fine_tune import FineTune
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.reference_data import calibration_edits

TRIAL_EDITS = 60  # one after the other, as in the study
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def fine_tuned(encoder: KeptEncoder, edits: Sequence[Edit], lr: float) -> Expert:
    """Return the matrix after training on one edit after the other; the model stays as it is."""
    layer = encoder.model.get_submodule(encoder.layer)
    tuned = FineTune(Answerer(encoder.model, encoder.format), layer, lr=lr)
    tuned.edit(edits)  # own prompts and targets alone
    weight = layer.weight.detach().clone()
    tuned.undo()
    return {"weight": weight}


def fine_tune_rate(encoder: KeptEncoder, answers: KeptAnswers, path: Path) -> dict[str, Any]:
    """Choose the learning rate on calibration edits, or read what was chosen.

    What counts is the mean of three shares: own prompts and rephrases that are answered right, and
    locality prompts that are answered as before.
    """
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    edits = calibration_edits()[:TRIAL_EDITS]
    own = [(edit.prompt, edit.target) for edit in edits]
    rephrases = [(text, edit.target) for edit in edits for text in edit.rephrases[:1]]
    local = [local.prompt for edit in edits for local in edit.locality[:2]]
    before = answers.ask([(Served(), text) for text in local], {})
    trials = []
    for lr in RATES:
        name = f"fine_tune, lr {lr:g}/calibration"
        served = Served(name, "", True)
        experts = {name: fine_tuned(encoder, edits, lr)}
        told: list[Asked] = [(served, text) for text, _ in own + rephrases]
        after = answers.ask([*told, *((served, text) for text in local)], experts)
        right = [
            right_answer(answer, target)
            for answer, (_, target) in zip(after, own + rephrases, strict=False)
        ]
        kept = [
            same_answer(answer.text, base.text)
            for answer, base in zip(after[len(told) :], before, strict=True)
        ]
        told_right, told_otherwise = right[: len(own)], right[len(own) :]
        shares = [mean(some) or 0.0 for some in (told_right, told_otherwise, kept)]
        named = dict(zip(("reliability", "generality", "locality"), shares, strict=True))
        trials.append({"lr": lr, "score": sum(shares) / len(shares), **named})
        print(f"  {name}: {named}", flush=True)
    best = max(trials, key=lambda trial: trial["score"])
    chosen = {"lr": best["lr"], "edits": len(edits), "trials": trials}
    write_json(path, chosen)
    return chosen
