"""The part of editing that makes edits: groups of experts are trained and committed to a bank."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.run_folder import RunFolder
from lightning_suite.scen.attachment import Attachment, attach
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import finish_saving, save_bank
from lightning_suite.scen.continuing import (
    check_settings,
    said_of_end,
    said_of_removed,
    said_of_start,
    split_removed,
    training_plan,
)
from lightning_suite.scen.editing import train_edits, training_notes
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation_tables import write_training
from lightning_suite.scen.experts import ExpertSettings, TrainedExperts
from lightning_suite.scen.metrics import group_metrics
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.ranks import gather, gather_experts


class FittingModule(LightningModule):
    """What :class:`~lightning_suite.scen.module.SCENModule` does in ``fit``, and its checkpoints.

    Attributes:
        model: The causal LM, frozen.
        tokenizer: Of the model.
        bank: Where the edits go.
        prompts: How questions and answers are written.
        settings: How experts are trained.
        step_counter: Counts groups.
    """

    model: Any
    tokenizer: Any
    bank: ExpertBank
    prompts: PromptFormat
    settings: ExpertSettings
    step_counter: nn.Parameter

    def setup(self, stage: str) -> None:
        """Refuse to continue a bank with other settings."""
        self._removed: list[str] = []
        if stage == "fit" and self.hparams["bank"] is not None:
            if self.trainer.is_global_zero:
                finish_saving(self.hparams["bank"])  # a run with nothing left to do saves nothing
            check_settings(
                self.bank,
                self.hparams["bank"],
                self.hparams,
                self.model,
                None if self.hparams["allow_other_training"] else self._plan(),
            )

    def on_fit_start(self) -> None:
        """Say what the bank holds already, and what of this run is there."""
        self._before: int | None = None  # records of a bank that had edits
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.hparams["bank"] is None or not len(self.bank):
            return
        self._before = len(self.bank.history.records)
        if edits := getattr(data, "edits", None):
            rank_zero_info(said_of_start(self.bank, edits, self.hparams["bank"]))

    def training_step(self, batch: Iterable[Edit], batch_idx: int) -> None:
        """Train the experts of a group of edits and commit them to the bank."""
        started = time.perf_counter()
        group, removed = split_removed(self.bank, list(batch))
        self._removed += [edit.id for edit in removed]
        trained = self._train(group) if group else None
        edits, notes, made = gather_experts(
            group,
            [] if trained is None else training_notes(trained),
            None if trained is None else trained.experts.tensors(),
            self.device,
        )
        if edits:
            self.bank.insert(edits, made, notes, update=True)
            self.bank.trained = self._plan()
            self._commit()
            self._log_group(edits, notes, time.perf_counter() - started)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.manual_backward(0.0 * self.step_counter)  # it makes no step without a gradient
        optimizer: Any = self.optimizers()
        optimizer.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer that counts groups and changes nothing."""
        return torch.optim.SGD([self.step_counter], lr=0.0)

    def on_train_end(self) -> None:
        """Write the bank and how its experts were trained into the run's folder."""
        # Each once, whatever the number of epochs.
        removed = [*dict.fromkeys(name for of_rank in gather(self._removed) for name in of_rank)]
        if removed:
            where = self.hparams["bank"]
            rank_zero_info(said_of_removed(removed, "BANK" if where is None else where))
        if self._before is not None:
            rank_zero_info(said_of_end(self.bank, self._before, self.hparams["bank"]))
        folder = self._run_folder()
        if folder is not None:
            save_bank(self.bank, folder.artifacts / "bank")
            write_training(folder, self.bank.history.records)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the bank alone: the model is loaded from where it came."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k.startswith("bank.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a bank file in place that has come further than the checkpoint."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if fitting and len(self.bank.table):
            rank_zero_info(f"the bank is that of {self.hparams['bank']}, not the checkpoint's")
            checkpoint["state_dict"] = {}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the bank; the model has its weights."""
        mine = {k.removeprefix("bank."): v for k, v in state_dict.items() if k.startswith("bank.")}
        return self.bank.load_state_dict(mine or self.bank.state_dict(), strict, assign)

    def _plan(self) -> dict[str, Any]:
        learns = {key: self.hparams[key] for key in ("learn_paraphrases", "learn_contexts")}
        return training_plan(self.settings, **learns)

    def _train(self, group: Sequence[Edit]) -> TrainedExperts:
        return train_edits(
            self.bank,
            self.model,
            self.prompts,
            group,
            self.settings,
            learn_paraphrases=self.hparams["learn_paraphrases"],
            learn_contexts=self.hparams["learn_contexts"],
        )

    def _commit(self) -> None:
        folder = self._run_folder()  # on every rank
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            if self.hparams["bank"] is not None:
                save_bank(self.bank, self.hparams["bank"], overwrite=False)
            elif folder is not None:
                save_bank(self.bank, folder.artifacts / "bank")

    def _log_group(
        self, edits: Sequence[Edit], notes: Sequence[dict[str, Any]], seconds: float
    ) -> None:
        with self._attached() as handle:
            decisions = handle.explain([edit.prompt for edit in edits])
        fired = sum(d.fired == edit.id for d, edit in zip(decisions, edits, strict=True))
        # every rank has the whole group's numbers
        values = group_metrics(notes, fired, seconds, len(self.bank))
        self.log_dict(values, prog_bar=True, batch_size=len(edits))

    def _attached(self) -> Attachment:
        return attach(
            self.bank,
            self.model,
            self.tokenizer,
            allow_other_weights=self.hparams["allow_other_weights"],
        )

    def _run_folder(self) -> RunFolder | None:
        """Return the run's folder on the first rank; to be called on all."""
        run = folder_of_run(self.trainer)  # on every rank
        if (
            run is None
            or getattr(self.trainer, "fast_dev_run", False)
            or not self.trainer.is_global_zero
        ):
            return None
        return RunFolder(run)
