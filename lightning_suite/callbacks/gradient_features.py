"""Exact gradients of every single sample, as features, in the middle of any training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.fit_order import BatchAtHand, may_build_itself_later
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.ranks import of_all_ranks, share_of_rank
from lightning_suite.resofilter.feature import Feature
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.manifest import environment, make_manifest
from lightning_suite.resofilter.online import read_samples
from lightning_suite.resofilter.online_store import OnlineStore
from lightning_suite.resofilter.precision import (
    precision_of,
    refuse_low_precision,
    warn_of_rounded_products,
)
from lightning_suite.resofilter.recorder import refuse_compiled, refuse_mixing_layers
from lightning_suite.resofilter.reduction import REDUCTIONS, Reduction, reduction_of_tokens
from lightning_suite.resofilter.running_means import RunningMeans
from lightning_suite.resofilter.targets import Target, find_targets
from lightning_suite.resofilter.training_recorder import TrainingRecorder, group_of
from lightning_suite.strategies import refuse_sharded_parameters

_VERSION = 1


class GradientFeatureCallback(Callback):
    """Records features of each sample's own gradient while a model trains: no extra backward.

    Each rank writes Parquet shards into ``folder``: one row for every sample of every measured
    batch, with ``sample_id``, ``status``, ``step``, ``batch`` (batches since training began),
    ``lr`` (of the first watched weight), token counts where the batch has them, and one column
    ``<module>.<feature>`` for each watched layer and feature.
    :func:`lightning_suite.resofilter.store.merge_shards` reads them as one table. The weights
    move while training, so these scores are not those of ``lightning-suite score``, and the two
    are never mixed.

    Args:
        features: Names, or mappings of a name and settings (``{"name": "sketch", "size": 16}``),
            see :mod:`lightning_suite.resofilter.features`.
        modules: ``"all"``, or pieces of dotted names (``"up_proj"``), or globs. Linear layers, 2D
            convolutions, LoRA's matrices and Hugging Face's ``Conv1D`` can be watched.
        layers: ``"all"``, ``"last:3"``, ``"first:2"``, a number or a list of numbers.
        biases: Also watch these layers' biases.
        ids: Key or position of the samples' ids in a batch. None takes ``ids`` of a mapping that
            has it, and otherwise a hash of the sample's own content.
        reduction: How the loss is made of its samples: ``mean``, ``sum``, ``token_mean`` (over
            label tokens but each sample's first, as of a model that predicts the next token),
            ``label_mean`` (over all label tokens: an encoder-decoder's, or a token classifier's),
            or ``auto``: ``mean``, but for batches with ``input_ids`` and a label for each token
            what the Hugging Face model in the module does with them.
        every_n_steps: Interval in optimizer steps; all batches of a measured step are recorded.
        folder: Where the shards go; default: ``gradient_features`` in the run's own folder. A
            resumed run goes on there without lost or repeated rows; where its folder is another
            one, the rows so far are copied.
        rows_per_shard: Rows that a kill may lose before the first checkpoint after them; each
            checkpoint writes what is there.
        allow_low_precision: Compute ``adam1_mean_abs`` and its like in 16 bits, too, which
            destroys their order.
        batch_first: States that the first axis of every watched layer is the samples. Shapes show
            it, but for a training whose first batch has as many samples as a layer has positions:
            that is refused without this.

    *Logged metrics* (x-axis: optimizer steps), ``resofilter/`` and: ``<feature>``, the mean over
    layers and samples since the last time; ``<feature>_max``, of the sample with the largest mean
    over layers; ``samples``, how many these are. Samples without a finite value do not count.

    *Supports* gradient accumulation, mixed precision (the fp16 scale is taken out), DDP (one
    shard set a rank), activation checkpointing, manual optimization and several optimizers (the
    first backward pass of each batch is recorded), modules that build their net in ``setup`` or
    ``configure_model``, any logger or none, checkpoints that other callbacks save, before this one
    in the list or after it. *Refuses* sharded parameters (FSDP, DeepSpeed, tensor parallel),
    ``torch.compile``, batch normalisation in training mode, layers that take the sequence first
    (``batch_first=False``), several samples packed into one row, steps that differentiate before
    their loss (a gradient penalty), 16-bit weights or autocast for features that count small
    entries.

    In the first batch each layer's rows, summed over all samples, are compared with the gradient
    that autograd gives its weight, where no hook of the user's changes that; in 16 bits (weights or
    autocast) to within a few eps of the type, as autograd rounds. In Python,
    ``callback.verify = False`` leaves that out.

    Raises:
        SuiteError: An argument is out of range, nothing matches ``modules``, the folder holds
            another run's rows, the rows are not autograd's gradient (a weight that is also used
            without a call of its layer), or one of the refusals above.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import GradientFeatureCallback
        >>> trainer = Trainer(
        ...     callbacks=[GradientFeatureCallback(["grad_norm"], folder="gradients")],
        ...     logger=False,
        ... )
    """

    def __init__(
        self,
        features: list[str | dict[str, Any]] = ["grad_norm"],  # noqa: B006 (YAML shows it)
        modules: str | list[str] = "all",
        layers: str | int | list[int] = "all",
        biases: bool = False,
        ids: str | int | None = None,
        reduction: Literal["auto", "mean", "sum", "token_mean", "label_mean"] = "auto",
        every_n_steps: int = 1,
        folder: str | None = None,
        rows_per_shard: int = 4096,
        allow_low_precision: bool = False,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("rows_per_shard", rows_per_shard)):
            if value < 1:
                raise SuiteError(f"{name}={value}, and it must be at least 1.")
        check_choice("reduction", reduction, REDUCTIONS)
        make_features(features)  # a mistyped name is an error now, and not in `fit`
        self.features = list(features)
        self.modules = modules
        self.layers = layers
        self.biases = biases
        self.ids = ids
        self.reduction: Reduction = reduction
        self.every_n_steps = every_n_steps
        self.folder = folder
        self.rows_per_shard = rows_per_shard
        self.allow_low_precision = allow_low_precision
        self.batch_first = batch_first
        self.verify = True
        self._batches = 0  # trained on so far
        self._at_hand = BatchAtHand()
        self._layouts: list[str] = []  # targets that are known to have samples first
        self._restored: dict[str, Any] | None = None
        self._ended = False  # since it was restored
        self._path: Path | None = None
        self._watched: tuple[Sequence[Target], Sequence[Feature]] | None = None
        self._recording: TrainingRecorder | None = None
        self._store: OnlineStore | None = None
        self._means: RunningMeans | None = None  # since the last log; of the last fit
        self._group: dict[str, Any] = {}  # of the first watched weight
        self._step = 0

    @property
    def state_key(self) -> str:
        """Two callbacks that watch different things keep two states."""
        return self._generate_state_key(
            features=self.features, modules=self.modules, layers=self.layers
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the layers, where the model is sure to be there."""
        if stage != "fit":
            return
        self._release()
        if self._ended:  # a fit with nothing left to train never came to use it
            self._restored = None
        refuse_sharded_parameters(trainer.strategy, "GradientFeatureCallback reads whole layers")
        if self.folder is None and not trainer.loggers:
            raise SuiteError(
                "GradientFeatureCallback: the Trainer has no logger and so no folder of its own. "
                "Set folder."
            )
        if not may_build_itself_later(pl_module):
            self._watch(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so now where the module's own ``setup`` or ``configure_model`` came in between."""
        if self._watched is None:
            self._watch(trainer, pl_module)

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_compiled(pl_module)
        features = make_features(self.features)
        targets = find_targets(pl_module, self.modules, self.layers, biases=self.biases)
        if not self.allow_low_precision:
            half = {"16": torch.float16, "bf": torch.bfloat16}.get(str(trainer.precision)[:2])
            refuse_low_precision(features, targets.found, half)
        for name, reason in targets.skipped.items():
            rank_zero_info(f"GradientFeatureCallback: {name} is not watched: {reason}.")
        self._tokens = reduction_of_tokens(pl_module)
        self._watched = targets.found, features

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put on the hooks and open the store, with the rows of what is not trained on again.

        Not before: a search for the learning rate, which fits without any callback, may fail and
        then tells none of it.
        """
        if self._watched is None:
            return
        refuse_mixing_layers(pl_module)
        self._begin(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the rows where nothing was left to train, so that training never started."""
        if self._restored is not None and self._restored["batches"]:
            self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._watched is not None
        self._recording = TrainingRecorder(
            *self._watched, verify=self.verify, batch_first=self.batch_first
        )
        self._products = precision_of(pl_module, pl_module.device)
        recorder = self._recording.recorder
        warn_of_rounded_products(recorder.features, self._products)
        restored, self._restored = self._restored, None
        if restored is not None:
            self._batches = restored["batches"]
            self._layouts = restored.get("batch_first", [])
            # earlier releases have none
            means = share_of_rank(trainer, restored.get("means", []))
        elif trainer.global_step == 0:
            self._batches, self._layouts, means = 0, [], []
        else:  # a further fit of this trainer
            means = [] if self._means is None else [self._means.state()]
        recorder.unambiguous.update(self._layouts)
        self._means = RunningMeans(recorder)
        self._means.restore(means)
        self._group = group_of(recorder.targets[0], trainer.optimizers)
        run = folder_of_run(trainer)  # on every rank
        if getattr(trainer, "fast_dev_run", False):
            return
        self._path = Path(self.folder or Path(run or "", "gradient_features"))
        if trainer.is_global_zero:
            self._store = self._open(self._path, trainer, pl_module)
            self._store.go_on(self._batches, None if restored is None else Path(restored["folder"]))
        trainer.strategy.barrier("gradient_features")
        if not trainer.is_global_zero:
            self._store = self._open(self._path, trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch this batch, where it is one to be recorded."""
        if self._recording is None:
            return
        self._at_hand.begin(trainer)
        if trainer.global_step % self.every_n_steps:
            return
        # hooks see the gradients of what is differentiated
        scale = 1.0
        if pl_module.automatic_optimization:
            scale = float(trainer.accumulate_grad_batches)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scale /= scaler.get_scale()
        samples = read_samples(batch, self.ids, self.reduction, scale, self._tokens)
        self._step = trainer.global_step
        self._recording.start(samples)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the features; weights and rate are still those of the forward pass."""
        self._take()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take them here where manual optimization called ``loss.backward()`` itself."""
        self._take()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the batch's rows to the store, and log."""
        if self._end_batch():
            self._log_if_due(trainer, pl_module)

    def _end_batch(self) -> bool:
        """Count the batch and store its rows; return whether it has any."""
        if not self._at_hand.end() or self._recording is None:
            return False
        rows = self._recording.end()
        self._batches += 1
        if rows is None or self._means is None:
            return False
        self._means.add(rows)
        if self._store is not None:
            self._store.add(rows)
        return True

    def _log_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accumulated = trainer.global_step > self._step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        if accumulated and every and self._step % every < self.every_n_steps:
            self._log(trainer, pl_module.device)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write all rows: a run that goes on from this checkpoint does not make them again.

        Whoever saves at the end of a batch may stand before this callback.
        """
        if self._at_hand.is_trained_on(trainer) and self._end_batch():
            self._log_if_due(trainer, pl_module)
        state = self.state_dict()
        if self._restored is None and self._means is not None:
            state["means"] = of_all_ranks(trainer, self._means.state())
        checkpoint.setdefault("callbacks", {})[self.state_key] = state
        if self._store is not None:
            self._store.flush()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what is there and leave the model as it was."""
        try:
            if self._at_hand.is_trained_on(trainer):
                self._end_batch()  # and no log: it waits for other ranks, which may have no error
            self._finish()
        except Exception as err:  # it must not take the first error's place, nor others' turn
            rank_zero_warn(f"GradientFeatureCallback could not write its last rows: {err}")
        finally:
            self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is left and leave the model as it was."""
        if stage == "fit":
            self._finish()

    def state_dict(self) -> dict[str, Any]:
        """Return of how many batches the rows so far are, where they are, and known layouts.

        And this rank's part of what is logged next; a checkpoint has that of every rank.
        """
        if self._restored is not None:
            return self._restored
        folder = "" if self._path is None else str(self._path.resolve())
        return {
            "version": _VERSION,
            "batches": self._batches,
            "folder": folder,
            "batch_first": self._known_layouts(),
            "means": [] if self._means is None else [self._means.state()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        if state_dict.get("version") != _VERSION:
            raise SuiteError(
                "the checkpoint's GradientFeatureCallback state is of version "
                f"{state_dict.get('version')}, and this release reads version {_VERSION}."
            )
        self._restored, self._ended = state_dict, False

    def _open(self, path: Path, trainer: Trainer, pl_module: LightningModule) -> OnlineStore:
        assert self._recording is not None
        recorder = self._recording.recorder
        manifest = make_manifest(
            None,
            recorder.targets,
            recorder.features,
            mode="online",
            model=type(pl_module).__name__,
            reduction=self.reduction,
            precision={"trainer": str(trainer.precision)},
            # a fit may go on anywhere
            environment={
                **environment(pl_module.device, trainer.world_size),
                "products": self._products,
            },
        )
        return OnlineStore(
            path,
            manifest,
            rank=trainer.global_rank,
            rows_per_shard=self.rows_per_shard,
            float64_columns=recorder.float64_columns,
        )

    def _log(self, trainer: Trainer, device: torch.device) -> None:
        assert self._means is not None
        sums, largest = self._means.pop()
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(device), reduce_op="sum").cpu()
            largest = trainer.strategy.reduce(largest.to(device), reduce_op="max").cpu()
        summary = {
            f"resofilter/{key}": value for key, value in self._means.summary(sums, largest).items()
        }
        # As LearningRateMonitor does: a metric that goes through `pl_module.log` reaches the
        # loggers in multiples of log_every_n_steps only, whatever was measured there.
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in summary.items()})
        for logger in trainer.loggers:
            logger.log_metrics(summary, step=self._step)

    def _take(self) -> None:
        if self._recording is not None and self._recording.waits:
            lr = float(self._group["lr"])  # of a tensor on a GPU it waits: not in every batch
            self._recording.take(step=self._step, batch=self._batches, lr=lr)

    def _finish(self) -> None:
        self._ended = True
        try:
            if self._store is not None:
                self._store.flush()
        finally:
            self._release()

    def _known_layouts(self) -> list[str]:
        if self._recording is not None:
            self._layouts = sorted({*self._layouts, *self._recording.recorder.unambiguous})
        return self._layouts

    def _release(self) -> None:
        self._known_layouts()  # for a checkpoint that is saved after the fit
        self._at_hand.end()
        if self._recording is not None:
            self._recording.detach()
        self._watched, self._recording, self._store, self._group = None, None, None, {}
