"""What `DepthMuPLRCallback` would do to the model of a config, without training it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.cli.lightning_cli import ParserOnly
from lightning_suite.cli.parsing import instantiate
from lightning_suite.cli.problems import explain
from lightning_suite.depth_mup.families import optimizer_family
from lightning_suite.depth_mup.roles import format_table
from lightning_suite.depth_mup.rules import FAMILIES, OptimizerFamily
from lightning_suite.errors import SuiteError


def role_table(files: list[str]) -> str:
    """Return the table name -> role -> factor of a stack of configs.

    The model is built; data, loggers and checkpoints are not touched.

    Raises:
        SuiteError: The configs have problems, or no `DepthMuPLRCallback`.
    """
    model, callback = _build(files)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model.trainer = trainer
    callback.setup(trainer, model, "fit")
    if callback.role_map is None:  # the model is built late
        model.setup("fit")
        model.configure_model()
        callback.on_validation_start(trainer, model)
    assert callback.role_map is not None
    assert callback.parametrization is not None
    assert callback.multipliers is not None
    lines = [
        f"rule {callback.rule}, preset {callback.role_map.preset}, "
        f"depth {callback.role_map.depth} (base {callback.base_depth}), "
        f"width ratio {callback.parametrization.width_ratio:g}",
        f"residual multiplier: {callback.multipliers.note}",
    ]
    for family in _families(model, callback):
        table = format_table(
            callback.role_map,
            callback.parametrization,
            family,
            readout_multiplier=callback.multipliers.readout_is_scaled,
        )
        lines += ["", f"optimizer family {family}", table]
    callback.teardown(trainer, model, "fit")
    return "\n".join(lines)


def _build(files: list[str]) -> tuple[LightningModule, DepthMuPLRCallback]:
    parser = ParserOnly().parsers["fit"]
    words = [word for file in files for word in ("-c", file)]
    try:
        config = parser.parse_args(words)
    except ArgumentError as err:
        raise explain(words, parser, err) from err
    for key in ("data", "trainer.logger", "trainer.strategy", "trainer.plugins"):
        config[key] = None
    built = instantiate(parser, config)
    callbacks = built.trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, DepthMuPLRCallback):
            return built.model, callback
    raise SuiteError(
        f"{' + '.join(files)}: no DepthMuPLRCallback among the callbacks. "
        "Add `-c overlays/depth_mup`."
    )


def _families(model: LightningModule, callback: DepthMuPLRCallback) -> list[OptimizerFamily]:
    """Return the families of the model's optimizers; all of them where only a run can tell."""
    if callback.optimizer_family is not None:
        return [callback.optimizer_family]
    try:
        configured = model.configure_optimizers()
    except Exception:  # it may ask the trainer for the length of the run
        return list(FAMILIES)
    return sorted({optimizer_family(found) for found in _optimizers(configured)})


def _optimizers(configured: Any) -> Iterator[Optimizer]:
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, dict):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for item in configured:
            yield from _optimizers(item)
