"""Experts of the quality study, each trained once and kept on disk, and the published settings.

Published settings do not transfer between models, so they are also calibrated: learning rates and
θ are chosen on the package's calibration facts as
:mod:`lightning_suite.scen.calibrated` chooses those of the default method, all else as published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from scen_quality_answers import Expert, KeptAnswers, Served
from scen_quality_model import KeptEncoder, mean

from lightning_suite.files import write_json
from lightning_suite.scen.answers import right_answer
from lightning_suite.scen.augmentation import contexts
from lightning_suite.scen.calibration import ExpertTrial, best_first
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.expert_training import ExpertTask, train_experts
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.gates.base import PromptQuery
from lightning_suite.scen.gates.published import PublishedGate
from lightning_suite.scen.published import PublishedSettings
from lightning_suite.scen.reference_data import calibration_edits

PARAPHRASES = 2  # of each edit given to the method, where any are
GROUP = 16  # edits trained and saved together
TRIAL_EDITS = 12  # of a learning rate of full copies
NEURON_EDITS = 100  # in the gate whose θ is chosen
NEURON_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


class Variant(NamedTuple):
    """How experts are trained."""

    paraphrases: bool
    contexts: bool
    settings: ExpertSettings


LEAN = ExpertSettings(positions="last")
PUBLISHED = PublishedSettings().experts()
VARIANTS = {
    "r=4": Variant(False, True, LEAN),
    "r=4, paraphrases": Variant(True, True, LEAN),
    "r=8": Variant(False, True, replace(LEAN, rank=8)),
    "r=1": Variant(False, True, replace(LEAN, rank=1)),
    "full": Variant(False, True, replace(LEAN, kind="full")),
    "r=4, own prompt only": Variant(False, False, LEAN),
    "r=4, own prompt and paraphrases only": Variant(True, False, LEAN),
    "r=4, random start": Variant(False, True, replace(LEAN, initial="random", lr=0.03, lr_a=3e-3)),
    "published": Variant(False, False, PUBLISHED),
}
CALIBRATED, CALIBRATED_GATE = "published, calibrated", "scen, calibrated"


def everywhere(name: str) -> bool:
    """Return whether a variant's experts act on all tokens."""
    return VARIANTS[name].settings.positions == "all"


def given(edit: Edit, paraphrases: int) -> Edit:
    """Return an edit with so many of its paraphrases."""
    return replace(edit, paraphrases=edit.paraphrases[:paraphrases])


class KeptExperts:
    """Trains the experts of edits, or reads those that were trained.

    Args:
        encoder: Of the model.
        folder: One folder a variant in it.
    """

    def __init__(self, encoder: KeptEncoder, folder: Path) -> None:
        self._encoder, self._folder = encoder, folder
        self._known: dict[str, dict[str, Expert]] = {}

    def of(self, name: str, edits: Sequence[Edit]) -> dict[str, Expert]:
        """Return the experts of a variant by ``"variant/edit"``."""
        place = self._folder / name.replace(" ", "_").replace(",", "")
        if name not in self._known:
            place.mkdir(parents=True, exist_ok=True)
            found = self._known[name] = {}
            for file in sorted(place.glob("*.safetensors")):
                ids = json.loads(file.with_suffix(".json").read_text())
                found |= _rows(name, ids, load_file(file))
        known = self._known[name]
        missing = [edit for edit in edits if f"{name}/{edit.id}" not in known]
        for start in range(0, len(missing), GROUP):
            known |= self._trained(name, missing[start : start + GROUP], place)
        return known

    def _trained(self, name: str, group: Sequence[Edit], place: Path) -> dict[str, Expert]:
        variant, cpu = VARIANTS[name], time.process_time()
        tensors, learned = train(self._encoder, group, variant)
        file = place / f"{len(list(place.glob('*.safetensors'))):03d}.safetensors"
        ids = [edit.id for edit in group]
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        file.with_suffix(".json").write_text(json.dumps(ids))
        each = (time.process_time() - cpu) / len(group)
        print(f"  {name}: {len(group)} experts, {each:.2f} CPU s each, learned {learned:.2f}",
              flush=True)  # fmt: skip
        return _rows(name, ids, tensors)


def train(encoder: KeptEncoder, edits: Sequence[Edit], variant: Variant) -> tuple[Expert, float]:
    """Return the experts of edits, stacked, and the share that has learned its answer."""
    tasks = [
        ExpertTask.of(
            given(edit, PARAPHRASES * variant.paraphrases),
            contexts=contexts(edit) if variant.contexts else (),
        )
        for edit in edits
    ]
    settings = variant.settings
    trained = train_experts(encoder.model, encoder.format, encoder.layer, tasks, settings)
    return trained.experts.tensors(), float(trained.learned.float().mean())


def _rows(name: str, ids: Sequence[str], tensors: Expert) -> dict[str, Expert]:
    return {
        f"{name}/{edit_id}": {key: value[row] for key, value in tensors.items()}
        for row, edit_id in enumerate(ids)
    }


def calibrated(encoder: KeptEncoder, answers: KeptAnswers, path: Path) -> dict[str, Any]:
    """Choose learning rates and θ of the published method, or read what was chosen."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "experts" not in found:
        found["experts"] = _expert_rate(encoder, answers)
    if "gate" not in found:
        found["gate"] = _neurons(encoder)
    write_json(path, found)
    return found


def _expert_rate(encoder: KeptEncoder, answers: KeptAnswers) -> dict[str, Any]:
    """Try three learning rates, as the package does: another than the usual must answer more."""
    edits = calibration_edits()[:TRIAL_EDITS]
    usual = ExpertSettings(kind="full").rates["change"]
    trials: list[ExpertTrial] = []
    for lr in (usual, usual / 3, usual * 3):
        settings, begun = replace(PUBLISHED, lr=lr), time.monotonic()
        name = f"published, lr {lr:g}"
        tensors, _ = train(encoder, edits, Variant(False, False, settings))
        experts = _rows(name, [edit.id for edit in edits], tensors)
        shares = []
        for wordings in ([[e.prompt] for e in edits], [e.rephrases[:2] for e in edits]):
            asked = [(Served(f"{name}/{edit.id}", edit.target, True), text)
                     for edit, texts in zip(edits, wordings, strict=True)
                     for text in texts]  # fmt: skip
            found = zip(asked, answers.ask(asked, experts), strict=True)
            shares.append(mean(right_answer(a, served.target) for (served, _), a in found) or 0.0)
        # Answers alone decide here: no loss tells equals apart.
        seconds = time.monotonic() - begun
        trials.append(ExpertTrial(encoder.layer, settings, shares[0], shares[1], 0.0, seconds))
        print(f"  {name}: reliability {shares[0]:.2f}, generality {shares[1]:.2f}", flush=True)
    best = best_first(trials)[0]
    return {
        "lr": best.settings.lr,
        "edits": len(edits),
        "trials": [{"lr": t.settings.lr, "reliability": t.reliability, "generality": t.generality}
                   for t in trials],
    }  # fmt: skip


def _neurons(encoder: KeptEncoder) -> dict[str, Any]:
    """Choose learning rate and θ of the neurons by how calibration questions are routed.

    What counts is the mean of three shares: own prompts and rephrases that get their own expert,
    and locality prompts that get none.
    """
    edits = calibration_edits()[:NEURON_EDITS]
    asked = [(edit.prompt, slot, 0) for slot, edit in enumerate(edits)]
    asked += [(text, slot, 1) for slot, edit in enumerate(edits) for text in edit.rephrases[:1]]
    asked += [(local.prompt, -1, 2) for edit in edits for local in edit.locality[:2]]
    states = encoder.layer_inputs(encoder.prompts([text for text, _, _ in asked]))
    own, kind = torch.tensor([row[1] for row in asked]), torch.tensor([row[2] for row in asked])
    trials = []
    for lr in NEURON_RATES:
        gate = PublishedGate(encoder, lr=lr, theta=0.0)
        gate.add(edits, range(len(edits)))
        routed = gate.route(PromptQuery(states=states))
        nearest = float((routed.nearest == own)[kind == 0].float().mean())
        best = {"lr": lr, "theta": 1.0, "score": -1.0}
        for theta in routed.score.sort().values.tolist():
            fired = routed.score >= theta
            right = torch.where(own >= 0, fired & (routed.nearest == own), ~fired).float()
            shares = [float(right[kind == which].mean()) for which in range(3)]
            if sum(shares) / 3 > best["score"]:
                best = {"lr": lr, "theta": theta, "score": sum(shares) / 3}
                best |= dict(zip(("own", "rephrases", "locality"), shares, strict=True))
        trials.append({**best, "own_prompt_nearest": nearest})
    chosen = max(trials, key=lambda trial: trial["score"])
    return {"lr": chosen["lr"], "theta": chosen["theta"], "edits": len(edits), "trials": trials}
