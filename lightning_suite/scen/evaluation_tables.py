"""The tables of an evaluation; :mod:`lightning_suite.scen.evaluation` says what is in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_suite.files import atomic_write
from lightning_suite.run_folder import RunFolder
from lightning_suite.scen.answers import contains_answer
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.evaluation import EDIT, REPHRASE, ScoredPrompt, finite
from lightning_suite.scen.records import EditRecord

OUTCOMES = ("right", "wrong", "missed", "false_fire", "quiet")
SECTION = "Edits"


def curve_rows(rows: Sequence[ScoredPrompt]) -> list[dict[str, Any]]:
    """Return the rows of ``scen_curve.csv``."""
    groups: dict[tuple[str, int], list[ScoredPrompt]] = {}
    for row in rows:
        groups.setdefault((row.system, row.edits), []).append(row)
    out = []
    for (system, edits), group in groups.items():
        for (metric, kind), (value, count) in _measures(group).items():
            out.append(
                {
                    "system": system,
                    "edits": edits,
                    "metric": metric,
                    "kind": kind,
                    "value": value,
                    "count": count,
                }
            )
    return out


def summary_rows(rows: Sequence[ScoredPrompt]) -> list[dict[str, Any]]:
    """Return the rows of ``scen_summary.csv``: each system after all its edits."""
    kinds = dict.fromkeys(row.kind for row in rows if row.local)
    out = []
    for system, group in _final(rows).items():
        found = _measures(group)
        names = {
            "reliability": ("reliability", ""),
            "generality": ("generality", ""),
            "locality": ("locality", ""),
            **{f"locality_{kind}": ("locality", kind) for kind in kinds},
            "reliability_contained": ("reliability_contained", ""),
            "generality_contained": ("generality_contained", ""),
        }
        values = {name: found[key][0] if key in found else "" for name, key in names.items()}
        out.append({"system": system, "edits": group[0].edits, **values})
    return out


def gate_rows(rows: Sequence[ScoredPrompt]) -> list[dict[str, Any]]:
    """Return the rows of ``scen_gate.csv``: what the gates did after all edits."""
    out = []
    for system, group in _final(rows).items():
        for kind in dict.fromkeys(row.kind for row in group if row.gate):
            counts = Counter(row.gate for row in group if row.kind == kind)
            outcomes = {outcome: counts[outcome] for outcome in OUTCOMES}
            out.append({"system": system, "kind": kind, **outcomes})
    return out


def edit_rows(
    rows: Sequence[ScoredPrompt],
    edits: Iterable[Edit],
    teacher_forced: Mapping[str, tuple[float, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of ``scen_edits.csv``: each edit of the first system, after all edits.

    Args:
        rows: Scored prompts.
        edits: The edits.
        teacher_forced: Token accuracy and NLL of the targets by edit id, where computed.
    """
    final = _final(rows)
    by_edit: dict[str, list[ScoredPrompt]] = {}
    for row in next(iter(final.values()), []):
        by_edit.setdefault(row.edit_id, []).append(row)
    out = []
    for edit in edits:
        group = by_edit.get(edit.id, [])
        own = next((row for row in group if row.kind == EDIT), None)
        if own is None:
            continue
        rephrases = [row.correct for row in group if row.kind == REPHRASE]
        local = [row.correct for row in group if row.local]
        out.append(
            {
                "edit_id": edit.id,
                "subject": edit.subject or "",
                "prompt": edit.prompt,
                "target": edit.target,
                "before": own.before,
                "after": own.after,
                "correct": own.correct,
                "rephrases": len(rephrases),
                "rephrases_right": sum(rephrases),
                "locality": len(local),
                "locality_kept": sum(local),
                "margin": own.margin,
            }
        )
        if teacher_forced is not None:
            accuracy, nll = teacher_forced[edit.id]
            out[-1] |= {"teacher_forced_accuracy": accuracy, "teacher_forced_nll": nll}
    return out


def write_evaluation(
    folder: RunFolder,
    rows: Sequence[ScoredPrompt],
    edits: Sequence[Edit],
    teacher_forced: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the tables that the module's docstring describes.

    Args:
        folder: Of the run.
        rows: From `learning_curve`, of one or several systems; the first is the main one.
        edits: The edits that were scored.
        teacher_forced: See `edit_rows`.
    """
    folder.add_table(
        "scen_summary",
        summary_rows(rows),
        title="After all edits",
        caption="Generated until the model stops, compared by normalised exact match. Reliability: "
        "the edits' own prompts; generality: rephrases never seen in editing; locality: other "
        "prompts keep the unedited model's answer. “Contained” also takes answers in which the "
        "target occurs.",
        section=SECTION,
    )
    folder.add_table(
        "scen_curve",
        curve_rows(rows),
        title="As a function of the number of edits",
        caption="After n edits the prompts of the first n are scored.",
        section=SECTION,
    )
    if gates := gate_rows(rows):
        folder.add_table(
            "scen_gate",
            gates,
            title="What the gate decided",
            caption="Prompts of an edit reach the right expert, a wrong one, or are missed; "
            "prompts that must keep their answers are left alone (quiet) or not (false fire).",
            section=SECTION,
        )
    folder.add_table(
        "scen_edits",
        edit_rows(rows, edits, teacher_forced),
        title="The edits",
        caption="Answers before and after, and how many rephrases and neighbours are right.",
        section=SECTION,
    )
    columns = [name for name in ScoredPrompt.__dataclass_fields__ if name != "edits"]
    final = [row for group in _final(rows).values() for row in group]
    folder.add_table(
        "scen_prompts",
        ({name: getattr(row, name) for name in columns} for row in final),
        title="Every prompt",
        caption="All prompts after all edits, with the gate's decision.",
        section=SECTION,
        columns=columns,
    )


def write_training(folder: RunFolder, records: Sequence[EditRecord]) -> None:
    """Write ``scen_training.csv``: how the expert of each live edit was trained.

    ``edit_id``, ``prompt``, ``target``, ``version``, and what training noted: ``loss`` (of the
    target with the trained expert), ``steps``, ``learned`` (1: every token of it is the likeliest).
    """
    folder.add_table(
        "scen_training",
        (
            {
                "edit_id": record.edit.id,
                "prompt": record.edit.prompt,
                "target": record.edit.target,
                "version": record.version,
                **{name: record.notes.get(name, "") for name in ("loss", "steps", "learned")},
            }
            for record in records
            if record.status == "live"
        ),
        title="Training of the experts",
        caption="Cross-entropy of the target with the trained expert (nats a token), optimizer "
        "steps, and whether every token of the target is then the likeliest.",
        section=SECTION,
    )


def write_answers(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``scen_answers.csv`` and ``answers.jsonl``: questions that were only asked.

    ``prompt``, ``before`` (the unedited model's answer), ``answer``, ``finished``, ``fired`` (id
    of the edit that answered; null or empty: the base model did), ``nearest``, ``score``,
    ``margin`` (null or empty: there was no candidate).

    Returns:
        Path of ``answers.jsonl``.
    """
    plain = [{name: finite(value) for name, value in row.items()} for row in rows]
    path = folder.artifacts / "answers.jsonl"
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in plain)
    folder.add_table(
        "scen_answers",
        plain,
        title="Answers",
        caption="Which edit answered each question, which came nearest, and by what margin.",
        section=SECTION,
    )
    return path


def shown_answers(rows: Sequence[Mapping[str, Any]], path: Path | None, most: int = 20) -> str:
    """Return the first answers for the terminal, and where all are.

    Args:
        rows: As for :func:`write_answers`.
        path: Of ``answers.jsonl``; None where nothing was written.
        most: Rows to show.

    Returns:
        Lines ``prompt -> answer [edit ID]``, with ``[-]`` where the base model answered.
    """
    lines = [
        f"{_one_line(row['prompt'])} -> {_one_line(row['answer'])} "
        + ("[-]" if row["fired"] is None else f"[edit {row['fired']}]")
        for row in rows[:most]
    ]
    if len(rows) > most:
        lines.append(f"… and {len(rows) - most:,} more")
    if path is not None:
        lines.append(f"Answers: {path}")
    return "\n".join(["", *lines])


def _final(rows: Sequence[ScoredPrompt]) -> dict[str, list[ScoredPrompt]]:
    """Return the rows of each system at its largest number of edits."""
    most = {row.system: 0 for row in rows}
    for row in rows:
        most[row.system] = max(most[row.system], row.edits)
    return {
        system: [row for row in rows if row.system == system and row.edits == count]
        for system, count in most.items()
    }


def _measures(rows: Sequence[ScoredPrompt]) -> dict[tuple[str, str], tuple[float, int]]:
    """Return value and count by metric and kind of locality; a metric without prompts is absent."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.local:
            groups.setdefault(("locality", ""), []).append(row.correct)
            groups.setdefault(("locality", row.kind), []).append(row.correct)
        else:
            metric = "reliability" if row.kind == EDIT else "generality"
            groups.setdefault((metric, ""), []).append(row.correct)
            found = contains_answer(row.after, row.target)
            groups.setdefault((f"{metric}_contained", ""), []).append(int(found))
    return {key: (sum(hits) / len(hits), len(hits)) for key, hits in groups.items()}


def _one_line(text: str) -> str:
    return " ".join(text.split())
