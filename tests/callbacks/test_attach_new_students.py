"""A new student is fitted from a few answers; nothing else moves; checkpoints keep the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_lmcd import quiet, tiny_class, tiny_diagnosis

from lightning_suite import AttachNewStudentsCallback, DiagnosisReportCallback, LMCDModule
from lightning_suite.errors import SuiteError

# modules of a frozen backbone stand in evaluation mode on purpose
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")

STRONG, WEAK = "zoe", "abe"


def write_new(folder: Path, *, order: tuple[str, ...] = (STRONG, WEAK)) -> str:
    lines = ["student_id,exercise_id,correct"]
    lines += [f"{s},e{e},{int(s == STRONG)}" for s in order for e in range(4)]
    path = folder / "new.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def fitted(folder: Path) -> LMCDModule:
    module = tiny_diagnosis(head="2pl")
    quiet(folder, max_epochs=2).fit(module, tiny_class(folder))
    return module


def probabilities(module: Any, folder: Path, *callbacks: Any, **options: Any) -> torch.Tensor:
    """Return what is predicted for every student and exercise."""
    data = tiny_class(folder, **options)
    batches: Any = quiet(folder, *callbacks).predict(module, data)
    table = torch.zeros(len(data.student_ids), len(data.data.exercises))
    for batch in batches:
        table[batch["students"], batch["exercises"]] = batch["probability"]
    return table


def test_new_students_are_predicted_and_nothing_else_moves(tmp_path: Path) -> None:
    module = fitted(tmp_path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    old = probabilities(module, tmp_path)
    table = probabilities(
        module, tmp_path, AttachNewStudentsCallback(), new_students=write_new(tmp_path)
    )
    assert module.student_ids[-2:] == [STRONG, WEAK]
    torch.testing.assert_close(table[:12], old)
    assert (table[12] > table[13]).all(), "four right answers against four wrong ones"
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value[: len(before[name])], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("reader", ["start", "student"])
def test_a_checkpoint_keeps_them_whatever_the_order_of_the_next_file(
    reader: Any, tmp_path: Path
) -> None:
    module = tiny_diagnosis(head="2pl", reader=reader)
    quiet(tmp_path).fit(module, tiny_class(tmp_path))
    saved = tmp_path / "attached.ckpt"
    callback = AttachNewStudentsCallback(save_to=str(saved), steps=10)
    first = probabilities(module, tmp_path, callback, new_students=write_new(tmp_path))
    raw = torch.load(saved, weights_only=True)
    assert raw["lmcd"]["student_ids"][-2:] == [STRONG, WEAK]

    loaded = LMCDModule.load_from_checkpoint(saved)
    new = write_new(tmp_path, order=(WEAK, "kim", STRONG))
    again = AttachNewStudentsCallback(steps=10)
    second = probabilities(loaded, tmp_path, again, new_students=new)
    assert again.attached == ["kim"], "the others are known"
    torch.testing.assert_close(second[[*range(12), 14, 12]], first)


@pytest.mark.parametrize("callbacks", [[], [AttachNewStudentsCallback(steps=5)]])
@pytest.mark.parametrize("order", [(WEAK, STRONG), (WEAK,)])
def test_students_who_are_known_keep_their_vectors_in_any_later_file(
    order: tuple[str, ...], callbacks: list[Any], tmp_path: Path
) -> None:
    module = tiny_diagnosis(head="2pl")
    quiet(tmp_path).fit(module, tiny_class(tmp_path))
    attach = AttachNewStudentsCallback(steps=5)
    first = probabilities(module, tmp_path, attach, new_students=write_new(tmp_path))
    place = {STRONG: 12, WEAK: 13}
    later = write_new(tmp_path, order=order)
    second = probabilities(module, tmp_path, *callbacks, new_students=later)
    torch.testing.assert_close(second, first[[*range(12), *(place[s] for s in order)]])


def test_a_fresh_module_takes_a_checkpoint_with_more_students_than_its_data(tmp_path: Path) -> None:
    module, saved = fitted(tmp_path), tmp_path / "attached.ckpt"
    callback = AttachNewStudentsCallback(save_to=str(saved), steps=5)
    first = probabilities(module, tmp_path, callback, new_students=write_new(tmp_path))
    fresh, data = tiny_diagnosis(head="2pl"), tiny_class(tmp_path)
    batches: Any = quiet(tmp_path).predict(fresh, data, ckpt_path=str(saved))
    assert fresh.student_ids[-2:] == [STRONG, WEAK]
    for batch in batches:
        expected = first[batch["students"], batch["exercises"]]
        torch.testing.assert_close(batch["probability"], expected)


def test_held_out_students_are_attached_before_test_and_validation(tmp_path: Path) -> None:
    options = {"split": "student", "support": 5, "folds": 3, "val_fraction": 0.25}
    module, callback = tiny_diagnosis(head="2pl"), AttachNewStudentsCallback(steps=20)
    trainer = quiet(tmp_path, callback, max_epochs=2, num_sanity_val_steps=1)
    data = tiny_class(tmp_path, **options)
    trainer.fit(module, data)
    held_out = data.part("support").student.unique()
    assert callback.attached == [data.student_ids[s] for s in held_out.tolist()]
    assert trainer.callback_metrics["lmcd/attached_students"] == len(held_out)
    before = module.model.fusion.students.weight.detach().clone()
    trained = data.part("train").student.unique()
    trainer.test(module, data, verbose=False)
    after = module.model.fusion.students.weight.detach()
    torch.testing.assert_close(after[trained], before[trained], rtol=0, atol=0)


def test_the_report_speaks_of_new_students_too(tmp_path: Path) -> None:
    module = fitted(tmp_path)
    report = DiagnosisReportCallback(str(tmp_path / "run"), resamples=0, predictions="csv")
    attach = AttachNewStudentsCallback(steps=5)
    probabilities(module, tmp_path, report, attach, new_students=write_new(tmp_path))
    for name in ("lmcd_mastery.csv", "lmcd_next.csv", "predictions.csv"):
        lines = (tmp_path / "run/artifacts" / name).read_text().splitlines()
        assert any(line.startswith(f"{STRONG},") for line in lines)


def test_students_without_a_vector_are_named(tmp_path: Path) -> None:
    module, new = fitted(tmp_path), write_new(tmp_path)
    with pytest.raises(
        SuiteError, match=f"{STRONG}.* has no vector yet.*AttachNewStudentsCallback"
    ):
        probabilities(module, tmp_path, new_students=new)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("s3,e1,1", "new.csv.*'s3' is not new"),
        ("zoe,e99,1", "'e99' has no text"),
        ("zoe,e1,2", "new.csv.*2"),
        ("zoe,e0,1", "'zoe' answers exercise 'e0' a second time"),
    ],
)
def test_wrong_rows_of_new_students_are_named(line: str, message: str, tmp_path: Path) -> None:
    module, new = fitted(tmp_path), Path(write_new(tmp_path))
    new.write_text(new.read_text() + line + "\n")
    with pytest.raises(SuiteError, match=message):
        probabilities(module, tmp_path, AttachNewStudentsCallback(), new_students=str(new))


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="steps is 0"):
        AttachNewStudentsCallback(steps=0)
    with pytest.raises(SuiteError, match="lr is 0"):
        AttachNewStudentsCallback(lr=0)
    with pytest.raises(SuiteError, match="no answers of new students"):
        quiet(tmp_path, AttachNewStudentsCallback()).test(
            tiny_diagnosis(), tiny_class(tmp_path), verbose=False
        )
