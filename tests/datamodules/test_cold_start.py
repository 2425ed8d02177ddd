"""Batches grouped by exercise, the same for any rank count and resume; texts; foreign tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cold_start_folders import EXERCISES, KCS, STUDENTS, texts, write_plain, write_rows

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.datamodules.cold_start_batches import ExerciseBatches
from lightning_suite.errors import SuiteError


def module(folder: Path, **options: Any) -> ColdStartDataModule:
    if not (folder / "interactions.csv").exists():
        write_plain(folder)
    data = ColdStartDataModule(str(folder), **{"tokenizer": "bytes", **options})
    data.setup("fit")
    return data


def pairs(batches: Any) -> list[tuple[int, int, float]]:
    rows = []
    for batch in batches:
        exercises = batch["exercises"][batch["rows"]]
        rows += zip(
            batch["students"].tolist(), exercises.tolist(), batch["correct"].tolist(), strict=True
        )
    return rows


def test_a_batch_reads_each_exercise_once_for_many_students(tmp_path: Path) -> None:
    data = module(tmp_path, students_per_exercise=8, exercises_per_batch=3)
    batches = list(data.train_dataloader())
    for batch in batches:
        count = len(batch["exercises"])
        assert count <= 3
        assert batch["input_ids"].shape == (count, batch["lengths"].max())
        assert batch["kcs"].shape == (count, 5)
        assert batch["rows"].bincount().max() <= 16  # two chunks may be of one exercise
        for row, exercise in enumerate(batch["exercises"].tolist()):
            text = bytes(batch["input_ids"][row, : batch["lengths"][row]].tolist()).decode()
            assert text == data.texts[exercise]
            assert torch.equal(batch["kcs"][row].bool(), data.data.q_matrix[exercise])
    part = data.part("train")
    truth = zip(part.student.tolist(), part.exercise.tolist(), part.correct.tolist(), strict=True)
    assert sorted(pairs(batches)) == sorted(truth)


def test_prediction_has_every_student_with_every_exercise(tmp_path: Path) -> None:
    (write_plain(tmp_path) / "interactions.csv").write_text(
        "student_id,exercise_id,correct\n"
        + "\n".join(f"s{s},e{e},1" for s in range(STUDENTS) for e in range(EXERCISES - s % 3))
    )
    data = module(tmp_path, split="random")
    rows = pairs(data.predict_dataloader())
    assert len({row[:2] for row in rows}) == len(rows) == STUDENTS * EXERCISES
    assert sum(row[2] != row[2] for row in rows) == 4 * 1 + 4 * 2


def test_the_order_depends_on_seed_and_epoch_and_ranks_share_it(tmp_path: Path) -> None:
    exercise = torch.arange(200) % 7
    one = ExerciseBatches(exercise, 8, 2, seed=3)
    first = list(one)
    assert first == list(ExerciseBatches(exercise, 8, 2, seed=3))
    assert sorted(i for batch in first for i in batch) == list(range(200))
    one.set_epoch(1)
    assert list(one) != first
    assert first != list(ExerciseBatches(exercise, 8, 2, seed=4))
    ranks = [list(ExerciseBatches(exercise, 8, 2, ranks=2, rank=r, seed=3)) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert together[: len(first)] == first
    chunks = [exercise[batch].bincount() for batch in first]
    assert max(int(c.max()) for c in chunks) <= 16
    plain = list(ExerciseBatches(exercise, 300, 1))
    assert [exercise[batch].unique().tolist() for batch in plain] == [[e] for e in range(7)]


def rare_and_common(folder: Path) -> Path:
    """Four exercises with all answers, the others with one or two each."""
    file = write_plain(folder) / "interactions.csv"
    rows = [row.split(",") for row in file.read_text().split()[1:]]
    kept = [row for row in rows if int(row[1][1:]) < 4 or int(row[0][1:]) <= int(row[1][1:]) % 2]
    write_rows(file, ("student_id", "exercise_id", "correct"), kept)
    return folder


def test_weights_make_the_mean_over_batches_that_over_answers(tmp_path: Path) -> None:
    """An exercise that was asked rarely would have had a batch as heavy as a full one."""
    data = module(rare_and_common(tmp_path), students_per_exercise=5, fold=1)
    share, plain = torch.zeros(2, STUDENTS, EXERCISES)
    batches = list(data.train_dataloader())
    for batch in batches:
        who = batch["students"], batch["exercises"][batch["rows"]]
        plain[who] += 1 / len(batch["rows"])
        share[who] += batch["weight"] / len(batch["rows"])
    mean = torch.full((len(data.part("train")),), len(batches) / len(data.part("train")))
    torch.testing.assert_close(share[share > 0], mean)
    of_ranks = [ExerciseBatches(data.part("train").exercise, 5, 2, ranks=2, rank=r) for r in (0, 1)]
    assert {part.mean_size for part in of_ranks} == {len(mean) / len(batches)}
    assert plain[plain > 0].max() > 1.9 * plain[plain > 0].min()


def test_complete_data_has_no_weights(tmp_path: Path) -> None:
    data = module(tmp_path, students_per_exercise=5)
    assert all("weight" not in batch for batch in data.train_dataloader())
    rare = module(rare_and_common(tmp_path / "rare"), students_per_exercise=5, fold=1)
    assert all("weight" in batch for batch in rare.train_dataloader())
    assert all("weight" not in batch for batch in rare.test_dataloader())


def test_an_epoch_continues_after_the_batch_it_stopped_at(tmp_path: Path) -> None:
    data = module(tmp_path, students_per_exercise=4)
    whole = pairs(data.train_dataloader())
    loader = data.train_dataloader()
    iterator = iter(loader)
    start = pairs([next(iterator), next(iterator)])
    state = loader.state_dict()
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert start + pairs(resumed) == whole


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("raw", "Judge.\nExercise: Work out task 0.\nStudent:"),
        ("kc_names", "Judge.\nExercise: Work out task 0.\nIt needs: to add; to carry.\nStudent:"),
        ("diffused", "Judge.\nAbout 0.\nStudent:"),
        ("both", "Judge.\nExercise: Work out task 0.\nAbout 0.\nStudent:"),
    ],
)
def test_what_stands_before_the_student(text: Any, wanted: str, tmp_path: Path) -> None:
    file = describe(tmp_path)
    descriptions = str(file) if text in ("diffused", "both") else None
    data = module(tmp_path, system="Judge.", text=text, descriptions=descriptions)
    assert data.texts[0] == wanted


def describe(folder: Path, **change: Any) -> Path:
    rows = [
        {"kind": "exercise", "id": f"e{e}", "text": f"About {e}.", "examples": []}
        for e in range(EXERCISES)
    ]
    rows[3] |= change
    file = folder / "descriptions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_skills_are_read_by_name_or_as_they_are_described(tmp_path: Path) -> None:
    file = describe(tmp_path)
    assert module(tmp_path).kc_texts[:2] == ["to add", "to carry"]
    options: dict[str, Any] = {"text": "diffused", "descriptions": str(file)}
    assert module(tmp_path, **options).kc_texts[:2] == ["to add", "to carry"]  # it has none
    with file.open("a") as handle:
        for kc in KCS:
            handle.write(f'\n{{"kind": "kc", "id": "{kc}", "text": "To {kc} is hard."}}')
    described = module(tmp_path, **options)
    assert described.kc_texts[0] == "To add is hard."
    length = described.kc_prefixes["lengths"][0]
    assert bytes(described.kc_prefixes["input_ids"][0, :length].tolist()) == b"To add is hard."
    both = module(tmp_path, text="both", descriptions=str(file))
    assert both.kc_texts[0] == "to add\nTo add is hard."
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]))
    with pytest.raises(SuiteError, match=r"describes some KCs, and not 'unit'\. Run .* diffuse"):
        module(tmp_path, **options)


def test_a_description_of_another_text_is_refused(tmp_path: Path) -> None:
    rows = [
        {"kind": "exercise", "id": e, "of": t, "text": f"About {t}"} for e, t in texts().items()
    ]
    file = tmp_path / "descriptions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    options: dict[str, Any] = {"text": "diffused", "descriptions": str(file)}
    assert module(tmp_path, **options).texts[3].endswith("\nAbout Work out task 3.\nStudent:")
    exercises = tmp_path / "exercises.csv"
    exercises.write_text(exercises.read_text().replace("Work out task 3.", "Sing."))
    with pytest.raises(SuiteError, match="'e3' as it was: 'Work.* Its text is 'Sing.' now"):
        module(tmp_path, **options)


def test_descriptions_that_know_the_test_are_a_leak(tmp_path: Path) -> None:
    held = module(tmp_path).manifest["held_out"][0]
    file = describe(tmp_path, examples=[held])
    with pytest.raises(SuiteError, match=f"leak: .* of exercise 'e3' was written with .*'{held}'"):
        module(tmp_path, text="both", descriptions=str(file))
    module(tmp_path, text="both", descriptions=str(file), split="random")  # nothing is cold
    file = describe(tmp_path, id="e33")
    with pytest.raises(SuiteError, match="has none of exercise 'e3'"):
        module(tmp_path, text="both", descriptions=str(file))


def test_answers_of_another_file_are_the_test(tmp_path: Path) -> None:
    test = write_plain(tmp_path / "test")
    rows = [(f"s{s}", "new", 1) for s in range(3)]
    header = ("student_id", "exercise_id", "correct")
    write_rows(test / "interactions.csv", header, rows)
    write_rows(test / "exercises.csv", ("exercise_id", "text", "kc_ids"), [("new", "Now.", "unit")])
    data = module(tmp_path / "train", test_source=str(test))
    assert [row[:2] for row in pairs(data.test_dataloader())] == [(s, EXERCISES) for s in range(3)]
    assert data.manifest["answers"] == {"train": 108, "val": 12, "test": 3}
    write_rows(test / "interactions.csv", header, [*rows, ("s99", "new", 1)])
    with pytest.raises(SuiteError, match=r"row 4: student 's99' is unknown: no answer of theirs"):
        module(tmp_path / "train", test_source=str(test))
    write_rows(test / "interactions.csv", header, [("s1", "e1", 1)])
    with pytest.raises(SuiteError, match=r"leak: answers of test_source .* 's1' to exercise 'e1'"):
        module(tmp_path / "train", test_source=str(test / "interactions.csv"))


def test_an_id_of_the_source_means_the_same_in_another_file(tmp_path: Path) -> None:
    test = write_plain(tmp_path / "test")
    train = write_plain(tmp_path / "train")
    file = test / "exercises.csv"
    file.write_text(file.read_text().replace("task 3.", "another task 3."))
    with pytest.raises(SuiteError, match=r"row 4: exercise 'e3' is in source.* text is another"):
        module(train, test_source=str(test), split="random")
    with pytest.raises(SuiteError, match="oracle_fraction and support"):
        module(train, test_source=str(test), oracle_fraction=0.5)


@pytest.mark.parametrize("exercise", range(EXERCISES))
def test_an_exercise_of_the_source_is_not_new_in_another_file(
    exercise: int, tmp_path: Path
) -> None:
    """Nor one that only the validation has: it chooses the best epoch."""
    file = write_plain(tmp_path / "train") / "interactions.csv"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(r for r in rows if not r.startswith(f"s1,e{exercise},")) + "\n")
    test = tmp_path / "test.csv"
    test.write_text(f"student_id,exercise_id,correct\ns1,e{exercise},1\n")
    with pytest.raises(SuiteError, match=f"leak: 1 exercises of the test .*: e{exercise}"):
        module(tmp_path / "train", test_source=str(test))


def test_a_checkpoint_of_another_split_is_refused(tmp_path: Path) -> None:
    state = module(tmp_path).state_dict()
    module(tmp_path).load_state_dict(state)
    other = module(tmp_path, fold=1)
    with pytest.raises(SuiteError, match="made with another split: train and val and test"):
        other.load_state_dict(state)


def test_students_may_be_attached_from_more_answers_than_in_the_training(tmp_path: Path) -> None:
    state = module(tmp_path, split="student", support=2).state_dict()
    module(tmp_path, split="student", support=4).load_state_dict(state)
    with pytest.raises(SuiteError, match="made with another split"):
        module(tmp_path, split="student", support=2, fold=1).load_state_dict(state)


def test_a_model_that_knows_the_oracle_passes_for_no_cold_one(tmp_path: Path) -> None:
    cold = module(tmp_path, oracle_fraction=0.5)
    oracle = module(tmp_path, oracle_fraction=0.5, train_on_oracle=True)
    assert not cold.manifest["train_on_oracle"]
    assert oracle.manifest["train_on_oracle"]
    with pytest.raises(SuiteError, match="trained on answers to the test's exercises"):
        cold.load_state_dict(oracle.state_dict())
    with pytest.raises(SuiteError, match="was not trained on the oracle's answers"):
        oracle.load_state_dict(cold.state_dict())
    cold.load_state_dict(cold.state_dict())
    oracle.load_state_dict(oracle.state_dict())
    of_old = {k: v for k, v in cold.manifest.items() if k != "train_on_oracle"}
    with pytest.raises(SuiteError, match="or does not say that it was not"):
        cold.load_state_dict({"manifest": of_old})
    without = module(tmp_path, train_on_oracle=True)  # there is no oracle to train on
    of_old = {k: v for k, v in without.manifest.items() if k != "train_on_oracle"}
    without.load_state_dict({"manifest": of_old})


def test_the_oracle_is_trained_on_only_if_asked(tmp_path: Path) -> None:
    without = module(tmp_path, oracle_fraction=0.5)
    with_oracle = module(tmp_path, oracle_fraction=0.5, train_on_oracle=True)
    extra = len(with_oracle.part("train")) - len(without.part("train"))
    assert extra == len(without.part("oracle")) == len(without.part("test"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction is 1.0; it must be in"),
        ({"students_per_exercise": 0}, "students_per_exercise is 0"),
        ({"text": "both"}, "text is both and descriptions is None"),
        ({"text": "rwa"}, "text='rwa' is not known. Did you mean 'raw'"),
        ({"max_length": 20}, r"exercise or KC 'e0': its text has \d+ tokens, more than max_length"),
        ({"tokenizer": None}, "tokenizer is not given"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=message):
        module(tmp_path, **options)
