"""How the cost of per-sample features goes with the number of samples and their length.

    python benchmarks/resofilter_curves.py

On the Llama of 6 M parameters of ``resofilter_speed.py``: milliseconds of CPU time a sample (one
thread, the limit and ours in turn) and how far one batch lifts the peak memory of a fresh process,
for the published score of the last three layers, and norms and the score of every linear layer.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from resofilter_speed import (
    RESULTS,
    TASKS,
    random_batch,
    resident_mib,
    small_llama,
    turns,
    versions,
)
from resofilter_ways import WAYS

from lightning_suite.files import write_json
from lightning_suite.report.style import depth_colors, figure_style

SHOWN = ("default", "norms, every linear layer", "adam1, every linear layer")
SAMPLES = (1, 2, 4, 8, 16, 32)  # of LENGTH tokens
LENGTH = 128
LENGTHS = (32, 64, 128, 256, 512, 1024)  # of BATCH samples
BATCH = 4
REPEATS = 3
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "resofilter_curves.png"


def peak_mib(task: str, way: str, samples: int, length: int) -> float:
    """Run one batch in a fresh process; return how far it lifts the peak, in MiB."""
    command = [sys.executable, __file__, "--one", task, way, str(samples), str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def one(task: str, way: str, samples: int, length: int) -> None:
    """Print the peak memory of one batch, in MiB."""
    with WAYS[way](small_llama(), TASKS[task]) as run:
        run(random_batch((8,)))  # what is needed once: kernels, projections
        batch = random_batch((length,) * samples)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (Linux)
        before = resident_mib("VmRSS")
        run(batch)
    print(resident_mib("VmHWM") - before)


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


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw ratio and memory against the number of samples and their length."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    axes_of = (("samples", SAMPLES, f"samples of {LENGTH} tokens"),
               ("tokens", LENGTHS, f"tokens of {BATCH} samples"))  # fmt: skip
    with figure_style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
        for column, (key, values, label) in enumerate(axes_of):
            other, held = ("tokens", LENGTH) if key == "samples" else ("samples", BATCH)
            for task, color in zip(SHOWN, depth_colors(len(SHOWN)), strict=True):
                own = [row for row in rows if row["task"] == task and row[other] == held]
                shown = sorted(own, key=lambda row: int(row[key]))
                name = task.replace("default", "adam1, up_proj of the last 3")
                axes[0, column].plot(
                    values, [row["ratio"][1] for row in shown], "o-", color=color, label=name
                )
                for way, style in (("ours", "o-"), ("limit", ":")):
                    memory = [max(row["peak_mib"][way], 1.0) for row in shown]
                    axes[1, column].plot(values, memory, style, color=color)
            axes[0, column].axhline(1, color="gray", linewidth=1)
            axes[1, column].set(xscale="log", yscale="log", xlabel=label)
        axes[0, 0].set_ylabel("time, times the limit")
        axes[1, 0].set_ylabel("peak memory, MiB (dotted: the limit)")
        axes[0, 0].legend()
        figure.savefig(FIGURE, dpi=120)
        plt.close(figure)


def main() -> None:
    """Measure all points, write them as JSON and draw them."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["--one"]:
        task, way, samples, length = sys.argv[2:]
        one(task, way, int(samples), int(length))
        return
    model = small_llama()
    grid = [(n, LENGTH) for n in SAMPLES] + [(BATCH, t) for t in LENGTHS if t != LENGTH]
    rows = [point(model, task, *size) for task in SHOWN for size in grid]
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
    draw(rows)


if __name__ == "__main__":
    main()
