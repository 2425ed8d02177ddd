"""The folder of a sweep: its settings, one file a finished chunk, and how the missing are trained.

```
<out>/sweep.json             what the runs depend on; another sweep cannot use the folder once a
                             chunk is finished
<out>/chunks/<name>.csv      the runs of a finished chunk
```
Each file appears whole or not at all, so a sweep may be killed at any time, and several shards
may write into one folder.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning_suite.depth_mup.lr_optimum import edge_of_grid
from lightning_suite.depth_mup.lr_transfer import (
    Chunk,
    Grid,
    Point,
    RunResult,
    extension,
    plan,
    shard_of,
)
from lightning_suite.errors import SuiteError
from lightning_suite.files import atomic_write, write_csv, write_json
from lightning_suite.json_text import load_json

TrainChunk = Callable[[Chunk, Callable[[float], None]], list[RunResult]]
# Heard during a sweep: finished fraction of the planned work, and the chunk at hand.
Progress = Callable[[float, str], None]


class SweepStore:
    """The finished chunks of one sweep.

    Args:
        path: The folder; made if it does not exist.
        settings: Everything that a run's result depends on, besides its own rule, depth, rate and
            seed; plain JSON values.

    Raises:
        SuiteError: The folder holds finished chunks of a sweep with other settings; the message
            lists them.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self._record = self.path / "sweep.json"
        if any((self.path / "chunks").glob("*.csv")) and self._record.exists():
            _refuse_other(self.path, _read_settings(self._record), self.settings)
        else:
            write_json(self._record, self.settings)

    def read(self, chunk: Chunk) -> list[RunResult] | None:
        """Return the runs of ``chunk``, or None if it is not finished.

        Raises:
            SuiteError: The file is damaged or holds other runs.
        """
        path = self._file(chunk)
        if not path.exists():
            return None
        try:
            with path.open(encoding="utf-8", newline="") as file:
                results = [_result(row) for row in csv.DictReader(file)]
        except OSError as err:
            raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
        except (KeyError, ValueError, TypeError, csv.Error) as err:
            raise SuiteError(
                f"{path}: not a table of runs ({err}). Delete it to train them again."
            ) from err
        found = [(r.rule, r.depth, Point(r.log2_lr, r.seed)) for r in results]
        if found != [(chunk.rule.label, chunk.depth, point) for point in chunk.points]:
            raise SuiteError(
                f"{path}: holds other runs than this sweep's. Choose another --out, or delete it."
            )
        return results

    def write(self, chunk: Chunk, results: Iterable[RunResult]) -> None:
        """Write a finished chunk.

        Raises:
            SuiteError: The folder was empty when this sweep began, and another one has taken it.
        """
        if self._record.exists():
            _refuse_other(self.path, _read_settings(self._record), self.settings)
        rows = ({**asdict(r), "diverged_at": _text(r.diverged_at)} for r in results)
        write_csv(self._file(chunk), rows, [f.name for f in fields(RunResult)])

    def merge(self, other: str | Path) -> int:
        """Copy the chunks of another folder of the same sweep; return how many were new.

        Raises:
            SuiteError: The other folder holds no sweep, or one with other settings.
        """
        source = Path(other)
        record = source / "sweep.json"
        if not record.exists():
            raise SuiteError(f"{source}: holds no sweep (there is no sweep.json).")
        _refuse_other(source, _read_settings(record), self.settings)
        target = self.path / "chunks"
        target.mkdir(parents=True, exist_ok=True)
        new = [
            f for f in sorted((source / "chunks").glob("*.csv")) if not (target / f.name).exists()
        ]
        for file in new:
            with file.open("rb") as source_file, atomic_write(target / file.name, "wb") as copy:
                shutil.copyfileobj(source_file, copy)
        return len(new)

    def _file(self, chunk: Chunk) -> Path:
        return self.path / "chunks" / f"{chunk.name}.csv"


def run_sweep(
    grid: Grid,
    store: SweepStore,
    train_chunk: TrainChunk,
    runs_at_once: Callable[[int], int],
    *,
    shard: tuple[int, int] | None = None,
    extend: int = 0,
    on_progress: Progress | None = None,
) -> list[RunResult]:
    """Train every chunk that is missing and return all runs, in the order of the grid.

    Args:
        grid: The grid.
        store: Where chunks are kept.
        train_chunk: Trains one chunk.
        runs_at_once: Maps a depth to the largest number of runs in a chunk.
        shard: Number (from 0) and count, to train one part only; without extension.
        extend: Where the best rate of a rule lies at the edge of the grid at some depth, add up to
            so many steps of the grid there, at all depths of the rule.
        on_progress: Hears the finished fraction and the chunk's name.
    """
    chunks = plan(grid, runs_at_once)
    if shard is not None:
        return _finish(shard_of(chunks, *shard), store, train_chunk, on_progress)
    results = _finish(chunks, store, train_chunk, on_progress)
    added = {rule.label: {"low": 0, "high": 0} for rule in grid.rules}
    while True:
        further: list[Chunk] = []
        for rule in grid.rules:
            own = [r for r in results if r.rule == rule.label]
            edges = {edge_of_grid([r for r in own if r.depth == d]) for d in grid.depths}
            lrs = [r.log2_lr for r in own]
            for side, start, sign in (("low", min(lrs), -1), ("high", max(lrs), 1)):
                steps = min(2, extend - added[rule.label][side])
                if side in edges and steps > 0:
                    added[rule.label][side] += steps
                    more = sorted(start + sign * grid.spacing * (i + 1) for i in range(steps))
                    further += extension(grid, rule, more)
        if not further:
            break
        results += _finish(further, store, train_chunk, on_progress)
    order = {rule.label: i for i, rule in enumerate(grid.rules)}
    return sorted(results, key=lambda r: (order[r.rule], r.depth, r.log2_lr, r.seed))


def _finish(
    chunks: Sequence[Chunk],
    store: SweepStore,
    train_chunk: TrainChunk,
    on_progress: Progress | None,
) -> list[RunResult]:
    total = sum(chunk.cost for chunk in chunks)
    done = 0
    results: list[RunResult] = []
    for chunk in chunks:
        found = store.read(chunk)
        if found is None:

            def report(part: float, done: int = done, chunk: Chunk = chunk) -> None:
                if on_progress is not None:
                    on_progress((done + part * chunk.cost) / total, chunk.name)

            found = train_chunk(chunk, report)
            store.write(chunk, found)
        results += found
        done += chunk.cost
    return results


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _result(row: Mapping[str, str]) -> RunResult:
    return RunResult(
        row["rule"],
        int(row["depth"]),
        float(row["log2_lr"]),
        int(row["seed"]),
        float(row["train_loss"]),
        float(row["val_loss"]),
        float(row["val_accuracy"]),
        int(row["diverged_at"]) if row["diverged_at"] else None,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = load_json(path.read_bytes())
    except OSError as err:
        raise SuiteError(f"{path}: cannot be read ({err.strerror}).") from err
    except ValueError as err:
        raise SuiteError(f"{path}: not readable as JSON ({err}).") from err
    if not isinstance(settings, dict):
        raise SuiteError(f"{path}: expected a JSON object.")
    return settings


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _refuse_other(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    changed = [
        f"  {key}: {before.get(key, 'not there')} in the folder, {now.get(key, 'not there')} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key, path) != now.get(key, path)
    ]
    if changed:
        raise SuiteError(
            f"{path} holds a sweep with other settings:\n" + "\n".join(changed) + "\n"
            "Choose another --out, or set these back to continue the sweep."
        )
