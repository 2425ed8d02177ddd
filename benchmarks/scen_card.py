"""Write the measured tables of SCEN's quality and of its gate's ideas into docs/scen.md.

python benchmarks/scen_card.py            # rewrite each table between its two markers
python benchmarks/scen_card.py --check    # exit 1 if the card is not up to date
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import card_tables
from card_tables import markdown

MEASURES = (
    "reliability",
    "generality",
    "locality_same_subject",
    "locality_same_object",
    "locality_random",
)
HEAD = (
    "expert", "gate", "paraphrases: gate, expert", "edits × draws", "reliability", "generality",
    "locality: same subject", "same object", "random",
)  # fmt: skip
ABLATIONS = ("r=4, own prompt only", "r=4, own prompt and paraphrases only", "r=4, random start")
EXPERTS = ("r=4", "full", "r=8", "r=1", "r=4, paraphrases")
GATES = ("oracle", "subject", "subject, 2 %", "subject, one reading", "cosines, as before",
         "closed", "bce", "scen")  # fmt: skip
BASELINES = ("no_edit", "in_context_perfect", "in_context_subject", "fine_tune",
             "fine_tune, calibrated", "grace")  # fmt: skip
NAMES = {
    "r=4": "low rank, r = 4",
    "r=8": "low rank, r = 8",
    "r=1": "low rank, r = 1",
    "full": "full copy",
    "r=4, paraphrases": "low rank, r = 4",
    "r=4, own prompt only": "r = 4, own prompt alone",
    "r=4, own prompt and paraphrases only": "r = 4, own wordings alone",
    "r=4, random start": "r = 4, A random, as LoRA's",
    "published": "as published",
    "published, calibrated": "as published, rate by calibration",
    "oracle": "always right",
    "subject": "`subject`",
    "subject, 2 %": "`subject`, `false_rate: 0.02`",
    "subject, one reading": "`subject`, `examples: false`",
    "cosines, as before": "an earlier revision",
    "closed": "`closed`",
    "bce": "`bce`",
    "scen": "`scen`, as published",
    "scen, calibrated": "`scen`, θ and rate by calibration",
    "no_edit": "no edit",
    "in_context_perfect": "in the context, right edit known",
    "in_context_subject": "in the context, found by subject",
    "fine_tune": "fine-tuning, edit after edit",
    "fine_tune, calibrated": "fine-tuning, rate by calibration",
    "grace": "GRACE, as published",
}

IDEAS = {
    "cosine": "cosine in a discriminant space (the gate before)",
    "ratio": "**likelihood ratio**, after the question alone",
    "ratio after examples": "likelihood ratio, after ten examples",
    "ratio, both readings added": "**both likelihood ratios added**, as shipped",
    "ratio, 61 relations": "likelihood ratio, learned from 61 relations in place of 218",
    "ratio, no other edit's relation nearer": "… and no relation of another edit may be nearer",
    "divergence": "divergence of what the model would write next",
    "words": "words in common",
    "ratio and divergence": "likelihood ratio and divergence, by logistic regression",
    "ratio, divergence and words": "… and words",
}

Row = dict[str, Any]
Key = tuple[str, str, int, int]  # expert, gate, the gate's paraphrases, edits


def grouped(rows: Sequence[Row]) -> dict[Key, list[Row]]:
    """Return the rows of each system."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        key = row["expert"], row["gate"], row.get("gate_paraphrases") or 0, row["edits"]
        found.setdefault(key, []).append(row)
    return found


def order(found: dict[Key, list[Row]]) -> list[Key]:
    """Return the systems as the table has them; each expert at its largest number of edits."""
    most = {name: max(key[3] for key in found if key[0] == name) for name in {k[0] for k in found}}

    def place(key: Key) -> tuple[int, ...] | None:
        expert, gate, paraphrases, edits = key
        if expert in EXPERTS and edits == most[expert] and gate in GATES:
            first = 0 if expert == "r=4" else 1
            return (first, EXPERTS.index(expert), GATES.index(gate), paraphrases)
        if expert in ABLATIONS and gate == "oracle":
            return (2, ABLATIONS.index(expert))
        if expert.startswith("published"):
            return (3, len(expert), -edits)
        if expert in BASELINES:
            return (4, 1 + BASELINES.index(expert))
        return None

    placed = {key: at for key in found if (at := place(key)) is not None}
    return sorted(placed, key=lambda key: placed[key])


def number(value: float) -> str:
    """Return a share with three digits: ``.528``; 0 and 1 are exact."""
    if value in (0, 1):
        return str(int(value))
    return f"{min(max(value, 0.001), 0.999):.3f}".removeprefix("0")


def cell(rows: Sequence[Row], measure: str) -> str:
    """Return the mean over draws, and the least and most where they differ."""
    values = [row[measure] for row in rows if row.get(measure) is not None]
    if not values:
        return "–"
    mean, low, high = (number(v) for v in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} [{low}, {high}]"


def systems(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the rows of the table of all systems."""
    found = grouped(rows)
    for key in order(found):
        expert, gate, paraphrases, edits = key
        of_expert = found[key][0].get("expert_paraphrases") or 0
        told = "–" if expert in BASELINES else f"{paraphrases}, {of_expert}"
        cells = [NAMES[expert], "" if expert in BASELINES else NAMES[gate], told]
        cells.append(f"{edits} × {len(found[key])}")
        yield cells + [cell(found[key], measure) for measure in MEASURES]


def somewhere(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the rows of the table that counts targets anywhere in an answer."""
    names = [f"{what}_somewhere_in_the_answer" for what in ("reliability", "generality")]
    found = grouped(rows)
    for key in order(found):
        if names[0] in found[key][0]:
            shares = [cell(found[key], name) for name in names]
            yield [NAMES[key[0]], f"{key[3]} × {len(found[key])}", *shares]


def ideas(found: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    """Yield the rows of the table of the gate's ideas."""
    for idea, name in IDEAS.items():
        cells = [number(found[known][idea]) if idea in found.get(known, {}) else "–"
                 for known in ("1", "3")]  # fmt: skip
        yield [name, *cells]


def quality() -> list[Row]:
    rows: list[Row] = card_tables.result("scen_quality")["rows"]
    return rows


TABLES: dict[str, Callable[[], str]] = {
    "systems": lambda: markdown(HEAD, systems(quality())),
    "somewhere": lambda: markdown(
        ("the target stands somewhere in the answer", "edits × draws", "own prompts", "rephrases"),
        somewhere(quality()),
    ),
    "ideas": lambda: markdown(
        ("idea", "1 wording known", "3 wordings known"),
        ideas(card_tables.result("scen_gate")["ideas"]),
    ),
}


def main() -> int:
    return card_tables.main("docs/scen.md", TABLES, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
