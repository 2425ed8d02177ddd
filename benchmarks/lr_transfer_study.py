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
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightning_suite.cli.lr_transfer_results import (
    drift_row,
    finding,
    format_optima,
    optimum_row,
)
from lightning_suite.datamodules.image import ImageDataModule
from lightning_suite.depth_mup.lr_optimum import analyse
from lightning_suite.depth_mup.lr_transfer import (
    BatchedEngine,
    Grid,
    NetSettings,
    RuleChoice,
    RunResult,
    parse_log2_lrs,
)
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.depth_mup.sweep_store import SweepStore, run_sweep
from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write, write_csv, write_json
from lightning_suite.report.lr_transfer_figure import draw_loss_curves, draw_optimum_over_depth
from lightning_suite.run_folder import save_svg

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
EXTEND = 4

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


def open_study(study: Study, folder: Path) -> tuple[BatchedEngine, Grid, SweepStore]:
    """Return what trains a study, what it varies, and its folder."""
    # 2,400 rows are enough for an accuracy, and evaluating more would cost as much as training
    data = ImageDataModule(study.source, val_fraction=0.1 if study.source == "digits" else 0.04)
    engine = BatchedEngine(
        NetSettings(), study.optimizer, data.tensors("train"), data.tensors("val"), base_depth=4
    )
    rules = tuple(RuleChoice.parse(rule) for rule in RULES)
    seeds = tuple(range(study.seeds))
    grid = Grid(rules, DEPTHS, parse_log2_lrs(study.lrs), seeds, base_depth=4)
    return engine, grid, SweepStore(folder / study.name, engine.settings(grid))


def train(study: Study, folder: Path) -> None:
    """Train the missing runs of one study."""
    engine, grid, store = open_study(study, folder)
    start, last = time.monotonic(), [0.0]

    def say(part: float, chunk: str) -> None:
        now = time.monotonic()
        if now - last[0] > 20:
            last[0] = now
            print(f"{study.name} {part:6.1%} {chunk} {now - start:.0f} s", flush=True)

    run_sweep(grid, store, engine, engine.runs_at_once, extend=EXTEND, on_progress=say)


class _MissingError(Exception):
    """A chunk is not finished."""


def _missing(*_: object) -> list[RunResult]:
    raise _MissingError


def finished(study: Study, folder: Path) -> list[RunResult]:
    """Return the runs of all rules that are finished at every depth."""
    engine, grid, store = open_study(study, folder)
    results: list[RunResult] = []
    for rule in grid.rules:
        one = replace(grid, rules=(rule,))
        try:
            results += run_sweep(one, store, _missing, engine.runs_at_once, extend=EXTEND)
        except _MissingError:
            print(f"{study.name}: {rule.label} is not finished")
    return results


def _json(row: dict[str, Any]) -> dict[str, Any]:
    """Write what JSON has no number for as text."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }


def draw(study: Study, folder: Path) -> None:
    """Write tables to benchmarks/results and figures to docs/figures."""
    results = finished(study, folder)
    if not results:
        return
    optima, drifts = analyse(results, base_depth=4)
    name = f"lr_transfer_{study.name}"
    diverged = {"diverged_at": ""}
    write_csv(
        RESULTS / f"{name}_runs.csv",
        [asdict(r) | (diverged if r.diverged_at is None else {}) for r in results],
    )
    write_csv(RESULTS / f"{name}_optima.csv", [optimum_row(o) for o in optima])
    write_json(
        RESULTS / f"{name}.json",
        {
            "claim": "the best learning rate stays put over depth under the depth rules",
            "command": "python benchmarks/lr_transfer_study.py RUNS_FOLDER",
            "settings": json.loads((folder / study.name / "sweep.json").read_text()),
            "depths": DEPTHS,
            "note": "nfd with p = 0 is depth_mup by identity",
            "drift": [_json(drift_row(d)) for d in drifts],
            "findings": [finding(d) for d in drifts],
            "optima": [_json(optimum_row(o)) for o in optima],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        },
    )
    plt = import_extra("matplotlib.pyplot", "report")
    for suffix, figure in (
        ("", draw_loss_curves(results, optima)),
        ("_optimum", draw_optimum_over_depth(optima)),
    ):
        with atomic_write(FIGURES / f"{name}{suffix}.svg", "wb") as file:
            save_svg(figure, file)
        plt.close(figure)
    print(f"\n{study.name}\n{format_optima(optima)}\n")
    for drift in drifts:
        print(finding(drift))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draw", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        for each in STUDIES:
            train(each, arguments.folder)
    for each in STUDIES:
        draw(each, arguments.folder)
