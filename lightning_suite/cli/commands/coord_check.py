"""``lightning-suite coord-check``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_suite.cli.coord_check_results import judge, save_results
from lightning_suite.cli.coord_check_runs import CheckSettings, measure_all, plan_runs
from lightning_suite.cli.listed import listed, whole_numbers
from lightning_suite.cli.threads import cpu_threads
from lightning_suite.depth_mup.coord_check import fit_slopes
from lightning_suite.depth_mup.rules import Role, check_rule
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder

# Built anew at every shape: `run` is given class_path and init_args, checked by the parser.
DESCRIBED = {"model": LightningModule, "data": LightningDataModule}

# In the linear regime: changes stay proportional to the rate, at every depth.
_DEFAULT_LR = {"sgd": 0.01, "adam": 1e-4}


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
    depth_list = _different("depths", depths)
    width_list = _different("widths", widths) if widths else []
    settings = CheckSettings(
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
    rule_list = [check_rule(rule) for rule in listed(rules)]
    runs = plan_runs(rule_list, depth_list, width_list, settings.base_depth, seeds)
    folder = RunFolder(out)
    with cpu_threads(threads):
        measured = measure_all(settings, runs, folder.path / "coord_check.json", seeds)
    checks = fit_slopes(measured, p=p)
    if tolerance is None or independent_backward:  # the expectations do not apply
        checks = [replace(check, expected=None) for check in checks]
    save_results(folder, settings, measured, checks, tolerance)
    return judge(checks, tolerance)


def _different(name: str, value: list[int] | str) -> list[int]:
    numbers = list(whole_numbers(name, value))
    if any(number < 1 for number in numbers) or len(set(numbers)) < 2:
        raise SuiteError(f"{name}={value!r}: a slope needs two or more different numbers above 0.")
    return numbers
