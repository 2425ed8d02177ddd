"""Banks on disk: what was saved comes back; what is not whole, or not ours, is refused."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_gates import TextGate
from safetensors.torch import load_file, save_file

from lightning_suite.errors import SuiteError
from lightning_suite.scen import bank_file
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import (
    bank_exists,
    finish_saving,
    load_bank,
    read_bank,
    save_bank,
)
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.fingerprint import BaseIdentity
from lightning_suite.scen.gates.base import PromptQuery

BASE = BaseIdentity("tiny", "layers.0.down_proj", 6, 4, {"hidden_size": 4}, "0" * 64, (1.0, 2.0))


def made(target: str = "Lyon", count: int = 3) -> ExpertBank:
    bank = ExpertBank(BASE, TextGate(), rank=2)
    edits = [
        Edit(f"e{i}", f"What is {i}?", f"{target} {i}", subject=f"{i}", paraphrases=(f"Say {i}",))
        for i in range(count)
    ]
    generator = torch.Generator().manual_seed(count)
    experts = {
        name: torch.randn(count, *shape, generator=generator)
        for name, shape in bank.table.shapes.items()
    }
    bank.insert(edits, experts, [{"loss": 0.5}] * count)
    return bank


def loaded(path: Path) -> ExpertBank:
    return load_bank(path, lambda _stored: TextGate())


def fired(bank: ExpertBank) -> list[int]:
    return bank.route(PromptQuery(texts=["What is 2?", "Say 0", "Who?"])).expert.tolist()


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["facts", "facts.json", "facts.safetensors", "facts.v1"])
    def test_everything_comes_back(self, tmp_path: Path, name: str) -> None:
        bank = made()
        bank.insert([Edit("e1b", "What is 1?", "Nice")], bank.experts([0]))
        bank.remove(["e0"])
        assert not bank_exists(tmp_path / name)
        written = save_bank(bank, tmp_path / name)
        assert bank_exists(tmp_path / name)
        assert len(list(tmp_path.iterdir())) == 2
        again = loaded(written)
        assert again.history.records == bank.history.records
        assert again.base == bank.base
        assert fired(again) == fired(bank) == [2, -1, -1]
        for key, rows in bank.table.state().items():
            assert torch.equal(again.table.state()[key], rows)
        again.rollback("e1b")
        again.rollback("e0")
        assert [edit.target for edit in again.edits] == ["Lyon 0", "Lyon 1", "Lyon 2"]

    def test_an_empty_bank_comes_back(self, tmp_path: Path) -> None:
        bank = ExpertBank(BASE, TextGate(), expert="full")
        again = load_bank(save_bank(bank, tmp_path / "none"), lambda _: TextGate())
        assert (len(again), again.expert, again.positions) == (0, "full", "all")

    def test_a_loaded_bank_takes_more_edits_and_overwrites_the_file_it_is_read_from(
        self, tmp_path: Path
    ) -> None:
        save_bank(made(), tmp_path / "facts")
        bank = loaded(tmp_path / "facts")
        bank.insert([Edit("more", "More?", "yes")], bank.experts([2]))
        save_bank(bank, tmp_path / "facts")
        again = loaded(tmp_path / "facts")
        assert len(again) == 4
        assert torch.equal(again.experts([3])["a"], made().experts([2])["a"])

    def test_reading_what_a_bank_says_takes_no_tensors(self, tmp_path: Path) -> None:
        save_bank(made(), tmp_path / "facts")
        (tmp_path / "facts.safetensors").unlink()
        stored = read_bank(tmp_path / "facts")
        assert [record.edit.id for record in stored.records] == ["e0", "e1", "e2"]
        assert (stored.gate, stored.settings["rank"]) == ("exact_text", 2)

    def test_experts_stay_on_the_disk_until_they_are_wanted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        psutil = pytest.importorskip("psutil")
        monkeypatch.setattr(bank_file, "HASHED_BYTES", 0)
        one = 2**24
        bank = ExpertBank(replace(BASE, d_in=2048, d_out=2048), TextGate(), expert="full")
        bank.restore(made(count=4).history.records, {"weight": torch.zeros(4, 2048, 2048)})
        save_bank(bank, tmp_path / "big")
        del bank

        def used() -> int:
            return int(psutil.Process().memory_info().rss)

        before = used()
        again = loaded(tmp_path / "big")
        assert used() - before < one / 2
        row = again.experts([2])["weight"]
        assert used() - before < 2.5 * one  # the expert in the file, and its copy
        assert len(row) == 1


class TestSavingIsAllOrNothing:
    def test_a_kill_at_any_moment_leaves_the_old_bank_or_the_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            pass

        real_json, real_replace, real_sync = bank_file.write_json, Path.replace, os.fsync

        def kill(*_: Any) -> None:
            raise Killed

        def kill_before_tensors(path: Path, target: Path) -> Path:
            if target.suffix == ".safetensors":
                raise Killed
            return real_replace(path, target)

        moments: list[tuple[Callable[[], None], str]] = [
            (lambda: monkeypatch.setattr(os, "fsync", kill), "old"),
            (lambda: monkeypatch.setattr(bank_file, "write_json", kill), "old"),
            (lambda: monkeypatch.setattr(Path, "replace", kill), "old"),
            (lambda: monkeypatch.setattr(Path, "replace", kill_before_tensors), "new"),
        ]
        for number, (arm, expected) in enumerate(moments):
            path = tmp_path / str(number) / "facts"
            save_bank(made("old"), path)
            arm()
            with pytest.raises(Killed):
                save_bank(made("new", count=5), path)
            monkeypatch.setattr(bank_file, "write_json", real_json)
            monkeypatch.setattr(Path, "replace", real_replace)
            monkeypatch.setattr(os, "fsync", real_sync)
            bank = loaded(path)
            assert bank.edits[0].target == f"{expected} 0"
            save_bank(made("later", count=2), path)
            assert loaded(path).edits[0].target == "later 0"

    def test_what_a_kill_left_undone_is_done_when_somebody_will_write(self, tmp_path: Path) -> None:
        save_bank(made("Nice"), tmp_path / "facts")
        old = (tmp_path / "facts.safetensors").read_bytes()
        save_bank(made("Lyon", count=2), tmp_path / "facts")
        (tmp_path / "facts.safetensors").replace(tmp_path / "facts.safetensors.new")
        (tmp_path / "facts.safetensors").write_bytes(old)
        finish_saving(tmp_path / "facts")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "facts.json",
            "facts.safetensors",
        ]
        assert len(loaded(tmp_path / "facts")) == 2
        finish_saving(tmp_path / "facts")  # nothing to do
        finish_saving(tmp_path / "none")

    def test_a_second_kill_leaves_what_the_first_had_saved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "facts"
        save_bank(made("new"), path)
        # the first came between the two renames
        (tmp_path / "facts.safetensors").replace(tmp_path / "facts.safetensors.new")
        bank = loaded(path)
        bank.insert([Edit("more", "More?", "yes")], bank.experts([2]))
        monkeypatch.setattr(bank_file, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_bank(bank, path)
        again = loaded(path)
        assert len(again) == 3
        assert torch.equal(again.experts([2])["a"], made("new").experts([2])["a"])

    def test_two_that_save_at_once_wait_for_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "facts"
        other = threading.Thread(target=lambda: save_bank(made("second", count=2), path))
        real = bank_file.write_json

        def in_the_middle(*args: Any) -> None:
            monkeypatch.setattr(bank_file, "write_json", real)
            other.start()
            other.join(0.3)  # time enough to be through
            real(*args)

        monkeypatch.setattr(bank_file, "write_json", in_the_middle)
        save_bank(made("first"), path)
        other.join()
        assert [edit.target for edit in loaded(path).edits] == ["second 0", "second 1"]
        assert len(list(tmp_path.iterdir())) == 2

    def test_who_reads_waits_for_who_writes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, read = tmp_path / "facts", bank_file.read_bank
        save_bank(made("old"), path)
        writer = threading.Thread(target=lambda: save_bank(made("new", count=5), path))

        def slow(file: Path) -> Any:
            monkeypatch.setattr(bank_file, "read_bank", read)
            stored = read(file)
            writer.start()
            writer.join(0.3)  # between the JSON and the tensors
            return stored

        monkeypatch.setattr(bank_file, "read_bank", slow)
        assert loaded(path).edits[0].target == "old 0"
        writer.join()
        assert loaded(path).edits[0].target == "new 0"

    def test_what_another_has_saved_meanwhile_is_not_undone(self, tmp_path: Path) -> None:
        path = tmp_path / "facts"
        save_bank(made(), path)
        mine, other = loaded(path), loaded(tmp_path / "facts.json")
        other.remove(["e0"])
        save_bank(other, path)
        other.remove(["e1"])
        save_bank(other, path)  # its own file still
        before = (tmp_path / "facts.safetensors").read_bytes()
        mine.insert([Edit("more", "More?", "yes")], mine.experts([2]))
        with pytest.raises(SuiteError, match="another process has written .* since it was read"):
            save_bank(mine, path)
        assert [edit.id for edit in loaded(path).edits] == ["e2"]
        assert (tmp_path / "facts.safetensors").read_bytes() == before
        save_bank(mine, tmp_path / "elsewhere")
        assert len(loaded(tmp_path / "elsewhere")) == 4

    def test_a_bank_that_came_up_meanwhile_is_overwritten_on_request_alone(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "facts"
        save_bank(made("Nice"), path, overwrite=False)
        with pytest.raises(SuiteError, match="another process has written this bank meanwhile"):
            save_bank(made("Lyon"), path, overwrite=False)
        assert loaded(path).edits[0].target == "Nice 0"
        save_bank(made("Lyon"), path)
        assert loaded(path).edits[0].target == "Lyon 0"

    def test_a_gate_with_a_state_that_is_not_plain_is_refused(self, tmp_path: Path) -> None:
        class Odd(TextGate):
            def get_extra_state(self) -> Any:
                return object()

        with pytest.raises(SuiteError, match="'exact_text' has a state that is not plain"):
            save_bank(ExpertBank(BASE, Odd()), tmp_path / "facts")
        assert not bank_exists(tmp_path / "facts")


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "facts.json"
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))

    return apply


def resave(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Exchange tensors, and make the JSON say that all is well."""

    def apply(folder: Path) -> None:
        file = folder / "facts.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(tensors)
        save_file(tensors, file)
        entries = {k: [str(v.dtype)[6:], list(v.shape)] for k, v in tensors.items()}

        def say(value: dict[str, Any]) -> None:
            size, digest = file.stat().st_size, bank_file._hash(file)
            value["tensors"] = {"bytes": size, "sha256": digest, "of": entries}

        rewrite(say)(folder)

    return apply


def cut(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return apply


def flip(folder: Path) -> None:
    content = bytearray((folder / "facts.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "facts.safetensors").write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tensors": (lambda f: (f / "facts.safetensors").unlink(), "safetensors: is missing"),
    "no json": (lambda f: (f / "facts.json").unlink(), "cannot be read .* beside it needs it"),
    "tensors cut off": (cut("facts.safetensors", 0.7), "It is cut off, or of another bank"),
    "tensors empty": (cut("facts.safetensors", 0), "It is cut off, or of another bank"),
    "json cut off": (cut("facts.json", 0.7), "is not JSON, or not all of it"),
    "json binary": (lambda f: (f / "facts.json").write_bytes(b"\xff\xfe\x00"), "is not text"),
    "another json": (lambda f: (f / "facts.json").write_text("[1]"), "is not a lightning-suite"),
    "a bit": (flip, "is not the file that facts.json was written with"),
    "tensors of another bank": (
        lambda f: (
            save_bank(made(count=4), f / "x")
            and (f / "x.safetensors").replace(f / "facts.safetensors")
        ),
        "cut off, or of another bank",
    ),
    "newer": (rewrite(lambda v: v.update(format=99)), "format 99, .* Update lightning-suite"),
    "format of no kind": (rewrite(lambda v: v.update(format="x")), "format 'x'"),
    "a key too much": (rewrite(lambda v: v.update(code="import os")), "expected .*'edits'"),
    "no edits": (rewrite(lambda v: v.pop("edits")), "expected .*'edits'"),
    "base of no kind": (rewrite(lambda v: v.update(base=3)), "base model is 3"),
    "layer of no size": (rewrite(lambda v: v["base"].update(d_in=-6)), "shape -6, 4"),
    "other sizes": (rewrite(lambda v: v["base"].update(d_in=7)), "expected .*7"),
    "other rank": (rewrite(lambda v: v["settings"].update(rank=3)), "expected .*3, 6"),
    "unknown dtype": (rewrite(lambda v: v["settings"].update(dtype="object")), "dtype='object'"),
    "unknown setting": (rewrite(lambda v: v["settings"].update(hook="x")), "has the keys"),
    "an edit less": (rewrite(lambda v: v["edits"].pop()), "expected .*2, 2, 6"),
    "an edit twice": (
        rewrite(lambda v: v["edits"].__setitem__(2, v["edits"][0])),
        "two live edits have the id or prompt 'e0'",
    ),
    "an edit without target": (rewrite(lambda v: v["edits"][0].pop("target")), "an edit has the"),
    "an edit with a number": (rewrite(lambda v: v["edits"][0].update(target=3)), "'e0' has a val"),
    "an unknown status": (rewrite(lambda v: v["edits"][0].update(status="x")), "'e0' has a value"),
    "a circle of versions": (
        rewrite(lambda v: v["edits"][1].update(replaces=1)),
        "replaces slot 1",
    ),
    "edits of no kind": (rewrite(lambda v: v.update(edits=[1])), "is damaged"),
    "tensors of another shape": (
        resave(lambda t: t.update({"experts.a": t["experts.a"][:, :1].contiguous()})),
        "expected .*3, 2, 6",
    ),
    "tensors of another type": (
        resave(lambda t: t.update({"experts.a": t["experts.a"].double()})),
        "expected .* in bfloat16",
    ),
    "a tensor less": (resave(lambda t: t.pop("experts.b")), "expected .*'b'"),
    "a gate's tensor too much": (
        resave(lambda t: t.update({"gate.keys": torch.ones(2)})),
        "Unexpected key.*keys",
    ),
    "other entries than said": (
        rewrite(lambda v: v["tensors"]["of"].pop("experts.a")),
        "and facts.json says",
    ),
    "tensors of no kind": (rewrite(lambda v: v.update(tensors=3)), "is damaged"),
    "a gate of no state": (rewrite(lambda v: v.update(gate_state=3)), "facts.json: "),
    "a path elsewhere": (
        rewrite(lambda v: v["tensors"].update(file="../../etc/passwd")),
        "has the keys .*'file'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_or_not_ours_is_refused(tmp_path: Path, damage: str) -> None:
    save_bank(made(), tmp_path / "facts")
    apply, message = DAMAGE[damage]
    apply(tmp_path)
    with pytest.raises(SuiteError, match=message) as caught:
        loaded(tmp_path / "facts")
    assert str(tmp_path / "facts") in str(caught.value)


def test_a_bank_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"nowhere\.json: cannot be read .No such file"):
        read_bank(tmp_path / "nowhere")
