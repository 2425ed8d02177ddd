"""How time and memory go with the number of students and the length of the text.

    python benchmarks/lmcd_curves.py

Training (forward and backward) of ``lmcd_speed.py``'s three modes on SmolLM2-135M, frozen, one
thread: 64 students behind texts of random tokens of several lengths, and several numbers of
students behind one text. ``row`` reads about as many tokens a pass as the published batch of 64 has
at 64 tokens of text, and each setting once; the others count as the median of three. Memory is how
far one reading lifts the peak of a fresh process above the loaded model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from lmcd_speed import BACKBONE, MODES, ROWS, TURNS, machine, read
from resofilter_speed import resident_mib

from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import Mode, StudentFusion
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.report.style import CATEGORICAL, figure_style

RESULTS = Path(__file__).parent / "results" / "lmcd_curves.json"
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "lmcd_curves.png"
LENGTHS = (32, 64, 128, 256)  # tokens of the text, before STUDENTS students
STUDENTS = 64
COUNTS = (4, 16, 64, 256)  # students behind a text of LENGTH tokens
LENGTH = 64
TOKENS = ROWS * (LENGTH + 1)  # of a pass in `row` mode
ROW_AT_MOST = 64  # students whom `row` reads; more are as many passes more


def work(backbone: Any, mode: Mode, count: int, length: int) -> tuple[StudentFusion, Any]:
    """Return a fusion, and what trains its students once."""
    start = start_vector(backbone, " student", BACKBONE)
    fusion = StudentFusion(backbone, count, start, noise=0.5, mode=mode)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (1, length), generator=generator)
    prefixes = Prefixes(ids, torch.tensor([length]))
    rows = max(1, TOKENS // (length + 1))
    return fusion, lambda n: read(fusion, prefixes, torch.arange(n), train=True, rows=rows)


def point(backbone: Any, mode: Mode, count: int, length: int) -> dict[str, Any]:
    """Measure seconds in this process and memory in a fresh one."""
    _, train = work(backbone, mode, count, length)
    train(2)  # warm up; the prefix is cached
    read_students = min(count, ROW_AT_MOST) if mode == "row" else count
    taken = []
    for _ in range(1 if mode == "row" else TURNS):
        begin = time.process_time()
        train(read_students)
        taken.append(time.process_time() - begin)
    command = [sys.executable, __file__, "--one", mode, str(count), str(length)]
    memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {
        "mode": mode,
        "students": count,
        "tokens": length,
        "students_measured": read_students,
        "seconds": statistics.median(taken) * count / read_students,
        "peak_mib": float(memory),
    }
    print(json.dumps(found), flush=True)
    return found


def one(mode: Mode, count: int, length: int) -> None:
    """Print how far one training pass lifts the peak memory, in MiB."""
    backbone = causal_lm_from_pretrained(BACKBONE).base_model.requires_grad_(False)
    _, train = work(backbone, mode, count, length)
    train(1)  # what is needed once
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = resident_mib("VmRSS")
    # `row` needs the memory of one pass, however many there are
    train(min(count, max(1, TOKENS // (length + 1))) if mode == "row" else count)
    print(resident_mib("VmHWM") - before)


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw time and memory against students and tokens."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    columns = (
        ("students", "tokens", LENGTH, f"students, text of {LENGTH} tokens"),
        ("tokens", "students", STUDENTS, f"tokens of the text, {STUDENTS} students"),
    )
    with figure_style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
        for column, (key, other, held, label) in enumerate(columns):
            for mode, color in zip(MODES, CATEGORICAL, strict=False):
                own = [row for row in rows if row["mode"] == mode and row[other] == held]
                own.sort(key=lambda row: int(row[key]))
                where = [row[key] for row in own]
                for line, what in enumerate(("seconds", "peak_mib")):
                    values = [row[what] for row in own]
                    axes[line, column].plot(where, values, "o-", color=color, label=mode)
            axes[1, column].set_xscale("log", base=2)
            axes[1, column].set(xlabel=label, xticks=where, xticklabels=where)
            for line in (0, 1):
                axes[line, column].set_yscale("log")
        axes[0, 0].set_ylabel("seconds to train once")
        axes[1, 0].set_ylabel("peak memory, MiB")
        axes[0, 0].legend()
        figure.savefig(FIGURE, dpi=120)
        plt.close(figure)


def main() -> None:
    """Measure all points, write them as JSON and draw them."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["--one"]:
        mode, count, length = sys.argv[2:]
        one(cast("Mode", mode), int(count), int(length))
        return
    backbone = causal_lm_from_pretrained(BACKBONE).base_model.requires_grad_(False)
    grid = [(n, LENGTH) for n in COUNTS] + [(STUDENTS, p) for p in LENGTHS if p != LENGTH]
    rows = [point(backbone, mode, *size) for size in grid for mode in MODES]
    report = {
        "claim": "a student more costs a token, not a text; a longer text costs once",
        "command": "python benchmarks/lmcd_curves.py",
        **machine(),
        "rows": rows,
    }
    write_json(RESULTS, report)
    draw(rows)
    print("->", RESULTS)


if __name__ == "__main__":
    main()
