"""How well are answers to new exercises predicted, against bounds and baselines?

    python benchmarks/lmcd_quality.py NAME=SOURCE [NAME=SOURCE …] [--seeds 3] [--folds 5]
        [--split exercise] [--val-split same] [--ways frozen] [--add] [--output FILE]

Cold folds. For each split: the floor (a student's own rate), the ceiling of one ability (with the
test's own difficulties; all students of these sets answered the same exercises), models of ids,
ridge regressions on the Q-matrix and on frozen states (strength chosen inside the training items,
all of which they use), and LMCD with SmolLM2-135M. ``--ways``, one or several:

* ``heads``: every head on texts with names of skills;
* ``texts``: NCDM and IRT on texts raw, diffused (template) and both; IRT knows of skills by the
  text alone;
* ``frozen``: both;
* ``none``: NCDM that reads the same of every exercise, so that the Q-matrix is all it knows;
* ``trained``: NCDM with LoRA, and where each student reads the text; five minutes a fold;
* or a head (``irt``), on texts with names of skills; or a row by its name (``irt raw``).

``SOURCE`` is as ``ColdStartDataModule`` takes it, or ``situations``: VerbAgg with the skills of
each situation as a domain, for ``--split domain --val-split exercise --folds 4``. ``--add`` keeps
the rows of an output that are not measured anew, if it has the same splits. An interrupted run goes
on where it was: ``--work`` keeps what each split has given.

LMCD stops early, and its head's learning rate is chosen, on validation items, which are taken from
its training items. Where it ends it has learnt from fewer items than the regressions.

Numbers are AUC, mean and standard deviation over folds and seeds; ``against`` has the differences
from bounds and baselines, with the two intervals of ``lmcd_intervals.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from lmcd_domains import write_situations
from lmcd_intervals import auc, compare
from lmcd_split import CEILING, IDS, TEXTS, Predicted
from lmcd_training import BACKBONE, RATES, Way

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.files import write_json
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.lmcd.backbone import load_backbone
from lightning_suite.lmcd.heads.registry import HEADS
from lightning_suite.lmcd.prefix_cache import PrefixCache

WORK = "folder of descriptions and of what is done; delete it to measure all anew"
RESULTS = Path(__file__).parent / "results" / "lmcd_quality.json"
VAL = 0.15
BASELINES = (
    "floor",
    CEILING,
    *(f"ids {head}" for head in IDS),
    "q_matrix",
    *(f"ridge {text}" for text in TEXTS),
)
ALL_HEADS = [Way(head, "kc_names") for head in HEADS if head != "3pl"]  # which is irt
ALL_TEXTS = [Way(head, text) for head in ("ncdm", "irt") for text in TEXTS if text != "kc_names"]
TRAINED = [
    Way("ncdm", "kc_names", backbone="lora"),
    Way("ncdm", "kc_names", reader="student"),
]
WAYS = {
    "heads": ALL_HEADS,
    "texts": ALL_TEXTS,
    "frozen": ALL_HEADS + ALL_TEXTS,
    "none": [Way("ncdm", "none")],
    "trained": [Way("ncdm", "kc_names"), *TRAINED],
    **{way.head: [way] for way in ALL_HEADS},
    **{way.name: [way] for way in ALL_TEXTS + TRAINED},
}


def splits(source: str, seeds: int, folds: int, **options: Any) -> Iterator[ColdStartDataModule]:
    for seed in range(seeds):
        for fold in range(folds):
            data = ColdStartDataModule(
                source,
                tokenizer=BACKBONE,
                folds=folds,
                fold=fold,
                split_seed=seed,
                val_fraction=VAL,
                students_per_exercise=128,
                **options,
            )
            data.setup()
            yield data


def run(name: str, source: str, folder: Path, ways: list[Way], **kind: Any) -> dict[str, Any]:
    """Return the rows of one data set."""
    read = PrefixCache(2**62)
    done: list[Predicted] = []
    for number, data in enumerate(splits(source, **kind)):
        val = "" if kind["val_split"] == "same" else f"-{kind['val_split']}"
        label = f"{name}-{kind['split']}{val}-{kind['folds']}-{number}"
        predicted = Predicted(data, folder / f"{label}.pt", read, number)
        predicted.add_bounds_and_ids()
        for text in dict.fromkeys(["raw", "kc_names", *(way.text for way in ways)]):
            if text in TEXTS:
                predicted.add_ridge(text)
        for way in ways:
            if predicted.add_lmcd(way):
                reached = auc(predicted.logits[way.name], predicted.test)
                taken = predicted.seconds[way.name]
                print(f"{label:<24} {way.name:<20} AUC {reached:.4f} {taken:.0f} s", flush=True)
        done.append(predicted)
    names = [key for key in done[0].logits if all(key in each.logits for each in done)]
    rows = compare(
        {key: [each.logits[key] for each in done] for key in names},
        [each.test for each in done],
        students=done[0].students,
        against=BASELINES,
        folds=kind["folds"],
    )
    for key, row in rows.items():
        print(f"{name:<10} {key:<24} AUC {row['auc']:.4f} ± {row['sd']:.4f}")
        loads = [each.loads[key] for each in done]
        row["setting"] = {
            "seeds": kind["seeds"],
            "threads": torch.get_num_threads(),
            "load_average": [min(loads), statistics.median(loads), max(loads)],
            "cpu_seconds": sum(each.seconds[key] for each in done),
        }
    return rows


def add(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return old rows with new ones added or in their place.

    Raises:
        SystemExit: The floors differ: these are other splits.
    """
    if old and old["floor"]["folds"] != new["floor"]["folds"]:
        raise SystemExit("--add: the output has other splits; take the same --seeds and --folds")
    return {**old, **new}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="NAME=SOURCE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--split", default="exercise")
    parser.add_argument("--val-split", default="same", choices=("same", "exercise"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["frozen"])
    parser.add_argument("--add", action="store_true", help="to the rows of the output")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("lmcd_quality"), help=WORK)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    options.work.mkdir(parents=True, exist_ok=True)
    ways = list(dict.fromkeys(way for name in options.ways for way in WAYS[name]))
    kind = {name: getattr(options, name) for name in ("seeds", "folds", "split", "val_split")}
    held = options.add and options.output.exists()
    results = json.loads(options.output.read_text())["data"] if held else {}
    backbone = load_backbone(BACKBONE, None)

    def load(*given: Any, **options: Any) -> Any:  # frozen ones are one
        frozen = options["training"] == "frozen"
        return backbone if frozen else load_backbone(*given, **options)

    tokenizer = cache(load_tokenizer)
    with (
        patch("lightning_suite.lmcd.module.load_backbone", load),
        patch("lightning_suite.lmcd.backbone.load_tokenizer", tokenizer),
        patch("lightning_suite.datamodules.cold_start.load_tokenizer", tokenizer),
    ):
        for given in options.sources:
            name, _, source = given.partition("=")
            if source == "situations":
                source = write_situations(options.work / "situations")
            rows = run(name, source, options.work, ways, **kind)
            results[name] = add(results.get(name, {}), rows)
            report = {
                "claim": "answers to exercises that nobody has answered are predicted",
                **kind,
                "val_fraction": VAL,
                "rates_of_the_head": RATES,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
                "versions": {
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                    "python": platform.python_version(),
                },
                "data": results,
            }
            write_json(options.output, report)
    print("->", options.output)


if __name__ == "__main__":
    main()
