"""How time and memory go with the number of students and the length of the text.

    python benchmarks/lmcd_curves.py [--only seconds | memory | figure]

Training (forward and backward) of ``lmcd_speed.py``'s three modes on SmolLM2-135M, frozen, one
thread: 64 students behind texts of random tokens of several lengths, and several numbers of
students behind one text. CPU time; the modes take turns at each point, in one process. ``row``
reads 8 students a pass, which counts once and is scaled to all of them: its time is a row's, times
the students. The others count as the median of three. Memory is how far one training pass lifts
the peak of a process that has loaded the model and read one student (so that ``cached`` holds its
prefix already); ``row``'s is that of a pass of 8 students. ``--only`` keeps the rest of the result.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from curves import FIGURES, Axis, Line, draw, grid, lifted_mib
from lmcd_speed import BACKBONE, MODES, TURNS, machine, read

from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import Mode, StudentFusion
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.report.style import CATEGORICAL

RESULTS = Path(__file__).parent / "results" / "lmcd_curves.json"
FIGURE = FIGURES / "lmcd_curves.png"
STUDENTS = Axis("students", (4, 16, 64, 256), 64, "students, text of 64 tokens")
TOKENS = Axis("tokens", (32, 64, 128, 256), 64, "tokens of the text, 64 students")
ROWS = 8  # students a pass in `row` mode


class Work:
    """Students behind a text of random tokens, and what trains them once."""

    def __init__(self, backbone: Any, mode: Mode, count: int, length: int) -> None:
        start = start_vector(backbone, " student", BACKBONE)
        self.fusion = StudentFusion(backbone, count, start, noise=0.5, mode=mode)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 40_000, (1, length), generator=generator)
        self.prefixes = Prefixes(ids, torch.tensor([length]))
        self.students = min(count, ROWS) if mode == "row" else count

    def train(self, students: int | None = None) -> None:
        """Train once, all that are measured at a time or the first few."""
        read(self.fusion, self.prefixes, torch.arange(students or self.students), train=True)


def peak_mib(backbone: Any, mode: Mode, count: int, length: int) -> float:
    """Return how far one training pass lifts the peak of a process of its own, in MiB."""
    out, into = os.pipe()
    child = os.fork()  # the model is there already
    if child == 0:
        status = 1
        try:
            work = Work(backbone, mode, count, length)
            work.train(1)  # what is needed once; the prefix is cached
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what that has freed is free (glibc)
            os.write(into, str(lifted_mib(work.train)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    with os.fdopen(out) as pipe:
        said = pipe.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{mode}, {count} students, {length} tokens: the process failed")
    return float(said)


def seconds(backbone: Any, count: int, length: int) -> dict[str, float]:
    """Return the CPU seconds of each mode to train all students once."""
    found: dict[str, float] = {}
    for mode in MODES:
        work = Work(backbone, mode, count, length)
        work.train(1)  # warm up; the prefix is cached
        taken = []
        for _ in range(1 if mode == "row" else TURNS):
            begin = time.process_time()
            work.train()
            taken.append(time.process_time() - begin)
        found[mode] = statistics.median(taken) * count / work.students
    return found


def sizes_and_modes() -> list[dict[str, Any]]:
    return [
        {"mode": mode, "students": count, "tokens": length}
        for count, length in grid(STUDENTS, TOKENS)
        for mode in MODES
    ]


def add_memory(backbone: Any, rows: list[dict[str, Any]]) -> None:
    """Measure the memory of each row; passes that are the same are one."""
    known: dict[tuple[Mode, int, int], float] = {}
    for row in rows:
        mode, length = row["mode"], row["tokens"]
        key = mode, min(row["students"], ROWS) if mode == "row" else row["students"], length
        if key not in known:
            known[key] = peak_mib(backbone, *key)
            print(*key, f"{known[key]:.1f} MiB", flush=True)
        row["peak_mib"] = known[key]


def add_seconds(backbone: Any, rows: list[dict[str, Any]]) -> None:
    """Measure the time of each row, the modes of a point in turn."""
    for count, length in grid(STUDENTS, TOKENS):
        taken = seconds(backbone, count, length)
        for row in rows:
            if (row["students"], row["tokens"]) == (count, length):
                row["seconds"] = taken[row["mode"]]
                row["times_faster"] = taken["row"] / taken[row["mode"]]
        print(count, length, taken, flush=True)


def measure(only: str | None) -> dict[str, Any]:
    """Measure all points, or of those that are there only this."""
    backbone = causal_lm_from_pretrained(BACKBONE).base_model.requires_grad_(False)
    old = json.loads(RESULTS.read_text()) if only else {"rows": sizes_and_modes()}
    # memory first: processes are forked, and nobody may have trained before (autograd)
    for what, add in (("memory", add_memory), ("seconds", add_seconds)):
        if only in (None, what):
            load = os.getloadavg()[0]
            add(backbone, old["rows"])
            old[f"load_average_of_{what}"] = [load, os.getloadavg()[0]]
    return {
        "claim": "a student more costs a token, not a text; a longer text costs once",
        "command": "python benchmarks/lmcd_curves.py",
        "students_a_pass_of_row": ROWS,
        **{key: value for key, value in machine().items() if key != "load_average"},
        **{key: value for key, value in old.items() if key.startswith("load_average_of")},
        "rows": old["rows"],
    }


def is_mode(mode: str, row: dict[str, Any]) -> bool:
    return bool(row["mode"] == mode)


def value(what: str, row: dict[str, Any]) -> float:
    return max(float(row[what]), 1e-3)


def main() -> None:
    """Measure, write the result as JSON and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("seconds", "memory", "figure"))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if only != "figure":
        write_json(RESULTS, measure(only))
    rows = json.loads(RESULTS.read_text())["rows"]
    lines = [
        Line(panel, partial(is_mode, mode), partial(value, what), color, label=mode)
        for mode, color in zip(MODES, CATEGORICAL, strict=False)
        for panel, what in enumerate(("seconds", "peak_mib"))
    ]
    draw(
        FIGURE,
        (STUDENTS, TOKENS),
        rows,
        lines,
        labels=("CPU seconds to train once", f"peak memory, MiB (row: {ROWS} students)"),
    )
    print("->", RESULTS)


if __name__ == "__main__":
    main()
