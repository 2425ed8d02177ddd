"""A bank of edits inside any module that holds a Hugging Face causal LM."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_suite.compilation import is_compiled
from lightning_suite.errors import SuiteError
from lightning_suite.fit_order import BatchAtHand
from lightning_suite.folder_of_run import folder_of_run
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.ranks import Numbers, of_all_ranks, share_of_rank
from lightning_suite.run_folder import RunFolder
from lightning_suite.scen.answers import Answerer
from lightning_suite.scen.attachment import Attachment, attach
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import bank_exists, save_bank
from lightning_suite.scen.edited_model import EditedModel
from lightning_suite.scen.editing import DEFAULT_GATE, new_bank, open_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import BaseAnswers, ScoredPrompt, learning_curve
from lightning_suite.scen.evaluation_tables import write_evaluation
from lightning_suite.scen.firing import Firing
from lightning_suite.scen.gates.base import MISS
from lightning_suite.scen.layer_choice import causal_lm, find_layer
from lightning_suite.strategies import refuse_sharded_parameters

_log = logging.getLogger(__name__)
_VERSION = 1


class ExpertGateCallback(Callback):
    """Lets a bank of edits act in any module with a Hugging Face causal LM, ours or a user's.

    While a stage runs, the model answers prompts that a gate recognises with the experts of the
    bank, and all others bit by bit as before; modules and keys of its ``state_dict`` stay what
    they are. With the stage, or an exception, the hooks go.

    Edits that were trained elsewhere are added with :meth:`commit`; :meth:`edit` trains them here;
    :meth:`evaluate` scores them, each in any stage and precision. To make edits from a file, use
    ``SCENModule``. A deep copy that is made of the module while a stage runs keeps a copy of the
    bank; :func:`~lightning_suite.scen.attachment.attachments_in` finds its handle.

    Args:
        bank: A bank file; its layer, gate and kind of experts count. None, or in a fit a file that
            does not exist yet: an empty bank, made by the following arguments.
        layer: Dotted name of the linear map in the causal LM; or the number of a decoder layer,
            whose last feed-forward map is taken; None takes the layer at 5/8 of the depth.
        gate: ``subject``, ``closed``, ``bce`` or ``scen``.
        expert: ``low_rank`` or ``full``.
        rank: Of low-rank experts.
        tokenizer: A name as for ``pretrained`` of ``CausalLMModule``; None takes ``tokenizer`` of
            the module or data module if that is a Hugging Face tokenizer, or else the one that
            lies beside the model's weights.
        prompt_template: Has ``{prompt}`` and ``{response}``; None takes the tokenizer's own.
        allow_other_weights: Use a bank that was made on other weights, such as a quantised copy,
            or while the edited layer's own weight is trained.
        write_bank: Write the bank beside the run's other files, ``artifacts/bank.safetensors`` and
            ``.json``, whenever a checkpoint is saved.

    *Logged metrics* (in every stage but ``predict``, a mean over the epoch): ``scen/fired_rate``,
    the share of the sequences in which an edit fired; ``scen/edits``, how many there are.

    *Supports* gradient accumulation, mixed precision, DDP, activation checkpointing, peft
    adapters and quantised layers, any logger or none. Experts act in training too: what is trained
    there (an adapter) learns around them. *Refuses* sharded parameters (FSDP, DeepSpeed, tensor
    parallel), ``torch.compile``, and training of the edited layer's own weight.

    Raises:
        SuiteError: In ``setup``: the module holds no causal LM or no such layer, the bank is
            damaged or of another model, no tokenizer is found, or one of the refusals above. Where
            an evaluation starts: the bank that was named is not there.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_suite import ExpertGateCallback
        >>> trainer = Trainer(callbacks=[ExpertGateCallback(bank="facts")], logger=False)
    """

    def __init__(
        self,
        bank: str | None = None,
        layer: str | int | None = None,
        gate: str = DEFAULT_GATE,
        expert: Literal["low_rank", "full"] = "low_rank",
        rank: int = 4,
        tokenizer: str | None = None,
        prompt_template: str | None = None,
        allow_other_weights: bool = False,
        write_bank: bool = True,
    ) -> None:
        super().__init__()
        self.path = bank
        self.layer = layer
        self.gate = gate
        self.expert: Literal["low_rank", "full"] = expert
        self.rank = rank
        self.tokenizer = tokenizer
        self.prompt_template = prompt_template
        self.allow_other_weights = allow_other_weights
        self.write_bank = write_bank
        self.bank: ExpertBank | None = None
        self._lm: Any = None
        self._words: Any = None  # the tokenizer
        self._handle: Attachment | None = None
        # of this training epoch: sequences in which an edit fired, sequences, edits, batches
        self._epoch = Firing()
        self._restored: list[Numbers] = []  # that of a checkpoint, of each rank
        self._at_hand = BatchAtHand()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the model, open the bank and attach it."""
        self._release()
        self._epoch, self._restored = Firing(), []
        refuse_sharded_parameters(trainer.strategy, "ExpertGateCallback reads whole layers")
        self._lm = causal_lm(pl_module)
        self._words = self._find_tokenizer(trainer, pl_module)
        if self.bank is None:
            self.bank = self._open()
        if is_compiled(pl_module):
            raise SuiteError(
                "ExpertGateCallback chooses experts in Python code, which torch.compile would "
                "trace once and leave in. Run without torch.compile."
            )
        name, layer = find_layer(self._lm, self.bank.base.layer)
        trained = any(p.requires_grad for n, p in layer.named_parameters() if "lora_" not in n)
        if stage == "fit" and trained and not self.allow_other_weights:
            raise SuiteError(
                f"ExpertGateCallback: {name} is trained in this run, and experts are corrections "
                "to its weight as it was. Freeze it, train adapters, or set allow_other_weights."
            )
        self._handle = self._attach(self.bank)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to evaluate the model as it is, where a bank was named."""
        self._refuse_no_bank(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to evaluate the model as it is, where a bank was named."""
        self._refuse_no_bank(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to answer as the model does, where a bank was named."""
        self._refuse_no_bank(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the epoch that a checkpoint fell into."""
        restored, self._restored = self._restored, []
        for table in share_of_rank(trainer, restored):
            self._epoch = self._epoch.plus(Firing(*table[0]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew; Lightning does not come here in the middle of an epoch."""
        self._epoch = Firing()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that a batch begins."""
        self._at_hand.begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count how often an edit fired."""
        if self._at_hand.end():
            self._count()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how often an edit fired.

        Not by batches, as in the other stages: a resume in the middle of an epoch would forget
        those before it.
        """
        if self._epoch.batches or trainer.world_size > 1:  # it is a sum over ranks
            self._log_firing(pl_module, self._epoch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log how often an edit fired."""
        if not trainer.sanity_checking:
            self._log(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log how often an edit fired."""
        self._log(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the bank beside the run's other files."""
        if self._at_hand.is_trained_on(trainer) and self._at_hand.end():
            self._count()
        state = {**self.state_dict(), "epoch": of_all_ranks(trainer, [self._epoch])}
        checkpoint.setdefault("callbacks", {})[self.state_key] = state
        run = folder_of_run(trainer)  # on every rank
        if self.write_bank and self.bank is not None and run and trainer.is_global_zero:
            save_bank(self.bank, RunFolder(run).artifacts / "bank")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the model as it was."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as it was."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return the bank; a checkpoint also has what an unfinished epoch has counted."""
        state = {} if self.bank is None else dict(self.bank.state_dict())
        return {"version": _VERSION, "bank": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the checkpoint's bank, whatever the bank file holds."""
        if state_dict.get("version") != _VERSION:
            raise SuiteError(
                "the checkpoint's ExpertGateCallback state is of version "
                f"{state_dict.get('version')}, and this release reads version {_VERSION}."
            )
        self._restored = state_dict.get("epoch", [])  # earlier releases have none
        if self.bank is None or not state_dict["bank"]:
            return
        before = {edit.id: edit for edit in self.bank.edits}
        missing = self.path is not None and not bank_exists(self.path)
        try:
            self.bank.load_state_dict(state_dict["bank"])
        except SuiteError as err:
            if not missing:
                raise
            raise SuiteError(
                f"{err} There is no bank {self.path!r} here, so that an empty one was made by the "
                "arguments, and the checkpoint's does not fit it: give the file that the "
                "checkpoint's run had, or layer, gate, expert and rank as in that file."
            ) from err
        if before and before != {edit.id: edit for edit in self.bank.edits}:
            _log.warning(
                "ExpertGateCallback: the checkpoint's bank counts (%d edits), not that of %s (%d), "
                "which has others. To use that one, give no ckpt_path.",
                len(self.bank),
                "the file" if self.path else "this callback",
                len(before),
            )

    # --- for code that has the callback in hand ---------------------------------------------------

    def commit(self, edits: Sequence[Edit], experts: Mapping[str, Tensor]) -> None:
        """Add edits with experts that were trained elsewhere; the gate learns their keys.

        Args:
            edits: n edits; one with the prompt or the id of an edit of the bank replaces it.
            experts: ``a`` [n, r, d_in] and ``b`` [n, d_out, r], or ``weight`` [n, d_out, d_in].

        Raises:
            SuiteError: They do not fit the bank.
        """
        self._attached().bank.insert(edits, experts, update=True)

    def edit(self, edits: Sequence[Edit], **options: Any) -> None:
        """Train experts for edits and commit them.

        Args:
            edits: New or changed edits.
            options: Of :func:`lightning_suite.scen.editing.add_edits`.
        """
        handle = self._attached()
        options = {"update": True, "allow_other_weights": self.allow_other_weights, **options}
        handle.bank.add(self._lm, self._words, edits, **options)

    def evaluate(
        self, edits: Sequence[Edit], folder: RunFolder | None = None, **options: Any
    ) -> list[ScoredPrompt]:
        """Score reliability, generality and locality by generation, see ``SCENModule``.

        Args:
            edits: With what they are scored on.
            folder: Where the tables go; None writes none.
            options: Of :class:`lightning_suite.scen.answers.Answerer`.
        """
        handle = self._attached()
        handle.detach()  # what is scored attaches and detaches as it needs
        try:
            answerer = Answerer(self._lm, handle.format, **options)
            before = BaseAnswers(answerer)
            rows = learning_curve(EditedModel(handle.bank, answerer, before), edits, before)
        finally:
            self._handle = self._attach(handle.bank)
        if folder is not None:
            write_evaluation(folder, rows, edits)
        return rows

    # ----------------------------------------------------------------------------------------------

    def _open(self) -> ExpertBank:
        if self.path is not None and not bank_exists(self.path):
            _log.warning("ExpertGateCallback: there is no bank %r: no edit acts.", self.path)
        if self.path is not None and bank_exists(self.path):
            return open_bank(
                self.path, self._lm, self._words, allow_other_weights=self.allow_other_weights
            )
        return new_bank(
            self._lm,
            self._words,
            layer=self.layer,
            gate=self.gate,
            expert=self.expert,
            rank=self.rank,
            template=self.prompt_template,
        )

    def _refuse_no_bank(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING  # edits may be committed on the way
        if fitting or self.path is None or bank_exists(self.path) or len(self.bank or ()):
            return
        raise SuiteError(
            f"ExpertGateCallback: there is no bank {self.path!r}, so nothing would be edited. Name "
            "one that was written (`lightning-suite bank list PATH` shows it), or give no bank for "
            "the model as it is."
        )

    def _attach(self, bank: ExpertBank) -> Attachment:
        return attach(bank, self._lm, self._words, allow_other_weights=self.allow_other_weights)

    def _attached(self) -> Attachment:
        if self._handle is None:
            raise SuiteError(
                "ExpertGateCallback: no stage of a Trainer is running, so no model is at hand."
            )
        return self._handle

    def _routed(self) -> Tensor | None:
        """Return in which sequences of the last batch an edit fired, once."""
        handle = self._handle
        if handle is None or handle.last_routing is None:
            return None
        fired, handle.last_routing = handle.last_routing.expert != MISS, None
        return fired

    def _count(self) -> None:
        fired = self._routed()
        if fired is not None:
            new = Firing.of_batch(fired, len(self._attached().bank))
            self._epoch = self._epoch.plus(new)

    def _log(self, pl_module: LightningModule) -> None:
        fired = self._routed()
        if fired is not None:
            self._log_firing(pl_module, Firing.of_batch(fired, len(self._attached().bank)))

    def _log_firing(self, pl_module: LightningModule, firing: Firing) -> None:
        for name, value, weight, sync in (
            ("scen/fired_rate", firing.share, firing.sequences, True),
            ("scen/edits", firing.mean_edits, firing.batches, False),
        ):
            pl_module.log(
                name,
                value,
                batch_size=int(weight),
                on_step=False,
                on_epoch=True,
                sync_dist=sync,
            )

    def _find_tokenizer(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        for holder in (pl_module, getattr(trainer, "datamodule", None)):
            found = None
            with suppress(SuiteError):  # a model's folder without a tokenizer: perhaps the data's
                found = getattr(holder, "tokenizer", None)
            if hasattr(found, "decode") and hasattr(found, "eos_token_id"):
                return found
        name = getattr(self._lm.config, "_name_or_path", "")
        if not name:
            raise SuiteError(
                "ExpertGateCallback: neither the module nor its data has a Hugging Face tokenizer, "
                "and the model was not loaded from a folder that could. Set tokenizer."
            )
        return load_tokenizer(name)

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.detach()
        self._handle = None
        self._at_hand.end()
