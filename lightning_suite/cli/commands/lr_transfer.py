"""``lightning-suite lr-transfer``."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule

from lightning_suite.cli.listed import listed, whole_numbers
from lightning_suite.cli.lr_transfer_results import finding, format_optima, save_results
from lightning_suite.cli.parsing import time_left
from lightning_suite.cli.progress import ProgressLine
from lightning_suite.cli.threads import cpu_threads
from lightning_suite.depth_mup.lr_optimum import analyse
from lightning_suite.depth_mup.lr_transfer import (
    BatchedEngine,
    Engine,
    Grid,
    NetSettings,
    RuleChoice,
    parse_log2_lrs,
)
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings
from lightning_suite.depth_mup.sweep_store import SweepStore, run_sweep
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder


def run(
    out: str = "runs/lr_transfer",
    rules: str | list[str] = "sp,depth_mup,nfd",
    depths: str | int | list[int] = "2,4,8,16,32",
    lrs: str | float | list[float] = "2^-7..2^0",
    seeds: int | list[int] = 3,
    base_depth: int = 4,
    model: NetSettings = NetSettings(),  # noqa: B008 (frozen)
    data: LightningDataModule | None = None,
    optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 (frozen)
    steps: int = 300,
    batch_size: int = 64,
    final_steps: int = 50,
    extend: int = 4,
    shard: str | None = None,
    merge: list[str] | None = None,
    device: str = "cpu",
    threads: int = 1,
    fit_config: str | list[str] | None = None,
    depth_key: str | None = None,
    lr_key: str | None = None,
) -> int:
    r"""Find the best learning rate at every depth, and say whether it stays put.

    Trains a grid of rules, depths, learning rates and seeds; all runs of one rule and depth train
    together in one batched computation. Leaves tables, figures and a report in OUT. A sweep that
    was stopped continues when the same command is given again.

    With --fit_config, any LightningModule: each run is one `fit` of that config with
    DepthMuPLRCallback, and the options model, data, optimizer, batch_size and device are not used.

    Args:
        out: Folder of the sweep.
        rules: Rules to compare: sp, mup, depth_mup, nfd (nfd:0.25 sets its exponent), completep.
        depths: Numbers of residual blocks, such as 2,8,32.
        lrs: Base learning rates: 2^-7..2^0 (octaves), 2^-3..2^1:0.5, or a list such as 0.1,0.2.
        seeds: How many seeds (0, 1, ...), or a list of them.
        base_depth: Depth at which all rules agree.
        model: The residual net.
        data: A data module with `tensors(split)`; default: ImageDataModule on digits.
        optimizer: SGD, Adam or AdamW, without its learning rate.
        steps: Optimizer steps of a run.
        batch_size: Images a step.
        final_steps: The loss of a run is the mean over so many last steps.
        extend: Where the best rate lies at the edge of the grid, add up to so many rates there.
        shard: Train only part i/n of the grid (1/4 to 4/4); then run once without it.
        merge: Folders of shards that were trained elsewhere, to be taken into OUT first.
        device: Where to train, such as cpu or cuda.
        threads: CPU threads; one a process is fastest for small nets (use shards for more cores).
        fit_config: Configs of `fit`, separated by commas, to sweep a module of any kind.
        depth_key: Where its depth is set, such as model.init_args.num_layers; default: found.
        lr_key: Where its learning rate is set; default: model.init_args.optimizer.init_args.lr.

    Example:
        lightning-suite lr-transfer --config quickstart/depth_mup
        lightning-suite lr-transfer --rules sp,nfd,completep --depths 2,8,32 --out runs/mine
        lightning-suite lr-transfer --optimizer.name adamw --lrs 2^-12..2^-5 --seeds 5
        lightning-suite lr-transfer --shard 1/2 & lightning-suite lr-transfer --shard 2/2; wait
        lightning-suite lr-transfer --fit_config depth_mup/llama_from_scratch \
          --depths 2,4,8 --lrs 2^-12..2^-6 --rules sp,depth_mup --steps 100 --final_steps 20
    """
    grid = Grid(
        tuple(RuleChoice.parse(rule) for rule in listed(rules)),
        whole_numbers("depths", depths),
        parse_log2_lrs(lrs if isinstance(lrs, str) else ",".join(map(str, listed(lrs)))),
        tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        base_depth,
    )
    part = _shard(shard)
    engine: Engine
    if fit_config is not None:
        from lightning_suite.cli.trainer_sweep import TrainerEngine  # noqa: PLC0415

        engine = TrainerEngine(
            listed(fit_config),
            base_depth=base_depth,
            base_width=model.base_width,
            steps=steps,
            final_steps=final_steps,
            depth_key=depth_key,
            lr_key=lr_key,
        )
    else:
        train, val = _tensors(data)
        engine = BatchedEngine(
            model, optimizer, train, val, base_depth, steps, batch_size, final_steps, device
        )
    settings = engine.settings(grid)
    store = SweepStore(out, settings)
    for folder in merge or []:
        print(f"{folder}: {store.merge(folder)} finished chunks taken over")
    with cpu_threads(threads), closing(SweepProgress()) as progress:
        results = run_sweep(
            grid,
            store,
            engine,
            engine.runs_at_once,
            shard=part,
            extend=extend,
            on_progress=progress.show,
        )
    if part is not None:
        print(f"Shard {shard} is finished. When all are, give the command without --shard.")
        return 0
    optima, drifts = analyse(results, base_depth)
    record = RunFolder(out)
    resolved = {"rules": [r.label for r in grid.rules], "depths": list(grid.depths), **settings}
    record.write_record(
        command=["lightning-suite", *sys.argv[1:]],
        seed=None,
        config=yaml.safe_dump(_plain(resolved), sort_keys=False),
        note=" ".join(finding(drift) for drift in drifts),
    )
    save_results(record, results, optima, drifts)
    print(format_optima(optima))
    print()
    for drift in drifts:
        print(finding(drift))
    print(f"\nTables and figures: {record.artifacts}")
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    print(f"Report: {write_report(record.path)}")
    return 0


def _tensors(data: LightningDataModule | None) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    from lightning_suite.datamodules.image import ImageDataModule  # noqa: PLC0415

    module = ImageDataModule() if data is None else data
    tensors = getattr(module, "tensors", None)
    if tensors is None:
        raise SuiteError(
            f"data: {type(module).__name__} has no method tensors(split) that returns a whole "
            "split as inputs and labels, which the batched engine needs. Use ImageDataModule."
        )
    return tensors("train"), tensors("val")


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise SuiteError(f"shard: {text!r}; write 1/4, 2/4, 3/4 and 4/4 for four parts.")
    return int(index) - 1, int(count)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class SweepProgress:
    """How much of the grid is trained, and how long the rest will take."""

    def __init__(self) -> None:
        self._line = ProgressLine(in_log=30, on_terminal=0.2)
        self._first: float | None = None

    def show(self, part: float, chunk: str) -> None:
        """Say that ``part`` of the grid is trained and ``chunk`` is next."""
        if self._first is None:
            self._first = part  # what an earlier command had finished costs no time now
        done = (part - self._first) or 1e-9
        left = self._line.seconds * (1 - part) / done
        self._line.show(f"{part:4.0%}  {chunk}  about {time_left(left)}")

    def close(self) -> None:
        """Clear the line."""
        self._line.close()
