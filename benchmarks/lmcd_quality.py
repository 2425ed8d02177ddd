"""How well are answers to new exercises predicted, against bounds and baselines?

    python benchmarks/lmcd_quality.py NAME=SOURCE [NAME=SOURCE …] [--seeds 3] [--folds 5]
        [--split exercise] [--ways frozen] [--add] [--output FILE]

Cold folds. For each split: the floor (a student's own rate), the ceiling of one ability (the test's
own difficulties), models of ids, ridge regressions on the Q-matrix and on frozen states (strength
chosen inside the training items, all of which they use), and LMCD with SmolLM2-135M. ``--ways``,
one or several:

* ``heads``: every head on texts with names of skills;
* ``texts``: NCDM and IRT on texts raw, diffused (template) and both; IRT knows of skills by the
  text alone;
* ``frozen``: both;
* ``none``: NCDM that reads the same of every exercise, so that the Q-matrix is all it knows;
* ``trained``: NCDM with LoRA, and where each student reads the text; five minutes a fold;
* or a head (``irt``), on texts with names of skills; or head and text (``irt raw``).

``SOURCE`` is as ``ColdStartDataModule`` takes it, or ``situations``: VerbAgg with the skills of
each situation as a domain, for ``--split domain --folds 4``. ``--add`` keeps the rows of an output
that are not measured anew, if it has the same splits.

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from lmcd_domains import write_situations
from lmcd_intervals import auc, aucs, compare
from lmcd_training import BACKBONE, RATES, Way, fit, share
from torch import Tensor

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.files import write_json
from lightning_suite.lmcd.backbone import load_backbone
from lightning_suite.lmcd.baselines import (
    Answers,
    ceiling_logits,
    fit_by_id,
    floor_logits,
    ridge_logits,
)
from lightning_suite.lmcd.diffusion import (
    DescriptionCache,
    TemplateGenerator,
    diffuse,
    make_requests,
)
from lightning_suite.lmcd.heads.registry import HEADS
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.module import LMCDModule
from lightning_suite.lmcd.prefix_cache import PrefixCache

RESULTS = Path(__file__).parent / "results" / "lmcd_quality.json"
VAL = 0.15
TEXTS = ("raw", "kc_names", "diffused", "both")
IDS = ("irt", "mirt", "ncdm")
CEILING = "ceiling of one ability"
BASELINES = (
    "floor",
    CEILING,
    *(f"ids {head}" for head in IDS),
    "q_matrix",
    *(f"ridge {text}" for text in TEXTS),
)
ALL_HEADS = [Way(head, "kc_names") for head in HEADS if head != "3pl"]  # which is irt
ALL_TEXTS = [Way(head, text) for head in ("ncdm", "irt") for text in TEXTS if text != "kc_names"]
WAYS = {
    "heads": ALL_HEADS,
    "texts": ALL_TEXTS,
    "frozen": ALL_HEADS + ALL_TEXTS,
    "none": [Way("ncdm", "none")],
    "trained": [
        Way("ncdm", "kc_names"),
        Way("ncdm", "kc_names", backbone="lora"),
        Way("ncdm", "kc_names", reader="student"),
    ],
    **{way.head: [way] for way in ALL_HEADS},
    **{way.name: [way] for way in ALL_TEXTS},
}


def describe(data: ColdStartDataModule, folder: Path, name: str) -> str:
    """Write the descriptions of this split by template."""
    part = data.split.parts["train"]
    train = [data.data.exercises[e].id for e in data.data.exercise[part].unique().tolist()]
    cache = DescriptionCache(folder / "cache.jsonl")
    file = folder / f"{name}.jsonl"
    rows = diffuse(make_requests(data.data, train), TemplateGenerator(), cache, train=train)
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


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


def part(data: ColdStartDataModule, *names: str) -> Answers:
    rows = torch.cat([data.split.parts[name] for name in names])
    return Answers(data.data.student[rows], data.data.exercise[rows], data.data.correct[rows])


def states(data: ColdStartDataModule, cache: PrefixCache) -> Tensor:
    """Return q_v of every exercise."""
    module = LMCDModule(pretrained=BACKBONE, head="irt", reader="start")
    module._make(data.student_ids, [], None)
    share(module.model.fusion, cache)
    prefixes = Prefixes(**data.part("train").texts(torch.arange(len(data.data.exercises))))
    return module.model.fusion.read_alike(prefixes, module.model.fusion.start).exercise


def bounds_and_ids(data: ColdStartDataModule) -> dict[str, Tensor]:
    """Return the logits of the test by what knows nothing of texts."""
    answers, test = part(data, "train", "val"), part(data, "test")
    count, q = len(data.data.students), data.data.q_matrix.float()
    found = {
        "floor": floor_logits(answers, test, count),
        CEILING: ceiling_logits(answers, test, count, len(q)),
        "q_matrix": ridge_logits(answers, test, q, count),
    }
    for head in IDS:
        by_id = fit_by_id(head, answers, count, q)
        with torch.no_grad():
            found[f"ids {head}"] = by_id(test.student, test.exercise)
    return found


def run(name: str, source: str, folder: Path, ways: list[Way], **kind: Any) -> dict[str, Any]:
    """Return the rows of one data set."""
    cache = PrefixCache(2**62)
    logits: dict[str, list[Tensor]] = {}
    tests: list[Answers] = []
    seconds: dict[str, float] = {}
    loads: list[float] = []
    for number, data in enumerate(splits(source, **kind)):
        answers, test = part(data, "train", "val"), part(data, "test")
        tests.append(test)
        found = bounds_and_ids(data)
        wanted = {way.text for way in ways} | {"raw", "kc_names"}
        of_text = {
            text: ColdStartDataModule(**{**data.hparams, **text_options(text, data, folder, name)})
            for text in wanted
        }
        for text in sorted(wanted & set(TEXTS)):
            of_text[text].setup()
            features = states(of_text[text], cache)
            found[f"ridge {text}"] = ridge_logits(answers, test, features, len(data.data.students))
        for way in ways:
            begin = time.process_time()
            best = fit(way, of_text[way.text], cache, number)
            taken = time.process_time() - begin
            seconds[way.name] = seconds.get(way.name, 0.0) + taken
            found[way.name] = best.logits
            print(
                f"{name} {number:>2} {way.name:<22} AUC {auc(best.logits, test):.4f} "
                f"epoch {best.epoch} {taken:.0f} s",
                flush=True,
            )
        loads.append(os.getloadavg()[0])
        for key, value in found.items():
            logits.setdefault(key, []).append(value)
        show(name, logits, tests)
    students = len(data.data.students)
    rows = compare(logits, tests, students=students, against=BASELINES, folds=kind["folds"])
    for key, row in rows.items():
        row["setting"] = {
            "seeds": kind["seeds"],
            "threads": torch.get_num_threads(),
            "load_average": [min(loads), statistics.median(loads), max(loads)],
            **({"cpu_seconds": seconds[key]} if key in seconds else {}),
        }
    return rows


def text_options(text: str, data: ColdStartDataModule, folder: Path, name: str) -> dict[str, Any]:
    """Return the data module's options for a text."""
    if text not in ("diffused", "both"):
        return {"text": "kc_names" if text == "none" else text}
    split = f"{name}-{data.hparams['split_seed']}-{data.hparams['fold']}"
    return {"text": text, "descriptions": describe(data, folder, split)}


def show(name: str, logits: dict[str, list[Tensor]], tests: list[Answers]) -> None:
    means = {key: statistics.mean(aucs(value, tests)) for key, value in logits.items()}
    print(name, len(tests), {key: round(value, 4) for key, value in means.items()}, flush=True)


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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["frozen"])
    parser.add_argument("--add", action="store_true", help="to the rows of the output")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("lmcd_quality"), help="for descriptions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    options.work.mkdir(parents=True, exist_ok=True)
    ways = list(dict.fromkeys(way for name in options.ways for way in WAYS[name]))
    kind = {"seeds": options.seeds, "folds": options.folds, "split": options.split}
    held = options.add and options.output.exists()
    results = json.loads(options.output.read_text())["data"] if held else {}
    backbone = load_backbone(BACKBONE, None)

    def load(*given: Any, **options: Any) -> Any:  # frozen ones are one
        frozen = options["training"] == "frozen"
        return backbone if frozen else load_backbone(*given, **options)

    with patch("lightning_suite.lmcd.module.load_backbone", load):
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
