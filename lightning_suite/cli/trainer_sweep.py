"""The engine of `lr-transfer` for any LightningModule: each run is one ``fit`` of a config."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_suite.cli.lightning_cli import ParserOnly, SuiteCLI
from lightning_suite.cli.messages import condense
from lightning_suite.cli.problems import refuse_lists
from lightning_suite.cli.shaping import at_shape
from lightning_suite.cli.shipped import resolve
from lightning_suite.cli.stacking import resolve_options
from lightning_suite.depth_mup.lr_transfer import (
    Chunk,
    Grid,
    RuleChoice,
    RunResult,
    check_final_steps,
    final_loss,
)
from lightning_suite.errors import SuiteError, did_you_mean

Config = dict[str, Any]

_LR_KEYS = ("model.init_args.optimizer.init_args.lr", "model.init_args.lr")
# Nothing is written, printed or validated during a run.
_QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": 1_000_000_000,
    "val_check_interval": None,
    "max_epochs": -1,
}


class TrainerEngine:
    """Trains every point of a sweep as ``lightning-suite fit`` would, without writing anything.

    `DepthMuPLRCallback` is added for each rule; if the config has one, its rule and base shape are
    replaced and its other arguments stay. Seeds set ``seed_everything``.

    Args:
        files: Configs of `fit`, merged in order.
        base_depth: L0.
        base_width: n0; None: the width plays no part.
        steps: Optimizer steps of a run.
        final_steps: The reported loss is the mean over so many last steps.
        depth_key: Dotted key of the depth; default: found.
        lr_key: Dotted key of the learning rate; default: found.

    Raises:
        SuiteError: A config cannot be read, or a key is not in it.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        base_depth: int,
        base_width: int | None = None,
        steps: int = 300,
        final_steps: int = 50,
        depth_key: str | None = None,
        lr_key: str | None = None,
    ) -> None:
        check_final_steps(final_steps, steps)
        self.base_depth, self.base_width = base_depth, base_width
        self.steps, self.final_steps = steps, final_steps
        self.depth_key = depth_key
        self.files = [resolve(file) for file in files]
        for file in self.files:
            if not Path(file).is_file():
                raise SuiteError(f"fit_config: there is no file {file}.")
        words = resolve_options([word for file in self.files for word in ("-c", file)])
        parser = ParserOnly().parsers["fit"]
        try:
            parsed = parser.parse_args(words)
        except ArgumentError as err:
            raise SuiteError(f"fit_config: {condense(str(err))}") from err
        refuse_lists(words, parser)
        self.config: Config = parsed.as_dict()
        self.config.pop("config", None)
        self.lr_key = self._find_lr_key(lr_key)
        self.at(RuleChoice("sp"), base_depth, 1.0, 0)  # all keys exist, or this says which not

    def settings(self, grid: Grid) -> Config:
        """Return all that a run's result depends on besides its rule and depth, as plain JSON."""
        texts = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in self.files]
        return {
            "engine": "trainer",
            "fit_config": dict(enumerate(texts)),
            "base_depth": self.base_depth,
            "base_width": self.base_width,
            "steps": self.steps,
            "final_steps": self.final_steps,
            "depth_key": self.depth_key,
            "lr_key": self.lr_key,
            "log2_lrs": grid.log2_lrs,
            "seeds": grid.seeds,
        }

    def runs_at_once(self, depth: int) -> int:
        """Return 1: every finished run is kept."""
        return 1

    def at(self, rule: RuleChoice, depth: int, lr: float, seed: int) -> Config:
        """Return the config of one run."""
        config = copy.deepcopy(self.config)
        config["model"] = at_shape(
            config["model"],
            rule=rule.rule,
            depth=depth,
            base_depth=self.base_depth,
            base_width=self.base_width,
            depth_key=self.depth_key,
        )
        place, last = _place(config, self.lr_key)
        place[last] = lr
        config["seed_everything"] = seed
        trainer = config["trainer"]
        trainer.update(_QUIET, max_steps=self.steps)
        trainer["callbacks"] = self._callbacks(trainer.get("callbacks"), rule)
        return config

    def _callbacks(self, given: Any, rule: RuleChoice) -> list[Config]:
        """Return the config's callbacks, with one DepthMuPLRCallback for ``rule`` among them."""
        listed = given if isinstance(given, list) else [given] if given else []
        # the monitor refuses to work without a logger
        kept = [c for c in listed if not c["class_path"].endswith(".LearningRateMonitor")]
        ours = [c for c in kept if c["class_path"].endswith(".DepthMuPLRCallback")]
        if not ours:
            ours = [{"class_path": "lightning_suite.DepthMuPLRCallback", "init_args": {}}]
            kept += ours
        for callback in ours:
            callback["init_args"] |= {
                "base_depth": self.base_depth,
                "base_width": self.base_width,
                "rule": rule.rule,
                "p": rule.p,
                "verbose": False,
            }
        return kept

    def __call__(self, chunk: Chunk, on_progress: Callable[[float], None]) -> list[RunResult]:
        """Train the runs of a chunk, one after the other."""
        with _quiet():
            return [self._fit(chunk, p.log2_lr, p.seed, on_progress) for p in chunk.points]

    def _fit(
        self, chunk: Chunk, log2_lr: float, seed: int, on_progress: Callable[[float], None]
    ) -> RunResult:
        cli = _Built(self.at(chunk.rule, chunk.depth, 2.0**log2_lr, seed))
        trainer, model = cli.trainer, cli.model
        losses = _Losses(self.steps, on_progress)
        trainer.callbacks.append(losses)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=cli.datamodule)
        steps = losses.per_step()
        diverged_at = next((i for i, v in enumerate(steps) if not math.isfinite(v)), None)
        if diverged_at is None and len(steps) < self.steps:
            raise SuiteError(
                f"the run ended after {len(steps)} of {self.steps} steps. Does the config stop it "
                "(max_time, early stopping, limit_train_batches: 0)?"
            )
        if diverged_at is not None:
            train_loss, val_loss, val_accuracy = math.inf, math.inf, 0.0
        else:
            train_loss = float(final_loss(torch.tensor([steps]), self.final_steps))
            with suppress(MisconfigurationException):  # there is nothing to validate with
                trainer.validate(model, datamodule=cli.datamodule, verbose=False)
            # NaN where the module has no validation or calls it otherwise
            val_loss, val_accuracy = (
                float(trainer.callback_metrics.get(key, math.nan))
                for key in ("val_loss", "val_accuracy")
            )
        return RunResult(
            chunk.rule.label,
            chunk.depth,
            log2_lr,
            seed,
            train_loss,
            val_loss,
            val_accuracy,
            diverged_at,
        )

    def _find_lr_key(self, given: str | None) -> str:
        for key in [given] if given else _LR_KEYS:
            try:
                place, last = _place(self.config, key)
            except SuiteError:
                if given:
                    raise
                continue
            if last in place:
                return key
            if given:
                raise SuiteError(
                    f"lr_key: {key}: no {last!r} there.{did_you_mean(last, place)} Keys there: "
                    f"{', '.join(place)}."
                )
        raise SuiteError(
            "Where is the learning rate set? Neither "
            f"{' nor '.join(_LR_KEYS)} is in the config. Say --lr_key=model.init_args.…"
        )


class _Built(SuiteCLI):
    """Trainer, model and data of a config, without running anything."""

    model: LightningModule

    def __init__(self, config: Config) -> None:
        self._given = config
        super().__init__(["fit"])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            self.config = parser.parse_object({"subcommand": "fit", "fit": self._given})
        except ArgumentError as err:
            raise SuiteError(f"fit_config: {condense(str(err))}") from err

    def _run_subcommand(self, subcommand: str) -> None:
        """Do not train yet: the engine does, with its own number of steps."""


class _Losses(Callback):
    """Keeps the training loss of every batch, and stops where it is not finite."""

    def __init__(self, steps: int, on_progress: Callable[[float], None]) -> None:
        self.steps = steps
        self.on_progress = on_progress
        self.batches: list[tuple[int, float]] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is None:
            raise SuiteError(
                f"{type(pl_module).__name__}.training_step returns no loss (manual optimization?); "
                "the sweep compares training losses. Return it."
            )
        # Lightning has divided it by the number of accumulated batches
        value = float(loss) * trainer.accumulate_grad_batches
        self.batches.append((trainer.global_step, value))
        self.on_progress(min(1.0, trainer.global_step / self.steps))
        if not math.isfinite(value):
            trainer.should_stop = True

    def per_step(self) -> list[float]:
        """Return the mean loss of every optimizer step."""
        batches: dict[int, list[float]] = {}
        step_before = 0
        for step_after, value in self.batches:
            batches.setdefault(step_before, []).append(value)
            step_before = step_after
        return [sum(values) / len(values) for values in batches.values()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says at the start and end of every fit."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance.treespec, LeafSpec.`")
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            # whom a trained model is left to must know; here nobody keeps one
            warnings.filterwarnings("ignore", message="DepthMuPLRCallback multiplied .* with hooks")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _place(config: Config, key: str) -> tuple[Config, str]:
    """Return the dictionary that holds the dotted ``key``, and the key's last part."""
    *path, last = key.split(".")
    place: Any = config
    for part in path:
        if not isinstance(place, dict) or not isinstance(place.get(part), dict):
            keys = list(place) if isinstance(place, dict) else []
            raise SuiteError(
                f"{key}: there is no section {part!r} in the config.{did_you_mean(part, keys)} "
                f"Keys there: {', '.join(keys) or 'none'}."
            )
        place = place[part]
    return place, last
