"""The bank: experts, the gate that chooses among them, and the history of edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_suite.errors import SuiteError, check_choice
from lightning_suite.language.loading import DTYPES
from lightning_suite.scen.answer_states import Positions
from lightning_suite.scen.bank_state import BaseIdentity, described, matching_records
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.expert_table import ExpertKind, ExpertTable, expert_shapes
from lightning_suite.scen.gates.base import MISS, Gate, PromptQuery, Routing
from lightning_suite.scen.records import EditRecord, History, stored_edit
from lightning_suite.scen.surroundings import lasting, own_precision

if TYPE_CHECKING:
    from lightning_suite.scen.attachment import Attachment
    from lightning_suite.scen.experts import TrainedExperts
    from lightning_suite.scen.systems import Decision


class ExpertBank(nn.Module):
    """Edits of one model: an expert and a key a slot.

    A slot once used is not used again: what is removed or replaced stays, unreachable, so that it
    can be brought back, until :meth:`compact`. ``state_dict`` holds the whole bank and nothing of
    the base model.

    Args:
        base: The model that the edits are for.
        gate: Decides which edit serves a prompt; its slots are the bank's.
        expert: ``"low_rank"``: b a x is added to the map (a [r, d_in], b [d_out, r]); ``"full"``:
            W x takes its place (W [d_out, d_in]), as published.
        rank: r of a low-rank expert.
        positions: ``"last"``: an expert acts from the last token of the prompt on, so that the
            cached keys and values of the prompt are the base model's; ``"all"``: everywhere. None:
            ``"last"`` for low-rank experts, ``"all"`` for full ones, as published.
        dtype: That experts are stored in; they compute in that of the model. None: ``"bfloat16"``
            for low-rank experts, ``"float32"`` for full ones, whose small changes of a matrix
            would be rounded away.
        template: Of prompts, as for :class:`~lightning_suite.scen.prompts.PromptFormat`.
        calibration: What was chosen by trial for these edits and on what data, plain values, see
            :mod:`~lightning_suite.scen.calibrated`; kept with the bank.

    Attributes:
        trained: How the last experts were, as settings: plain values; empty where nobody said. See
            :mod:`~lightning_suite.scen.continuing`.
        files: Bank files that it was read from or written to, with a hash of what they said then;
            see :mod:`~lightning_suite.scen.bank_file`.
    """

    def __init__(
        self,
        base: BaseIdentity,
        gate: Gate,
        *,
        expert: ExpertKind = "low_rank",
        rank: int = 4,
        positions: Positions | None = None,
        dtype: str | None = None,
        template: str | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("expert", expert, ("low_rank", "full"))
        dtype = dtype or ("float32" if expert == "full" else "bfloat16")
        check_choice("dtype", dtype, DTYPES)
        if rank < 1:
            raise SuiteError(f"rank={rank}, and it must be 1 or more.")
        if positions is None:
            positions = "all" if expert == "full" else "last"
        check_choice("positions", positions, ("last", "all"))
        self.base, self.gate = base, gate
        self.expert: ExpertKind = expert
        self.rank, self.dtype, self.template = rank, dtype, template
        self.positions: Positions = positions
        self.calibration: dict[str, Any] = dict(calibration or {})
        self.trained: dict[str, Any] = {}
        self.files: dict[Path, str] = {}
        self.history = History()
        self.table = self._empty_table()
        self._disabled = 0

    def __len__(self) -> int:
        """Return the number of live edits."""
        return len(self.history.live())

    def extra_repr(self) -> str:
        """Say what the bank holds."""
        return (
            f"{len(self)} live of {len(self.table)} edits of {self.base.name}, "
            f"{self.base.layer}, {self.expert}, {self.dtype}"
        )

    @property
    def edits(self) -> list[Edit]:
        """Return the live edits in the order of their slots."""
        return [self.history.records[slot].edit for slot in self.history.live()]

    def insert(
        self,
        edits: Sequence[Edit],
        experts: Mapping[str, Tensor],
        notes: Sequence[Mapping[str, float | str]] | None = None,
        *,
        update: bool = False,
    ) -> list[int]:
        """Add edits with their trained experts.

        An edit with the prompt of a live one replaces it; the old version stays for
        :meth:`rollback`.

        Args:
            edits: n edits.
            experts: ``a`` [n, r, d_in] and ``b`` [n, d_out, r], or ``weight`` [n, d_out, d_in].
            notes: What training said of each.
            update: An edit also replaces the one of its id when the prompt is another.

        Returns:
            Their slots.

        Raises:
            SuiteError: The edits contradict each other or the bank (see
                :meth:`~lightning_suite.scen.records.History.replaced_by`), or the tensors are not
                n experts of this bank. Whatever is raised, the bank is then as before.
        """
        self.table.check(experts, len(edits))
        replaced = self.history.replaced_by(edits, update=update)
        first = len(self.table)
        slots = list(range(first, first + len(edits)))
        kept = [stored_edit(edit) for edit in edits]
        versions = [1 if old is None else self.history.records[old].version + 1 for old in replaced]
        records = [
            EditRecord(edit, version, "live", old, dict(note))
            for edit, version, old, note in zip(
                kept, versions, replaced, notes or [{}] * len(kept), strict=True
            )
        ]
        gone = [old for old in replaced if old is not None]
        with self._changing():
            if gone:
                self.gate.remove(gone)
            self.gate.add(kept, slots)
            self.table.append(experts)
            self.history.extend(records)
        return slots

    def remove(self, ids: Sequence[str]) -> None:
        """Take edits out: their prompts get the base model's answers again.

        Raises:
            SuiteError: An id is not that of a live edit; nothing is removed then.
        """
        slots = [self.history.slot(edit_id) for edit_id in dict.fromkeys(ids)]
        with self._changing():
            self.gate.remove(slots)
            for slot in slots:
                self.history.remove(slot)

    def rollback(self, edit_id: str) -> Edit:
        """Undo the last change of an edit: bring back the version before, or what was removed.

        Args:
            edit_id: Id of the edit.

        Returns:
            The edit that is live again.

        Raises:
            SuiteError: There is nothing to go back to, or its prompt or id is another edit's now;
                the bank is then as before.
        """
        gone, back = self.history.undo(edit_id)
        assert back is not None
        edit = self.history.records[back].edit
        with self._changing():
            if gone is not None:
                self.gate.remove([gone])
            self.gate.add([edit], [back])
            if gone is not None:
                self.history.take_back(gone)
            self.history.revive(back)
        return edit

    def compact(self) -> int:
        """Forget for good what was removed or replaced: its words, its expert, its key.

        The live edits answer as before; their slots are new, and none can be rolled back.

        Returns:
            The number of versions that are gone.
        """
        slots = self.history.live()
        gone = len(self.table) - len(slots)
        records = [replace(self.history.records[slot], replaces=None) for slot in slots]
        experts = self.experts(slots)
        with self._changing():
            self.gate.renumber(slots)
            self.restore(records, experts)
        return gone

    def merge(self, other: ExpertBank) -> list[int]:
        """Add the live edits of another bank of the same base model.

        Their keys are learned anew by this bank's gate, since thresholds depend on all edits.

        Returns:
            Their slots here.

        Raises:
            SuiteError: The banks are of other models, layers or kinds, or both have an edit of the
                same id or prompt: remove it from one of them first.
        """
        for what in ("base", "expert", "rank", "positions", "template"):
            ours, theirs = getattr(self, what), getattr(other, what)
            if ours != theirs:
                raise SuiteError(f"the banks cannot be merged: {what} is {ours} and {theirs}.")
        edits = other.edits
        for edit, old in zip(edits, self.history.replaced_by(edits), strict=True):
            if old is not None:
                raise SuiteError(
                    f"the banks cannot be merged: {edit.id!r} has the prompt of "
                    f"{self.history.records[old].edit.id!r}. Remove one of them first."
                )
        slots = other.history.live()
        notes = [other.history.records[slot].notes for slot in slots]
        return self.insert(edits, other.experts(slots), notes)

    @classmethod
    def for_model(cls, model: nn.Module, tokenizer: Any, **options: Any) -> ExpertBank:
        """Make an empty bank, see :func:`lightning_suite.scen.editing.new_bank`."""
        from lightning_suite.scen.editing import new_bank  # noqa: PLC0415 - it knows this class

        return new_bank(model, tokenizer, **options)

    def add(
        self, model: nn.Module, tokenizer: Any, edits: Sequence[Edit], **options: Any
    ) -> TrainedExperts:
        """Train experts for edits and insert them, see :func:`~.editing.add_edits`."""
        from lightning_suite.scen.editing import add_edits  # noqa: PLC0415

        return add_edits(self, model, tokenizer, edits, **options)

    def attach(self, model: nn.Module, tokenizer: Any, **options: Any) -> Attachment:
        """Let the experts act, see :func:`lightning_suite.scen.attachment.attach`."""
        from lightning_suite.scen.attachment import attach  # noqa: PLC0415

        return attach(self, model, tokenizer, **options)

    def explain(self, question: str) -> Decision:
        """Say which edit, if any, answers a question in the model that the bank is attached to."""
        from lightning_suite.scen.attachment import attachment_of  # noqa: PLC0415

        return attachment_of(self).explain([question])[0]

    def experts(
        self, slots: Sequence[int], device: torch.device | str = "cpu", dtype: str | None = None
    ) -> dict[str, Tensor]:
        """Return the experts in ``slots``, one a row, on ``device`` in ``dtype`` (the bank's)."""
        return self.table.gather(slots, torch.device(device), DTYPES[dtype or self.dtype])

    def route(self, query: PromptQuery) -> Routing:
        """Ask the gate.

        Raises:
            SuiteError: The gate chose a slot that is not live: gate and bank are of two minds.
        """
        with own_precision():
            routing = self.gate.route(query)
        for slot in set(routing.expert.tolist()) - {MISS}:
            if not 0 <= slot < len(self.table) or self.history.records[slot].status != "live":
                raise SuiteError(f"the gate chose slot {slot}, which is no live edit of the bank.")
        return routing

    @property
    def enabled(self) -> bool:
        """Return whether experts act, see :meth:`disabled`."""
        return not self._disabled

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let no expert act for a while, wherever the bank is attached."""
        self._disabled += 1
        try:
            yield
        finally:
            self._disabled -= 1

    def get_extra_state(self) -> dict[str, Any]:
        """Return all but the gate, as plain values and tensors."""
        return {**described(self), "experts": self.table.state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` returned.

        Raises:
            SuiteError: It is of another format, base model or kind of bank.
        """
        self.restore(matching_records(self, state), state["experts"])
        self.calibration = dict(state.get("calibration", {}))
        self.trained = dict(state.get("training", {}))

    def restore(self, records: Sequence[EditRecord], experts: Mapping[str, Tensor]) -> None:
        """Replace history and experts; the gate is not touched.

        Raises:
            SuiteError: The records contradict each other or do not fit the experts.
        """
        expected = {name: (len(records), *shape) for name, shape in self.table.shapes.items()}
        found = {name: tuple(tensor.shape) for name, tensor in experts.items()}
        dtypes = {tensor.dtype for tensor in experts.values()}
        if found != expected or dtypes != {DTYPES[self.dtype]}:
            raise SuiteError(
                f"the stored experts are {found} in {dtypes}, expected {expected} in {self.dtype}."
            )
        history = History(records)
        self.table = self._empty_table()
        self.table.load(experts)
        self.history = history

    def _empty_table(self) -> ExpertTable:
        shapes = expert_shapes(self.expert, self.base.d_in, self.base.d_out, self.rank)
        return ExpertTable(shapes, DTYPES[self.dtype])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change gate, experts and history in the block; if it raises, all three are as before."""
        table, size, records = self.table, len(self.table), [*self.history.records]
        try:
            with lasting(), self.gate.changing():
                yield
        except BaseException:
            self.table, self.history = table, History(records)
            table.shorten(size)
            raise
