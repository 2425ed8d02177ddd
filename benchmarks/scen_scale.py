"""What do a thousand and a million edits cost?

    python benchmarks/scen_scale.py [--quick]

Synthetic edits, no language model; for each number of edits:

* the bank: what its experts (rank 4, 1536 -> 576 as in SmolLM2-135M, bfloat16) and its records
  take, how long inserting takes (10,000 at a time), saving, opening, and fetching the experts of a
  batch of 64. Up to 100,000 edits the experts are held (1.7 GB); beyond, their bytes are counted
  and the bank is measured with experts of 8 numbers: ``experts`` says which;
* keys of a layer gate (width 576, thresholds .55 to .75): comparing with all, and the index of
  FAISS with exact scores behind it. Half of the queries are keys with noise (cosine about .85),
  half are random. ``found`` is the share of queries that fire and get the slot that comparing with
  all gives; ``false fires`` counts queries that fire by the index alone. Microseconds a query, for
  one query at a time and for 64;
* subjects of a text gate: adding one, and looking a prompt up among all.

Times are CPU time of one thread, so that other programs matter little; medians.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from lightning_suite.extras import import_extra
from lightning_suite.files import write_json
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import load_bank, save_bank
from lightning_suite.scen.bank_state import BaseIdentity
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery, Routing
from lightning_suite.scen.routing import KeyIndex, nearest
from lightning_suite.scen.subjects import SubjectIndex, subject_words

RESULTS = Path(__file__).parent / "results" / "scen_scale.json"
D_IN, D_OUT, RANK, WIDTH = 1536, 576, 4, 576
HELD_UP_TO, AT_ONCE, QUERIES = 100_000, 10_000, 256


class NoGate(Gate):
    """Knows no keys, so that the bank alone is measured."""

    kind = "none"
    stage = "layer"

    def add(self, edits: Sequence[Edit], slots: Sequence[int]) -> None:
        """Learn nothing."""

    def remove(self, slots: Sequence[int]) -> None:
        """Forget nothing."""

    def renumber(self, slots: Sequence[int]) -> None:
        """Keep nothing."""

    def route(self, query: PromptQuery) -> Routing:
        """Not asked here."""
        raise NotImplementedError


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_bank(edits: int) -> dict[str, Any]:
    held = edits <= HELD_UP_TO
    d_in, d_out, rank = (D_IN, D_OUT, RANK) if held else (2, 2, 2)
    base = BaseIdentity("synthetic", "layer", d_in, d_out, {}, "0" * 64, ())
    bank = ExpertBank(base, NoGate(), rank=rank)
    before = resident()
    spent = 0.0
    for begin in range(0, edits, AT_ONCE):
        count = min(AT_ONCE, edits - begin)
        new = [
            Edit(f"edit-{i}", f"What is the capital of country {i}?", f"City {i}")
            for i in range(begin, begin + count)
        ]
        experts = {name: torch.rand(count, *shape) for name, shape in bank.table.shapes.items()}
        start = time.process_time()
        bank.insert(new, experts, [{"loss": 0.01}] * count)
        spent += time.process_time() - start
    del new, experts
    grown = resident() - before
    slots = torch.randint(edits, (64,)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        saving = seconds(lambda: save_bank(bank, path), 1)
        opening = seconds(lambda: load_bank(path, lambda _: NoGate()), 1)
        sizes = {file.suffix: file.stat().st_size for file in Path(folder).iterdir()}
        opened = load_bank(path, lambda _: NoGate())
        fetching = seconds(lambda: opened.experts(slots, dtype="float32"))
    return {
        "edits": edits,
        "experts": "held" if held else "counted",
        "experts_bytes": edits * RANK * (D_IN + D_OUT) * 2,
        "resident_bytes": grown,
        "insert_us_per_edit": 1e6 * spent / edits,
        "save_s": saving,
        "open_s": opening,
        "json_bytes": sizes[".json"],
        "fetch_64_ms": 1e3 * fetching,
    }


def measure_keys(slots: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(slots)
    keys = torch.empty(slots, WIDTH)
    for part in torch.split(keys, 65_536):
        part.copy_(normalize(torch.randn(*part.shape, generator=generator), dim=1))
    thresholds = 0.55 + 0.2 * torch.rand(slots, generator=generator)
    noise = normalize(torch.randn(QUERIES, WIDTH, generator=generator), dim=1)
    close = keys[torch.randint(slots, (QUERIES // 2,), generator=generator)]
    near = normalize(close + 0.6 * noise[: QUERIES // 2], dim=1)
    queries = torch.cat([near, noise[QUERIES // 2 :]])
    exact = nearest(keys, thresholds, queries)
    start = time.process_time()
    index = KeyIndex(keys, thresholds)
    building = time.process_time() - start
    found = index.nearest(queries)
    fires = exact.expert != MISS
    row: dict[str, Any] = {
        "slots": slots,
        "keys_bytes": keys.nbytes + thresholds.nbytes,
        "index_bytes": index.nbytes,
        "index_build_s": building,
        "queries_that_fire": int(fires.sum()),
        "found": float((found.expert == exact.expert)[fires].float().mean()),
        "false_fires": int((found.expert != MISS)[~fires].sum()),
    }
    for batch in (1, 64):
        asked = queries[torch.arange(batch) * (QUERIES // batch)]
        all_keys = seconds(partial(nearest, keys, thresholds, asked))
        by_index = seconds(partial(index.nearest, asked), 20)
        row[f"exact_us_batch_{batch}"] = 1e6 * all_keys / batch
        row[f"index_us_batch_{batch}"] = 1e6 * by_index / batch
    return row


def measure_subjects(subjects: int) -> dict[str, Any]:
    names = [f"Country {i:x} of the {i % 977} seas" for i in range(subjects)]
    before = resident()
    index = SubjectIndex()
    start = time.process_time()
    for slot, name in enumerate(names):
        index.add(subject_words(name), slot)
    adding = time.process_time() - start
    grown = resident() - before
    text = "<|im_start|>user\nTell me, please, what is the capital of {}?<|im_end|>\n"
    asked = [text.format(names[i * subjects // 100]) for i in range(100)]
    others = [text.format(f"the province {i}") for i in range(100)]
    assert all(index.find(prompt) for prompt in asked)
    return {
        "subjects": subjects,
        "resident_bytes": grown,
        "add_us": 1e6 * adding / subjects,
        "find_us_named": 1e4 * seconds(lambda: [index.find(prompt) for prompt in asked]),
        "find_us_not_named": 1e4 * seconds(lambda: [index.find(prompt) for prompt in others]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 edits")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    import_extra("faiss", "faiss").omp_set_num_threads(1)
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    rows: dict[str, list[dict[str, Any]]] = {"subjects": [], "keys": [], "bank": []}
    for size in sizes:
        for name, measure in (
            ("subjects", measure_subjects),
            ("keys", measure_keys),
            ("bank", measure_bank),
        ):
            row = measure(size)
            rows[name].append(row)
            shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
            print(name, " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
            if not quick:
                write_json(
                    RESULTS,
                    {
                        "claim": "routing and banks scale to a million edits",
                        "sizes": {"d_in": D_IN, "d_out": D_OUT, "rank": RANK, "width": WIDTH},
                        "threads": 1,
                        "clock": "CPU time of the process",
                        "load_average": os.getloadavg()[0],
                        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
                        f"{platform.system()}",
                        "versions": {
                            "torch": torch.__version__,
                            "faiss-cpu": metadata.version("faiss-cpu"),
                            "python": platform.python_version(),
                        },
                        **rows,
                    },
                )
