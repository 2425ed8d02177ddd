"""Damaged banks of edits: refused, or a bank that can be asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import bytes_of, fuzz, json_of, read_or_refused, value_of, written
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_suite.cli.commands.bank import export, list_edits, show
from lightning_suite.errors import SuiteError
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import load_bank, save_bank
from lightning_suite.scen.editing import expert_settings, make_gate
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.fingerprint import BaseIdentity
from lightning_suite.scen.gates.base import PromptQuery

WIDTH, EDITS = 6, 3
BASE = BaseIdentity(
    "tiny", "layers.0.down_proj", WIDTH, 4, {"hidden_size": 4}, "0" * 64, (1.0, 2.0)
)
_TABLES: dict[str, dict[str, Tensor]] = {
    "keyed": {"keys": torch.eye(EDITS, WIDTH), "thresholds": torch.full((EDITS,), 0.5)},
    "closed": {
        "mean": torch.zeros(WIDTH),
        "matrix": torch.eye(WIDTH),
        "background": torch.ones(2, WIDTH),
        "positives": torch.eye(EDITS, WIDTH),
        "owners": torch.arange(EDITS),
        "lowest": torch.ones(EDITS),
        "hardest": torch.zeros(EDITS),
        "hardest_owner": torch.full((EDITS,), -1),
    },
    "scen": {"states": torch.eye(EDITS, WIDTH), "slots": torch.arange(EDITS)},
    "subject": {
        "features": torch.eye(1, 5),
        "mean": torch.zeros(4),
        "matrix": torch.zeros(4, 5),
        "between": torch.ones(5),
        "thresholds": torch.ones(2),
    },
}
TABLES = {
    "closed": _TABLES["keyed"] | _TABLES["closed"],
    "bce": _TABLES["keyed"] | _TABLES["closed"],
    "scen": _TABLES["keyed"] | _TABLES["scen"],
    "subject": _TABLES["subject"],
}


def write_bank(path: Path, kind: str) -> None:
    """Write a bank of three edits whose gate is filled by hand: no model is needed."""
    gate = make_gate(kind)
    bank = ExpertBank(
        BASE, gate, rank=2, calibration={"experts": {"lr": 0.1, "trials": [{}], "data": "facts"}}
    )
    for name, table in TABLES[kind].items():
        setattr(gate, name, table.clone())
    if kind == "subject":
        state = {**gate.get_extra_state(), "wordings": ["What is X?"]}
        state["edits"] = [[slot, f"{slot}", [0], "a b"] for slot in range(EDITS)]
        gate.set_extra_state(state)
    edits = [Edit(f"e{i}", f"What is {i}?", f"Lyon {i}", subject=f"{i}") for i in range(EDITS)]
    experts = {
        name: torch.ones(EDITS, *shape, dtype=torch.bfloat16)
        for name, shape in bank.table.shapes.items()
    }
    bank.history.extend([_record(edit) for edit in edits])
    bank.table.append(experts)
    save_bank(bank, path)


def _record(edit: Edit) -> Any:
    from lightning_suite.scen.records import EditRecord

    return EditRecord(edit, notes={"loss": 0.5})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole bank of every gate."""
    folder = tmp_path_factory.mktemp("banks")
    for kind in TABLES:
        write_bank(folder / kind, kind)
    return folder


def use(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Do with a bank what can be done without its model."""
    with read_or_refused("b.json", "b.safetensors"):
        list_edits(str(path), all=True)
        show(str(path))
    with read_or_refused("b.json", "b.safetensors", "no live edit 'e1'"):
        show(str(path), id="e1")
    with read_or_refused("b.json", "b.safetensors"):
        export(str(path), "-")
    capsys.readouterr()[0].encode()
    with read_or_refused("b.json", "b.safetensors", "slot", "training"):
        bank = load_bank(path, lambda stored: make_gate(stored.gate))
        expert_settings(bank, {})
        if bank.gate.stage == "layer":
            bank.route(PromptQuery(states=torch.randn(2, bank.base.d_in)))
        bank.experts(bank.history.live())
        for edit in bank.edits[:1]:
            bank.remove([edit.id])


@pytest.mark.parametrize("kind", TABLES)
@fuzz(15, 700)
@given(data=st.data())
def test_what_a_bank_says(
    tmp_path: Path, whole: Path, kind: str, data: st.DataObject, capsys: Any
) -> None:
    said = json.loads((whole / f"{kind}.json").read_text())
    (tmp_path / "b.safetensors").write_bytes((whole / f"{kind}.safetensors").read_bytes())
    (tmp_path / "b.json").write_bytes(data.draw(json_of(said)))
    use(tmp_path / "b", capsys)


@pytest.mark.parametrize("kind", TABLES)
@fuzz(10, 400)
@given(data=st.data(), fitted=st.booleans())
def test_damaged_tensors_even_where_the_hash_was_made_to_fit(
    tmp_path: Path, whole: Path, kind: str, data: st.DataObject, fitted: bool, capsys: Any
) -> None:
    said = json.loads((whole / f"{kind}.json").read_text())
    content = data.draw(bytes_of((whole / f"{kind}.safetensors").read_bytes()))
    if fitted:
        said["tensors"] |= {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (tmp_path / "b.safetensors").write_bytes(content)
    (tmp_path / "b.json").write_text(json.dumps(said))
    use(tmp_path / "b", capsys)


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("bce", "steps", 2**31),
        ("bce", "steps", 1.5),
        ("bce", "hard", 0),
        ("bce", "lr", float("nan")),
        ("bce", "scale", float("inf")),
        ("scen", "steps", -1),
        ("scen", "seed", 2**64),
        ("scen", "theta", True),
    ],
)
def test_settings_with_which_no_gate_was_made_are_named(
    tmp_path: Path, whole: Path, kind: str, setting: str, value: Any
) -> None:
    said = json.loads((whole / f"{kind}.json").read_text())
    said["gate_state"]["_extra_state"][setting] = value
    (tmp_path / "b.safetensors").write_bytes((whole / f"{kind}.safetensors").read_bytes())
    (tmp_path / "b.json").write_text(json.dumps(said))
    with pytest.raises(SuiteError, match=f"setting '{setting}' is .* expected a .*number from"):
        load_bank(tmp_path / "b", lambda stored: make_gate(stored.gate))


SHAPES = st.lists(st.integers(0, 7), max_size=3)


@pytest.mark.parametrize("kind", TABLES)
@fuzz(15, 500)
@given(data=st.data())
def test_tables_of_other_shapes_in_files_that_are_whole(
    tmp_path: Path, whole: Path, kind: str, data: st.DataObject, capsys: Any
) -> None:
    tensors = load_file(whole / f"{kind}.safetensors")
    name = data.draw(st.sampled_from(sorted(tensors)))
    if data.draw(st.booleans()):
        shape = data.draw(SHAPES)
        dtype = data.draw(st.sampled_from([tensors[name].dtype, torch.int64, torch.float64]))
        tensors[name] = torch.full(shape, data.draw(st.integers(-3, 9)), dtype=dtype)
    else:
        tensors[f"gate.{data.draw(st.text('ab.', max_size=3))}"] = tensors.pop(name)
    save_file(tensors, tmp_path / "b.safetensors")
    content = (tmp_path / "b.safetensors").read_bytes()
    said = json.loads((whole / f"{kind}.json").read_text())
    said["gate_state"] = (
        data.draw(value_of(said["gate_state"]))
        if data.draw(st.booleans())
        else (said["gate_state"])
    )
    said["tensors"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "of": {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()},
    }
    (tmp_path / "b.json").write_bytes(written(said).encode("utf-8", "surrogatepass"))
    use(tmp_path / "b", capsys)
