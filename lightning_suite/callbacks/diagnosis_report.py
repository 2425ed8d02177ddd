"""Who masters what, what each exercise asks and what to ask next, as tables of the run."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.lmcd.cautions import ANSWERS, chances_caution
from lightning_suite.lmcd.diagnosis import Diagnosis
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.pairs import PairReadings, find_diagnosis_model, read_pairs
from lightning_suite.lmcd.run_tables import bound_aucs, write_diagnosis, write_scores
from lightning_suite.run_folder import RunFolder

_log = logging.getLogger(__name__)
_FORMATS = ("parquet", "csv", "none")
_PARTS = ("train", "val", "test", "oracle", "support")
_PAIRS = ("logit", "information", "difficulty")  # of a student and an exercise
_ITEMS = ("discrimination", "guessing", "slipping")  # of an exercise


class DiagnosisReportCallback(Callback):
    """Writes what a teacher wants to know into the run's ``artifacts``, and bounds beside scores.

    In ``test`` and ``predict``: ``lmcd_scores.csv`` (metrics of the model, of the floor, which is a
    student's own rate, and of the ceiling, that rate with the test's own difficulties, nearly the
    best of one ability where all students answered the same exercises; intervals over students),
    ``lmcd_calibration.csv``, ``lmcd_roc.csv``. In ``predict`` also: ``lmcd_mastery.csv``
    (student by KC), ``lmcd_items.csv`` (parameters of the exercises), ``lmcd_next.csv`` (what to
    ask each student next, by Fisher information), ``predictions.parquet`` (every student with
    every exercise) and ``mastery.parquet`` (as the CSV, unrounded). ``lightning-suite report``
    draws them. A warning says where the AUC is below the floor, the NLL worse than the floor's or
    a coin's, exercises are hardly told apart (in ``predict``), and where all mean chances
    (students by KC; in ``test``, single answers) lie on one side of ``threshold``.

    Args:
        folder: Run folder to write to; None takes the logger's.
        threshold: Predicted accuracy from which on a KC counts as mastered.
        next_items: Exercises to suggest to each student. Reading information and parameters costs
            a second pass over all pairs, a small part where ``reader`` is ``start``.
        resamples: Of the students, for intervals; 0 for none. Half a second for 10,000 answers.
        predictions: Format of the predictions, ``parquet``, ``csv`` or ``none``; with ``parquet``
            mastery is written so, too.

    *Logged metrics*, ``lmcd/val_…`` and ``lmcd/test_…``: ``floor_auc``, ``ceiling_auc``.

    *Supports* DDP (each pair counts once; rank 0 writes), mixed precision, any logger, and none
    where ``folder`` is given. Needs three float32 numbers for each student and exercise on every
    rank. *Refuses* modules without a :class:`DiagnosisModel` or whose step returns no
    probabilities, or NaN.

    Raises:
        SuiteError: An argument is out of range (here), or one of the refusals above.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import DiagnosisReportCallback
        >>> trainer = Trainer(callbacks=[DiagnosisReportCallback("diagnosis")], logger=False)
    """

    def __init__(
        self,
        folder: str | None = None,
        threshold: float = 0.5,
        next_items: int = 3,
        resamples: int = 300,
        predictions: Literal["parquet", "csv", "none"] = "parquet",
    ) -> None:
        super().__init__()
        check_choice("predictions", predictions, _FORMATS)
        if not 0 < threshold < 1:
            raise SuiteError(
                f"DiagnosisReportCallback: threshold is {threshold}; it must be in (0, 1)."
            )
        for name, value in (("next_items", next_items), ("resamples", resamples)):
            if value < 0:
                raise SuiteError(
                    f"DiagnosisReportCallback: {name} is {value}; it must be 0 or more."
                )
        self.folder = folder
        self.threshold = threshold
        self.next_items = next_items
        self.resamples = resamples
        self.predictions: Literal["parquet", "csv", "none"] = predictions
        self._pairs: dict[str, Tensor] = {}  # [S, E] each; -inf where nothing was read
        self._items: dict[str, Tensor] = {}  # [E] each

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is a diagnosis, and a place for it."""
        self._release()
        if not hasattr(getattr(trainer, "datamodule", None), "part"):
            raise SuiteError(
                "DiagnosisReportCallback: the data module has no parts. Use ColdStartDataModule."
            )
        if stage in ("test", "predict") and self.folder is None and not trainer.loggers:
            raise SuiteError(
                "DiagnosisReportCallback: the Trainer has no logger and so no folder of its own. "
                "Set folder."
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the test's pairs."""
        self._start(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for all pairs."""
        find_diagnosis_model(pl_module, type(self).__name__)
        self._start(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the probabilities."""
        self._keep(trainer, pl_module, outputs)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the probabilities, and read everything else."""
        self._keep(trainer, pl_module, outputs)
        if self.next_items:
            model = find_diagnosis_model(pl_module, type(self).__name__)
            prefixes = Prefixes(batch["input_ids"], batch["lengths"])
            readings = read_pairs(model, prefixes, batch["rows"], batch["students"], batch["kcs"])
            self._keep_readings(outputs, readings)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the bounds."""
        if not trainer.sanity_checking:
            self._log_bounds(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the bounds and write the scores."""
        self._log_bounds(trainer, pl_module, "test")
        self._gather(trainer)
        if folder := self._run_folder(trainer):
            table, trained = self._pairs["logit"], _trained(pl_module)
            _warn(self._write_scores(folder, trainer, trained))
            asked = table[table.isfinite()].sigmoid()  # no skills here: chances of single answers
            if len(asked) > 1:
                low, high = asked.aminmax()
                chances = float(low), float(high), self.threshold
                _warn(chances_caution(*chances, of=ANSWERS, trained=trained))
        self._release()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything."""
        self._gather(trainer)
        if folder := self._run_folder(trainer):
            trained = _trained(pl_module)
            cautions = self._write_scores(folder, trainer, trained)
            path, more = write_diagnosis(
                folder,
                self._diagnosis(trainer, pl_module),
                threshold=self.threshold,
                next_items=self.next_items,
                predictions=self.predictions,
                trained=trained,
            )
            if path is not None:
                rank_zero_info(f"DiagnosisReportCallback: {path}")
            _warn(cautions + more)
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Forget what was collected; half a diagnosis is none."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what was collected."""
        self._release()

    # --- collecting -------------------------------------------------------------------------------

    def _start(self, trainer: Trainer) -> None:
        data = _data(trainer).data
        shape = (len(data.students), len(data.exercises))
        self._pairs = {name: _unknown(shape) for name in _PAIRS}
        self._items = {name: _unknown(shape[1:]) for name in _ITEMS}

    def _keep(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        if not isinstance(outputs, Mapping) or "probability" not in outputs:
            raise SuiteError(
                f"DiagnosisReportCallback: the step of {type(pl_module).__name__} must return "
                "students, exercises and probability, as LMCDModule's does."
            )
        students, exercises = outputs["students"].cpu(), outputs["exercises"].cpu()
        probability = outputs["probability"].float().cpu()
        if not (finite := probability.isfinite()).all():
            exercise = _data(trainer).data.exercises[int(exercises[~finite][0])].id
            raise SuiteError(
                f"DiagnosisReportCallback: a probability for exercise {exercise!r} is not a "
                f"number, and {int((~finite).sum()) - 1} others of its batch. The training has "
                "diverged (take a lower learning rate), or a text overflows the backbone's type "
                "(dtype: bfloat16 or float32 in place of float16)."
            )
        # of another module, which may return probabilities alone
        logits = outputs.get("logits", probability.double().logit(eps=1e-12))
        self._pairs["logit"][students, exercises] = logits.float().cpu().clamp(-1e30, 1e30)

    def _keep_readings(self, outputs: Mapping[str, Tensor], readings: PairReadings) -> None:
        students, exercises = outputs["students"].cpu(), outputs["exercises"].cpu()
        for name, values in readings._asdict().items():
            if name in self._pairs:
                self._pairs[name][students, exercises] = values.float().cpu()
            else:
                self._items[name][exercises] = values.float().cpu()

    def _gather(self, trainer: Trainer) -> None:
        """Join the ranks: a pair that two of them have read has one value; NaN where none has."""
        for kept in (self._pairs, self._items):
            for name in kept:
                if trainer.world_size > 1:
                    there = kept[name].to(trainer.strategy.root_device)
                    kept[name] = trainer.strategy.reduce(there, reduce_op="max").cpu()
                kept[name] = kept[name].where(kept[name] > -torch.inf, torch.nan)

    def _release(self) -> None:
        self._pairs, self._items = {}, {}

    # --- writing ----------------------------------------------------------------------------------

    def _run_folder(self, trainer: Trainer) -> RunFolder | None:
        """Return where to write, on rank 0."""
        run = folder_of_run(trainer)  # on every rank
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return None
        return RunFolder(self.folder or str(run))

    def _write_scores(self, folder: RunFolder, trainer: Trainer, trained: bool) -> list[str]:
        logits, data = self._pairs["logit"], _data(trainer)
        return write_scores(folder, data, logits, resamples=self.resamples, trained=trained)

    def _log_bounds(self, trainer: Trainer, pl_module: LightningModule, part: str) -> None:
        for name, auc in bound_aucs(_data(trainer), part).items():
            pl_module.log(f"lmcd/{part}_{name}_auc", auc.to(pl_module.device), sync_dist=True)

    def _diagnosis(self, trainer: Trainer, pl_module: LightningModule) -> Diagnosis:
        module = _data(trainer)
        data = module.data
        model = find_diagnosis_model(pl_module, type(self).__name__)
        observed = torch.full(
            (len(data.students), len(data.exercises)), torch.nan, dtype=torch.float32
        )
        observed[data.student, data.exercise] = data.correct
        part = [""] * len(data.exercises)
        for name in reversed(_PARTS):  # an exercise with training answers is no new one
            for exercise in module.part(name).exercise.unique().tolist():
                part[exercise] = name
        with torch.no_grad():
            proficiency = model.proficiency()[: len(data.students)].float().cpu()
        return Diagnosis(
            data.students,
            [exercise.id for exercise in data.exercises],
            [exercise.text for exercise in data.exercises],
            [kc.id for kc in data.kcs],
            [kc.name for kc in data.kcs],
            data.q_matrix,
            observed,
            part,
            self._pairs["logit"].sigmoid(),
            proficiency,
            model.head.per_kc,
            self._pairs["information"],
            self._pairs["difficulty"],
            self._items,
        )


def _unknown(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, -torch.inf, dtype=torch.float32)


def _data(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]


def _trained(module: LightningModule) -> bool:
    """Whether the module has seen training; one that does not know is taken to have."""
    return bool(getattr(module, "trained_on", True))


def _warn(cautions: Iterable[str]) -> None:
    """Say what the run has shown, a line each; called on rank 0 alone."""
    for caution in cautions:
        _log.warning("DiagnosisReportCallback: %s", caution)
