"""Does the best learning rate stay put over depth? Digits and Fashion-MNIST, SGD and AdamW.

    python benchmarks/lr_transfer_study.py RUNS_FOLDER            # train what is missing, then draw
    python benchmarks/lr_transfer_study.py RUNS_FOLDER --draw     # only draw what is finished

Two-matrix tanh blocks ``h + c W2 tanh(W1 h)`` of width 64, depths 2 to 64, base depth 4 with
c0 = 1/2, zero readout, 300 steps of 64 images, learning rates by octaves, three seeds (five
for digits with SGD). The rule
``nfd`` with p = 0 is ``depth_mup`` by identity and is not run twice. A killed study continues.
Fashion-MNIST: ``apt-get install dataset-fashion-mnist``.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_suite.datamodules.image import ImageDataModule
from lightning_suite.depth_mup.batched import OptimizerSettings
from lightning_suite.depth_mup.lr_transfer import (
    BatchedEngine,
    Grid,
    NetSettings,
    RuleChoice,
    parse_log2_lrs,
)
from lightning_suite.depth_mup.sweep_store import SweepStore, run_sweep

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
RULES = ("sp", "depth_mup", "nfd:0.25", "nfd:0.5", "completep")
DEPTHS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Study:
    """One data set with one optimizer."""

    name: str
    source: str
    optimizer: OptimizerSettings
    lrs: str
    seeds: int


SGD, ADAMW = OptimizerSettings("sgd"), OptimizerSettings("adamw", weight_decay=0.01)
STUDIES = (
    Study("digits_sgd", "digits", SGD, "2^-7..2^0", 5),
    Study("digits_adamw", "digits", ADAMW, "2^-11..2^-6", 3),
    Study("fashion_mnist_sgd", FASHION_MNIST, SGD, "2^-7..2^-2", 3),
    Study("fashion_mnist_adamw", FASHION_MNIST, ADAMW, "2^-11..2^-6", 3),
)


def run(study: Study, folder: Path) -> None:
    """Train the missing runs of one study."""
    # 2,400 rows are enough for an accuracy, and evaluating more would cost as much as training
    data = ImageDataModule(study.source, val_fraction=0.1 if study.source == "digits" else 0.04)
    engine = BatchedEngine(
        NetSettings(),
        study.optimizer,
        data.tensors("train"),
        data.tensors("val"),
        base_depth=4,
    )
    rules = tuple(RuleChoice.parse(rule) for rule in RULES)
    grid = Grid(rules, DEPTHS, parse_log2_lrs(study.lrs), tuple(range(study.seeds)), base_depth=4)
    store = SweepStore(folder / study.name, engine.settings(grid))
    start, last = time.monotonic(), [0.0]

    def say(part: float, chunk: str) -> None:
        now = time.monotonic()
        if now - last[0] > 20:
            last[0] = now
            print(f"{study.name} {part:6.1%} {chunk} {now - start:.0f} s", flush=True)

    run_sweep(grid, store, engine, engine.runs_at_once, extend=4, on_progress=say)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draw", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for each in STUDIES:
        run(each, arguments.folder)
    sys.exit(0)
