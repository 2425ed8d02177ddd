"""Damaged sweeps, measurements, caches, checkpoints and GGUF files."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import bytes_of, fuzz, json_of, nothing_half_written, read_or_refused, text_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_gguf

from lightning_suite.cli.checkpoints import read_checkpoint
from lightning_suite.cli.coord_check_runs import read_store
from lightning_suite.depth_mup.lr_transfer import Grid, RuleChoice, RunResult, plan
from lightning_suite.depth_mup.sweep_store import SweepStore
from lightning_suite.errors import SuiteError
from lightning_suite.language.gguf import RECORD, _is_whole, converted
from lightning_suite.language.gguf_header import check_gguf
from lightning_suite.language.loading import read_config
from lightning_suite.scen import calibrated

# --- sweeps ---------------------------------------------------------------------------------------

SETTINGS = {"net": {"width": 16, "depths": [2, 4]}, "steps": 40, "rules": ["sp"]}
GRID = Grid((RuleChoice.parse("sp"),), (2,), (-3.0, -2.0), (0,), 2)
CHUNK = plan(GRID, lambda depth: 8)[0]
RESULTS = [
    RunResult("sp", 2, point.log2_lr, point.seed, 0.5, 0.6, 0.7, None) for point in CHUNK.points
]


@fuzz(30, 500)
@given(json_of(SETTINGS))
def test_the_settings_of_a_sweep(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    with read_or_refused("sweep.json", tmp_path):
        SweepStore(tmp_path, SETTINGS)
    mine = SweepStore(tmp_path / "mine", SETTINGS)
    with read_or_refused("sweep.json", tmp_path):
        mine.merge(tmp_path)
    nothing_half_written(tmp_path)


def chunk_text(folder: Path) -> str:
    store = SweepStore(folder, SETTINGS)
    store.write(CHUNK, RESULTS)
    return next((folder / "chunks").iterdir()).read_text()


@fuzz(40, 700)
@given(data=st.data())
def test_chunks_of_a_sweep(tmp_path: Path, data: st.DataObject) -> None:
    text = chunk_text(tmp_path)
    file = next((tmp_path / "chunks").iterdir())
    file.write_bytes(data.draw(text_of(text)))
    with read_or_refused(file):
        found = SweepStore(tmp_path, SETTINGS).read(CHUNK)
        assert found is not None
        assert [asdict(r)["log2_lr"] for r in found] == [p.log2_lr for p in CHUNK.points]


@fuzz(20, 300)
@given(json_of({"settings": SETTINGS, "runs": {"depth/sp/2/0": [{"step": 1, "rms": 0.5}]}}))
def test_measurements_of_a_coordinate_check(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "coord_check.json"
    file.write_bytes(content)
    with read_or_refused(file):
        read_store(file)


# --- caches ---------------------------------------------------------------------------------------

FOUND = {"layer": "model.layers.1.mlp.down_proj", "lr": 0.03, "trials": [{"lr": 0.03}], "data": "f"}


@fuzz(20, 300)
@given(content=json_of({"key": "k", "found": FOUND}))
def test_a_damaged_calibration_is_found_again(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "lightning-suite/calibration/k.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    with read_or_refused():
        found = calibrated._kept("k", "layer", lambda: dict(FOUND))
        assert isinstance(found["layer"] if "layer" in found else found["probe"], str)
        assert isinstance(found["data"], str)
    nothing_half_written(tmp_path)


@fuzz(20, 300)
@given(json_of({"format": 1, "sha256": "k", "sizes": {"config.json": 2}}))
def test_a_damaged_record_of_an_unpacked_model_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / RECORD).write_bytes(content)
    with read_or_refused():
        assert _is_whole(tmp_path, "k") in (True, False)


@fuzz(20, 300)
@given(json_of({"model_type": "llama", "hidden_size": 8}))
def test_configurations_of_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with read_or_refused("config.json"):
        assert isinstance(read_config(tmp_path), dict)


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(3)}, "callbacks": {}, "epoch": 1}, file)
    return file.getvalue()


@fuzz(40, 700)
@given(bytes_of(checkpoint(), most=6))
def test_checkpoints(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.ckpt").write_bytes(content)
    # torch's own unpickler of plain values looks up the few names that it allows
    with read_or_refused("c.ckpt"):
        read_checkpoint(str(tmp_path / "c.ckpt"))


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("packed", "message"),
    [(True, "holds more than tensors and plain values"), (False, "is damaged, or no checkpoint")],
    ids=["in torch's archive", "a bare pickle"],
)
def test_a_checkpoint_runs_nothing(
    tmp_path: Path, packed: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if packed:
        torch.save({"state_dict": Bomb()}, "c.ckpt")
    else:
        Path("c.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(SuiteError, match=f"c.ckpt.* {message}"):
        read_checkpoint("c.ckpt")
    assert not Path("exploded").exists()


# --- GGUF -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "m.gguf")
    return (folder / "m.gguf").read_bytes()


@st.composite
def damaged_gguf(draw: st.DrawFn, content: bytes) -> bytes:
    """Damage bytes of the header, or write a huge number over eight of them."""
    header = 12_000  # letters and numbers; the weights follow
    if draw(st.booleans()):
        return draw(bytes_of(content[:header], most=4)) + content[header:]
    at = draw(st.integers(4, header))
    number = draw(st.sampled_from([2**60, 2**63, 2**64 - 1, 2**32, 2**31 - 1, 0]))
    return content[:at] + struct.pack("<Q", number) + content[at + 8 :]


@fuzz(40, 900)
@given(data=st.data())
def test_headers(tmp_path: Path, gguf: bytes, data: st.DataObject) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(data.draw(damaged_gguf(gguf)))
    with read_or_refused(file):
        check_gguf(file)


@fuzz(2, 60)
@given(data=st.data())
def test_models(
    tmp_path: Path, gguf: bytes, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(data.draw(damaged_gguf(gguf)))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with read_or_refused(file):
        converted(file, tmp_path / "cache")
    nothing_half_written(tmp_path)


def test_a_header_that_claims_more_than_the_file_has_is_refused_at_once(
    tmp_path: Path, gguf: bytes
) -> None:
    file = tmp_path / "m.gguf"
    for at, what in ((8, "tensors"), (16, "fields")):
        file.write_bytes(gguf[:at] + struct.pack("<Q", 2**60) + gguf[at + 8 :])
        with pytest.raises(SuiteError, match=rf"m.gguf: .*it says 1,152,921,.* {what}"):
            check_gguf(file)


def test_a_model_of_more_layers_than_there_are_tensors_is_refused(
    tmp_path: Path, gguf: bytes
) -> None:
    name = b"llama.block_count"
    at = gguf.index(name) + len(name) + 4
    assert json.loads(str(struct.unpack_from("<I", gguf, at)[0])) == 2
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf[:at] + struct.pack("<I", 2**31) + gguf[at + 4 :])
    with pytest.raises(SuiteError, match=r"block_count is 2147483648, and there are 20 tensors"):
        check_gguf(file)
