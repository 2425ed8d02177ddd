"""A checkpoint of another class is neither replaced nor taken for one that lacks some students."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.assembly import check_tables
from lightning_suite.lmcd.other_data import other_data, refuse_replacing

CLASS = {
    "student_ids": [f"s{i}" for i in range(6)],
    "kc_ids": ["add", "carry"],
    "exercise_ids": [f"e{i}" for i in range(4)],
}


def saver(folder: Path, **options: object) -> ModelCheckpoint:
    given = {"filename": "best", "enable_version_counter": False, **options}
    return ModelCheckpoint(dirpath=folder, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "few"),
    [
        (CLASS, ""),
        ({"student_ids": ["s1", "s2", *(f"new{i}" for i in range(40))]}, "2 of 42 students"),
        ({"student_ids": [f"s{i}" for i in range(40)]}, ""),  # the class has grown
        ({"student_ids": ["s3"]}, ""),  # and shrunk
        ({"student_ids": ["ann", "ben"]}, "none of 2 students"),
        ({"student_ids": ["ann"], "kc_ids": ["read"]}, "none of 1 students and none of 1 KCs"),
        ({**CLASS, "exercise_ids": ["x", "y"]}, "none of 2 exercises"),
        ({"student_ids": [], "kc_ids": []}, ""),
    ],
)
def test_other_data_shares_less_than_half_of_the_smaller_side(
    ours: dict[str, list[str]], few: str
) -> None:
    assert other_data(CLASS, ours) == few


def test_a_checkpoint_of_other_data_is_not_replaced(tmp_path: Path) -> None:
    torch.save({"lmcd": CLASS, "state_dict": {"w": torch.ones(2)}}, tmp_path / "best.ckpt")
    with pytest.raises(SuiteError, match=r"best.ckpt was trained on other data.*set another dir"):
        refuse_replacing([saver(tmp_path)], {"student_ids": ["ann", "ben"]})
    refuse_replacing([saver(tmp_path)], {"student_ids": CLASS["student_ids"]})
    # files that nothing replaces
    for name in ({"filename": "best-{epoch}"}, {"enable_version_counter": True}):
        refuse_replacing([saver(tmp_path, **name)], {"student_ids": ["ann"]})


def test_a_file_that_no_checkpoint_of_lmcd_is_may_be_replaced(tmp_path: Path) -> None:
    refuse_replacing([saver(tmp_path)], {"student_ids": ["ann"]})
    (tmp_path / "best.ckpt").write_bytes(b"cut off")
    refuse_replacing([saver(tmp_path)], {"student_ids": ["ann"]})
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    refuse_replacing([saver(tmp_path), SimpleNamespace()], {"student_ids": ["ann"]})


@pytest.mark.filterwarnings("ignore")  # torch's own words on what is no checkpoint
@pytest.mark.parametrize("how", ["cut", "changed", "noise"])
def test_a_damaged_file_may_be_replaced_and_ends_no_fit(tmp_path: Path, how: str) -> None:
    random, file = Random(0), tmp_path / "best.ckpt"
    torch.save({"lmcd": {"student_ids": 7}, "state_dict": {"w": torch.zeros(3)}}, file)
    refuse_replacing([saver(tmp_path)], {"student_ids": ["ann"]})
    sound = file.read_bytes()
    for _ in range(60):
        damaged = bytearray(sound)
        if how == "cut":
            del damaged[random.randrange(len(damaged)) :]
        elif how == "changed":
            for _ in range(4):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
        else:
            damaged = bytearray(random.randbytes(random.randint(0, 60)))
        file.write_bytes(damaged)
        refuse_replacing([saver(tmp_path)], {"student_ids": ["ann"]})


def test_a_checkpoint_of_other_data_is_no_case_for_attaching_students() -> None:
    kept = {"student_ids": ["ann"], "kc_ids": ["read"]}
    with pytest.raises(SuiteError, match=r"none of 6 students and none of 2 KCs.*--ckpt_path") as e:
        check_tables(kept, CLASS["student_ids"], CLASS["kc_ids"])
    assert "Attach" not in str(e.value)
    known = {**CLASS, "student_ids": CLASS["student_ids"][2:]}
    with pytest.raises(SuiteError, match=r"'s0' is unknown to it, and 1 more. Attach .*new_stud"):
        check_tables(known, CLASS["student_ids"], CLASS["kc_ids"])
