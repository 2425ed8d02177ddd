"""How much faster are the runs of a sweep together than one by one?

    python benchmarks/batched_sweep.py [--quick]

Three ways to do the same optimizer steps of the same runs (two-matrix tanh blocks, width 64,
batches of 64 images of 64 pixels), in turn, in one process with one thread:

* ``alone``: each run by itself with ``torch.optim`` (foreach) and one group a parameter role;
* ``stacked``: one ``vmap`` over all runs, gradients of all layers first, then the optimizer;
* ``ours``: :func:`lightning_suite.depth_mup.batched.train_batched`, which updates each layer inside
  the backward pass, at the number of runs that ``runs_per_batch`` chooses and at others.

The number is milliseconds of CPU time (one thread, so that other programs matter little) of a step
per run, median [min, max] over repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_suite.depth_mup.batched import (
    Run,
    runs_per_batch,
    train_batched,
)
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.files import write_json

RESULTS = Path(__file__).parent / "results" / "batched_sweep.json"
WIDTH, PIXELS, BATCH, ROWS = 64, 64, 64, 1024
LR = 1e-3


def make_net(depth: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return ResidualMLP(PIXELS, 10, width=WIDTH, depth=depth, rule="depth_mup", generator=generator)


def make_optimizer(name: str, parameters: Any) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=LR, momentum=0.9, foreach=True)
    return torch.optim.AdamW(parameters, lr=LR, foreach=True)


def alone(depth: int, name: str, runs: int, steps: int, data: tuple[Tensor, Tensor]) -> float:
    nets = [make_net(depth, seed) for seed in range(runs)]
    optimizers = [
        make_optimizer(
            name,
            [
                {"params": [p for n, p in net.named_parameters() if ("first" in n) == first]}
                for first in (False, True)
            ],
        )
        for net in nets
    ]
    start = time.process_time()
    for net, optimizer in zip(nets, optimizers, strict=True):
        for step in range(steps):
            rows = torch.arange(step * BATCH, (step + 1) * BATCH) % ROWS
            loss = F.cross_entropy(net(data[0][rows]), data[1][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.process_time() - start


def stacked(depth: int, name: str, runs: int, steps: int, data: tuple[Tensor, Tensor]) -> float:
    nets = [dict(make_net(depth, seed).named_parameters()) for seed in range(runs)]
    net = make_net(depth, 0)
    params = {n: torch.stack([p[n].detach() for p in nets]).requires_grad_() for n in nets[0]}
    optimizer = make_optimizer(name, list(params.values()))

    def loss_of(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (x,)), y)

    losses = torch.vmap(loss_of)
    start = time.process_time()
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % ROWS
        rows = rows.expand(runs, -1)
        optimizer.zero_grad()
        losses(params, data[0][rows], data[1][rows]).sum().backward()
        optimizer.step()
    return time.process_time() - start


def ours(depth: int, name: str, runs: int, steps: int, data: tuple[Tensor, Tensor]) -> float:
    settings = OptimizerSettings(
        "sgd" if name == "sgd" else "adamw",
        momentum=0.9 if name == "sgd" else 0.0,
        weight_decay=0.0 if name == "sgd" else 0.01,
    )
    start: list[float] = []
    train_batched(
        lambda seed: make_net(depth, seed),
        [Run(seed, LR) for seed in range(runs)],
        settings,
        data,
        steps=steps + 1,  # the first one allocates
        batch_size=BATCH,
        on_step=lambda _: start.append(time.process_time()),
    )
    return start[-1] - start[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer depths and repeats")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    repeats = 3 if quick else 5
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(ROWS, PIXELS, generator=generator),
        torch.randint(10, (ROWS,), generator=generator),
    )
    chosen = runs_per_batch(make_net(2, 0))
    rows = []
    for depth in (2, 16) if quick else (2, 8, 16, 64):
        for name in ("sgd", "adamw"):
            steps = max(4, 96 // depth)
            ways: list[tuple[str, Callable[..., float], int]] = [
                ("alone", alone, 4),
                ("stacked", stacked, chosen),
                *(("ours", ours, runs) for runs in sorted({4, 8, 16, chosen})),
            ]
            times: dict[tuple[str, int], list[float]] = {(w, r): [] for w, _, r in ways}
            for repeat in range(repeats + 1):  # in turn, so that all see the same machine
                for way, function, runs in ways:
                    seconds = function(depth, name, runs, steps, data)
                    if repeat:
                        times[way, runs].append(1e3 * seconds / steps / runs)
            base = times["alone", 4]
            for (way, runs), values in times.items():
                ratios = [b / v for b, v in zip(base, values, strict=True)]
                row = {
                    "depth": depth,
                    "optimizer": name,
                    "way": way,
                    "runs": runs,
                    "ms": statistics.median(values),
                    "ms_min": min(values),
                    "ms_max": max(values),
                    "times_faster": statistics.median(ratios),
                    "times_faster_min": min(ratios),
                    "times_faster_max": max(ratios),
                }
                rows.append(row)
                print(
                    f"L={depth:<3} {name:<6} {way:<8} {runs:>2} runs  "
                    f"{row['ms']:7.3f} [{row['ms_min']:.3f}, {row['ms_max']:.3f}] ms  "
                    f"{row['times_faster']:.2f}x [{row['times_faster_min']:.2f}, "
                    f"{row['times_faster_max']:.2f}]",
                    flush=True,
                )
    report = {
        "claim": "runs of a sweep train faster together than one by one",
        "sizes": {"width": WIDTH, "batch": BATCH, "inputs": PIXELS, "block_depth": 2},
        "runs_per_batch": chosen,
        "repeats": repeats,
        "threads": 1,
        "clock": "CPU time of the process",
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    write_json(RESULTS, report)
    print(json.dumps(report["versions"]), "->", RESULTS)
