"""What a training's feature dynamics were so far, and the weights that they are measured from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_suite.depth_mup.probe import StreamProbe, fingerprint
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder

_VERSION = 1
_WHOLE = ("step", "block")  # columns that are counted, not measured


class DynamicsRecord:
    """The curves of all measured steps, and the reference; both outlive a kill in a checkpoint.

    Args:
        rows: Of an earlier fit that this one may go on from.

    Attributes:
        rows: One for each block of each measured step.
        reference: The weights at the start by clean full name; none before :meth:`start`.
        reference_step: Optimizer steps before them.
    """

    def __init__(self, rows: Iterable[dict[str, float]] = ()) -> None:
        self.rows = list(rows)
        self.reference: Mapping[str, Tensor] = {}
        self.reference_step = 0

    def start(
        self,
        probe: StreamProbe,
        step: int,
        saved: Mapping[str, Any] | None = None,
        built: Mapping[str, Tensor] | None = None,
        device: str | None = None,
    ) -> str:
        """Take the reference, and keep the rows of the steps before: of a resume those it saved.

        Args:
            probe: Of the model, whose weights are those of ``step`` by now.
            step: Optimizer steps so far.
            saved: :meth:`state` of the training that is resumed; None where one begins.
            built: The weights of the model as it was built, before a checkpoint was loaded.
            device: Where the reference is kept; None where the weights are.

        Returns:
            A warning where the start of the resumed training is lost, or nothing.
        """
        if saved is not None and not saved["fingerprint"]:  # saved before its training began
            saved = None
        if saved is not None:
            self.take_over(saved)
        self.rows = [row for row in self.rows if row["step"] < step]
        if saved is not None:
            start: Mapping[str, Tensor] = saved.get("reference") or built or {}
            if fingerprint(start) == saved["fingerprint"]:
                matrices = probe.matrices()
                self.reference = {
                    name: w.to(device or matrices[name].device) for name, w in start.items()
                }
                return ""
        self.reference_step, self.reference = step, probe.snapshot(device)
        return "" if saved is None else _LOST.format(step=step)

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take the rows of a training that is resumed, and the step that they are measured from.

        Args:
            saved: :meth:`state` of that training.
        """
        table = saved.get("table")  # earlier releases have none
        self.rows = table_rows(table) if table else []
        self.reference_step = saved["reference_step"]

    def add(self, step: int, curves: Iterable[Mapping[str, float]]) -> None:
        """Add a measured step; see :meth:`~lightning_suite.depth_mup.dynamics.Dynamics.curves`."""
        self.rows += [{"step": step, **row} for row in curves]

    def state(self, *, with_reference: bool, with_rows: bool) -> dict[str, Any]:
        """Return what a resumed training needs, as plain values and tensors.

        Args:
            with_reference: The weights at the start, and not only their fingerprint.
            with_rows: The rows so far.
        """
        state: dict[str, Any] = {
            "version": _VERSION,
            "reference_step": self.reference_step,
            "fingerprint": fingerprint(self.reference),
            "table": table_state(self.rows if with_rows else ()),
        }
        if with_reference:
            state["reference"] = {name: w.cpu() for name, w in self.reference.items()}
        return state

    def write(self, folder: RunFolder, every_n_steps: int) -> None:
        """Write the rows so far as a table of the run, if there are any.

        Args:
            folder: Of the run.
            every_n_steps: The interval of the measurements, to advise of where it was too long.
        """
        if not self.rows:
            return
        measured = {row["step"] for row in self.rows}
        alone = _ALONE.format(interval=every_n_steps) if measured == {self.reference_step} else ""
        since = f"step {self.reference_step}"
        if any(row["step"] < self.reference_step for row in self.rows):
            since += " (rows before it: since the start of the fit that this one goes on from)"
        folder.add_table(
            "feature_dynamics",
            self.rows,
            title="Feature dynamics by block",
            caption=(
                f"{alone}Against t = l/L, since {since}: RMS of the updates "
                "ΔW1·a (first_update), ΔW2·φ (last_update), ΔW2·Δφ (product), of what they add to "
                "the stream (first_stream, last_stream), relative change of the weights, coupling "
                "cos(h, g), and the smallest eigenvalue of the stream's covariance."
            ),
            section="Feature dynamics",
        )


_ALONE = (
    "So far only the start is measured, where nothing has changed yet: updates, contributions and "
    "changes are 0. The interval is {interval} optimizer steps; a fit of fewer needs a smaller "
    "`every_n_steps`. "
)
_LOST = (
    "the model was not built with the weights that the checkpoint's run started from, so changes "
    "are measured from step {step} on. Set the same seed before building the model, or use "
    "save_reference=True in the first run."
)


def check_version(state: Mapping[str, Any], owner: str) -> None:
    """Refuse a state of another release's form.

    Args:
        state: :meth:`DynamicsRecord.state`.
        owner: Whose it is.

    Raises:
        SuiteError: It is of another version.
    """
    if state.get("version") != _VERSION:
        raise SuiteError(
            f"the checkpoint's {owner} state is of version {state.get('version')}, and this "
            f"release reads version {_VERSION}."
        )


def table_state(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return rows of numbers, all with the same columns, as their names and one float64 tensor."""
    columns = list(rows[0]) if rows else []
    values = [[float(row[name]) for name in columns] for row in rows]
    return {"columns": columns, "values": torch.tensor(values, dtype=torch.float64)}


def table_rows(state: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the rows of :func:`table_state`."""
    rows = [dict(zip(state["columns"], row, strict=True)) for row in state["values"].tolist()]
    for row in rows:
        row.update({name: int(row[name]) for name in _WHOLE if name in row})
    return rows
