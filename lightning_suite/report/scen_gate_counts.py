"""How many questions an edit answered, as the gates decided: from the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_suite.report.scen_figures import OUTCOMES, read_rows

_FIRED = ("right", "wrong", "false_fire")


class GateCounts(NamedTuple):
    """Decisions of the gates of one system.

    Attributes:
        questions: Prompts that the gates decided on.
        fired: Of these, those that an edit answered; the base model answered the others.
        edits: Different edits among these; None where the tables do not tell.
    """

    questions: int
    fired: int
    edits: int | None


def gate_counts(tables: Mapping[str, Path]) -> GateCounts | None:
    """Count the decisions: of questions that were asked, or of an evaluation's first system.

    Args:
        tables: CSV files by the name of their artifact.

    Returns:
        None where no gate decided anything.

    Raises:
        SuiteError: A table cannot be read or lacks a column.
        ValueError: A count is not a number.
    """
    if answers := read_rows(tables, "scen_answers", ("fired",)):
        fired = [row["fired"] for row in answers if row["fired"]]
        return GateCounts(len(answers), len(fired), len(set(fired)))
    gates = read_rows(tables, "scen_gate", ("system", "kind", *OUTCOMES))
    own = [row for row in gates if row["system"] == gates[0]["system"]]
    if not own:
        return None
    total = sum(int(row[outcome]) for row in own for outcome in OUTCOMES)
    return GateCounts(total, sum(int(row[name]) for row in own for name in _FIRED), None)
