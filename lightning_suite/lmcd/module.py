"""LMCD: cognitive diagnosis of exercises that nobody has answered yet, through a language model."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from lightning_suite.checkpoints import require_callbacks
from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.lmcd.assembly import (
    TEXTS_AT_A_TIME,
    assemble_model,
    check_precision,
    check_tables,
    parameter_groups,
    read_kc_vectors,
    untrained_caution,
)
from lightning_suite.lmcd.backbone import (
    check_same_weights,
    load_backbone,
    sample_weights,
    untrained_names,
)
from lightning_suite.lmcd.baselines import rate_logits
from lightning_suite.lmcd.fusion import MODES
from lightning_suite.lmcd.heads.registry import HEADS, NEEDS_KC_VECTORS
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.metrics import DiagnosisMetrics
from lightning_suite.lmcd.model import DiagnosisModel
from lightning_suite.lmcd.other_data import refuse_replacing
from lightning_suite.scheduling import scheduled
from lightning_suite.seeding import seeded_by

_log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
_VERSION = 1


class LMCDModule(LightningModule):
    """Predicts who answers which exercise right, from exercises' texts and students' answers.

    A student is one learnt vector that stands behind the exercise's text in the sequence of a
    language model; a diagnosis head reads ability from the vector, discrimination and guessing
    from the text, difficulty from the text as that student sees it (arXiv 2505.21239).

    The tables of students and KCs are made in ``setup`` from the data module
    (:class:`~lightning_suite.datamodules.cold_start.ColdStartDataModule`), or when a checkpoint is
    loaded, which keeps their ids.

    *Logged metrics*, ``lmcd/`` and: ``train_loss`` (each step); ``val_…`` and ``test_…`` with
    ``auc``, ``acc``, ``f1``, ``rmse``, ``mae``, ``brier``, ``ece``, ``nll`` and ``doa``, each over
    all answers of all ranks.

    Supports accumulation, AMP and DDP. States are read out, and heads computed, in float32
    whatever the backbone's type is; ``dtype: bfloat16`` is what a Trainer's ``bf16-true`` is for
    other modules, and that is refused.

    Args:
        pretrained: Backbone: a folder written by ``save_pretrained``; ``package:NAME`` or a
            ``.gguf`` file; or a name of the Hugging Face Hub. Its language-modelling head is left
            out.
        config: Or an untrained backbone, as for ``CausalLMModule``.
        backbone: ``frozen``, ``lora`` or ``full``.
        lora: Fields of ``peft.LoraConfig`` for ``backbone: lora``.
        head: ``irt``, ``1pl`` to ``4pl``, ``mirt``, ``ncdm``, ``kancd`` or ``dina``, see
            :mod:`lightning_suite.lmcd.heads`.
        head_options: Of that head, such as ``{"dim": 8}`` of ``mirt``.
        reader: Who stands at the student token when difficulty is read: each ``student``, or for
            all the same ``start`` token (much cheaper; difficulty is the exercise's alone).
        mode: How students share a text: ``auto``, ``row``, ``packed`` or ``cached``, all with
            equal results.
        cache_gib: Most memory for texts that a frozen backbone has read, in GiB; what does not
            fit is read again.
        student_token: The students' vectors start near the embedding of this text.
        student_noise: How near: standard deviation in units of that embedding's size.
        prior: Weight of the prior on abilities, relative to one answer's loss.
        ridge_start: Start the difficulty of ``irt`` and ``mirt`` from a ridge regression of the
            training exercises' difficulties on their states.
        lr_students: Learning rate of the students' vectors; None is the optimizer's own.
        lr_heads: Of the head; None is the optimizer's own, which is that of the backbone.
        dtype: Of the backbone.
        attn_implementation: ``eager``, ``sdpa``, …; None lets transformers choose.
        gradient_checkpointing: Compute the backbone's activations again in the backward pass.
        optimizer: Makes the optimizer from three groups: backbone, students, head.
        lr_scheduler: Makes the scheduler from the optimizer; None for a constant rate.
        scheduler_interval: Whether the scheduler counts steps or epochs.
        init_seed: Of everything that is drawn when the tables are made.

    Raises:
        SuiteError: Options contradict each other, or the data has no KCs for a head of KCs.
    """

    model: DiagnosisModel

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | str | None = None,
        backbone: Literal["frozen", "lora", "full"] = "frozen",
        lora: dict[str, Any] | None = None,
        head: str = "mirt",
        head_options: dict[str, Any] | None = None,
        reader: Literal["student", "start"] = "student",
        mode: Literal["auto", "row", "packed", "cached"] = "auto",
        cache_gib: float = 4.0,
        student_token: str = " student",
        student_noise: float = 0.1,
        prior: float = 0.0,
        ridge_start: bool = True,
        lr_students: float | None = None,
        lr_heads: float | None = None,
        dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        init_seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("head", head, HEADS)
        check_choice("mode", mode, MODES)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.student_ids: list[str] = []
        self.kc_ids: list[str] = []
        self.exercise_ids: list[str] = []  # of the data that was last trained on
        self.trained_on: list[dict[str, Any]] = []  # manifests of splits
        self.val_metrics, self.test_metrics = DiagnosisMetrics(), DiagnosisMetrics()
        # It moves into the model when that is made.
        self._backbone: Any = load_backbone(
            pretrained,
            config,
            training=backbone,
            lora=lora,
            dtype=dtype,
            attn_implementation=attn_implementation,
            gradient_checkpointing=gradient_checkpointing,
            seed=init_seed,
        )

    def setup(self, stage: str) -> None:
        """Make the tables of students and KCs, or check that they fit the data."""
        check_precision(str(self.trainer.precision))
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "student_ids"):
            raise SuiteError(
                "LMCDModule: the data module has no students. Use ColdStartDataModule."
            )
        kind = getattr(data, "manifest", {}).get("kind", "")
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if caution := untrained_caution(kind, callbacks):
            rank_zero_warn(caution)
        new = list(getattr(data, "new_student_ids", ()))  # they get their vectors later
        known = list(data.student_ids)[: len(data.student_ids) - len(new)]
        if stage == "fit":
            self.exercise_ids = [exercise.id for exercise in data.data.exercises]
            ours = {"student_ids": known, "kc_ids": list(data.kc_ids)}
            refuse_replacing(
                self.trainer.checkpoint_callbacks, {**ours, "exercise_ids": self.exercise_ids}
            )
        if not self.student_ids:
            self._make(known, list(data.kc_ids), self._kc_vectors(data))
            return
        held = {"student_ids": self.student_ids, "kc_ids": self.kc_ids}
        check_tables(held, known, list(data.kc_ids))
        for manifest in self.trained_on if stage != "fit" else ():
            data.load_state_dict({"manifest": manifest})  # refuses one of another split

    def on_fit_start(self) -> None:
        """Take the units of the states, and start the difficulty, from the training exercises."""
        manifest = getattr(self.trainer.datamodule, "manifest", None)  # type: ignore[attr-defined]
        if manifest is not None and manifest not in self.trained_on:
            self.trained_on.append(manifest)
        if self.model.units.ne(1).any():
            return
        train = self.trainer.datamodule.part("train")  # type: ignore[attr-defined]
        exercises = train.exercise.unique()
        # A few at a time: there may be thousands.
        prefixes = [
            Prefixes(**{key: value.to(self.device) for key, value in train.texts(part).items()})
            for part in exercises.split(TEXTS_AT_A_TIME)
        ]
        self.model.measure_units(prefixes)
        if self.hparams["ridge_start"]:
            easy = rate_logits(train.exercise, train.correct, int(exercises.max()) + 1)
            self.model.start_difficulty(prefixes, easy[exercises].to(self.device))

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits [N] of the answers of a batch."""
        prefixes = Prefixes(batch["input_ids"], batch["lengths"])
        logits: Tensor = self.model(prefixes, batch["rows"], batch["students"], batch["kcs"])
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood of the answers, with the prior.

        Times the batch's ``weight``, so that its mean over the batches is that over the answers.
        """
        # a resumed run draws the dropout that an uninterrupted one does
        step = (self.current_epoch, batch_idx, self.global_rank)
        with seeded_by(*step, device=self.device):
            logits = self(batch)
        loss = F.binary_cross_entropy_with_logits(logits, batch["correct"])
        self.log("lmcd/train_loss", loss, prog_bar=True)
        if self.hparams["prior"]:
            loss = loss + self.hparams["prior"] * self.model.prior(batch["students"])
        weight = batch.get("weight")
        return loss if weight is None else loss * weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to the metrics."""
        self._add(self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add the batch to the metrics; return what ``predict_step`` does."""
        return self._add(self.test_metrics, batch)

    def on_validation_start(self) -> None:
        """Begin at nothing: one that broke off has left its answers, as inference tensors."""
        self.val_metrics.reset()

    def on_test_start(self) -> None:
        """Begin at nothing; say so if nothing has been learnt."""
        self.test_metrics.reset()
        self._warn_untrained()

    def on_predict_start(self) -> None:
        """Refuse students who have no vector yet; take the data's order of all who have."""
        wanted = self.trainer.datamodule.student_ids  # type: ignore[attr-defined]
        if new := [s for s in wanted if s not in set(self.student_ids)]:
            raise SuiteError(
                f"LMCDModule: student {new[0]!r} has no vector yet. Add AttachNewStudentsCallback, "
                "which fits it from the answers in new_students."
            )
        self.order_students(wanted)
        self._warn_untrained()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the probability of each answer of the batch, and whose it is to what."""
        return self._answers(batch, self(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation part."""
        self._log("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test part."""
        self._log("test", self.test_metrics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer of backbone, students and head, and its scheduler."""
        rates = self.hparams["lr_students"], self.hparams["lr_heads"]
        optimizer = self.optimizer(parameter_groups(self.model, *rates))
        interval = self.hparams["scheduler_interval"]
        return scheduled(optimizer, self.lr_scheduler, interval=interval, monitor="lmcd/val_nll")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep who the students and KCs are; leave out what of a loaded backbone is not trained."""
        checkpoint["lmcd"] = {
            "version": _VERSION,
            "student_ids": self.student_ids,
            "kc_ids": self.kc_ids,
            "exercise_ids": self.exercise_ids,
            "trained_on": self.trained_on,
        }
        if self.hparams["backbone"] != "full" and self.hparams["pretrained"] is not None:
            backbone = self.model.fusion.backbone
            checkpoint["lmcd"]["backbone"] = sample_weights(backbone)
            for name in untrained_names(backbone):
                del checkpoint["state_dict"][f"model.fusion.backbone.{name}"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the tables of the checkpoint, and fill in what of the backbone it leaves out."""
        require_callbacks(checkpoint, self._trainer)
        reader = (checkpoint.get("hyper_parameters") or {}).get("reader", self.hparams["reader"])
        if reader != self.hparams["reader"]:
            raise SuiteError(
                f"LMCDModule: the checkpoint was trained with reader: {reader}, and reader is "
                f"{self.hparams['reader']}, which reads difficulty from other states. Set reader "
                f"to {reader}."
            )
        kept, state = checkpoint["lmcd"], checkpoint["state_dict"]
        if self.student_ids != kept["student_ids"] or self.kc_ids != kept["kc_ids"]:
            if self.student_ids and self._trainer is not None:
                # those whom it has beyond ours were attached after training
                check_tables(kept, self.student_ids, self.kc_ids)
            vectors = state.get("model.head.kc_vectors")
            self._make(list(kept["student_ids"]), list(kept["kc_ids"]), vectors)
        if self.hparams["pretrained"] is not None:
            kept_weights = kept.get("backbone")
            check_same_weights(kept_weights, self.model.fusion.backbone, self.hparams["pretrained"])
        self.trained_on = list(kept.get("trained_on", ()))
        self.exercise_ids = list(kept.get("exercise_ids", ()))  # of an earlier revision: none
        for name, value in self.state_dict().items():
            if name.startswith("model.fusion.backbone."):
                state.setdefault(name, value)

    def add_students(self, ids: list[str], vectors: Tensor) -> None:
        """Append students whose vectors [M, H] were fitted elsewhere; checkpoints keep them.

        Raises:
            SuiteError: One of them is there already.
        """
        both = sorted(set(ids) & set(self.student_ids))
        if both:
            raise SuiteError(f"LMCDModule: student {both[0]!r} is there already.")
        self.model.fusion.add_students(vectors)
        self.student_ids = [*self.student_ids, *ids]

    @torch.no_grad()
    def order_students(self, ids: list[str]) -> None:
        """Let the students' table begin with these, in this order; all others follow."""
        named = set(ids)
        ids = [*ids, *(student for student in self.student_ids if student not in named)]
        if ids == self.student_ids:
            return
        place = {student: row for row, student in enumerate(self.student_ids)}
        weight = self.model.fusion.students.weight
        weight.copy_(weight[[place[student] for student in ids]])
        self.student_ids = ids

    def _warn_untrained(self) -> None:
        if not self.trained_on and self.trainer.is_global_zero:
            _log.warning(
                "LMCDModule: this model has not been trained, so what it says of students and "
                "exercises is where it would begin. Give the checkpoint of a fit: --ckpt_path."
            )

    def _make(self, student_ids: list[str], kc_ids: list[str], kc_vectors: Tensor | None) -> None:
        """Make the model with tables of these students and KCs."""
        backbone = self._backbone if self._backbone is not None else self.model.fusion.backbone
        self.model = assemble_model(
            backbone, len(student_ids), len(kc_ids), kc_vectors, self.hparams
        )
        self._backbone = None
        self.student_ids, self.kc_ids = student_ids, kc_ids

    def _kc_vectors(self, data: Any) -> Tensor | None:
        if self.hparams["head"] not in NEEDS_KC_VECTORS or not data.kc_ids:
            return None
        # Lightning has not moved the backbone yet: each process reads the texts once, on its CPU.
        known = data.data.q_matrix[data.part("train").exercise.unique()].any(0)
        return read_kc_vectors(self._backbone, Prefixes(**data.kc_prefixes), known)

    def _add(self, metrics: DiagnosisMetrics, batch: Batch) -> dict[str, Tensor]:
        logits = self(batch)
        answers = self._answers(batch, logits)
        metrics.update(logits, answers["correct"], answers["students"], answers["exercises"])
        return answers

    def _answers(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        return {
            "students": batch["students"],
            "exercises": batch["exercises"][batch["rows"]],
            "logits": logits,
            "probability": logits.sigmoid(),
            "correct": batch["correct"],
        }

    def _log(self, part: str, metrics: DiagnosisMetrics) -> None:
        metrics.diagnosis = self._diagnosis()
        for name, value in metrics.compute().items():
            # equal on all ranks already: the mean over them changes nothing
            self.log(
                f"lmcd/{part}_{name}",
                value.to(self.device),
                prog_bar=name == "auc",
                sync_dist=True,
            )
        metrics.reset()

    def _diagnosis(self) -> tuple[Tensor, Tensor] | None:
        """Return what DOA needs; None where abilities have nothing to do with KCs."""
        q_matrix: Tensor = self.trainer.datamodule.data.q_matrix  # type: ignore[attr-defined]
        abilities = self.model.kc_abilities(q_matrix.shape[1])
        return None if abilities is None else (abilities, q_matrix)
