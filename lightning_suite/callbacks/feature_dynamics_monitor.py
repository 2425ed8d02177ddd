"""Watch how much each residual block learns while a model trains."""

import warnings
from contextlib import suppress
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_suite.compilation import is_compiled
from lightning_suite.depth_mup import dynamics
from lightning_suite.depth_mup.dynamics_record import DynamicsRecord, check_version
from lightning_suite.depth_mup.probe import StreamProbe, fingerprint
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.depth_mup.rules import Role
from lightning_suite.errors import SuiteError
from lightning_suite.fit_order import BatchAtHand, may_build_itself_later
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.run_folder import RunFolder
from lightning_suite.strategies import refuse_sharded_parameters


class FeatureDynamicsMonitor(Callback):
    """Measures the feature dynamics of every residual block, every ``every_n_steps`` steps.

    In a measured step the hooks keep a few rows of every block's input; after the backward pass
    each block is run alone on these rows, with the weights of now and of the start (see
    :mod:`lightning_suite.depth_mup.dynamics` for what is measured and why in this way). Training
    is bitwise the same as without the monitor.

    Args:
        every_n_steps: Interval in optimizer steps; 0 is measured too, the last one only where it
            is a multiple (a run that goes on would have a row that one without a break has not).
        rows: At most so many rows of a batch (sequences, images) are measured.
        blocks: Name of the list of residual blocks; default: found.
        preset: Architecture whose parameter names are known; ``"auto"`` finds out.
        patterns: Regular expression to role, for parameters that no preset knows. Where neither
            ``blocks`` nor ``preset`` nor this is given, those of the trainer's
            :class:`~lightning_suite.DepthMuPLRCallback` count, if there is one.
        reference_device: Where the copy of the weights at the start is kept: ``"cpu"``, or
            ``"model"`` (faster; the device holds all hidden matrices a second time).
        save_reference: Whether a checkpoint holds that copy. Without it a checkpoint stays small,
            and a resumed run takes the copy from the model as it was built (the same seed gives
            the same weights, which is checked); where it was built differently, changes are
            measured from the resume on, with a warning.
        write_table: Whether to write the curves over the blocks to
            ``artifacts/feature_dynamics.csv`` in the run's folder, after each epoch and with
            each checkpoint. A resumed run's table begins with the rows that its checkpoint holds; a
            further ``fit`` of the same trainer goes on with table and start, unless the weights
            were changed in between.
        seed: Of the choice of rows.

    *Logged metrics* (x-axis: optimizer steps), ``depth_mup/`` and:

    * ``first_update``, ``last_update``, ``product``: RMS over rows and blocks of ΔW1·a, ΔW2·φ and
      ΔW2·Δφ
    * ``first_stream``, ``last_stream``: RMS of what ΔW1 and ΔW2 of all blocks add to the stream
    * ``relative_change``: ‖ΔW‖/‖W0‖, mean over blocks
    * ``coupling``: cos(h, g) of the stream and its gradient, mean over blocks
    * ``min_eigenvalue``: of the stream's covariance over the rows, smallest of all blocks

    Quantities without a meaning are left out (one-matrix blocks have no ``first_…``).

    *Supports* gradient accumulation (the first micro-batch of a step is measured), mixed
    precision, DDP (every rank measures its rows, one small sum over ranks), ``torch.compile``,
    gradient checkpointing, several optimizers and manual optimization (the first forward of each
    block in a batch), LoRA (ΔW of the adapters' matrices), modules that build their net in
    ``setup`` or ``configure_model``. *Refuses* sharded parameters (FSDP, DeepSpeed, tensor
    parallel). A block that cannot be run alone on some rows of its arguments
    (the batch is not their first dimension) ends the measurements with one warning, not training.

    *Memory*: one copy of all trainable hidden matrices on ``reference_device``, and
    ``rows`` x (length of the stream) x (blocks) numbers during a measured step.

    Raises:
        SuiteError: An argument is out of range, the model has no residual blocks or a parameter
            without a role, or the strategy shards parameters.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import FeatureDynamicsMonitor
        >>> trainer = Trainer(callbacks=[FeatureDynamicsMonitor(every_n_steps=50)], logger=False)
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        rows: int = 8,
        blocks: str | None = None,
        preset: str = "auto",
        patterns: dict[str, Role] | None = None,
        reference_device: Literal["cpu", "model"] = "cpu",
        save_reference: bool = False,
        write_table: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("rows", rows)):
            if value < 1:
                raise SuiteError(f"{name}={value}, and it must be at least 1.")
        if reference_device not in ("cpu", "model"):
            raise SuiteError(f"reference_device={reference_device!r}; choose 'cpu' or 'model'.")
        self.every_n_steps = every_n_steps
        self.rows = rows
        self.blocks = blocks
        self.preset = preset
        self.patterns = patterns
        self.reference_device = reference_device
        self.save_reference = save_reference
        self.write_table = write_table
        self.seed = seed
        self._probe: StreamProbe | None = None
        self._loading: RemovableHandle | None = None
        # the model's weights before a checkpoint is loaded; weight averaging loads a second time
        self._built: list[dict[str, Tensor]] = []
        self._restored: dict[str, Any] | None = None
        self._record = DynamicsRecord()
        # of the fit before this one: its record, and the step and the weights that it ended with
        self._before: DynamicsRecord | None = None
        self._left: tuple[int, dict[str, list[float]]] | None = None
        self._next = 0
        self._armed_step: int | None = None
        self._at_hand = BatchAtHand()
        self._failed = False
        self._packed: Tensor | None = None
        self._folder: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the blocks."""
        if stage != "fit":
            return
        self._release()
        refuse_sharded_parameters(
            trainer.strategy,
            "FeatureDynamicsMonitor compares whole matrices",
            "Use DDP or one device, or leave the monitor out.",
        )
        if self._record.reference:
            self._before = self._record
        self._record, self._restored = DynamicsRecord(self._record.rows), None
        self._failed = False
        try:
            self._prepare(trainer, pl_module)
        except SuiteError:
            # setup() and configure_model() of the module come after ours
            if not may_build_itself_later(pl_module):
                raise

        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any("LearningRateFinder" in {c.__name__ for c in type(x).__mro__} for x in callbacks):
            # it fits without any callback, may fail, and then tells none: no hook before
            if self._probe is not None:
                self._built = [self._probe.snapshot("cpu")]
            return

        def keep_built(module: Any, *_: Any) -> None:
            # once this callback's own state is loaded, what is loaded is no start (a search for
            # the batch size loads, too); a copy of the module has a copy of this hook
            if module is pl_module and self._restored is None:
                with suppress(SuiteError):  # not yet built; `on_fit_start` will say so
                    self._prepare(trainer, pl_module)
                if self._probe is not None:
                    self._built.append(self._probe.snapshot("cpu"))

        self._loading = pl_module.register_load_state_dict_pre_hook(keep_built)  # type: ignore[no-untyped-call]

    def _prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks; again if the model has been rebuilt since.

        Hooks come when training starts; those of a compiled model at once, before its first call.
        """
        if self._probe is not None and self._probe.belongs_to(pl_module):
            return
        if self._probe is not None:
            self._probe.detach()
        names = self._names(trainer)
        role_map = assign_roles(
            pl_module, blocks=names.blocks, preset=names.preset, patterns=names.patterns
        )
        self._probe = StreamProbe(pl_module, role_map, rows=self.rows, seed=self.seed)
        if self._probe.skipped:
            rank_zero_warn(
                "FeatureDynamicsMonitor: these parameters belong to no linear layer and are left "
                f"out of first_update, last_update and product: {', '.join(self._probe.skipped)}"
            )
        if is_compiled(pl_module):
            self._probe.attach()

    def _names(self, trainer: Trainer) -> Any:
        """Return who says how the model's parameters are called: this callback, or a neighbour.

        Whoever has named the roles for `DepthMuPLRCallback` should not have to do it twice.
        """
        own = self.blocks is not None or self.patterns is not None or self.preset != "auto"
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        others = [] if own else [c for c in callbacks if c is not self]
        wanted = ("blocks", "preset", "patterns")
        return next((c for c in others if all(hasattr(c, name) for name in wanted)), self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the blocks of a model that was built late."""
        self._prepare(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put on the hooks and take the reference: weights and step are restored by now."""
        if self._probe is None:
            return
        self._probe.attach()
        self._go_on(trainer, self._probe)
        device = "cpu" if self.reference_device == "cpu" else None
        lost = self._record.start(
            self._probe, trainer.global_step, self._restored, next(iter(self._built), None), device
        )
        if lost:
            rank_zero_warn(f"FeatureDynamicsMonitor: {lost}")
        # the first multiple of the interval that is not behind us
        self._next = -(-trainer.global_step // self.every_n_steps) * self.every_n_steps
        # the run that is continued may have stepped over one, with several optimizers
        interval, following = (self._restored or {}).get("next", (None, None))
        if interval == self.every_n_steps:
            self._next = following
        self._restored = None
        self._forget_loading()
        self._find_folder(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows so far where nothing was left to train, so that training never started."""
        if self._restored is not None:
            self._record.take_over(self._restored)
            self._find_folder(trainer)
            self._write(trainer)

    def _go_on(self, trainer: Trainer, probe: StreamProbe) -> None:
        """Keep the start where this fit goes on with the weights that the last one left."""
        before, self._before = self._before, None
        if self._restored is None and before is not None and self._left == _now(trainer, probe):
            state = before.state(with_reference=False, with_rows=True)
            self._restored = {**state, "next": [self.every_n_steps, self._next]}
            self._built = [dict(before.reference)]

    def _find_folder(self, trainer: Trainer) -> None:
        # on all ranks, because it communicates
        self._folder = None if getattr(trainer, "fast_dev_run", False) else folder_of_run(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Arm the probe where a measurement is due."""
        if self._probe is not None and trainer.global_step >= self._next:
            self._armed_step = trainer.global_step
            self._at_hand.begin(trainer)
            self._packed = None
            if not self._failed:
                self._probe.arm(trainer.global_step)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure: gradients exist and the weights are still those of the forward."""
        self._measure()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure here where manual optimization called ``loss.backward()`` itself."""
        self._measure()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Sum over ranks and log: the one place that every rank reaches in a measured step."""
        self._finish(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the table, with the step that was just made: a resumed run does not measure it.

        Whoever saves at the end of a batch may stand before this callback.
        """
        if self._at_hand.is_trained_on(trainer):
            self._finish(trainer, pl_module)
            checkpoint.setdefault("callbacks", {})[self.state_key] = self.state_dict()
        self._write(trainer)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at_hand.end()
        if self._probe is None or self._armed_step is None:
            return
        step, self._armed_step = self._armed_step, None
        self._next = (step // self.every_n_steps + 1) * self.every_n_steps
        packed = self._packed if self._packed is not None else self._probe.nothing()
        self._packed = None
        self._probe.disarm()
        if trainer.world_size > 1:
            packed = trainer.strategy.reduce(packed.to(pl_module.device), reduce_op="sum")
        measured = dynamics.unpack(packed)
        summary = {f"depth_mup/{key}": value for key, value in measured.summary().items()}
        if self._failed and not summary:
            return
        # As LearningRateMonitor does: a metric that goes through `pl_module.log` costs time in
        # every later step, and would reach the loggers in multiples of log_every_n_steps only.
        trainer.callback_metrics.update(
            {key: torch.tensor(value) for key, value in summary.items()}
        )
        for logger in trainer.loggers:
            logger.log_metrics(summary, step=step)
        if trainer.is_global_zero:
            self._record.add(step, measured.curves())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table so far."""
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what was measured and leave the model as it was."""
        try:
            self._write(trainer)
        except Exception as err:  # it must not take the first error's place, nor others' turn
            rank_zero_warn(f"FeatureDynamicsMonitor could not write its table: {err}")
        finally:
            self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the table and leave the model as it was."""
        if stage == "fit":
            try:
                self._write(trainer)
            finally:
                self._release(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, the start's step, and a fingerprint of its weights.

        On request these weights, too.
        """
        if self._restored is not None:  # loaded, and not gone on with yet
            return self._restored
        record = self._record.state(with_reference=self.save_reference, with_rows=self.write_table)
        return {**record, "next": [self.every_n_steps, self._next]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: only then the weights are there to compare."""
        check_version(state_dict, "FeatureDynamicsMonitor")
        if not self._record.reference:  # after its own training a test may load another checkpoint
            self._restored = state_dict
            start = state_dict["fingerprint"]
            self._built = [weights for weights in self._built if fingerprint(weights) == start][:1]

    def _measure(self) -> None:
        if self._armed_step is None or self._probe is None or not self._probe.captured:
            return
        try:
            self._packed = dynamics.pack(self._probe.measure(self._record.reference))
        except Exception as err:  # whatever it is, training can go on without a measurement
            # the sum over ranks goes on: other ranks wait for it
            self._failed = True
            warnings.warn(
                f"FeatureDynamicsMonitor measures nothing more in this run: {err}", stacklevel=2
            )

    def _write(self, trainer: Trainer) -> None:
        if self.write_table and self._folder and trainer.is_global_zero:
            self._record.write(RunFolder(self._folder), self.every_n_steps)

    def _release(self, trainer: Trainer | None = None) -> None:
        if self._probe is not None:
            if trainer is not None:
                self._left = _now(trainer, self._probe)
            self._probe.detach()
        self._probe = None
        self._armed_step, self._packed = None, None
        self._forget_loading()

    def _forget_loading(self) -> None:
        if self._loading is not None:
            self._loading.remove()
        self._loading, self._built = None, []


def _now(trainer: Trainer, probe: StreamProbe) -> tuple[int, dict[str, list[float]]]:
    return trainer.global_step, fingerprint(probe.matrices())
