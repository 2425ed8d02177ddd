"""How the cost of per-sample features goes with the number of samples and their length.

    python benchmarks/resofilter_curves.py [--draw]

On the Llama of 6 M parameters of ``resofilter_speed.py``: milliseconds of CPU time a sample (one
thread, the limit and ours in turn) and how far one batch lifts the peak memory of a fresh process,
for the published score of the last three layers, and norms and the score of every linear layer.
``--draw`` measures nothing and draws the result that is there.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import torch
from curves import FIGURES, Axis, Line, draw, grid, lifted_mib
from resofilter_speed import (
    RESULTS,
    TASKS,
    random_batch,
    small_llama,
    turns,
    versions,
)
from resofilter_ways import WAYS

from lightning_suite.files import write_json
from lightning_suite.report.style import depth_colors

SHOWN = ("default", "norms, every linear layer", "adam1, every linear layer")
SAMPLES = Axis("samples", (1, 2, 4, 8, 16, 32), 4, "samples of 128 tokens")
TOKENS = Axis("tokens", (32, 64, 128, 256, 512, 1024), 128, "tokens of 4 samples")
REPEATS = 3
FIGURE = FIGURES / "resofilter_curves.png"


def peak_mib(task: str, way: str, samples: int, length: int) -> float:
    """Run one batch in a fresh process; return how far it lifts the peak, in MiB."""
    command = [sys.executable, __file__, "--one", task, way, str(samples), str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def one(task: str, way: str, samples: int, length: int) -> None:
    """Print the peak memory of one batch, in MiB."""
    with WAYS[way](small_llama(), TASKS[task]) as run:
        run(random_batch((8,)))  # what is needed once: kernels, projections
        batch = random_batch((length,) * samples)
        print(lifted_mib(lambda: run(batch)))


def point(model: Any, task: str, samples: int, length: int) -> dict[str, Any]:
    """Measure the limit and ours on one batch."""
    batch = random_batch((length,) * samples)
    seconds = turns(model, TASKS[task], batch, ["limit", "ours"], REPEATS)
    ratios = [ours / limit for limit, ours in zip(*seconds.values(), strict=True)]
    found = {
        "task": task,
        "samples": samples,
        "tokens": length,
        "ms_per_sample": {
            way: 1e3 * statistics.median(values) / samples for way, values in seconds.items()
        },
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "peak_mib": {way: peak_mib(task, way, samples, length) for way in seconds},
    }
    print(json.dumps(found), flush=True)
    return found


def draw_rows(rows: list[dict[str, Any]]) -> None:
    """Draw ratio and memory against the number of samples and their length."""
    lines = []
    for task, color in zip(SHOWN, depth_colors(len(SHOWN)), strict=True):
        name = task.replace("default", "adam1, up_proj of the last 3")
        own = partial(is_task, task)
        lines.append(Line(0, own, lambda row: float(row["ratio"][1]), color, label=name))
        lines.append(Line(1, own, partial(memory, "ours"), color))
        lines.append(Line(1, own, partial(memory, "limit"), color, ":"))
    draw(
        FIGURE,
        (SAMPLES, TOKENS),
        rows,
        lines,
        labels=("time, times the limit", "peak memory, MiB (dotted: the limit)"),
        scales=("linear", "log"),
        level=1,
    )


def is_task(task: str, row: dict[str, Any]) -> bool:
    return bool(row["task"] == task)


def memory(way: str, row: dict[str, Any]) -> float:
    return max(float(row["peak_mib"][way]), 1.0)


def main() -> None:
    """Measure all points, write them as JSON and draw them."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1:] == ["--draw"]:
        draw_rows(json.loads((RESULTS / "resofilter_curves.json").read_text())["rows"])
        return
    if sys.argv[1:2] == ["--one"]:
        task, way, samples, length = sys.argv[2:]
        one(task, way, int(samples), int(length))
        return
    model = small_llama()
    rows = [point(model, task, *size) for task in SHOWN for size in grid(SAMPLES, TOKENS)]
    write_json(
        RESULTS / "resofilter_curves.json",
        {
            "claim": "time and memory go with a batch's tokens, not with samples times weights",
            "command": "python benchmarks/resofilter_curves.py",
            "clock": "CPU time of the process, 1 thread",
            "repeats": REPEATS,
            "load_average": os.getloadavg()[0],
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": versions(),
            "rows": rows,
        },
    )
    draw_rows(rows)


if __name__ == "__main__":
    main()
