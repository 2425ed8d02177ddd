"""Which systems the quality study compares, and which edit each of them gives a question to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from scen_quality_answers import Asked, Expert, Served
from scen_quality_experts import (
    CALIBRATED,
    CALIBRATED_GATE,
    PARAPHRASES,
    VARIANTS,
    everywhere,
    given,
)
from scen_quality_fine_tune import fine_tuned
from scen_quality_model import KeptEncoder
from torch import Tensor

from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.baselines.grace import Grace
from lightning_suite.scen.baselines.in_context import CONTEXT, InContextEdit
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import Question, questions_of
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery
from lightning_suite.scen.gates.bce import BCEGate
from lightning_suite.scen.gates.closed import ClosedGate
from lightning_suite.scen.gates.published import PublishedGate
from lightning_suite.scen.gates.subject import SubjectRelationGate

SMALL = 60  # edits of ablations
STAGES = ("main", "gates", "experts", "full", "ablations", "published", "baselines", "fine_tune",
          "grace")  # fmt: skip
NO_EDIT, FINE_TUNE, GRACE = "no_edit", "fine_tune", "grace"
FINE_TUNE_CALIBRATED = "fine_tune, calibrated"
FINE_TUNE_RATES = {FINE_TUNE: 1e-4}  # SCEN's published rate; the calibrated one is added
IN_CONTEXT = {"in_context_perfect": "oracle", "in_context_subject": "subject of the edit"}
GATES: dict[str, Any] = {
    "subject": SubjectRelationGate,
    "subject, one reading": partial(SubjectRelationGate, examples=False),
    "subject, 2 %": partial(SubjectRelationGate, false_rate=0.02),
    "closed": ClosedGate,
    "bce": BCEGate,
    "scen": PublishedGate,
}


class System(NamedTuple):
    """A row of the table, but for the seed."""

    expert: str
    gate: str
    paraphrases: int  # of each edit, in the gate
    edits: int
    seeds: int


class Plan(NamedTuple):
    """A system with one draw of edits: what is asked, and who answers.

    Attributes:
        questions: All prompts to be scored.
        served: The edit that each is given to, None where the base model answers.
        asked: What is generated for it; None where the base model answers.
        experts: That are not of a variant.
    """

    system: System
    seed: int
    questions: list[Question]
    served: list[Edit | None]
    asked: list[Asked | None]
    experts: dict[str, Expert]


def systems(stage: str, edits: int, seeds: int) -> list[System]:
    """Return the systems of a stage."""
    p = PARAPHRASES
    others = [("closed", 0), ("closed", p), ("bce", 0), ("bce", p), ("scen", 0)]
    wanted: dict[str, list[tuple[str, str, int]]] = {
        "main": [("r=4", "oracle", 0), ("r=4", "subject", 0), ("r=4", "subject", p),
                 ("r=4", "subject", 2 * p)]
                + [("r=4", gate, n) for gate in GATES if gate.startswith("subject, ")
                   for n in (0, p)],
        "gates": [("r=4", gate, n) for gate, n in others],
        "experts": [(name, gate, n)
                    for name in ("full", "r=8", "r=1", "r=4, paraphrases")
                    for gate, n in (("oracle", 0), ("subject", 0), ("subject", p))],
        "full": [("full", gate, n) for gate, n in others],
        "published": [("published", "scen", 0), (CALIBRATED, CALIBRATED_GATE, 0)],
    }  # fmt: skip
    if stage in wanted:
        return [System(*one, edits, seeds) for one in wanted[stage]]
    if stage == "ablations":
        names = [name for name in VARIANTS if name.startswith(("r=4", "published"))]
        return [System(name, "oracle", 0, min(SMALL, edits), 1) for name in names]
    if stage == "baselines":
        return [
            System(name, IN_CONTEXT.get(name, ""), 0, edits, seeds)
            for name in (NO_EDIT, *IN_CONTEXT)
        ]
    names = [FINE_TUNE, FINE_TUNE_CALIBRATED] if stage == FINE_TUNE else [stage]
    return [System(name, "", 0, edits, seeds) for name in names]


def drawn(pool: Sequence[Edit], count: int, seed: int) -> list[Edit]:
    """Return the edits of a seed; a smaller draw begins a larger one."""
    order = list(pool)
    random.Random(seed).shuffle(order)
    return order[:count]


class Planner:
    """Decides what is asked; gates are fitted once for all experts.

    Args:
        pool: All edits.
        encoder: Of the model.
        folder: Where what baselines have learned is kept.
    """

    def __init__(self, pool: Sequence[Edit], encoder: KeptEncoder, folder: Path) -> None:
        self._pool, self._encoder, self._folder = pool, encoder, folder
        self._routed: dict[tuple[str, int, int, int], list[int]] = {}
        self._fitted: dict[str, dict[str, Any]] = {}

    def plan(self, system: System, seed: int) -> Plan:
        """Return what a system asks with one draw of edits."""
        edits = drawn(self._pool, system.edits, seed)
        questions = questions_of(edits, edits)
        if system.expert in FINE_TUNE_RATES:
            return self._fine_tuned(system, seed, edits, questions)
        if system.expert == GRACE:
            return self._grace(system, seed, edits, questions)
        key = system.gate, system.paraphrases, len(edits), seed
        if key not in self._routed:
            self._routed[key] = self._route(system, edits, questions)
        served = [edits[slot] if slot != MISS else None for slot in self._routed[key]]
        asked: list[Asked | None] = []
        for question, edit in zip(questions, served, strict=True):
            if system.expert == NO_EDIT:
                asked.append(None if question.local else (Served(), question.prompt))
            elif edit is None:
                asked.append(None)
            elif system.expert in IN_CONTEXT:
                told = CONTEXT.format(prompt=edit.prompt, target=edit.target,
                                      question=question.prompt)  # fmt: skip
                asked.append((Served(), told))
            else:
                name = f"{system.expert}/{edit.id}"
                served_by = Served(name, edit.target, everywhere(system.expert))
                asked.append((served_by, question.prompt))
        return Plan(system, seed, questions, served, asked, {})

    def _route(
        self, system: System, edits: Sequence[Edit], questions: Sequence[Question]
    ) -> list[int]:
        slots = {edit.id: slot for slot, edit in enumerate(edits)}
        if system.gate in ("", "oracle"):
            return [MISS if q.local or not system.gate else slots[q.edit_id] for q in questions]
        asked = [question.prompt for question in questions]
        if system.expert in IN_CONTEXT:
            found = InContextEdit(lambda _: [], "subject", self._states)  # type: ignore[arg-type]
            found.edit(edits)
            fired = [decision.fired for decision in found.route(asked)]
            return [MISS if name is None else slots[name] for name in fired]
        gate = self._gate(system.gate)
        gate.add([given(edit, system.paraphrases) for edit in edits], range(len(edits)))
        texts = self._encoder.prompts(asked)
        query = PromptQuery(texts) if gate.stage == "prompt" else PromptQuery(
            states=self._encoder.layer_inputs(texts)
        )  # fmt: skip
        return gate.route(query).expert.tolist()

    def _gate(self, name: str) -> Gate:
        """Return a gate without edits; what one learns from no edit is learned once."""
        gate: Gate = GATES[name](self._encoder)
        if not isinstance(gate, SubjectRelationGate):
            return gate
        if name not in self._fitted:
            first: Gate = GATES[name](self._encoder)
            first.add(self._pool[:1], [0])
            first.remove([0])
            self._fitted[name] = first.state_dict()
        gate.load_state_dict(self._fitted[name])
        return gate

    def _states(self, asked: Sequence[str]) -> Tensor:
        return self._encoder.final_states(self._encoder.prompts(asked))

    def _fine_tuned(
        self, system: System, seed: int, edits: Sequence[Edit], questions: list[Question]
    ) -> Plan:
        name = f"{system.expert}/{len(edits)}-{seed}"
        path = self._file(system.expert, len(edits), seed)
        if not path.exists():
            rate = FINE_TUNE_RATES[system.expert]
            save_file(fine_tuned(self._encoder, edits, rate), path)
        asked: list[Asked | None] = [(Served(name, "", True), q.prompt) for q in questions]
        own = {edit.id: edit for edit in edits}
        served: list[Edit | None] = [own[q.edit_id] for q in questions]
        return Plan(system, seed, questions, served, asked, {name: load_file(path)})

    def _grace(
        self, system: System, seed: int, edits: Sequence[Edit], questions: list[Question]
    ) -> Plan:
        """Route by the codebook; a prompt outside all balls gets the model's own answer."""
        path = self._file(GRACE, len(edits), seed)
        layer = self._encoder.model.get_submodule(self._encoder.layer)
        grace = Grace(Answerer(self._encoder.model, self._encoder.format), layer, seed=seed)
        if not path.exists():
            grace.edit([given(edit, 0) for edit in edits])
            book = grace.codebook
            kept = {"keys": torch.stack(book.keys), "values": torch.stack(book.values),
                    "radii": torch.tensor(book.radii)}  # fmt: skip
            owners = torch.tensor([[e.id for e in edits].index(name) for name in book.ids])
            save_file({**kept, "owners": owners}, path)
        saved = load_file(path)
        states = self._encoder.layer_inputs(self._encoder.prompts([q.prompt for q in questions]))
        distances, places = torch.cdist(states, saved["keys"]).min(1)
        fired = (distances <= saved["radii"][places]).tolist()
        name = f"{GRACE}/{len(edits)}-{seed}"
        served: list[Edit | None] = []
        asked: list[Asked | None] = []
        for question, yes, at in zip(questions, fired, places.tolist(), strict=True):
            edit = edits[int(saved["owners"][at])]
            served.append(edit if yes else None)
            asked.append((Served(f"{name}/{at}", edit.target), question.prompt) if yes else None)
        values = {f"{name}/{at}": {"value": value} for at, value in enumerate(saved["values"])}
        return Plan(system, seed, questions, served, asked, values)

    def _file(self, name: str, edits: int, seed: int) -> Path:
        return self._folder / f"{name.replace(', ', '_')}-{edits}-{seed}.safetensors"
