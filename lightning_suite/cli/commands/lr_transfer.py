"""``lightning-suite lr-transfer``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import LightningDataModule

from lightning_suite.cli.parsing import count, time_left
from lightning_suite.depth_mup.batched import OptimizerSettings
from lightning_suite.depth_mup.lr_optimum import SPREAD, DepthOptimum, Drift, Interval, analyse
from lightning_suite.depth_mup.lr_transfer import (
    BatchedEngine,
    Engine,
    Grid,
    NetSettings,
    RuleChoice,
    RunResult,
    parse_log2_lrs,
)
from lightning_suite.depth_mup.sweep_store import SweepStore, run_sweep
from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SECTION = "LR transfer"
_RULES: dict[str, str] = {
    "sp": "standard parametrisation",
    "mup": "muP, for width alone",
    "depth_mup": "depth-muP",
    "nfd": "depth-muP with the depth-aware correction",
    "completep": "CompleteP",
}
# In octaves and in ratios of losses: far above float64's rounding, far below anything of interest.
_NOISE = 1e-9


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
        tuple(RuleChoice.parse(rule) for rule in _words(rules)),
        _integers("depths", depths),
        parse_log2_lrs(lrs if isinstance(lrs, str) else ",".join(map(str, _words(lrs)))),
        tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        base_depth,
    )
    part = _shard(shard)
    engine: Engine
    if fit_config is not None:
        from lightning_suite.cli.trainer_sweep import TrainerEngine  # noqa: PLC0415

        engine = TrainerEngine(
            _words(fit_config),
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
    with _threads(threads), _progress() as progress:
        results = run_sweep(
            grid,
            store,
            engine,
            engine.runs_at_once,
            shard=part,
            extend=extend,
            on_progress=progress,
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
    save(record, results, optima, drifts)
    print(format_optima(optima))
    print()
    for drift in drifts:
        print(finding(drift))
    print(f"\nTables and figures: {record.artifacts}")
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    print(f"Report: {write_report(record.path)}")
    return 0


def _meanings(results: Sequence[RunResult]) -> str:
    """Say what the rules' names stand for: the page may be the first that one sees of them."""
    rules = dict.fromkeys(result.rule.partition(":")[0] for result in results)
    return f"Rules: {'; '.join(f'`{rule}` is {_RULES[rule]}' for rule in rules)}."


def save(
    folder: RunFolder,
    results: Sequence[RunResult],
    optima: Sequence[DepthOptimum],
    drifts: Sequence[Drift],
) -> None:
    """Write the tables and, where matplotlib is installed, the figures of a sweep."""
    try:
        for name, figure, title, caption in _figures(results, optima):
            folder.add_figure(name, figure, title=title, caption=caption, section=_SECTION)
    except MissingExtraError as err:
        print(f"No figures: {err}", file=sys.stderr)
    folder.add_table(
        "lr_transfer_drift",
        [drift_row(drift) for drift in drifts],
        title="How far the best learning rate moves",
        caption="Octaves of the base learning rate. Regret: loss at the base depth's best rate "
        f"over the best loss, minus 1, in this sample. {SPREAD}",
        section=_SECTION,
        columns=None if drifts else ["rule"],
    )
    folder.add_table(
        "lr_transfer_optima",
        [optimum_row(optimum) for optimum in optima],
        title="Best learning rate at every depth",
        caption="The vertex of the parabola through the best grid point and its neighbours, in "
        f"log2 rate and log loss; the grid point itself where a neighbour diverged. {SPREAD}",
        section=_SECTION,
    )
    folder.add_table(
        "lr_transfer_runs",
        [
            {**asdict(r), "diverged_at": "" if r.diverged_at is None else r.diverged_at}
            for r in results
        ],
        title="All runs",
        caption="Training loss over the last steps of every run; inf where it diverged.",
        section=_SECTION,
    )


def optimum_row(optimum: DepthOptimum) -> dict[str, Any]:
    """Return the table row of one optimum."""
    return {
        "rule": optimum.rule,
        "depth": optimum.depth,
        **_columns("best_log2_lr", optimum.log2_lr),
        "grid_log2_lr": optimum.grid_log2_lr,
        "edge": optimum.edge,
        "train_loss": _rounded(optimum.loss),
        "val_accuracy": _rounded(optimum.val_accuracy),
        "train_loss_at_base_lr": _rounded(optimum.kept_loss),
        **_columns("regret", optimum.regret),
    }


def drift_row(drift: Drift) -> dict[str, Any]:
    """Return the table row of one rule's drift."""
    return {
        "rule": drift.rule,
        **_columns("octaves_per_doubling", drift.per_doubling),
        **_columns("octaves_in_total", drift.total),
        "from_depth": drift.depths[0],
        "to_depth": drift.depths[1],
        "largest_regret": _rounded(drift.largest_regret),
        "at_edge_of_grid": drift.edge,
    }


def finding(drift: Drift) -> str:
    """Say in one sentence how far the best rate of one rule moved."""
    if math.isnan(drift.total.value):
        return f"Under {drift.rule} every run diverged at some depth: extend the rates downwards."
    kept = "in this sample, keeping the base depth's rate"
    if math.isinf(drift.largest_regret):
        cost = f"{kept} diverges at some depth"
    elif drift.largest_regret > 1:
        cost = f"{kept} ends at up to {1 + drift.largest_regret:.1f} times the best loss"
    else:
        cost = f"{kept} ends at most {drift.largest_regret:.0%} above the best loss"
    edge = " (some optimum lies at the edge of the grid: extend it)" if drift.edge else ""
    moved, low, high = (_signed(v) for v in (drift.total.value, drift.total.low, drift.total.high))
    spread = "range" if drift.seeds <= 3 else "bootstrap interval"  # as `bootstrap` says
    over = f"{spread} over {count(drift.seeds, 'seed')} {low} to {high}" if drift.seeds > 1 else ""
    return (
        f"Under {drift.rule} the best rate moved by {moved} octaves from depth {drift.depths[0]} "
        f"to {drift.depths[1]} ({over or 'one seed'}); {cost}{edge}."
    )


def _signed(octaves: float) -> str:
    return f"{round(octaves, 1) + 0.0:+.1f}"  # + 0.0: no minus sign before a zero


def format_optima(optima: Sequence[DepthOptimum]) -> str:
    """Return the optima as a table to print: one row a rule, one column a depth."""
    depths = sorted({o.depth for o in optima})
    rows = [["best log2 lr / loss", *(f"L={d}" for d in depths)]]
    for rule in dict.fromkeys(o.rule for o in optima):
        own = {o.depth: o for o in optima if o.rule == rule}
        rows.append([rule, *(_cell(own[d]) for d in depths)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    note = "(< or >: at the lower or upper edge of the grid)" if any(o.edge for o in optima) else ""
    return "\n".join([*(line.rstrip() for line in lines), *filter(None, [note])])


def _cell(optimum: DepthOptimum) -> str:
    if math.isnan(optimum.log2_lr.value):
        return "diverged"
    mark = {"": "", "low": "<", "high": ">"}[optimum.edge]
    return f"{mark}{optimum.log2_lr.value:.2f} / {optimum.loss:.4f}"


def _figures(
    results: Sequence[RunResult], optima: Sequence[DepthOptimum]
) -> Iterator[tuple[str, Figure, str, str]]:
    plt = import_extra("matplotlib.pyplot", "report")
    from lightning_suite.report import lr_transfer_figure as figures  # noqa: PLC0415

    for name, figure, title, caption in (
        (
            "lr_transfer",
            figures.draw_loss_curves(results, optima),
            "Loss against learning rate",
            "One line a depth; band: range over seeds; large marker: optimum (hollow: at the edge "
            "of the grid); grey line: the optimum of the first depth. Lines end where a run "
            f"diverges. {_meanings(results)}",
        ),
        (
            "lr_transfer_optimum",
            figures.draw_optimum_over_depth(optima),
            "Best learning rate against depth",
            "Left: the optimum with its bootstrap interval over seeds. Right: what is lost in this "
            "sample by keeping the base depth's best rate; a cross stands where that diverges. "
            f"{SPREAD}",
        ),
    ):
        yield name, figure, title, caption
        plt.close(figure)


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


def _words(value: str | float | Sequence[Any]) -> list[Any]:
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, Sequence) else [value]


def _integers(name: str, value: str | int | Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(value))
    except ValueError:
        raise SuiteError(
            f"{name}: {value!r} is not a list of whole numbers. Write for example 2,8,32."
        ) from None


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise SuiteError(f"shard: {text!r}; write 1/4, 2/4, 3/4 and 4/4 for four parts.")
    return int(index) - 1, int(count)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {
        name: _without_noise(interval.value),
        f"{name}_low": _without_noise(interval.low),
        f"{name}_high": _without_noise(interval.high),
    }


def _without_noise(value: float) -> float:
    """Round, and let what only rounding keeps from zero be zero."""
    return 0.0 if abs(value) < _NOISE else _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Progress:
    """A line that is rewritten on a terminal, and a new line now and then in a log."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.first: float | None = None
        self.live = sys.stderr.isatty()

    def __call__(self, part: float, chunk: str) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = part  # what an earlier command had finished costs no time now
        if now - self.last < (0.2 if self.live else 30):
            return
        self.last = now
        done = (part - self.first) or 1e-9
        left = (now - self.start) * (1 - part) / done
        line = f"{part:4.0%}  {chunk}  about {time_left(left)}"
        print(
            f"\r{line:<78}" if self.live else line,
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _progress() -> Iterator[_Progress]:
    progress = _Progress()
    try:
        yield progress
    finally:
        if progress.live:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
