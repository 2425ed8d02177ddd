"""What every run of ``fit`` and its kin writes into its folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lightning_suite.checkpoints import require_callbacks
from lightning_suite.cli.checkpoint_arguments import MADE_BY, MAKING
from lightning_suite.cli.checkpoints import count_begun_epoch
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder


class SaveRun(SaveConfigCallback):
    """Writes into the run folder what is needed to make the run again.

    ``config.yaml`` (resolved) and ``run.json``; a W&B run gets the configuration too. A Trainer
    with ``logger: false`` has no run folder, and nothing is written.

    Args:
        parser: The parser of the command.
        config: The parsed configuration.
        command: The command line, word by word.
        kwargs: For `SaveConfigCallback`.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        *,
        command: list[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(parser, config, **kwargs)
        self.command = command
        self._making: dict[str, Any] | None = None  # of a checkpoint
        self.folder: RunFolder | None = None  # while the run goes on, on rank zero

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write once, before the first batch."""
        if not trainer.loggers or self.already_saved:
            return
        folder = trainer.log_dir  # a broadcast: on every rank
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and folder is not None:
            text = Path(folder, self.config_filename).read_text(encoding="utf-8")
            seed = self.config.get("seed_everything")
            RunFolder(folder).write_record(
                command=self.command,
                seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
                config=text,
                state="running",
            )
            self.folder = RunFolder(folder)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See `count_begun_epoch`."""
        count_begun_epoch(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note that the run went through."""
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Note what stopped the run."""
        text = " ".join(str(exception).split())[:300]
        with suppress(OSError, SuiteError):  # the exception itself is what the user must see
            self._end(f"{type(exception).__name__}{': ' if text else ''}{text}")

    def _end(self, stopped_by: str = "") -> None:
        """Complete ``run.json`` once, where this process has written it."""
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.finish(stopped_by)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how optimizer and scheduler were made: hyperparameters leave them out."""
        if self._making is None:
            dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
            given = (dumped.get("model") or {}).get("init_args") or {}
            self._making = {key: given[key] for key in MADE_BY if key in given}
        checkpoint[MAKING] = self._making

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on without a callback that the training depended on."""
        require_callbacks(checkpoint, trainer)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the configuration to W&B as ``lightning_suite``, on rank zero."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # modules have arguments of their own that are called config or model
                logger.log_hyperparams({"lightning_suite": self.config.as_dict()})
