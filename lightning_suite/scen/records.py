"""What a bank remembers of its edits: the history in which every change can be undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.scen.edits import Edit

Status = Literal["live", "replaced", "removed"]
_STATUSES = ("live", "replaced", "removed")
_LISTS = ("aliases", "paraphrases")
_STORED = ("id", "prompt", "target", "subject", "aliases", "paraphrases")


@dataclass(frozen=True)
class EditRecord:
    """One slot of a bank.

    Attributes:
        edit: As it was given to the method; what is for evaluation only is not kept.
        version: 1 for a first edit, one more than the version it replaces.
        status: ``"live"``, ``"replaced"`` by a later version or, rolled back, by the one before, or
            ``"removed"``.
        replaces: Slot of the version before.
        notes: What training said, such as its final loss; numbers and words.
    """

    edit: Edit
    version: int = 1
    status: Status = "live"
    replaces: int | None = None
    notes: Mapping[str, float | str] = field(default_factory=dict)


def same_prompt(prompt: str) -> str:
    """Return what two prompts share that ask the same, up to spaces and capitals."""
    return " ".join(prompt.casefold().split())


def stored_edit(edit: Edit) -> Edit:
    """Return ``edit`` without what is kept for evaluation."""
    return replace(edit, rephrases=(), locality=())


class History:
    """Records by slot, and which of them are live.

    Args:
        records: In the order of their slots.

    Raises:
        SuiteError: Two live records have one id or one prompt.
    """

    def __init__(self, records: Sequence[EditRecord] = ()) -> None:
        self.records = list(records)
        self._by_id: dict[str, int] = {}
        self._by_prompt: dict[str, int] = {}
        for slot, record in enumerate(self.records):
            if record.replaces is not None and not 0 <= record.replaces < slot:
                raise SuiteError(f"record {slot} replaces slot {record.replaces}, before it.")
            if record.status == "live":
                self._enter(slot)

    def live(self) -> list[int]:
        """Return the live slots in order."""
        return sorted(self._by_id.values())

    def slot(self, edit_id: str) -> int:
        """Return the slot of a live edit.

        Raises:
            SuiteError: No live edit has that id.
        """
        if edit_id not in self._by_id:
            if any((r.edit.id, r.status) == (edit_id, "removed") for r in self.records):
                raise SuiteError(
                    f"the bank has no live edit {edit_id!r}: it was removed, and "
                    "`lightning-suite bank rollback` brings it back."
                )
            raise SuiteError(
                f"the bank has no live edit {edit_id!r}.{did_you_mean(edit_id, self._by_id)} "
                "`lightning-suite bank list` shows the ids."
            )
        return self._by_id[edit_id]

    def replaced_by(self, edits: Sequence[Edit], *, update: bool = False) -> list[int | None]:
        """Return the live slot that each new edit would replace, None where there is none.

        An edit replaces the one with the same prompt, and, in an update, the one with its id. What
        an update gives another prompt leaves its old one to the other ``edits``.

        Raises:
            SuiteError: A target or prompt is empty; two of ``edits`` have one id or one prompt; an
                id is taken by an edit with another prompt and this is no update; an edit would
                replace two others.
        """
        ids: dict[str, str] = {}
        prompts: dict[str, Edit] = {}
        found: list[int | None] = []
        freed = {self._by_id.get(edit.id) for edit in edits} if update else set()
        for edit in edits:
            for name in ("id", "prompt", "target"):
                if not getattr(edit, name).strip():
                    raise SuiteError(f"edit {edit.id!r}: its {name} is empty.")
            if edit.id in ids:
                raise SuiteError(f"two edits have the id {edit.id!r}; ids must be unique.")
            other = prompts.get(same_prompt(edit.prompt))
            if other is not None:
                raise SuiteError(
                    f"edits {other.id!r} (-> {other.target!r}) and {edit.id!r} "
                    f"(-> {edit.target!r}) have the same prompt {edit.prompt!r}. Keep one."
                )
            ids[edit.id] = edit.prompt
            prompts[same_prompt(edit.prompt)] = edit
            found.append(self._replaced(edit, update, freed))
        return found

    def extend(self, records: Sequence[EditRecord]) -> None:
        """Add live records in new slots; what they replace is no longer live."""
        for record in records:
            if record.replaces is not None:
                self._leave(record.replaces, "replaced")
        for record in records:
            self.records.append(record)
            self._enter(len(self.records) - 1)

    def remove(self, slot: int) -> None:
        """Take a live record out; it stays for :meth:`undo`."""
        self._leave(slot, "removed")

    def take_back(self, slot: int) -> None:
        """Take a live record out for good: the version before it counts again."""
        self._leave(slot, "replaced")

    def undo(self, edit_id: str) -> tuple[int | None, int | None]:
        """Find what undoing the last change of an edit takes away and what it brings back.

        Nothing is changed.

        Returns:
            The live slot that goes, None if the edit was removed; the slot that comes back.

        Raises:
            SuiteError: The edit is unknown or has no earlier version, or the prompt or id of what
                would come back now belongs to another edit.
        """
        if edit_id in self._by_id:
            slot = self._by_id[edit_id]
            before = self.records[slot].replaces
            if before is None:
                raise SuiteError(
                    f"edit {edit_id!r} has no earlier version; to take it out, remove it."
                )
            self._check_free(before, slot)
            return slot, before
        removed = [
            slot
            for slot, record in enumerate(self.records)
            if record.edit.id == edit_id and record.status == "removed"
        ]
        if not removed:
            known = [record.edit.id for record in self.records]
            raise SuiteError(
                f"the bank has no edit {edit_id!r} to roll back.{did_you_mean(edit_id, known)}"
            )
        self._check_free(removed[-1], None)
        return None, removed[-1]

    def revive(self, slot: int) -> None:
        """Make a record live again."""
        self.records[slot] = replace(self.records[slot], status="live")
        self._enter(slot)

    def _replaced(self, edit: Edit, update: bool, freed: Set[int | None]) -> int | None:
        by_prompt = self._by_prompt.get(same_prompt(edit.prompt))
        by_id = self._by_id.get(edit.id)
        if by_prompt in freed and by_prompt != by_id:
            by_prompt = None  # another of the new edits takes its place
        if by_id is None or by_id == by_prompt:
            return by_prompt
        if by_prompt is not None:
            raise SuiteError(
                f"edit {edit.id!r} has the prompt of {self.records[by_prompt].edit.id!r}, and the "
                "bank has another edit of its id. Remove one of them first."
            )
        if not update:
            raise SuiteError(
                f"edit {edit.id!r}: the bank has an edit of this id, with the prompt "
                f"{self.records[by_id].edit.prompt!r}. Take another id, or update it."
            )
        return by_id

    def _check_free(self, back: int, gone: int | None) -> None:
        """Refuse to bring back an edit whose prompt or id is another's, once ``gone`` is out."""
        edit = self.records[back].edit
        for what, key, holder in (
            ("prompt", edit.prompt, self._by_prompt.get(same_prompt(edit.prompt), gone)),
            ("id", edit.id, self._by_id.get(edit.id, gone)),
        ):
            if holder != gone:
                assert holder is not None
                other = self.records[holder].edit
                raise SuiteError(
                    f"edit {edit.id!r}: its {what} belongs to {other.id!r} now ({other.prompt!r}), "
                    f"so the version with the {what} {key!r} cannot come back. Remove that one "
                    "first."
                )

    def _enter(self, slot: int) -> None:
        edit = self.records[slot].edit
        for index, key in ((self._by_id, edit.id), (self._by_prompt, same_prompt(edit.prompt))):
            if key in index:
                raise SuiteError(f"two live edits have the id or prompt {key!r}.")
            index[key] = slot

    def _leave(self, slot: int, status: Status) -> None:
        edit = self.records[slot].edit
        del self._by_id[edit.id], self._by_prompt[same_prompt(edit.prompt)]
        self.records[slot] = replace(self.records[slot], status=status)


def to_plain(record: EditRecord) -> dict[str, Any]:
    """Return a record as plain values, for JSON and checkpoints."""
    edit = {name: getattr(record.edit, name) for name in _STORED}
    edit |= {name: list(edit[name]) for name in _LISTS}
    return {
        **edit,
        "version": record.version,
        "status": record.status,
        "replaces": record.replaces,
        "notes": dict(record.notes),
    }


def from_plain(value: Mapping[str, Any]) -> EditRecord:
    """Return the record that :func:`to_plain` has written.

    Raises:
        SuiteError: A key is missing, unknown or of another type.
    """
    value = {"aliases": [], **value}  # banks of earlier versions have none
    known = {*_STORED, *(item.name for item in fields(EditRecord))} - {"edit"}
    if set(value) != known:
        raise SuiteError(f"an edit has the keys {sorted(value)}, expected {sorted(known)}.")
    lists = [value[name] for name in _LISTS]
    texts = [value["id"], value["prompt"], value["target"]]
    texts += [text for of in lists if isinstance(of, (list, tuple)) for text in of]
    slots = (int, type(None))
    if (
        not all(isinstance(of, (list, tuple)) for of in lists)
        or not all(isinstance(text, str) for text in texts)
        or not isinstance(value["subject"], (str, type(None)))
        or type(value["version"]) is not int
        or type(value["replaces"]) not in slots
        or value["status"] not in _STATUSES
        or not isinstance(value["notes"], Mapping)
        or not all(isinstance(note, (int, float, str)) for note in value["notes"].values())
    ):
        raise SuiteError(f"edit {value['id']!r} has a value of the wrong type.")
    if not all(value[name].strip() for name in ("id", "prompt", "target")):
        raise SuiteError(f"edit {value['id']!r} has no id, prompt or target.")
    edit = Edit(
        id=value["id"],
        prompt=value["prompt"],
        target=value["target"],
        subject=value["subject"],
        paraphrases=tuple(value["paraphrases"]),
        aliases=tuple(value["aliases"]),
    )
    return EditRecord(
        edit, value["version"], value["status"], value["replaces"], dict(value["notes"])
    )
