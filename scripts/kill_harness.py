"""Kill the long-running commands with SIGKILL at drawn moments, start them again, and compare.

python scripts/kill_harness.py --kills 120 --out benchmarks/results/kill_harness.json

Each command runs once undisturbed, over tiny models. Then it is killed, and given again as a user
would, until it is through; its results must be those of the undisturbed run. After every kill all
files must be readable, and at the end no temporary file may be left. Half of the moments are drawn
from the time that the undisturbed run took (its start and its last writes among it), half from its
writes: the process ends itself as it is about to open, rename or remove its n-th file.

A process that only begins costs seconds of imports. So the modules are imported once, here, and a
run is a fork.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import faulthandler
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"  # tiny models and data
WRITES = ("open", "os.rename", "os.remove", "os.mkdir")
# Of a run that hangs, in seconds of the undisturbed one and at least.
HANGS, LEAST = 30, 60.0
DIED = -1  # status of a child that killed itself
MORE_THAN_ONCE = 60  # starts of one command after which something is wrong


@dataclass(frozen=True)
class Case:
    """A command to be killed.

    Attributes:
        name: Of the command, with the method.
        prepare: Writes models, data and configs into a folder that all runs read.
        words: The command line, given the folder of inputs and the current one, where it runs.
        results: What must be the same, by name, of a finished run in the current folder.
        tolerance: Relative and absolute, of tensors; none for all else.
        resumes: How it goes on, for the document.
        program: What is given the command line and returns the exit status.
    """

    name: str
    prepare: Callable[[Path], None]
    words: Callable[[Path, Path], list[str]]
    results: Callable[[Path], dict[str, Any]]
    resumes: str
    tolerance: tuple[float, float] = (0.0, 0.0)
    program: Callable[[list[str]], int] = field(default_factory=lambda: _suite)


@dataclass
class Outcome:
    """What came of killing one command."""

    command: str
    resumes: str
    seconds: float
    writes: int
    kills: int = 0
    finished: int = 0
    moments: list[str] = field(default_factory=list)
    compared: str = ""
    faults: list[str] = field(default_factory=list)


def _suite(words: list[str]) -> int:
    status: int = importlib.import_module("lightning_suite.cli.main").main(words)
    return status


# --- the commands ---------------------------------------------------------------------------------


def cases() -> list[Case]:
    """Return the long-running commands of the four methods."""
    return [
        Case(
            "depth-muP: lr-transfer",
            lambda _folder: None,
            lambda _inputs, here: [
                *("lr-transfer", "--out", str(here / "sweep"), "--rules", "sp,nfd"),
                *("--depths", "2,4", "--lrs", "2^-4..2^-2", "--seeds", "2", "--model.width", "16"),
                *("--steps", "30", "--final_steps", "10", "--extend", "0"),
            ],
            lambda here: hashes(here / "sweep", "sweep.json", "chunks/*.csv", "artifacts/*"),
            "the same command; finished chunks are kept",
        ),
        Case(
            "depth-muP: fit",
            _prepare_net,
            _fit("net.yaml"),
            lambda here: tensors(newest(here)),
            "the same command with --ckpt_path of the newest checkpoint",
        ),
        Case(
            "recording callbacks: fit",
            _prepare_recording,
            _fit("net.yaml"),
            lambda here: tensors(newest(here)) | recorded(here),
            "the same command with --ckpt_path of the newest checkpoint",
        ),
        Case(
            "ResoFilter: score",
            _prepare_scoring,
            lambda inputs, here: [
                *("score", "-c", str(inputs / "score.yaml"), "--out", str(here / "scores"))
            ],
            lambda here: hashes(here / "scores", "scores.parquet", "manifest.json", "artifacts/*"),
            "the same command; finished shards are kept",
        ),
        Case(
            "SCEN: fit",
            _prepare_editing,
            lambda inputs, here: [
                *("fit", "-c", str(inputs / "scen.yaml"), "--trainer.limit_val_batches=0"),
                f"--model.init_args.bank={here / 'bank'}",
            ],
            lambda here: hashes(here, "bank.json", "bank.safetensors"),
            "the same command; groups of edits in the bank file are kept",
        ),
        Case(
            "LMCD: diffuse",
            _prepare_diagnosis,
            lambda inputs, here: [
                *("diffuse", "-c", str(inputs / "lmcd.yaml"), "--out", str(here / "texts.jsonl")),
                *("--generator", str(inputs / "tiny"), "--max_new_tokens", "6"),
            ],
            lambda here: hashes(here, "texts.jsonl"),
            "the same command; finished descriptions are kept",
        ),
        Case(
            "LMCD: fit",
            _prepare_diagnosis,
            _fit("lmcd.yaml"),
            lambda here: tensors(newest(here)),
            "the same command with --ckpt_path of the newest checkpoint",
            # texts are read once, with others of a batch: after a resume with other ones
            tolerance=(1e-4, 1e-6),
        ),
    ]


def _fit(config: str) -> Callable[[Path, Path], list[str]]:
    def words(inputs: Path, here: Path) -> list[str]:
        found = checkpoints(here)
        go_on = [f"--ckpt_path={found[-1]}"] if found else []
        return ["fit", "-c", str(inputs / config), *go_on]

    return words


TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


def _saves_every(steps: int) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": "checkpoints",  # of the current folder: where each run finds its own
            "filename": "{step}",
            "every_n_train_steps": steps,
            "save_top_k": -1,
        },
    }


def _prepare_net(folder: Path) -> None:
    (folder / "net.yaml").write_text(yaml.safe_dump(_net()))


def _prepare_recording(folder: Path) -> None:
    config = _net()
    config["trainer"]["callbacks"][1:1] = [
        {"class_path": "GradientFeatureCallback"},
        {"class_path": "FeatureDynamicsMonitor", "init_args": {"every_n_steps": 2}},
    ]
    config["model"]["init_args"]["lr_scheduler"] = {
        "class_path": "torch.optim.lr_scheduler.OneCycleLR",
        "init_args": {"max_lr": 0.01, "total_steps": 20},
    }
    (folder / "net.yaml").write_text(yaml.safe_dump(config))


def _net() -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {
            **TRAINER,
            "max_steps": 12,
            "limit_val_batches": 0,
            "callbacks": [
                {
                    "class_path": "DepthMuPLRCallback",
                    "init_args": {"rule": "nfd", "base_depth": 2, "base_width": 16},
                },
                _saves_every(3),
            ],
        },
        "model": {
            "class_path": "ResidualNetModule",
            "init_args": {
                "image_shape": [1, 8, 8],
                "num_classes": 10,
                "width": 16,
                "depth": 4,
                "rule": "nfd",
                "base_depth": 2,
                "base_width": 16,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "ImageDataModule",
            "init_args": {"source": "digits", "batch_size": 256},
        },
    }


def _prepare_scoring(folder: Path) -> None:
    tiny_scoring = _support("tiny_scoring")
    tiny_scoring.write_config(folder, tiny_scoring.rows(30), batch_samples=2, rows_per_shard=4)


def _prepare_editing(folder: Path) -> None:
    tiny_editing = _support("tiny_editing")
    model = tiny_editing.write_model(folder / "tiny")
    edits = tiny_editing.write_edits(folder / "edits.jsonl", tiny_editing.edit_rows(16))
    tiny_editing.write_config(folder, model, edits, bank="bank")


def _prepare_diagnosis(folder: Path) -> None:
    _support("tiny_editing").write_model(folder / "tiny")
    _support("cold_start_folders").write_plain(folder / "class")
    config = {
        "seed_everything": 0,
        "trainer": {**TRAINER, "max_epochs": 3, "callbacks": [_saves_every(4)]},
        "model": {
            "class_path": "LMCDModule",
            "init_args": {
                "pretrained": str(folder / "tiny"),
                "head": "ncdm",
                "reader": "start",
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005}},
            },
        },
        "data": {
            "class_path": "ColdStartDataModule",
            "init_args": {
                "source": str(folder / "class"),
                "split": "exercise",
                "system": "",
                "val_fraction": 0.2,
                "students_per_exercise": 6,
                "exercises_per_batch": 2,
            },
        },
    }
    (folder / "lmcd.yaml").write_text(yaml.safe_dump(config))


def _support(name: str) -> Any:
    if str(SUPPORT) not in sys.path:
        sys.path.insert(0, str(SUPPORT))
    return importlib.import_module(name)


# --- results --------------------------------------------------------------------------------------


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the hash of each file that one of the patterns finds."""
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def tensors(checkpoint: Path) -> dict[str, Any]:
    """Return the leaves of weights, optimizer and schedule of a checkpoint by their path."""
    content = torch.load(checkpoint, weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    kept = {name: content[name] for name in names}
    return dict(_leaves(kept))


def recorded(here: Path) -> dict[str, Any]:
    """Return what callbacks have written in the newest run that trained, by column.

    Where a kill came after the last checkpoint, the run that goes on has nothing to train.
    """
    versions = sorted(
        (here / "lightning_logs").glob("version_*"),
        key=lambda path: int(path.name.partition("_")[2]),
    )
    shards = [sorted(version.glob("gradient_features/**/*.parquet")) for version in versions]
    curves = [path for v in versions if (path := v / "artifacts/feature_dynamics.csv").exists()]
    rows = importlib.import_module("pyarrow.parquet").read_table(
        [found for found in shards if found][-1]
    )
    rows = rows.sort_by([("batch", "ascending"), ("sample_id", "ascending")])
    columns = {f"gradient_features/{name}": rows[name].to_pylist() for name in rows.column_names}
    with curves[-1].open() as file:
        measured = list(csv.DictReader(file))
    for name in measured[0]:
        columns[f"feature_dynamics/{name}"] = [row[name] for row in measured]
    return columns


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}/{key}")
    else:
        yield path, value


def _same(wanted: Any, found: Any, tolerance: tuple[float, float]) -> bool:
    if not isinstance(wanted, torch.Tensor) or not isinstance(found, torch.Tensor):
        return bool(wanted == found)
    if not any(tolerance):
        return torch.equal(wanted, found)
    return wanted.shape == found.shape and torch.allclose(wanted, found, *tolerance)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run by their step."""
    found = (folder / "checkpoints").glob("step=*.ckpt")
    return sorted(found, key=lambda path: int(path.stem.partition("=")[2]))


def newest(folder: Path) -> Path:
    """Return the last checkpoint of a run."""
    return checkpoints(folder)[-1]


def unreadable(folder: Path) -> list[str]:
    """Return what is wrong with files in a folder, as a killed run left it."""
    problems = []
    for path in sorted(folder.rglob("*")):
        # Hidden files are being written; the tensors of a bank are until their last renaming.
        if not path.is_file() or path.name.startswith(".") or path.suffix == ".new":
            continue
        try:
            _read(path)
        except Exception as err:  # whatever it is, it is what is looked for
            problems.append(f"{path.relative_to(folder)}: {type(err).__name__}: {err}"[:300])
    return problems


def _read(path: Path) -> None:
    content = path.read_bytes()
    ends = {".html": b"</html>\n", ".svg": b"</svg>\n", ".png": b"IEND\xaeB`\x82"}
    if path.suffix == ".json":
        value = json.loads(content)
        if isinstance(value, dict) and "gate_state" in value:
            _read_bank(path)
    elif path.suffix == ".jsonl":
        lines = content.split(b"\n")
        # the cache of descriptions is appended to: its reader drops a line that was cut off
        torn = path.name.endswith(".cache.jsonl")
        for line in lines[: -1 if torn else None]:
            json.loads(line or b"null")
    elif path.suffix == ".parquet":
        importlib.import_module("pyarrow.parquet").read_table(io.BytesIO(content)).validate()
    elif path.suffix == ".safetensors":
        importlib.import_module("safetensors.torch").load(content)
    elif path.suffix == ".ckpt":
        torch.load(io.BytesIO(content), weights_only=True)
    elif path.name == "metrics.csv":  # Lightning's logger writes it as it goes
        if content.count(b"\n"):
            importlib.import_module("lightning_suite.report.metrics").read_metrics(path)
    elif path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(content.decode()), strict=True))
        if not content.endswith(b"\n") or len({len(row) for row in rows}) > 1:
            raise ValueError("is cut off")
    elif path.suffix in ends and not content.endswith(ends[path.suffix]):
        raise ValueError("is cut off")


def _read_bank(path: Path) -> None:
    bank_file = importlib.import_module("lightning_suite.scen.bank_file")
    editing = importlib.import_module("lightning_suite.scen.editing")
    bank_file.load_bank(path, lambda stored: editing.make_gate(stored.gate))


# --- runs -----------------------------------------------------------------------------------------


def fork(case: Case, inputs: Path, folder: Path, die_at: int | None = None) -> int:
    """Start a command in a child that runs in ``folder``; return its process id.

    Args:
        case: The command.
        inputs: What it reads.
        folder: The current folder, and of temporary files a folder ``tmp`` in it.
        die_at: The child kills itself before its write of this number; 0 counts them, and it
            writes their number into ``writes``.
    """
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(LEAST / 2, file=2)
        os.chdir(folder)
        tempfile.tempdir = str(folder / "tmp")
        count = _count_writes(folder, die_at) if die_at is not None else None
        status = case.program(case.words(inputs, folder))
        if count is not None:
            Path("writes").write_text(str(count()))
        Path("modules").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback  # noqa: PLC0415

        with contextlib.suppress(Exception):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _count_writes(folder: Path, die_at: int) -> Callable[[], int]:
    number = 0
    here = str(folder)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in WRITES:
            return
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        if not os.path.abspath(str(arguments[0])).startswith(here):  # noqa: PTH100 - no links
            return
        number += 1
        if number == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    return lambda: number


def wait(pid: int, seconds: float) -> tuple[bool, int]:
    """Wait for a child, and kill it after ``seconds``.

    Returns:
        Whether it was killed, and its exit status; `DIED` where it killed itself.
    """
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.WIFSIGNALED(status), DIED if os.WIFSIGNALED(status) else status >> 8
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True, -signal.SIGKILL
        time.sleep(0.001)


def undisturbed(case: Case, inputs: Path, folder: Path) -> tuple[dict[str, Any], float, int]:
    """Run a command to its end; return its results, its seconds, and its number of writes."""
    for name in ("first", "whole"):  # the first is for the modules: the others find them imported
        here = folder / name
        start = time.monotonic()
        killed, status = wait(fork(case, inputs, here, die_at=0), 600)
        seconds = time.monotonic() - start
        if killed or status:
            raise SystemExit(f"{case.name}: status {status}\n{_log(here)}")
        for module in (here / "modules").read_text().splitlines():
            with contextlib.suppress(Exception):
                importlib.import_module(module)
    return case.results(here), seconds, int((here / "writes").read_text())


def disturb(case: Case, kills: int, folder: Path, draw: random.Random) -> Outcome:
    """Kill a command so many times, and see what is left.

    Args:
        case: The command.
        kills: At least so many; the last run is finished in any case.
        folder: An empty one to work in.
        draw: Where the moments come from.
    """
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    case.prepare(inputs)
    wanted, seconds, writes = undisturbed(case, inputs, folder)
    outcome = Outcome(case.name, case.resumes, round(seconds, 2), writes)
    relative, absolute = case.tolerance
    exact = "all equal" if not relative else f"to {relative:g} relative, {absolute:g} absolute"
    outcome.compared = f"{len(wanted)} results, {exact}"
    while outcome.kills < kills:
        here = folder / f"killed{outcome.finished}"
        for _ in range(MORE_THAN_ONCE):
            enough = outcome.kills >= kills
            at_write = writes > 0 and draw.random() < 0.5 and not enough
            number = draw.randint(1, writes) if at_write else None
            moment = draw.uniform(0, seconds)
            limit = max(HANGS * seconds, LEAST) if at_write or enough else moment
            killed, status = wait(fork(case, inputs, here, number), limit)
            if killed and limit != moment and status != DIED:
                outcome.faults.append(f"hangs after {outcome.moments[-3:]}: {_log(here)}")
                break
            if killed:
                outcome.kills += 1
                outcome.moments.append(f"write {number}" if at_write else f"{moment:.3f} s")
                outcome.faults += unreadable(here)
            elif status:
                outcome.faults.append(
                    f"status {status}, after {outcome.moments[-3:]}: {_log(here)}"
                )
                break
            else:
                outcome.faults += _differences(wanted, case.results(here), case, outcome.moments)
                outcome.faults += _left_behind(here)
                break
        else:
            outcome.faults.append(f"not through after {MORE_THAN_ONCE} starts")
        outcome.finished += 1
        shutil.rmtree(here)
    return outcome


def _differences(
    wanted: dict[str, Any], found: dict[str, Any], case: Case, moments: list[str]
) -> list[str]:
    names = sorted(wanted.keys() ^ found.keys())
    names += [
        name
        for name in sorted(wanted.keys() & found.keys())
        if not _same(wanted[name], found[name], case.tolerance)
    ]
    return [f"other results after {moments[-5:]}: {', '.join(names)[:500]}"] if names else []


def _log(here: Path) -> str:
    return (here / "log.txt").read_text()[-2000:]


def _left_behind(here: Path) -> list[str]:
    hidden = [
        path for path in here.rglob("*") if path.name.startswith(".") or path.suffix == ".new"
    ]
    # A killed fit's own copy of its bank may wait for its last renaming; readers know that name.
    hidden = [
        path for path in hidden if "lightning_logs" not in path.parts or path.suffix != ".new"
    ]
    hidden += list((here / "tmp").iterdir())
    return [f"left behind: {path.relative_to(here)}" for path in hidden]


def run(kills: int, seed: int, only: str = "", jobs: int = 1) -> dict[str, Any]:
    """Kill all commands; return what came of it as plain values.

    Args:
        kills: In all, shared out among the commands.
        seed: Of the moments.
        only: Only commands with this in their name.
        jobs: Commands at a time.
    """
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="agg")
    importlib.import_module("lightning_suite.cli.main")
    chosen = [case for case in cases() if only in case.name]
    shares = [kills * (n + 1) // len(chosen) - kills * n // len(chosen) for n in range(len(chosen))]
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        places = [Path(folder, str(number)).resolve() for number in range(len(chosen))]
        work = [(*one, seed) for one in zip([c.name for c in chosen], shares, places, strict=True)]
        if jobs == 1:
            outcomes = [_one(*arguments) for arguments in work]
        else:  # forks, as the runs are: nothing is imported again
            with multiprocessing.get_context("fork").Pool(jobs) as pool:
                outcomes = pool.starmap(_one, work, chunksize=1)
    return {
        "what": "SIGKILL at drawn moments, the command given again until it is through",
        "seed": seed,
        "kills": sum(outcome.kills for outcome in outcomes),
        "runs": sum(outcome.finished for outcome in outcomes),
        "faults": sum(len(outcome.faults) for outcome in outcomes),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "commands_at_a_time": jobs,
        "commands": [vars(outcome) for outcome in outcomes],
    }


def _one(name: str, kills: int, place: Path, seed: int) -> Outcome:
    case = next(case for case in cases() if case.name == name)
    outcome = disturb(case, kills, place, random.Random(f"{seed} {name}"))
    verdict = "nothing lost" if not outcome.faults else f"{len(outcome.faults)} faults"
    print(f"{name}: {outcome.kills} kills, {outcome.finished} runs: {verdict}", flush=True)
    for fault in outcome.faults[:10]:
        print(f"  {fault}", file=sys.stderr, flush=True)
    return outcome


def renewed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return ``old`` with the commands of ``new`` in the place of theirs."""
    again = {command["command"]: command for command in new["commands"]}
    commands = [again.pop(one["command"], one) for one in old["commands"]] + list(again.values())
    return {
        **new,
        "kills": sum(one["kills"] for one in commands),
        "runs": sum(one["finished"] for one in commands),
        "faults": sum(len(one["faults"]) for one in commands),
        "commands": commands,
    }


def main() -> int:
    """Run the harness; 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a name; others stay in OUT")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    given = parser.parse_args()
    result = run(given.kills, given.seed, given.only, given.jobs)
    if given.out:
        if given.only and given.out.exists():
            result = renewed(json.loads(given.out.read_text()), result)
        importlib.import_module("lightning_suite.files").write_json(given.out, result)
    return int(result["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
