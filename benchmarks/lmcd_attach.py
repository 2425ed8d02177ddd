"""How well is a student predicted who came after training, from a few answers?

    python benchmarks/lmcd_attach.py NAME=SOURCE:K,K,… [NAME=SOURCE:K,K,… …] [--seeds 3]

A fifth of the students is new. LMCD (frozen SmolLM2-135M, settings of configs/lmcd/attach.yaml) is
trained on the others; the new ones are attached from K of their answers, by either method of
``AttachNewStudentsCallback``, and asked about the rest. Beside it, on the same questions:

* ``trained``: the same model trained on the others' and on these K answers together;
* ``floor``: the new student's own rate in the K answers;
* ``rate and difficulty``: that rate, with how easy the others found the exercise; no model.

AUC is mean and standard deviation over seeds, each with other new students and other K answers.
Differences from ``trained`` are paired; their 95 % intervals are from resampling students, the
same in all seeds.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lmcd_intervals import auc, compare
from lmcd_speed import load_data, machine
from lmcd_split import part
from lmcd_training import BACKBONE, SharedCache, predict
from torch import Tensor

from lightning_suite.callbacks.attach_new_students import AttachNewStudentsCallback
from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.files import write_json
from lightning_suite.lmcd.backbone import load_backbone
from lightning_suite.lmcd.baselines import Answers, floor_logits, rate_logits
from lightning_suite.lmcd.module import LMCDModule
from lightning_suite.lmcd.prefix_cache import PrefixCache

RESULTS = Path(__file__).parent / "results" / "lmcd_attach.json"
EPOCHS, PATIENCE = 20, 5
METHODS: tuple[Literal["map", "gradient"], ...] = ("map", "gradient")


class KeepBest(Callback):
    """Puts back, after training, the weights of the epoch that is best in validation."""

    def __init__(self) -> None:
        self.auc, self.state = -1.0, dict[str, Tensor]()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare and copy what is trained."""
        auc = float(trainer.callback_metrics["lmcd/val_auc"])
        if auc > self.auc:
            state = pl_module.state_dict()
            own = {name: value for name, value in state.items() if "backbone" not in name}
            self.auc, self.state = auc, copy.deepcopy(own)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back."""
        pl_module.load_state_dict(self.state, strict=False)


def quiet(*callbacks: Callback) -> Trainer:
    return Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def train(data: ColdStartDataModule, cache: PrefixCache, seed: int, *callbacks: Callback) -> Any:
    module = LMCDModule(
        pretrained=BACKBONE,
        head="ncdm",
        reader="start",
        prior=0.003,
        lr_students=1e-3,
        lr_heads=3e-4,
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
        init_seed=seed,
    )
    torch.manual_seed(seed)  # dropout
    stop = EarlyStopping("lmcd/val_auc", mode="max", patience=PATIENCE)
    quiet(SharedCache(cache), *callbacks, KeepBest(), stop).fit(module, data)
    return module


def with_support(data: ColdStartDataModule) -> ColdStartDataModule:
    """Move the K answers of each new student into the training part."""
    parts = dict(data.split.parts)
    parts["train"] = torch.cat([parts["train"], parts.pop("support")]).sort().values
    data.split = replace(data.split, parts=parts)
    return data


def run(source: str, counts: list[int], seeds: int) -> list[dict[str, Any]]:
    cache = PrefixCache(2**62)
    logits: dict[int, dict[str, list[Tensor]]] = {count: {} for count in counts}
    tests: dict[int, list[Answers]] = {count: [] for count in counts}
    for seed in range(seeds):
        options = {"split": "student", "split_seed": seed, "val_fraction": 0.15}
        of_count = [load_data(source, support=count, **options) for count in counts]
        # the others are the same for all K, which only the early stop sees
        module = train(of_count[0], cache, seed, AttachNewStudentsCallback())
        for count, data in zip(counts, of_count, strict=True):
            begin = time.process_time()
            known, test = part(data, "train", "support"), part(data, "test")
            floor = floor_logits(known, test, len(data.data.students))
            easy = rate_logits(known.exercise, known.correct, len(data.data.exercises))
            found = {"floor": floor, "rate and difficulty": floor + easy[test.exercise]}
            for method in METHODS:
                quiet(AttachNewStudentsCallback(method)).test(module, data, verbose=False)
                found[method] = predict(module, data)
            whole = train(with_support(load_data(source, support=count, **options)), cache, seed)
            found["trained"] = predict(whole, data)
            tests[count].append(test)
            for way, values in found.items():
                logits[count].setdefault(way, []).append(values)
            said = {way: round(auc(values, test), 4) for way, values in found.items()}
            print(
                f"seed {seed} K={count}", said, f"{time.process_time() - begin:.0f} s", flush=True
            )
    students = len(of_count[0].data.students)
    return [
        row for count in counts for row in summary(count, logits[count], tests[count], students)
    ]


def summary(
    count: int, logits: dict[str, list[Tensor]], tests: list[Answers], students: int
) -> list[dict[str, Any]]:
    """Return a row for each way to predict from ``count`` answers."""
    rows = []
    for name, row in compare(logits, tests, students=students, against=["trained"]).items():
        other = row["against"].get("trained", {"difference": 0.0, "interval": [0.0, 0.0]})
        rows.append(
            {
                "answers": count,
                "way": name,
                "auc": row["auc"],
                "sd": row["sd"],
                "auc_interval": row["interval"],
                "against_trained": other["difference"],
                "against_trained_interval": other["interval"],
                "seeds": row["folds"],
                "questions": [len(t.correct) for t in tests],
                "new_students": [len(t.student.unique()) for t in tests],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", help="NAME=SOURCE:K,K,…")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    backbone = load_backbone(BACKBONE, None)
    results = {}
    with patch("lightning_suite.lmcd.module.load_backbone", lambda *_, **__: backbone):
        for given in options.sources:
            name, _, rest = given.partition("=")
            source, _, counts = rest.rpartition(":")
            results[name] = run(source, [int(count) for count in counts.split(",")], options.seeds)
            report = {
                "claim": "new students are predicted from a few answers, nothing else is trained",
                "seeds": options.seeds,
                **machine(),
                "data": results,
            }
            write_json(RESULTS, report)
    print("->", RESULTS)


if __name__ == "__main__":
    main()
