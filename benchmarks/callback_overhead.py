"""What DepthMuPLRCallback costs: whole training steps with it, without it, in turn in one process.

Two sizes: the quickstart's small net, where every microsecond shows, and a net of two million
parameters. All variants train at the same time and take turns, a block of steps each. The time is
the CPU time of the process (one thread), which neighbours on a busy machine disturb least. The
second run without the callback ("without, again") shows how exact the measurement is, and "groups
by hand" what torch asks for one group a role, callback or not.

    python benchmarks/callback_overhead.py
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.depth_mup.module import ResidualNetModule
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.files import write_json

SIZES: dict[str, dict[str, int]] = {
    "small": {"width": 64, "depth": 8, "batch": 64, "slower": 1},
    "medium": {"width": 256, "depth": 16, "batch": 128, "slower": 3},
}
VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "without": list,
    "without, again": list,
    "groups by hand": list,
    "groups": lambda: [DepthMuPLRCallback(4, apply="groups", verbose=False)],
    "step": lambda: [DepthMuPLRCallback(4, apply="step", verbose=False)],
}
BLOCK = 2  # steps
WARM_UP = 10  # blocks


class GroupsByHand(ResidualNetModule):
    """One parameter group a role, written by the user: what any per-role learning rate costs."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Group the parameters by role."""
        parameters = dict(self.named_parameters())
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, role in assign_roles(self).roles.items():
            groups.setdefault(role, []).append(parameters[name])
        return torch.optim.AdamW([{"params": group} for group in groups.values()])


class TakesTurns(Callback):
    """Trains a block of steps, takes its time, and lets the next trainer go on.

    Trainers run in threads of which only one is ever awake: a block of each variant is timed every
    few milliseconds, so that a busy machine slows all alike.
    """

    def __init__(self, mine: threading.Semaphore, following: threading.Semaphore) -> None:
        self.mine, self.following = mine, following
        self.times: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: D102
        if trainer.global_step % BLOCK == 0:
            self.mine.acquire()
            self._start = time.process_time()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: D102
        if trainer.global_step % BLOCK == 0:
            self.times.append((time.process_time() - self._start) / BLOCK)
            self.following.release()


def train(size: dict[str, int], variant: str, blocks: int, turns: TakesTurns) -> None:
    """Train one variant in the thread that calls."""
    torch.manual_seed(0)
    cls = GroupsByHand if variant == "groups by hand" else ResidualNetModule
    module = cls(
        width=size["width"], depth=size["depth"], rule="nfd", base_depth=4, branch_input="norm"
    )
    batch = (torch.randn(size["batch"], 1, 8, 8), torch.randint(0, 10, (size["batch"],)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=blocks * BLOCK,
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            # first, so that what our callback does in its hooks is inside the time
            callbacks=[turns, *VARIANTS[variant]()],
        )
        loader: Any = DataLoader([batch] * (blocks * BLOCK), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module, loader)
    turns.following.release()


def measure(size: dict[str, int], blocks: int) -> dict[str, list[float]]:
    """Return the CPU seconds of a step, block by block, of every variant."""
    baton = [threading.Semaphore(int(index == 0)) for index in range(len(VARIANTS))]
    turns = [TakesTurns(baton[i], baton[(i + 1) % len(baton)]) for i in range(len(baton))]
    threads = [
        threading.Thread(target=train, args=(size, variant, blocks, turn))
        for variant, turn in zip(VARIANTS, turns, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {v: t.times[WARM_UP:] for v, t in zip(VARIANTS, turns, strict=True)}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=600, help="timed blocks a variant")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "callback_overhead.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        times = measure(size, args.blocks // size["slower"] + WARM_UP)
        for variant in list(VARIANTS)[1:]:
            plain, ours = (statistics.quantiles(times[v])[0] for v in ("without", variant))
            ratios = [a / b for a, b in zip(times[variant], times["without"], strict=True)]
            rows.append(
                {
                    "size": name,
                    "variant": variant,
                    "ms_a_step_without": 1e3 * plain,
                    "added_microseconds": 1e6 * (ours - plain),
                    "overhead": ours / plain - 1,
                    "median_ratio_of_neighbours": statistics.median(ratios),
                    "blocks": len(ratios),
                    "steps_a_block": BLOCK,
                }
            )
            print(
                f"{name:7} {variant:16} {1e3 * plain:8.3f} ms a step, added "
                f"{1e6 * (ours - plain):6.0f} us = {ours / plain - 1:+.2%} (lower quartiles of "
                f"{len(ratios)} blocks); median ratio of neighbours {statistics.median(ratios):.4f}"
            )
    if args.output:
        write_json(
            args.output,
            {
                "command": f"python benchmarks/callback_overhead.py --blocks {args.blocks}",
                "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "lightning": lightning.__version__,
                },
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
