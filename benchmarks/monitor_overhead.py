"""What FeatureDynamicsMonitor costs: training with it at its default interval, and without it.

Both variants train in turn in one process with one thread, 100 steps a repeat, of which the
monitor measures one. The time is the CPU time of the process, which neighbours on a busy machine
disturb least. "without, again" shows how exact the measurement is; "every step" is the cost of a
measurement itself.

    python benchmarks/monitor_overhead.py
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from lightning_suite.callbacks.feature_dynamics_monitor import FeatureDynamicsMonitor
from lightning_suite.depth_mup.module import ResidualNetModule
from lightning_suite.files import write_json

SIZES: dict[str, dict[str, int]] = {
    "quickstart": {"width": 64, "depth": 16, "batch": 64},
    "wider": {"width": 256, "depth": 8, "batch": 64},
}
VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "without": list,
    "without, again": list,
    "every 100 steps": lambda: [FeatureDynamicsMonitor(write_table=False)],
    "every step": lambda: [FeatureDynamicsMonitor(every_n_steps=1, write_table=False)],
}
STEPS = 100
WARM_UP = 10


class Stopwatch(Callback):
    """CPU seconds of the steps after the warm-up."""

    start = seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: D102
        if trainer.global_step == WARM_UP:
            self.start = time.process_time()


class StopwatchEnd(Callback):
    """Stops the watch after all other callbacks."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: D102
        if trainer.global_step == WARM_UP + STEPS:
            self.watch.seconds = time.process_time() - self.watch.start


def train(size: dict[str, int], callbacks: list[Callback]) -> float:
    """Return the CPU seconds of 100 steps, one of which (step 100) is measured at the default."""
    torch.manual_seed(0)
    module = ResidualNetModule(
        width=size["width"],
        depth=size["depth"],
        rule="nfd",
        base_depth=4,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    )
    batch = (torch.randn(size["batch"], 1, 8, 8), torch.randint(0, 10, (size["batch"],)))
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=WARM_UP + STEPS,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch, *callbacks, StopwatchEnd(watch)],
        )
        loader: DataLoader[Any] = DataLoader([batch] * (WARM_UP + STEPS), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module, loader)
    return watch.seconds


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "monitor_overhead.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    for name, size in SIZES.items():
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(args.repeats + 1):
            for variant, make in VARIANTS.items():
                times[variant].append(train(size, make()))
        times = {variant: seconds[1:] for variant, seconds in times.items()}
        for variant in list(VARIANTS)[1:]:
            ratios = [a / b for a, b in zip(times[variant], times["without"], strict=True)]
            row = {
                "size": name,
                "variant": variant,
                "ms_a_step_without": 1e3 * statistics.median(times["without"]) / STEPS,
                "ratio_min": min(ratios),
                "ratio_median": statistics.median(ratios),
                "ratio_max": max(ratios),
                "ratio_of_minima": min(times[variant]) / min(times["without"]),
                "repeats": args.repeats,
            }
            rows.append(row)
            print(
                f"{name:10} {variant:16} {row['ms_a_step_without']:7.2f} ms a step without; time "
                f"with / without {row['ratio_median']:.3f} [{row['ratio_min']:.3f}, "
                f"{row['ratio_max']:.3f}], of minima {row['ratio_of_minima']:.3f}",
                flush=True,
            )
    if args.output:
        write_json(
            args.output,
            {
                "command": f"python benchmarks/monitor_overhead.py --repeats {args.repeats}",
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
