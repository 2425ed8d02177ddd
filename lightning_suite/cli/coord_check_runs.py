"""The runs of a coordinate check: a few steps at every depth and width, each measured once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_suite.cli.progress import ProgressLine
from lightning_suite.cli.shaping import at_shape, build
from lightning_suite.depth_mup import coord_check
from lightning_suite.depth_mup.coord_check import Axis
from lightning_suite.depth_mup.multipliers import choose_multipliers
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.residual_scale import attach_residual_scale
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.depth_mup.rules import Role, Rule
from lightning_suite.errors import SuiteError
from lightning_suite.files import write_json
from lightning_suite.json_text import load_json


@dataclass(frozen=True)
class CheckSettings:
    """What a single run depends on, beside its shape, rule and seed."""

    model: dict[str, Any]
    data: dict[str, Any]
    base_depth: int
    base_width: int | None
    depth_key: str | None
    width_key: str | None
    blocks: str | None
    preset: str
    patterns: dict[str, Role] | None
    p: float | None
    optimizer: Literal["sgd", "adam"]
    lr: float
    steps: int
    rows: int
    dtype: Literal["float32", "float64"]
    device: str
    independent_backward: bool

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON reads them back."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return settings


@dataclass(frozen=True)
class CheckRun:
    """One run: a point on the axis of depths or widths, a rule and a seed.

    Attributes:
        axis: What is varied.
        rule: The rule that is checked.
        size: The depth or width on that axis.
        depth: L of the model.
        width: n of the model; None leaves it as the config has it.
        seed: Of the weights, and number of the batch.
    """

    axis: Axis
    rule: Rule
    size: int
    depth: int
    width: int | None
    seed: int

    @property
    def key(self) -> str:
        """Name in the store: ``depth/nfd/16/0``."""
        return f"{self.axis}/{self.rule}/{self.size}/{self.seed}"


def plan_runs(
    rules: Sequence[Rule],
    depths: Sequence[int],
    widths: Sequence[int],
    base_depth: int,
    seeds: int,
) -> list[CheckRun]:
    """Return the runs of a check: over depths, and over widths at the base depth."""
    runs = []
    for rule in rules:
        runs += [CheckRun("depth", rule, L, L, None, s) for L in depths for s in range(seeds)]
        runs += [CheckRun("width", rule, n, base_depth, n, s) for n in widths for s in range(seeds)]
    return runs


def measure_all(
    settings: CheckSettings, runs: Sequence[CheckRun], store: Path, seeds: int
) -> list[dict[str, Any]]:
    """Run what ``store`` does not hold yet; it is rewritten after every run.

    Args:
        settings: What all runs share.
        runs: From :func:`plan_runs`.
        store: A JSON file, made where it is missing; one of other settings is begun anew.
        seeds: How many there are: each trains on a batch of its own.

    Returns:
        A row for every run and step: the fields of the run, and what was measured.

    Raises:
        SuiteError: The store is damaged, the data has too few batches, or the model has other
            blocks than were asked for.
    """
    done: dict[str, list[dict[str, float]]] = {}
    if store.exists():
        saved = read_store(store)
        if saved["settings"] == settings.plain():
            done = saved["runs"]
        else:
            print(f"{store}: made with other settings, starting anew", file=sys.stderr)
    batches: list[Any] = []
    line = ProgressLine()
    for number, run in enumerate(runs, 1):
        if run.key not in done:
            line.show(f"[{number}/{len(runs)}] {run.key}")
            batches = batches or _batches(settings, seeds)
            done[run.key] = _measure(settings, run, batches[run.seed])
            write_json(store, {"settings": settings.plain(), "runs": done})
    line.close()
    return [{**asdict(run), **row} for run in runs for row in done[run.key]]


def read_store(store: Path) -> dict[str, Any]:
    """Read the settings and measurements of an earlier check.

    Raises:
        SuiteError: The file cannot be read, or holds something else.
    """
    try:
        saved = load_json(store.read_bytes())
        whole = isinstance(saved["settings"], dict) and all(
            isinstance(row, dict) and all(isinstance(value, (int, float)) for value in row.values())
            for rows in saved["runs"].values()
            for row in rows
        )
    except OSError as err:
        raise SuiteError(f"{store}: cannot be read ({err.strerror}).") from err
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, saved = False, {}
    if not whole or not isinstance(saved, dict):
        raise SuiteError(f"{store}: holds no measurements. Delete it to make them again.")
    return saved


def _batches(settings: CheckSettings, count: int) -> list[Any]:
    torch.manual_seed(0)
    datamodule = build(LightningDataModule, settings.data, "data")
    datamodule.prepare_data()
    datamodule.setup("fit")
    batches = list(islice(datamodule.train_dataloader(), count))
    if len(batches) < count:
        raise SuiteError(
            f"seeds={count}: each seed trains on a batch of its own, and the data has only "
            f"{len(batches)}. Take fewer seeds or a smaller batch_size."
        )
    return batches


def _measure(settings: CheckSettings, run: CheckRun, batch: Any) -> list[dict[str, float]]:
    base_width = settings.base_width if run.width is not None else None
    spec = at_shape(
        settings.model,
        rule=run.rule,
        depth=run.depth,
        base_depth=settings.base_depth,
        width=run.width,
        base_width=base_width,
        depth_key=settings.depth_key,
        width_key=settings.width_key,
    )
    torch.manual_seed(run.seed)
    module = build(LightningModule, spec, "model")
    module.configure_model()
    # stands in for a trainer: `self.log` does nothing, `self.trainer.world_size` is 1; the module
    # holds it by a weak reference only
    fabric = Fabric(accelerator="cpu", devices=1)
    module.fabric = fabric
    dtype = getattr(torch, settings.dtype)
    module.to(settings.device, dtype).train()
    role_map = assign_roles(
        module, blocks=settings.blocks, preset=settings.preset, patterns=settings.patterns
    )
    if role_map.depth != run.depth:
        raise SuiteError(
            f"the model has {role_map.depth} residual blocks where depth={run.depth} was asked "
            "for. Say where the depth is set with depth_key, and which blocks are meant with "
            "blocks."
        )
    p = settings.p if run.rule == "nfd" else None
    shapes = Parametrization(run.rule, settings.base_depth, run.depth, base_width, run.width, p)
    multipliers = choose_multipliers(module, shapes, role_map, pretrained=False)
    attach_residual_scale(module, role_map, multipliers.residual)
    if multipliers.readout != 1.0:
        raise SuiteError("a check over widths needs a model with a readout multiplier of its own.")
    if settings.independent_backward:
        coord_check.attach_independent_backward(module, role_map)
    batch = _move(batch, settings.device, dtype)

    def loss() -> Tensor:
        out = module.training_step(batch, 0)
        value = out["loss"] if isinstance(out, dict) else out
        if not isinstance(value, Tensor):
            raise SuiteError(
                f"{type(module).__name__}.training_step returned {type(value).__name__}; the check "
                "needs the loss (automatic optimization)."
            )
        return value

    optimizer = coord_check.make_optimizer(
        module, role_map, shapes, settings.optimizer, settings.lr
    )
    return coord_check.measure_steps(
        module, loss, role_map, optimizer, steps=settings.steps, rows=settings.rows
    )


def _move(batch: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, dict):
        return {key: _move(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_move(value, device, dtype) for value in batch]
    return batch
