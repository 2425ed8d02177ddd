"""Answers too few to train or choose by are told before the training, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from cold_start_folders import write_plain

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.datamodules.cold_start_cautions import thin_cautions


def few(folder: Path, rows: list[str]) -> ColdStartDataModule:
    file = write_plain(folder) / "interactions.csv"
    file.write_text("\n".join(["student_id,exercise_id,correct", *rows]))
    return ColdStartDataModule(str(folder), tokenizer="bytes")


def test_one_student_with_three_answers_is_warned_of_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = few(tmp_path, ["s1,e0,1", "s1,e1,0", "s1,e2,1"])
    data.setup("fit")
    one, none = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "all answers to train on are of one student ('s1')" in one
    assert "there will be no val_auc (the val part's one answer is" in none
    assert "no test_auc" in none
    assert "val_fraction" in none


def test_answers_that_are_all_alike_are_named_by_their_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = few(tmp_path, [f"s{s},e{e},{int(e < 2)}" for s in range(4) for e in range(3)])
    data.setup("predict")  # says nothing: it does not choose
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    said = thin_cautions(data.data, data.split)
    assert len(said) == 1
    parts = {name: data.data.correct[part] for name, part in data.split.parts.items()}
    for name in ("val", "test"):
        side = "right" if parts[name][0] else "wrong"
        assert f"{name}_auc (the {name} part's 4 answers are all {side})" in said[0]


def test_a_class_with_both_kinds_of_answers_is_not_warned_of(tmp_path: Path) -> None:
    data = ColdStartDataModule(str(write_plain(tmp_path)), tokenizer="bytes")
    data.setup("fit")
    assert thin_cautions(data.data, data.split) == []
