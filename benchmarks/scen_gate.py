"""What tells whether two questions ask the same of a subject? Ideas for the gate, compared.

    python benchmarks/scen_gate.py --cache FOLDER [--seeds 3] [--edits 300]

SmolLM2-135M-Instruct. *Ideas* are compared on the wordings that ship for calibration alone: kinds
of subjects are dealt into folds, each measured with what was learned from the others. Negatives are
the first three wordings of the nearest quarter of the other relations of the kind, the same ones
for every idea; the figure is the share of a relation's further wordings (from the fourth on) that
pass where 3 % of the negatives do. *Routing* is that of the shipped edits by the gate as it is:
rephrases that reach their edit, and locality prompts that reach none. The answer of a prompt that
reaches an edit may be the base model's all the same, so locality is at least that.

States are kept in ``--cache``, which may be that of ``scen_quality.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scen_quality import LAYER, MODEL
from scen_quality_experts import PARAPHRASES, given
from scen_quality_model import Beginning, KeptEncoder, mean
from scen_quality_systems import drawn
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_suite.datamodules.edit_sources import read_edits
from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.evaluation import questions_of
from lightning_suite.scen.gates.base import MISS, PromptQuery
from lightning_suite.scen.gates.subject import SubjectRelationGate
from lightning_suite.scen.layer_choice import find_layer
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.question_readings import PROBE, wording_features
from lightning_suite.scen.reference_data import relation_wordings, wordings_by_kind
from lightning_suite.scen.relation_metric import Relation, RelationMetric
from lightning_suite.scen.whitening import Whitening, discriminant, two_covariances

RESULTS = Path(__file__).parent / "results" / "scen_gate.json"
FOLDS, RATE, PLAIN, NEAREST = 6, 0.03, 3, 4
SECOND_PROBE = "The answer is a"
SHOWN = "after examples"


class Asked(NamedTuple):
    """A relation: where its wordings lie in each view, and what they say."""

    kind: int
    views: dict[str, Tensor]
    wordings: tuple[str, ...]
    shipped_first: bool  # one of the 61


Score = Callable[[Asked, int, Asked, slice], Tensor]


def relations_of(encoder: KeptEncoder, probes: Sequence[str]) -> list[Asked]:
    views = {probe: wording_features(encoder, "X", probe, examples=False) for probe in probes}
    both = wording_features(encoder, "X", PROBE, examples=True)
    views[SHOWN] = [Relation(r.features.chunk(2, 1)[1], r.kind) for r in both]
    few = {relation.wordings for relation in relation_wordings()}
    said = [wordings for kind in wordings_by_kind().values() for wordings in kind]
    return [
        Asked(
            views[PROBE][at].kind,
            {p: found[at].features for p, found in views.items()},
            wordings,
            wordings in few,
        )
        for at, wordings in enumerate(said)
    ]


def dealt(relations: Sequence[Asked]) -> list[set[int]]:
    kinds = [r.kind for r in relations]
    folds: list[set[int]] = [set() for _ in range(FOLDS)]
    for kind in sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind)):
        min(folds, key=lambda fold: sum(k in fold for k in kinds)).add(kind)
    return folds


def view(relation: Asked, probes: Sequence[str]) -> Tensor:
    return torch.cat([relation.views[probe] for probe in probes], 1)


def ratio(learned: Sequence[Asked], probes: Sequence[str] = (PROBE,)) -> Score:
    classes = [view(relation, probes) for relation in learned]
    metric = RelationMetric(*two_covariances(classes, 60), torch.empty(0))
    return lambda own, n, other, rows: metric.scores(
        metric.embed(view(other, probes)[rows]), metric.embed(view(own, probes)[:n])
    )


def cosine(learned: Sequence[Asked]) -> Score:
    space: Whitening = discriminant([r.views[PROBE] for r in learned], 30)
    return lambda own, n, other, rows: (
        space(other.views[PROBE][rows]) @ space(own.views[PROBE][:n]).T
    ).mean(1)


def divergence(head: Tensor) -> Score:
    """Of what the model would write next, Jensen-Shannon, negative."""

    def score(own: Asked, n: int, other: Asked, rows: slice) -> Tensor:
        one, two = ((r.views[PROBE][s] @ head.T).log_softmax(-1)
                    for r, s in ((own, slice(n)), (other, rows)))  # fmt: skip
        a, b = one[None], two[:, None]
        middle = torch.logaddexp(a, b) - math.log(2)
        apart = (a.exp() * (a - middle)).sum(-1) + (b.exp() * (b - middle)).sum(-1)
        return -0.5 * apart.mean(1)

    return score


def common_words(own: Asked, n: int, other: Asked, rows: slice) -> Tensor:
    known = [set(re.findall(r"\w+", text.lower())) for text in own.wordings[:n]]
    asked = [set(re.findall(r"\w+", text.lower())) for text in other.wordings[rows]]
    return torch.tensor([max(len(a & k) / len(a | k) for k in known) for a in asked])


def measured(relations: Sequence[Asked], head: Tensor, n: int) -> dict[str, float]:
    """Return the recall of each idea where ``n`` wordings are known."""
    names = ["cosine", "ratio", "ratio, 61 relations", "divergence", "words"]
    names += ["ratio after examples", "two probes"]
    names = names if SECOND_PROBE in relations[0].views else names[:-1]
    rows: dict[str, list[Tensor]] = {name: [] for name in [*names, "same", "fold", "rival"]}
    for number, fold in enumerate(dealt(relations)):
        rest = [r for r in relations if r.kind not in fold]
        held = [r for r in relations if r.kind in fold]
        scores: dict[str, Score] = {
            "cosine": cosine(rest),
            "ratio": ratio(rest),
            "ratio, 61 relations": ratio([r for r in rest if r.shipped_first]),
            "divergence": divergence(head),
            "words": common_words,
            "ratio after examples": ratio(rest, (SHOWN,)),
        }
        if "two probes" in names:
            scores["two probes"] = ratio(rest, (PROBE, SECOND_PROBE))
        likelier = scores["ratio"]
        for own in held:
            others = [r for r in held if r is not own and r.kind == own.kind]
            plain = slice(PLAIN)
            others.sort(key=lambda r: -float(likelier(own, n, r, plain).mean()))
            pairs = [(own, slice(max(n, PLAIN), None))]
            pairs += [(r, plain) for r in others[: math.ceil(len(others) / NEAREST)]]
            for other, part in pairs:
                for name, score in scores.items():
                    rows[name].append(score(own, n, other, part))
                known = [r for r in held if r is not own and r is not other]
                best = torch.stack([likelier(r, n, other, part) for r in known]).amax(0)
                rows["rival"].append(rows["ratio"][-1] - best)
                rows["same"].append(torch.full_like(best, other is own))
                rows["fold"].append(torch.full_like(best, number))
    table = {name: torch.cat(found) for name, found in rows.items()}
    same, fold_of = table.pop("same").bool(), table.pop("fold")
    rival = table.pop("rival")
    table["ratio, no other edit's relation nearer"] = torch.minimum(table["ratio"], rival)
    table["ratio, both readings added"] = table["ratio"] + table["ratio after examples"]
    for name, parts in {
        "ratio and divergence": ["ratio", "divergence"],
        "ratio, divergence and words": ["ratio", "divergence", "words"],
    }.items():
        table[name] = together(torch.stack([table[p] for p in parts], 1), same, fold_of)
    return {name: float((found[same] >= found[~same].quantile(1 - RATE)).float().mean())
            for name, found in table.items()}  # fmt: skip


def together(features: Tensor, same: Tensor, fold: Tensor) -> Tensor:
    """Return a logistic regression's score, learned on the other folds."""
    scaled = (features - features.mean(0)) / features.std(0)
    score = torch.zeros(len(same))
    for each in fold.unique():
        there = fold == each
        fitted = LogisticRegression(class_weight="balanced").fit(scaled[~there], same[~there])
        score[there] = torch.from_numpy(fitted.decision_function(scaled[there])).float()
    return score


def routing(
    encoder: KeptEncoder, count: int, seeds: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Route the prompts of the shipped edits by the gate as it is, or with other options."""
    pool, first = read_edits("counterfacts"), SubjectRelationGate(encoder, **options)
    first.add(pool[:1], [0])
    fitted, rows = first.state_dict(), []
    for seed in range(seeds):
        for paraphrases in (0, PARAPHRASES):
            edits = drawn(pool, count, seed)
            gate = SubjectRelationGate(encoder)
            gate.load_state_dict(fitted)
            gate.remove([0])
            gate.add([given(edit, paraphrases) for edit in edits], range(count))
            asked = questions_of(edits, edits)
            texts = encoder.prompts([question.prompt for question in asked])
            served = gate.route(PromptQuery(texts)).expert.tolist()
            kept: dict[str, list[bool]] = {}
            for question, slot in zip(asked, served, strict=True):
                right = slot == MISS if question.local else (
                    slot != MISS and edits[slot].id == question.edit_id
                )  # fmt: skip
                kept.setdefault(question.kind, []).append(right)
            shares = {kind: mean(found) for kind, found in kept.items()}
            rows.append({"seed": seed, "edits": count, "paraphrases": paraphrases, **shares})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--probes", nargs="+", default=[PROBE], help="more cost a pass each")
    parser.add_argument("--gate", type=json.loads, default={}, help="options of the gate, as JSON")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    model = causal_lm_from_pretrained(MODEL).eval().requires_grad_(False)
    prompts = PromptFormat.for_model(model, load_tokenizer(MODEL))
    with torch.no_grad():
        encoder = KeptEncoder(Beginning(model, prompts), find_layer(model, LAYER)[0], args.cache)
    found: dict[str, Any] = {
        "model": MODEL, "gate_options": args.gate,
        "routing": routing(encoder, args.edits, args.seeds, args.gate),
    }  # fmt: skip
    write_json(args.output, found)
    if args.gate:  # ideas are compared whatever the gate is
        return
    found["ideas"] = {}
    relations = relations_of(encoder, args.probes)
    for known in (1, 3):
        found["ideas"][known] = measured(relations, model.get_output_embeddings().weight, known)
        print(known, found["ideas"][known], flush=True)
        write_json(args.output, found)


if __name__ == "__main__":
    main()
