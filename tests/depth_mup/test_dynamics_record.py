"""A training that is resumed goes on with the rows and the reference that it had."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_suite.depth_mup.dynamics_record import (
    DynamicsRecord,
    check_version,
    table_rows,
    table_state,
)
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.probe import StreamProbe
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder

ROWS = [{"step": 0, "block": 1, "coupling": 0.1}, {"step": 4, "block": 1, "coupling": math.pi}]


def probe(seed: int) -> StreamProbe:
    torch.manual_seed(seed)
    net = ResidualMLP(4, 2, width=8, depth=2, readout_init="normal")
    return StreamProbe(net, assign_roles(net))


def begun() -> DynamicsRecord:
    record = DynamicsRecord()
    assert record.start(probe(0), 0) == ""
    for row in ROWS:
        record.add(int(row["step"]), [{"block": 1, "coupling": row["coupling"]}])
    return record


def state(record: DynamicsRecord, *, with_reference: bool = False) -> dict[str, Any]:
    return record.state(with_reference=with_reference, with_rows=True)


def test_rows_come_back_bit_by_bit_and_counts_stay_whole() -> None:
    assert table_rows(table_state(ROWS)) == ROWS
    assert type(table_rows(table_state(ROWS))[1]["step"]) is int
    assert math.isnan(table_rows(table_state([{"step": 0, "coupling": math.nan}]))[0]["coupling"])
    assert table_rows(table_state([])) == []


def test_steps_that_are_made_again_are_measured_again() -> None:
    resumed = DynamicsRecord()
    assert resumed.start(probe(1), 4, state(begun()), probe(0).snapshot()) == ""
    assert resumed.rows == ROWS[:1]


def test_a_fit_that_goes_on_keeps_the_rows_before_it_and_a_new_one_begins_without() -> None:
    goes_on, new = DynamicsRecord(ROWS), DynamicsRecord(ROWS)
    goes_on.start(probe(1), 5)
    new.start(probe(1), 0)
    assert (goes_on.rows, new.rows) == (ROWS, [])


@pytest.mark.parametrize("saved", [True, False])
def test_the_reference_is_the_one_saved_or_the_model_as_it_was_built(saved: bool) -> None:
    first, resumed = begun(), DynamicsRecord()
    built = probe(2 if saved else 0).snapshot()
    assert resumed.start(probe(1), 5, state(first, with_reference=saved), built) == ""
    assert resumed.reference_step == 0
    for name, weight in first.reference.items():
        assert torch.equal(resumed.reference[name], weight)


def test_where_the_start_is_lost_the_rows_stay_and_the_table_says_so(tmp_path: Path) -> None:
    resumed = DynamicsRecord()
    lost = resumed.start(probe(1), 5, state(begun()), probe(2).snapshot())
    assert "measured from step 5 on" in lost
    assert resumed.reference_step == 5
    resumed.write(RunFolder(tmp_path), every_n_steps=100)
    with (tmp_path / "artifacts" / "feature_dynamics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "4"]
    (table,) = RunFolder(tmp_path).index()
    assert "since step 5 (rows before it: since the start of the fit" in table.caption


def test_a_state_from_before_training_holds_no_start() -> None:
    record = DynamicsRecord()
    assert record.start(probe(1), 0, state(DynamicsRecord()), probe(0).snapshot()) == ""
    assert record.reference_step == 0
    for name, weight in probe(1).snapshot().items():
        assert torch.equal(record.reference[name], weight)


def test_a_state_without_rows_is_of_an_earlier_release_and_goes_on() -> None:
    earlier = {k: v for k, v in state(begun()).items() if k != "table"}
    resumed = DynamicsRecord()
    assert resumed.start(probe(1), 5, earlier, probe(0).snapshot()) == ""
    assert resumed.rows == []


def test_another_form_is_refused_by_version() -> None:
    with pytest.raises(SuiteError, match="Monitor state is of version 9, and this release reads"):
        check_version({"version": 9}, "Monitor")
