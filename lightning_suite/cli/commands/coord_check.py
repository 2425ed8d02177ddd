"""``lightning-suite coord-check``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from lightning_suite.cli.shaping import at_shape, build
from lightning_suite.depth_mup import coord_check, rules
from lightning_suite.depth_mup.coord_check import CHECKED, Axis, SlopeCheck
from lightning_suite.depth_mup.multipliers import choose_multipliers
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.residual_scale import attach_residual_scale
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.depth_mup.rules import Role, Rule
from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.files import write_json
from lightning_suite.json_text import load_json
from lightning_suite.run_folder import RunFolder

# Built anew at every shape: `run` is given class_path and init_args, checked by the parser.
DESCRIBED = {"model": LightningModule, "data": LightningDataModule}

# In the linear regime: changes stay proportional to the rate, at every depth.
_DEFAULT_LR = {"sgd": 0.01, "adam": 1e-4}

_CAPTION = (
    "Each quantity after a few steps against {size}, log-log: the line is the geometric mean over "
    "seeds, the band all seeds, dashed the expected slope. ΔW1·a and ΔW2·φ are what learning "
    "changes inside a branch; the stream contributions are what these changes add to the stream, "
    "summed over blocks. nfd restores ΔW1·a, and its stream contribution grows like √L."
)


@dataclass(frozen=True)
class _Settings:
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
class _Shape:
    axis: Axis
    rule: Rule
    size: int
    depth: int
    width: int | None
    seed: int


def run(
    model: Namespace | None = None,
    data: Namespace | None = None,
    depths: list[int] | str = "4,8,16,32,64",
    rules: list[str] | str = "depth_mup,nfd,completep",
    widths: list[int] | str | None = None,
    base_depth: int | None = None,
    base_width: int | None = None,
    p: float | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
    lr: float | None = None,
    seeds: int = 4,
    steps: int = 3,
    rows: int = 8,
    tolerance: float | None = 0.08,
    depth_key: str | None = None,
    width_key: str | None = None,
    blocks: str | None = None,
    preset: str = "auto",
    patterns: dict[str, Role] | None = None,
    dtype: Literal["float32", "float64"] = "float64",
    device: str = "cpu",
    threads: int = 1,
    independent_backward: bool = False,
    out: str = "runs/coord_check",
    trainer: dict[str, Any] | None = None,
    seed_everything: bool | int | None = None,
) -> int:
    """Check how much each layer learns at every depth: slopes of the feature dynamics.

    Trains a few steps at each depth, rule and seed, measures after each step what the weights'
    changes do (see `FeatureDynamicsMonitor`), fits the slopes of log(quantity) against log(depth)
    and compares those after the first step with what the rules are known to give. A run that was
    stopped goes on where it was.

    Exit status: 0 all slopes within the tolerance, 1 some outside (they are listed), 2 an error.

    Args:
        model: The module as in a config of `fit` (class_path, init_args), usually from --config.
        data: The data module, likewise. Seed s trains on its s-th training batch.
        depths: Numbers of blocks, separated by commas.
        rules: Rules to compare, separated by commas.
        widths: Widths for a second check, at the base depth; where the rules hold, all slopes
            are 0.
        base_depth: L0; default: the smallest depth.
        base_width: n0 of the check over widths; default: the smallest width.
        p: Exponent of the correction of nfd, between 0 and 0.5; default: 0.5.
        optimizer: Plain SGD or Adam.
        lr: Learning rate at the base shape; default: 0.01 for SGD, 0.0001 for Adam.
        seeds: Runs at each point.
        steps: Optimizer steps in each run.
        rows: Rows of the batch on which is measured.
        tolerance: How far a slope may be from what is expected; null compares nothing.
        depth_key: Where the depth is set, such as model.init_args.num_layers; default: found.
        width_key: Where the width is set.
        blocks: Name of the list of residual blocks; default: found.
        preset: Architecture whose parameter names are known; default: found.
        patterns: Regular expression to role, for parameters that no preset knows.
        dtype: Of the whole computation.
        device: Such as cpu or cuda:0.
        threads: CPU threads; small models are fastest with one.
        independent_backward: Send gradients back through independent copies of the hidden
            matrices (nn.Linear only): the control under which the drift of nfd vanishes.
        out: Folder for tables, figures and report.html.
        trainer: Ignored, so that a config of `fit` can be used as it is.
        seed_everything: Ignored, likewise.

    Example:
        lightning-suite coord-check -c configs/depth_mup/coord_check_mlp.yaml
        lightning-suite coord-check -c configs/depth_mup/coord_check_mlp.yaml --optimizer adam
        lightning-suite coord-check -c configs/depth_mup/coord_check_llama.yaml --depths 2,4,8
    """
    del trainer, seed_everything
    if not model or not data:
        raise SuiteError(
            "coord-check needs the sections `model` and `data`, as in a config of `fit`. Start "
            "from one that is shipped: lightning-suite coord-check -c depth_mup/coord_check_mlp"
        )
    if steps < 1 or seeds < 1:
        raise SuiteError(f"steps={steps}, seeds={seeds}: both must be at least 1.")
    for name, base in (("base_depth", base_depth), ("base_width", base_width)):
        if base is not None and base < 1:
            raise SuiteError(f"{name}={base}, and it must be at least 1.")
    if lr is not None and not lr > 0:
        raise SuiteError(f"lr={lr}, and it must be above 0: without learning there is no slope.")
    if tolerance is not None and not tolerance >= 0:
        raise SuiteError(f"tolerance={tolerance}; it must be at least 0 (null compares nothing).")
    depth_list, width_list = _numbers("depths", depths), _numbers("widths", widths or [])
    settings = _Settings(
        model.as_dict(),
        data.as_dict(),
        min(depth_list) if base_depth is None else base_depth,
        min(width_list, default=None) if base_width is None else base_width,
        depth_key,
        width_key,
        blocks,
        preset,
        patterns,
        p,
        optimizer,
        _DEFAULT_LR[optimizer] if lr is None else lr,
        steps,
        rows,
        dtype,
        device,
        independent_backward,
    )
    shapes = _shapes(_names(rules), depth_list, width_list, settings.base_depth, seeds)
    torch.set_num_threads(threads)
    folder = RunFolder(out)
    measured = _measure_all(settings, shapes, folder.path / "coord_check.json", seeds)
    checks = coord_check.fit_slopes(measured, p=p)
    if tolerance is None or independent_backward:  # the expectations do not apply
        checks = [replace(check, expected=None) for check in checks]
    _write(folder, settings, measured, checks)
    return _judge(checks, tolerance)


def _numbers(name: str, value: list[int] | str) -> list[int]:
    words = value.split(",") if isinstance(value, str) else value
    try:
        numbers = [int(word) for word in words]
    except ValueError as err:
        raise SuiteError(f"{name}={value!r}: expected whole numbers, such as 4,8,16.") from err
    if any(number < 1 for number in numbers) or (words and len(set(numbers)) < 2):
        raise SuiteError(f"{name}={value!r}: a slope needs two or more different numbers above 0.")
    return numbers


def _names(value: list[str] | str) -> list[Rule]:
    words = value.split(",") if isinstance(value, str) else value
    return [rules.check_rule(word.strip()) for word in words]


def _shapes(
    rule_list: list[Rule], depths: list[int], widths: list[int], base_depth: int, seeds: int
) -> list[_Shape]:
    return [
        shape
        for rule in rule_list
        for shape in (
            *(_Shape("depth", rule, L, L, None, s) for L in depths for s in range(seeds)),
            *(_Shape("width", rule, n, base_depth, n, s) for n in widths for s in range(seeds)),
        )
    ]


def _measure_all(
    settings: _Settings, shapes: list[_Shape], store: Path, seeds: int
) -> list[dict[str, Any]]:
    """Run what ``store`` does not hold yet; it is rewritten after every run."""
    done: dict[str, list[dict[str, float]]] = {}
    if store.exists():
        saved = _read_store(store)
        if saved["settings"] == settings.plain():
            done = saved["runs"]
        else:
            print(f"{store}: made with other settings, starting anew", file=sys.stderr)
    batches: list[Any] = []
    for number, shape in enumerate(shapes, 1):
        key = "/".join(map(str, (shape.axis, shape.rule, shape.size, shape.seed)))
        if key not in done:
            _progress(f"[{number}/{len(shapes)}] {key}")
            batches = batches or _batches(settings, seeds)
            done[key] = _run_one(settings, shape, batches[shape.seed])
            write_json(store, {"settings": settings.plain(), "runs": done})
    _progress("")
    return [
        {**asdict(shape), **row}
        for shape in shapes
        for row in done["/".join(map(str, (shape.axis, shape.rule, shape.size, shape.seed)))]
    ]


def _read_store(store: Path) -> dict[str, Any]:
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


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<60}" if text else f"\r{'':60}\r", end="", file=sys.stderr, flush=True)


def _batches(settings: _Settings, count: int) -> list[Any]:
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


def _run_one(settings: _Settings, shape: _Shape, batch: Any) -> list[dict[str, float]]:
    base_width = settings.base_width if shape.width is not None else None
    spec = at_shape(
        settings.model,
        rule=shape.rule,
        depth=shape.depth,
        base_depth=settings.base_depth,
        width=shape.width,
        base_width=base_width,
        depth_key=settings.depth_key,
        width_key=settings.width_key,
    )
    torch.manual_seed(shape.seed)
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
    if role_map.depth != shape.depth:
        raise SuiteError(
            f"the model has {role_map.depth} residual blocks where depth={shape.depth} was asked "
            "for. Say where the depth is set with depth_key, and which blocks are meant with "
            "blocks."
        )
    p = settings.p if shape.rule == "nfd" else None
    shapes = Parametrization(
        shape.rule, settings.base_depth, shape.depth, base_width, shape.width, p
    )
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


def _write(
    folder: RunFolder,
    settings: _Settings,
    measured: list[dict[str, Any]],
    checks: list[SlopeCheck],
) -> None:
    section = "Coordinate check"
    folder.add_table(
        "coord_check_slopes",
        [check.row() for check in checks],
        title="Slopes",
        caption="Of log(quantity) against log(size), by least squares, for each step.",
        section=section,
    )
    columns = list(dict.fromkeys(name for row in measured for name in row))
    folder.add_table(
        "coord_check_runs", measured, title="All runs", section=section, columns=columns
    )
    folder.write_record(
        command=["lightning-suite", *sys.argv[1:]],
        seed=0,
        config=yaml.safe_dump(settings.plain(), sort_keys=False),
    )
    try:
        from lightning_suite.report.coord_check_figure import (  # noqa: PLC0415
            coord_check_figure,
        )

        axes: tuple[Axis, ...] = ("depth", "width")
        for axis in axes:
            if any(row["axis"] == axis for row in measured):
                folder.add_figure(
                    f"coord_check_{axis}",
                    coord_check_figure(measured, checks, axis),
                    title=f"Coordinate check over {axis} ({settings.optimizer})",
                    caption=_CAPTION.format(size=axis),
                    section=section,
                )
    except MissingExtraError as err:
        print(f"no figure: {err}", file=sys.stderr)
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    print(write_report(folder.path))


def _judge(checks: list[SlopeCheck], tolerance: float | None) -> int:
    """Print the slopes after the first step; return 1 if one is outside."""
    print(f"{'axis':6} {'rule':10} {'quantity':16} {'slope':>14} {'expected':>9}")
    outside, judged = [], False
    for check in checks:
        if check.step != 1 or check.quantity not in CHECKED:
            continue
        slope = f"{check.slope.value:+.2f} ± {check.slope.standard_error:.2f}"
        expected = "" if check.expected is None else f"{check.expected:+.2f}"
        bad = tolerance is not None and check.outside(tolerance)
        print(
            f"{check.axis:6} {check.rule:10} {check.quantity:16} {slope:>14} {expected:>9}"
            + (f"  outside by {abs(check.deviation) - (tolerance or 0):.2f}" if bad else "")
        )
        outside += [check] * bad
        judged |= check.expected is not None
    if not judged:
        print("nothing was judged: none of these slopes has an expected value here")
    if outside:
        print(f"{len(outside)} slope(s) further than {tolerance} from what is expected")
    return 1 if outside else 0
