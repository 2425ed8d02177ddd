"""What `DepthMuPLRCallback` would do to the model of a config, without training it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.cli.configured import optimizers_in
from lightning_suite.cli.lightning_cli import ParserOnly
from lightning_suite.cli.option_words import read_words
from lightning_suite.cli.parsing import instantiate
from lightning_suite.cli.problems import explain, refuse_lists
from lightning_suite.cli.stacking import resolve_options
from lightning_suite.depth_mup.families import optimizer_family
from lightning_suite.depth_mup.param_groups import has_decoupled_decay
from lightning_suite.depth_mup.role_table import format_table
from lightning_suite.depth_mup.rules import FAMILIES, OptimizerFamily
from lightning_suite.errors import SuiteError


def role_table(words: Sequence[str]) -> str:
    """Return the table name -> role -> factor of a stack of configs.

    The model is built; data, loggers and checkpoints are not touched.

    Args:
        words: As for ``fit``: configs, each behind a ``-c``, and options.

    Raises:
        SuiteError: The configs have problems, or no `DepthMuPLRCallback`.
    """
    model, callback = _build(words)
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
    if callback.correction is None:  # the model is built late
        model.setup("fit")
        model.configure_model()
        callback.on_validation_start(trainer, model)
    correction = callback.correction
    assert correction is not None
    lines = [
        f"rule {correction.rule}, preset {correction.role_map.preset}, "
        f"depth {correction.role_map.depth} (base {callback.base_depth}), "
        f"width ratio {correction.parametrization.width_ratio:g}",
        f"residual multiplier: {correction.multipliers.note}",
    ]
    for name, family, decoupled in _laws(model, callback):
        factors = correction.factors(
            family, decay_vectors=callback.decay_vectors, decoupled_decay=decoupled
        )
        lines += [
            "",
            f"optimizer {name}, rule {correction.under(family).rule}",
            format_table(correction.role_map, factors),
        ]
    with warnings.catch_warnings():  # of multipliers that go with the model: nobody keeps this one
        warnings.filterwarnings("ignore", message="DepthMuPLRCallback multiplied .* with hooks")
        callback.teardown(trainer, model, "fit")
    return "\n".join(lines)


def _build(words: Sequence[str]) -> tuple[LightningModule, DepthMuPLRCallback]:
    parser = ParserOnly().parsers["fit"]
    words = resolve_options(words)
    try:
        config = parser.parse_args(words)
    except ArgumentError as err:
        raise explain(words, parser, err) from err
    refuse_lists(words, parser)
    for key in ("data", "trainer.logger", "trainer.strategy", "trainer.plugins"):
        config[key] = None
    built = instantiate(parser, config)
    callbacks = built.trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, DepthMuPLRCallback):
            return built.model, callback
    files = [part.value or "" for part in read_words(words) if part.name == "--config"]
    raise SuiteError(
        f"{' + '.join(files)}: no DepthMuPLRCallback among the callbacks. "
        "Add `-c overlays/depth_mup`."
    )


def _laws(
    model: LightningModule, callback: DepthMuPLRCallback
) -> list[tuple[str, OptimizerFamily, bool]]:
    """Return name, family and kind of decay of the model's optimizers.

    Where only a run can tell which they are, one of each family.
    """
    try:
        optimizers = list(optimizers_in(model.configure_optimizers()))
    except Exception:  # it may ask the trainer for the length of the run
        families = [callback.optimizer_family] if callback.optimizer_family else FAMILIES
        return [(f"of the family {family}", family, True) for family in families]
    return [
        (
            type(optimizer).__name__,
            callback.optimizer_family or optimizer_family(optimizer),
            has_decoupled_decay(optimizer),
        )
        for optimizer in optimizers
    ]
