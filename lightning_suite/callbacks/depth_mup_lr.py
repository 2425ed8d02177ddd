"""Correct the learning rates of an existing trainer for the depth and width of its model."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup import rules
from lightning_suite.depth_mup.apply import AppliedFactors, ApplyMode
from lightning_suite.depth_mup.families import optimizer_family as family_of
from lightning_suite.depth_mup.initial_weights import initial_weights_warning
from lightning_suite.depth_mup.multipliers import Multipliers, ScaleMode, choose_multipliers
from lightning_suite.depth_mup.param_groups import (
    Factors,
    ParamGroup,
    Plan,
    has_decoupled_decay,
    parameter_names,
    plan_groups,
    role_factors,
)
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.reinit import reinitialize
from lightning_suite.depth_mup.residual_scale import (
    attach_multipliers,
    fold_residual_scale,
    hook_targets,
)
from lightning_suite.depth_mup.role_table import format_table
from lightning_suite.depth_mup.roles import RoleMap, assign_roles
from lightning_suite.depth_mup.rules import OptimizerFamily, Role, Rule, RuleOrAuto
from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.strategies import refuse_flattened_parameters

_STATE_VERSION = 1
# In step mode the optimizer's state is that of the user's own groups: a resume without this
# callback would go on with other learning rates, and nothing would tell. A group more in the
# checkpoint makes torch refuse it; the callback takes the group out before the state is restored.
_MARKER: dict[str, Any] = {"params": [], "name": "needs DepthMuPLRCallback"}


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
        the wrapped matrix), schedulers of any kind. FSDP (``use_orig_params=True``) is right by
        construction and untested. Refused: DeepSpeed, FSDP with flattened parameters, a second
        instance, a parameter without a role, an optimizer of an unknown family.

    Other callbacks: ``StochasticWeightAveraging`` and ``BackboneFinetuning`` set rates and add
    groups of their own, which needs ``apply="step"``. ``LearningRateFinder`` is refused, and
    ``Tuner.lr_find`` must not be used: they search with callbacks off, so that the rate that they
    find is not the base model's.

    After ``fit`` the hooks are off the model, which then computes without the multipliers (a
    warning says so); :meth:`fold` moves them into the weights for use elsewhere. With
    ``apply="groups"`` the optimizer keeps its split groups, so that ``trainer.save_checkpoint()``
    still writes what a resume needs; a further fit with the same optimizer object does not scale
    twice.

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
        for name, value in (
            ("base_depth", base_depth),
            ("base_width", base_width),
            ("width", width),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SuiteError(f"{name}={value!r}, and it must be a whole number of at least 1.")
        # A throw-away parametrisation checks the rule, p, and the base shape.
        Parametrization(
            rules.rule_for(rule, "sgd", p), base_depth, base_depth, base_width, base_width, p
        )
        check_choice("residual_scale", residual_scale, get_args(ScaleMode))
        check_choice("readout_scale", readout_scale, get_args(ScaleMode))
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

        self.role_map: RoleMap | None = None
        self.parametrization: Parametrization | None = None
        self.multipliers: Multipliers | None = None
        self._applied: list[AppliedFactors] = []
        self._modes: list[str] = []
        self._rules: list[Rule] = []
        self._handles: list[RemovableHandle] = []
        self._hooked: list[nn.Module | None] = []
        self._loaded: dict[str, Any] | None = None
        self._reinitialized: weakref.ref[nn.Module] | None = None
        self._folded: weakref.ref[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and other processes have modules of their own; weak references cannot travel."""
        return {**self.__dict__, "_reinitialized": None, "_folded": None}

    # ---- the model: roles and multipliers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find blocks and roles, and register the multipliers' hooks."""
        others = [c for c in trainer.callbacks if isinstance(c, DepthMuPLRCallback)]  # type: ignore[attr-defined]
        if len(others) > 1:
            raise SuiteError(
                f"the trainer has {len(others)} DepthMuPLRCallbacks, which would multiply the "
                "learning rates more than once. Keep one (an overlay that is given twice adds "
                "two)."
            )
        if any(isinstance(c, LearningRateFinder) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise SuiteError(
                "LearningRateFinder searches with all other callbacks off: its learning rate "
                "belongs to this model without the correction, and the correction asks for the one "
                "of the base model. Find that on the base model, and take the finder out."
            )
        refuse_flattened_parameters(trainer.strategy)
        if _refers_to(self._folded, pl_module):
            raise SuiteError(
                "the multipliers were folded into this model's weights, and this callback would "
                "apply them a second time. Use the folded model without the callback, or load the "
                "unfolded weights."
            )
        self._release()
        self.role_map, self._loaded = None, None
        if stage == "fit":
            self._modes, self._rules = [], []
        try:
            self._prepare(trainer, pl_module)
        except SuiteError:
            # setup() and configure_model() of the module come after ours
            if not _may_build_itself_later(pl_module):
                raise

    def _prepare(self, trainer: Trainer, pl_module: LightningModule, *, late: bool = False) -> None:
        """Do what needs the model; again if the model has been built or rebuilt since."""
        if self.role_map is not None and self._hooked == hook_targets(pl_module, self.role_map):
            return
        self._remove_multipliers()
        role_map = assign_roles(
            pl_module, blocks=self.blocks, preset=self.preset, patterns=self.patterns
        )
        width = (self.width or role_map.width) if self.base_width is not None else None
        parametrization = Parametrization(
            # those that "auto" stands for have the same multipliers
            rules.rule_for(self.rule, "sgd", self.p),
            self.base_depth,
            role_map.depth,
            self.base_width,
            width,
            self.p,
        )
        multipliers = choose_multipliers(
            pl_module,
            parametrization,
            role_map,
            residual_scale=self.residual_scale,
            readout_scale=self.readout_scale,
            pretrained=self.pretrained,
        )
        if multipliers.warning:
            rank_zero_warn(multipliers.warning)
        drawn = _refers_to(self._reinitialized, pl_module)
        if self.reinit and trainer.state.fn == "fit" and (late or not drawn):
            if multipliers.keeps_function:
                raise SuiteError(
                    "reinit=True would overwrite pretrained weights. Leave reinit out, or say "
                    "pretrained=False if they are meant to be lost."
                )
            if late:
                raise SuiteError(
                    "reinit=True needs a LightningModule that builds its network in __init__."
                )
            reinitialize(
                pl_module,
                role_map,
                parametrization,
                readout_multiplier=multipliers.readout_is_scaled,
                generator=torch.Generator().manual_seed(torch.initial_seed()),
            )
            self._reinitialized = weakref.ref(pl_module)
        elif trainer.state.fn == "fit" and multipliers.by_hooks and not drawn:
            advice = initial_weights_warning(pl_module, role_map, parametrization)
            if advice:
                rank_zero_warn(advice)
        self._handles = attach_multipliers(pl_module, role_map, multipliers)
        self._hooked = hook_targets(pl_module, role_map)
        self.role_map, self.parametrization = role_map, parametrization
        self.multipliers = multipliers
        self._compare_with_checkpoint()

    # ---- the optimizers: factors

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Apply the factors: optimizers and schedulers exist, and no checkpoint is restored yet."""
        self._prepare(trainer, pl_module, late=True)
        assert self.role_map is not None
        assert self.parametrization is not None
        assert self.multipliers is not None
        roles = self.role_map.roles
        self._rules = []
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            family = self.optimizer_family or family_of(optimizer)
            parametrization = self.parametrization_for(family)
            self._rules.append(parametrization.rule)
            factors = role_factors(
                parametrization,
                family,
                readout_multiplier=self.multipliers.readout_is_scaled,
                decay_vectors=self.decay_vectors,
                decoupled_decay=has_decoupled_decay(optimizer),
            )

            def make_plan(
                groups: Sequence[ParamGroup], factors: dict[Role, Factors] = factors
            ) -> Plan:
                return plan_groups(groups, parameter_names(pl_module), roles, factors)

            own = [s for s in schedulers if getattr(s, "optimizer", optimizer) is optimizer]
            self._applied.append(AppliedFactors(optimizer, own, make_plan, self.apply))
            if self.verbose:
                rank_zero_info(
                    f"DepthMuPLRCallback, {type(optimizer).__name__} ({self._applied[-1].mode}): "
                    f"rule {parametrization.rule}, "
                    f"depth {parametrization.depth} / {self.base_depth}, "
                    f"width ratio {parametrization.width_ratio:g}, residual multiplier: "
                    f"{self.multipliers.note}, readout multiplier by hooks: "
                    f"{self.multipliers.readout:g}\n" + format_table(self.role_map, factors)
                )
        self._modes = [applied.mode for applied in self._applied]
        self._compare_with_checkpoint()

    def parametrization_for(self, family: OptimizerFamily) -> Parametrization:
        """Return the rule for optimizers of ``family`` and the shapes; after :meth:`setup`."""
        assert self.parametrization is not None
        return replace(self.parametrization, rule=rules.rule_for(self.rule, family, self.p))

    def effective_lrs(self) -> dict[str, float]:
        """Return metric key to the learning rate with which that role's parameters are trained."""
        lrs: dict[str, float] = {}
        for number, applied in enumerate(self._applied, start=1):
            prefix = f"optimizer{number}/" if len(self._applied) > 1 else ""
            for name, lr in applied.effective_lrs().items():
                lrs[f"depth_mup/lr/{prefix}{name.removeprefix('depth_mup/')}"] = lr
        return lrs

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
        if stage == "fit" and self._handles and self.multipliers is not None:
            rank_zero_warn(
                f"DepthMuPLRCallback multiplied {self.multipliers.by_hooks} with hooks, which are "
                "off again: outside a trainer with this callback the model computes without them, "
                "another function than the one that was trained. Evaluate with trainer.validate, "
                "test or predict; for use elsewhere, callback.fold(module) moves the factors into "
                "the weights (fold_residual_scale)."
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
        if self.role_map is None or self.multipliers is None or self._handles:
            raise SuiteError("fold() needs a run of the trainer with this callback that is over.")
        if _refers_to(self._folded, pl_module):
            raise SuiteError("the multipliers were folded into this model's weights before.")
        if None in hook_targets(pl_module, self.role_map):
            raise SuiteError(
                f"{type(pl_module).__name__} lacks layers of the model that was trained. Give "
                "fold() the LightningModule that the trainer had."
            )
        fold_residual_scale(
            pl_module, self.role_map, c=self.multipliers.residual, m=self.multipliers.readout
        )
        if self.multipliers.by_hooks:
            self._folded = weakref.ref(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take every hook off the model and the optimizers."""
        self._release()

    def _release(self) -> None:
        self._remove_multipliers()
        self._hooked = []
        for applied in self._applied:
            applied.remove()
        self._applied = []

    def _remove_multipliers(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- checkpoints

    def _state(self) -> dict[str, Any]:
        assert self.parametrization is not None
        assert self.multipliers is not None
        # "auto" before there are optimizers, and where they differ
        rule: RuleOrAuto = self._rules[0] if len(set(self._rules)) == 1 else self.rule
        return {
            "version": _STATE_VERSION,
            "rule": rule,
            "p": None if rule == "auto" else rules.correction_exponent(rule, self.p),
            "base_depth": self.base_depth,
            "base_width": self.base_width,
            "depth": self.parametrization.depth,
            "width": self.parametrization.width,
            "residual_multiplier": self.multipliers.residual,
            "readout_multiplier": self.multipliers.readout,
            "decay_vectors": self.decay_vectors,
            "apply": list(self._modes),
        }

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
        if self.parametrization is not None:
            checkpoint.setdefault("callbacks", {})[self.state_key] = self._state()
            for index, state in enumerate(checkpoint.get("optimizer_states", ())):
                if self._modes[index : index + 1] == ["step"]:
                    state["param_groups"] = [*state["param_groups"], dict(_MARKER)]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume a training that began without this callback."""
        resumes = trainer.state.fn == "fit" and "optimizer_states" in checkpoint
        if resumes and self.state_key not in checkpoint["callbacks"]:
            raise SuiteError(
                "the checkpoint was trained without DepthMuPLRCallback, and its optimizer state "
                "belongs to other learning rates. Resume without the callback; or start anew from "
                "the weights: load them into the model and call fit without ckpt_path."
            )
        for state in checkpoint.get("optimizer_states", ()):
            state["param_groups"] = [g for g in state["param_groups"] if g != _MARKER]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the checkpoint to compare it with the arguments."""
        self._loaded = state_dict
        if self.role_map is not None:
            self._compare_with_checkpoint()

    def _compare_with_checkpoint(self) -> None:
        if self._loaded is None:
            return
        now = self._state()
        if not self._applied:  # no optimizers yet, or none at all
            del now["apply"]
            if now["rule"] == "auto":
                del now["rule"], now["p"]
        differences = [
            f"{key}: {self._loaded.get(key)!r} in the checkpoint, {value!r} now"
            for key, value in now.items()
            if self._loaded.get(key) != value
        ]
        if differences:
            raise SuiteError(
                "the checkpoint was trained with other settings of DepthMuPLRCallback than this "
                f"run has: {'; '.join(differences)}. Use those of the checkpoint."
            )


def _refers_to(reference: weakref.ref[nn.Module] | None, module: nn.Module) -> bool:
    return reference is not None and reference() is module


def _may_build_itself_later(pl_module: LightningModule) -> bool:
    """Whether the module has a setup() or configure_model() of its own, called after ours."""
    return any(
        hook in vars(cls)
        for cls in type(pl_module).__mro__
        for hook in ("setup", "configure_model")
        if cls.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")
    )
