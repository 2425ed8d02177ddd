"""Students who came after training, from a handful of their answers."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.lmcd.attach import METHODS, attach_students, student_prior
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.model import DiagnosisModel
from lightning_suite.lmcd.pairs import find_diagnosis_model

_VERSION = 1


class AttachNewStudentsCallback(Callback):
    """Fits the vectors of new students from their few answers, with everything else frozen.

    It works before ``test``, ``predict`` and each validation, on the data's part ``support``: the
    answers in ``new_students`` of ``ColdStartDataModule``, or, with ``split: student``, the
    ``support`` answers of each held-out student. Their vectors then stand in the students' table
    like all others, and every later checkpoint keeps them. Students of ``new_students`` whom the
    checkpoint has already are left as they are.

    Args:
        method: ``map``: the most probable vector under the distribution of the trained students;
            ``gradient``: that of the largest likelihood, from their mean.
        steps: Of Adam.
        lr: Its rate, in standard deviations of the trained students.
        rank: Principal directions of the trained students that ``map`` moves in.
        students_at_once: Students that are fitted together; it changes no result.
        save_to: Write a checkpoint with the new students here; ``{log_dir}`` is the run's folder.

    *Logged metrics*: ``lmcd/attached_students``, in validation and test.

    *Supports* DDP (every rank fits the same), mixed precision, any logger or none; frozen, LoRA and
    full backbones. *Refuses* modules without a :class:`DiagnosisModel` and sharded parameters.

    Raises:
        SuiteError: An argument is out of range (here); the data has no answers to attach from, or
            the module is no diagnosis (in ``setup``).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import AttachNewStudentsCallback
        >>> trainer = Trainer(callbacks=[AttachNewStudentsCallback()], logger=False)
    """

    def __init__(
        self,
        method: Literal["map", "gradient"] = "map",
        steps: int = 60,
        lr: float = 0.2,
        rank: int = 16,
        students_at_once: int = 256,
        save_to: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("method", method, METHODS)
        counts = {"steps": steps, "rank": rank, "students_at_once": students_at_once}
        for name, value in counts.items():
            if value < 1:
                raise SuiteError(
                    f"AttachNewStudentsCallback: {name} is {value}; it must be 1 or more."
                )
        if not lr > 0:
            raise SuiteError(f"AttachNewStudentsCallback: lr is {lr}; it must be above 0.")
        self.method: Literal["map", "gradient"] = method
        self.steps = steps
        self.lr = lr
        self.rank = rank
        self.students_at_once = students_at_once
        self.save_to = save_to
        self.attached: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is somebody to attach, and something to attach to."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "part"):
            raise SuiteError(
                "AttachNewStudentsCallback: the data module has no parts. Use ColdStartDataModule."
            )
        if stage != "fit" and not len(data.part("support")):
            raise SuiteError(
                "AttachNewStudentsCallback: the data has no answers of new students. Set "
                "new_students (a file), or split: student with support (answers each)."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, so that students held out for validation have vectors of the current model."""
        if not trainer.sanity_checking:
            self._attach(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._attach(trainer, pl_module)
        self._save(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        self._attach(trainer, pl_module)
        self._save(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many there are."""
        if not trainer.sanity_checking:
            self._log(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many there are."""
        self._log(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return who was attached; the vectors are in the module's own state."""
        return {"version": _VERSION, "attached": list(self.attached)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over who was attached."""
        if state_dict.get("version") != _VERSION:
            raise SuiteError(
                "the checkpoint's AttachNewStudentsCallback state is of version "
                f"{state_dict.get('version')}, and this release reads version {_VERSION}."
            )
        self.attached = list(state_dict["attached"])

    # The stages run in inference mode, whose tensors no gradient can pass.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = find_diagnosis_model(pl_module, type(self).__name__)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        support = data.part("support").student
        came_later = set(data.new_student_ids)
        # while training goes on the table must not grow: the optimizer holds it
        fitting = trainer.state.fn == "fit"
        done = came_later if fitting else came_later & set(module.student_ids)
        ids = [data.student_ids[s] for s in support.unique().tolist()]
        ids = [student for student in ids if student not in done]
        if not ids:
            if not fitting:  # the checkpoint's own order of them is another, maybe
                module.order_students(data.student_ids)
            return
        row = {student: i for i, student in enumerate(data.student_ids)}
        who = torch.tensor([row[student] for student in ids])
        vectors = self._fit(model, data, who)
        new = [i for i, student in enumerate(ids) if student in came_later]
        if new:
            module.add_students([ids[i] for i in new], vectors[new])
        if not fitting:
            module.order_students(data.student_ids)
        table = model.fusion.students.weight
        table[who.to(table.device)] = vectors.to(table)
        self.attached = list(dict.fromkeys([*self.attached, *ids]))
        rank_zero_info(
            f"AttachNewStudentsCallback: {len(ids):,} students attached from "
            f"{int(torch.isin(support, who).sum()):,} answers."
        )

    def _fit(self, model: DiagnosisModel, data: Any, who: Tensor) -> Tensor:
        """Fit the students ``who``; the prior is of those who were trained."""
        table = model.fusion.students.weight.detach().float()
        trained = data.part("train").student.unique().to(table.device)
        prior = student_prior(table[trained].clone(), self.rank)
        support = data.part("support")
        fitted = []
        for group in who.split(self.students_at_once):
            rows = torch.isin(support.student, group).nonzero().squeeze(1)
            batch = {k: v.to(table.device) for k, v in support[rows.tolist()].items()}
            fitted.append(
                attach_students(
                    model,
                    prior,
                    Prefixes(batch["input_ids"], batch["lengths"]),
                    batch["rows"],
                    batch["kcs"],
                    torch.searchsorted(group.to(table.device), batch["students"]),
                    batch["correct"],
                    method=self.method,
                    steps=self.steps,
                    lr=self.lr,
                )
            )
        return torch.cat(fitted)

    def _save(self, trainer: Trainer) -> None:
        if self.save_to is None:
            return
        folder = str(folder_of_run(trainer) or trainer.default_root_dir)  # on every rank
        path = Path(self.save_to.replace("{log_dir}", folder))
        trainer.save_checkpoint(path, weights_only=True)
        rank_zero_info(f"AttachNewStudentsCallback: {path} has the new students.")

    def _log(self, pl_module: LightningModule) -> None:
        pl_module.log("lmcd/attached_students", float(len(self.attached)), sync_dist=False)
