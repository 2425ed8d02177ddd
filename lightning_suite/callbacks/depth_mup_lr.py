"""Correct the learning rates of an existing trainer for the depth and width of its model."""

from __future__ import annotations

import weakref
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_suite.depth_mup import rules
from lightning_suite.depth_mup.apply import AppliedCorrection, ApplyMode
from lightning_suite.depth_mup.checkpoint_state import (
    check_same_correction,
    correction_state,
    mark_states,
    unmark_states,
)
from lightning_suite.depth_mup.correction import Correction, check_settings, plan_correction
from lightning_suite.depth_mup.families import optimizer_family as family_of
from lightning_suite.depth_mup.initial_weights import initial_weights_warning
from lightning_suite.depth_mup.multipliers import ScaleMode
from lightning_suite.depth_mup.reinit import draw_initial_weights
from lightning_suite.depth_mup.residual_scale import AttachedMultipliers, fold_residual_scale
from lightning_suite.depth_mup.rules import OptimizerFamily, Role, RuleOrAuto
from lightning_suite.depth_mup.trainer_support import refuse_unsupported_trainer
from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.fit_order import may_build_itself_later


class DepthMuPLRCallback(Callback):
    """Gives every parameter the learning rate of its role: tune shallow, train deep.

    The optimizer's learning rate is the one tuned on the base model. The callback finds the
    model's residual blocks and the role of each parameter, splits the optimizer's groups by role,
    multiplies learning rate, weight decay and epsilon by the rule's factors (see
    :mod:`lightning_suite.depth_mup.rules`), and gives models that have none the residual and
    readout multipliers that the rule asks for. At the base shape training is bitwise the same as
    without it.

    Args:
        base_depth: L0, residual blocks of the model on which the learning rate was tuned.
        base_width: n0, its width; None corrects for depth alone.
        rule: ``"sp"``, ``"mup"``, ``"depth_mup"``, ``"nfd"`` or ``"completep"``; ``"auto"`` takes
            ``"nfd"`` for optimizers like SGD, for which its correction was derived, and
            ``"depth_mup"`` for those like Adam.
        p: Exponent of the depth-aware correction, between 0 and 1/2; ``nfd`` only, default 1/2.
            With ``"auto"`` it asks for ``nfd``, whatever the optimizer.
        blocks: Name of the list of residual blocks (``"model.layers"``); default: found.
        preset: Name of the architecture's preset; ``"auto"`` chooses by the parameters' names.
        patterns: Regular expression over parameter names to role, before the preset's.
        width: n, where it cannot be read off the model.
        residual_scale: ``"auto"`` multiplies the output of every branch by c = r_L^-alpha with
            forward hooks, unless the model was built with that multiplier or its weights are
            pretrained; ``"model"`` trusts the model; ``"none"`` applies nothing.
        readout_scale: The same for the readout's input and 1/r_n. Without a readout multiplier
            the readout's learning rate makes up for it.
        reinit: Draw all matrices anew, as the theory assumes, and set biases to 0 before training
            from scratch starts; gains of norms and layer scales stay as they were built.
        optimizer_family: ``"sgd"`` or ``"adam"`` for optimizer classes that are not known.
        decay_vectors: False sets the weight decay of norms and biases to 0.
        apply: ``"groups"`` scales the groups and the schedulers' numbers once (every monitor
            shows the rates; checkpoints hold them); ``"step"`` scales inside the optimizer's step
            only, right for any scheduler and for hand-set rates; ``"auto"`` takes ``"groups"``
            where every scheduler is known to be proportional to its base rate.
        pretrained: Whether the model's weights come from elsewhere; None asks the configuration
            of a Hugging Face model.
        log: Log the effective learning rates.
        verbose: Print the table of roles and factors when training starts.

    Logged metrics (every ``log_every_n_steps``):
        ``depth_mup/lr/<role>``: the learning rate that the role's parameters are trained with;
        ``depth_mup/lr/<group>/<role>`` where the optimizer had several groups, and
        ``depth_mup/lr/optimizer<i>/…`` where there are several optimizers.

    Supported:
        Gradient accumulation, mixed precision (fp16 scaler too), DDP, ``torch.compile`` (of a
        model that has not run yet), manual optimization, several optimizers, LoRA (the role of
        the wrapped matrix), schedulers of any kind, FSDP2 (``fully_shard`` under
        ``ModelParallelStrategy``). FSDP (``use_orig_params=True``) is right by construction and
        untested. Refused: DeepSpeed, FSDP with flattened parameters, a second instance, a
        parameter without a role, an optimizer of an unknown family.

    Other callbacks: ``StochasticWeightAveraging`` and ``BackboneFinetuning`` set rates and add
    groups of their own, which needs ``apply="step"``. ``LearningRateFinder`` and ``Tuner.lr_find``
    are refused: they search with callbacks off, so that the rate that they find is not the base
    model's.

    After ``fit`` the hooks are off the model, which then computes without the multipliers (a
    warning says so); :meth:`fold` moves them into the weights for use elsewhere. With
    ``apply="groups"`` the optimizer keeps its split groups, so that ``trainer.save_checkpoint()``
    still writes what a resume needs; a further fit with the same optimizer object does not scale
    twice. With ``ddp_spawn`` and ``ddp_notebook`` all that is in processes that are gone after
    ``fit``: resume from the checkpoints of ``ModelCheckpoint``.

    Costs about 0.1 ms a step on a CPU, most of it torch's own work for one group a role (measured:
    ``benchmarks/callback_overhead.py``).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DepthMuPLRCallback(base_depth=4)], logger=False)

    Raises:
        SuiteError: An argument is not one of the values above.
    """

    def __init__(
        self,
        base_depth: int,
        base_width: int | None = None,
        rule: RuleOrAuto = "auto",
        p: float | None = None,
        blocks: str | None = None,
        preset: str = "auto",
        patterns: dict[str, Role] | None = None,
        width: int | None = None,
        residual_scale: ScaleMode = "auto",
        readout_scale: ScaleMode = "auto",
        reinit: bool = False,
        optimizer_family: OptimizerFamily | None = None,
        decay_vectors: bool = True,
        apply: ApplyMode = "auto",
        pretrained: bool | None = None,
        log: bool = True,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"base_depth": base_depth, "base_width": base_width, "width": width}
        check_settings(rule, p, residual_scale, readout_scale, **sizes)
        check_choice("apply", apply, get_args(ApplyMode))
        if optimizer_family is not None:
            check_choice("optimizer_family", optimizer_family, rules.FAMILIES)
        self.base_depth = base_depth
        self.base_width = base_width
        self.rule = rule
        self.p = p
        self.blocks = blocks
        self.preset = preset
        self.patterns = patterns
        self.width = width
        self.residual_scale = residual_scale
        self.readout_scale = readout_scale
        self.reinit = reinit
        self.optimizer_family = optimizer_family
        self.decay_vectors = decay_vectors
        self.apply = apply
        self.pretrained = pretrained
        self._logs_rates = log  # Lightning gives callbacks a method `log`
        self.verbose = verbose

        self.correction: Correction | None = None  # of the last model
        self._attached: AttachedMultipliers | None = None
        self._applied = AppliedCorrection()  # of the last fit
        self._loaded: dict[str, Any] | None = None
        self._reinitialized: weakref.ref[nn.Module] | None = None
        self._folded: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and other processes have modules of their own; weak references cannot travel."""
        return {**self.__dict__, "_reinitialized": None, "_folded": None}

    # ---- the model: roles and multipliers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find blocks and roles, and register the multipliers' hooks."""
        refuse_unsupported_trainer(trainer, self)
        if _refers_to(self._folded, pl_module):
            raise SuiteError(
                "the multipliers were folded into this model's weights, and this callback would "
                "apply them a second time. Use the folded model without the callback, or load the "
                "unfolded weights."
            )
        self._release()
        self.correction, self._loaded = None, None
        if stage == "fit":
            self._applied = AppliedCorrection()
        try:
            self._prepare(trainer, pl_module)
        except SuiteError:
            # setup() and configure_model() of the module come after ours
            if not may_build_itself_later(pl_module):
                raise

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, *, late: bool = False) -> None:
        """Do what needs the model; again if the model has been built or rebuilt since."""
        if self._attached is not None and self._attached.belong_to(pl_module):
            return
        self._detach()
        correction = plan_correction(
            pl_module,
            self.rule,
            self.base_depth,
            self.base_width,
            self.p,
            blocks=self.blocks,
            preset=self.preset,
            patterns=self.patterns,
            width=self.width,
            residual_scale=self.residual_scale,
            readout_scale=self.readout_scale,
            pretrained=self.pretrained,
        )
        if correction.multipliers.warning:
            rank_zero_warn(correction.multipliers.warning)
        if trainer.state.fn == "fit":
            self._see_to_initial_weights(pl_module, correction, late)
        self._attached = AttachedMultipliers(pl_module, correction.role_map, correction.multipliers)
        self.correction = correction
        self._compare_with_checkpoint()

    def _see_to_initial_weights(
        self, pl_module: LightningModule, correction: Correction, late: bool
    ) -> None:
        """Draw the weights that the rule assumes, or say where those that are there break it."""
        drawn = _refers_to(self._reinitialized, pl_module)
        if self.reinit and (late or not drawn):
            draw_initial_weights(pl_module, correction, built_late=late)
            self._reinitialized = weakref.ref(pl_module)
        elif correction.multipliers.by_hooks and not drawn:
            advice = initial_weights_warning(
                pl_module, correction.role_map, correction.parametrization
            )
            if advice:
                rank_zero_warn(advice)

    # ---- the optimizers: factors

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the factors: optimizers and schedulers exist, and no checkpoint is restored yet."""
        self._prepare(trainer, pl_module, late=True)
        correction = self.correction
        assert correction is not None
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            done = self._applied.add(
                optimizer,
                schedulers,
                pl_module,
                correction,
                family=self.optimizer_family or family_of(optimizer),
                apply=self.apply,
                decay_vectors=self.decay_vectors,
            )
            if self.verbose:
                rank_zero_info(f"DepthMuPLRCallback, {done}")
        self._compare_with_checkpoint()

    def effective_lrs(self) -> dict[str, float]:
        """Return metric key to the learning rate with which that role's parameters are trained."""
        return self._applied.effective_lrs()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Log the learning rates of the coming step."""
        if not self._logs_rates or not trainer.loggers:
            return
        # the counter that Lightning puts on the metrics' axis; it differs from global_step where
        # several optimizers step
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if (step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                logger.log_metrics(self.effective_lrs(), step=step)

    # ---- modules that build themselves in setup() or configure_model()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the multipliers' hooks on a model that was built late."""
        self._prepare(trainer, pl_module, late=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the multipliers' hooks on a model that was built late."""
        self._prepare(trainer, pl_module, late=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the multipliers' hooks on a model that was built late."""
        self._prepare(trainer, pl_module, late=True)

    # ---- the end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take every hook off the model and the optimizers."""
        if stage == "fit" and self.correction is not None and self._multiplies():
            rank_zero_warn(
                f"DepthMuPLRCallback multiplied {self.correction.multipliers.by_hooks} with hooks, "
                "which are off again: outside a trainer with this callback the model computes "
                "without them, another function than the one that was trained. Evaluate with "
                "trainer.validate, test or predict; for use elsewhere, callback.fold(module) moves "
                "the factors into the weights (fold_residual_scale)."
            )
        self._release()

    def fold(self, pl_module: LightningModule) -> None:
        """Move the multipliers of the last run into the weights of ``pl_module``, in place.

        The model then computes by itself what it computed inside the trainer: for inference and
        export. Save the checkpoint that training is to go on from before.

        Args:
            pl_module: The module that was trained, or another one with the same layers and
                unfolded weights.

        Raises:
            SuiteError: There was no run, or it is not over; the module has other layers or was
                folded before; or a layer cannot take the factor up (see
                :func:`~lightning_suite.depth_mup.residual_scale.fold_residual_scale`).
        """
        if self.correction is None or self._multiplies():
            raise SuiteError(
                "fold() needs a run of the trainer with this callback that is over. (With "
                "ddp_spawn or ddp_notebook the run was in processes that are gone: use "
                "fold_residual_scale with the factors that its checkpoint names.)"
            )
        if _refers_to(self._folded, pl_module):
            raise SuiteError("the multipliers were folded into this model's weights before.")
        role_map, multipliers = self.correction.role_map, self.correction.multipliers
        fold_residual_scale(pl_module, role_map, c=multipliers.residual, m=multipliers.readout)
        if multipliers.by_hooks:
            self._folded = weakref.ref(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take every hook off the model and the optimizers."""
        self._release()

    def _multiplies(self) -> bool:
        return self._attached is not None and self._attached.registered

    def _release(self) -> None:
        self._detach()
        self._applied.remove()

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.remove()
        self._attached = None

    # ---- checkpoints

    def _state(self, correction: Correction) -> dict[str, Any]:
        applied = self._applied
        return correction_state(
            correction, rules=applied.rules, modes=applied.modes, decay_vectors=self.decay_vectors
        )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save what a resume must agree with.

        Not by ``state_dict``: Lightning would refuse a second instance before :meth:`setup` can
        say what to do about it.
        """
        if _refers_to(self._folded, pl_module):
            raise SuiteError(
                "the multipliers were folded into this model's weights: resuming from such a "
                "checkpoint would apply them a second time. Save the checkpoint before fold(); "
                "save the folded weights with torch.save(module.state_dict(), …) or "
                "save_pretrained."
            )
        if self.correction is not None:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._state(self.correction)
            mark_states(checkpoint.get("optimizer_states", ()), self._applied.modes)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume a training that began without this callback."""
        # none in what a trainer saves whose spawned processes are gone: weights, no training
        resumes = trainer.state.fn == "fit" and checkpoint.get("optimizer_states")
        if resumes and self.state_key not in checkpoint["callbacks"]:
            raise SuiteError(
                "the checkpoint was trained without DepthMuPLRCallback, and its optimizer state "
                "belongs to other learning rates. Resume without the callback; or start anew from "
                "the weights: load them into the model and call fit without ckpt_path."
            )
        unmark_states(checkpoint.get("optimizer_states", ()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the checkpoint to compare it with the arguments."""
        self._loaded = state_dict
        self._compare_with_checkpoint()

    def _compare_with_checkpoint(self) -> None:
        if self._loaded is not None and self.correction is not None:
            now = self._state(self.correction)
            check_same_correction(self._loaded, now, has_optimizers=self._applied.is_active)


def _refers_to(reference: weakref.ref[nn.Module] | None, module: nn.Module) -> bool:
    return reference is not None and reference() is module
