"""VerbAgg as a set of domains: what is asked of a situation that nobody has been asked about?

Its 24 items are 4 situations by 2 modes (wanting to, doing it) by 3 behaviours. Each situation
becomes a domain with skills of its own, so that neither an item nor a skill of the test is known
from training: what they have in common with known ones is said by their texts and names alone.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from lightning_suite.datamodules.cold_start_packaged import read_packaged

WHERE = {
    "S1": "when a bus fails to stop for you",
    "S2": "when you miss a train through a clerk's faulty information",
    "S3": "when the grocery store closes as you are about to enter",
    "S4": "when the operator disconnects your call after your last coins",
}


def write_situations(folder: Path) -> str:
    """Write VerbAgg with the skills of each situation as a domain, in the plain format.

    Returns:
        The folder.
    """
    answers, exercises, kcs = read_packaged("VerbAgg")
    names = {kc.id: kc.name for kc in kcs}
    skills: dict[str, tuple[str, str]] = {}
    items = []
    for item in exercises:
        situation = item.id[:2]
        own = [kc for kc in item.kcs if kc not in ("other", "self")]  # who is to blame
        for kc in own:
            skills[f"{situation} {kc}"] = (f"{names[kc]} {WHERE[situation]}", situation)
        items.append((item.id, item.text, ";".join(f"{situation} {kc}" for kc in own)))
    folder.mkdir(parents=True, exist_ok=True)
    write(
        folder / "interactions.csv",
        ("student_id", "exercise_id", "correct"),
        [(answer.student, answer.exercise, answer.correct) for answer in answers],
    )
    write(folder / "exercises.csv", ("exercise_id", "text", "kc_ids"), items)
    write(
        folder / "kcs.csv",
        ("kc_id", "name", "parent_id", "domain"),
        [(key, name, "", domain) for key, (name, domain) in skills.items()],
    )
    return str(folder)


def write(file: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([header, *rows])
