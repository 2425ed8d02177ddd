"""The page shows a diagnosis from its tables: bounds beside the AUC, heat map, curves, folds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lightning_suite.report.lmcd_figures import draw_diagnosis, mastery_figure
from lightning_suite.report.lmcd_folds import fold_scores
from lightning_suite.report.lmcd_section import diagnosis_cards


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def scores(fold: int, auc: float = 0.8, seed: int = 0) -> list[dict[str, Any]]:
    common = {"answers": 1200, "kind": "exercise", "fold": fold, "folds": 3, "split_seed": seed}
    return [
        {
            "system": system,
            "auc": value,
            "auc_low": value - 0.02,
            "auc_high": value + 0.02,
            **common,
        }
        for system, value in (("lmcd", auc), ("floor", 0.7), ("ceiling", 0.9))
    ]


def run(folder: Path, fold: int = 0, **options: Any) -> dict[str, Path]:
    """Write a run's tables; return them by name."""
    students, kcs = [f"s{i:02}" for i in range(60)], {"k1": "to add", "k2": "<b>to carry</b>"}
    tables: dict[str, list[dict[str, Any]]] = {
        "lmcd_scores": scores(fold, **options),
        "lmcd_calibration": [
            {"predicted": p, "observed": p**1.2, "low": p / 2, "high": 1.0, "answers": 10}
            for p in (0.1, 0.5, 0.9)
        ],
        "lmcd_roc": [
            {"system": system, "false_rate": x, "true_rate": x**0.5}
            for system in ("lmcd", "floor", "ceiling")
            for x in (0.0, 0.25, 1.0)
        ],
        "lmcd_mastery": [
            {"student_id": s, "kc_id": k, "kc": name, "predicted": (59 - i) / 60}
            for i, s in enumerate(students)
            for k, name in kcs.items()
        ],
        "lmcd_items": [
            {
                "part": "train",
                "predicted": 0.4,
                "observed": 0.5,
                "difficulty": 1,
                "discrimination": 2,
            },
            {
                "part": "test",
                "predicted": 0.6,
                "observed": 0.5,
                "difficulty": 0,
                "discrimination": 1,
            },
            {"part": "", "predicted": 0.6, "observed": "", "difficulty": "", "discrimination": ""},
        ],
    }
    return {name: write(folder / "artifacts" / f"{name}.csv", r) for name, r in tables.items()}


def test_every_table_has_its_figure_and_the_auc_its_bounds(tmp_path: Path) -> None:
    tables = run(tmp_path / "version_0")
    names = [drawing.name for drawing in draw_diagnosis(tables)]
    assert names == ["lmcd-mastery", "lmcd-curves", "lmcd-items"]
    page = "".join(diagnosis_cards(tables))
    assert "<dd>0.800<small>1,200 answers" in page
    assert "<dd>0.700" in page
    assert "<dd>0.900" in page
    assert "<b>" not in page


def test_a_diagnosis_that_says_nothing_says_so_on_the_page(tmp_path: Path) -> None:
    assert "is below" not in "".join(diagnosis_cards(run(tmp_path / "good")))
    tables = run(tmp_path / "poor", auc=0.61)
    rows = [
        {"student_id": f"s{i}", "kc_id": "k", "kc": "add", "predicted": p, "mastered": 0}
        for i, p in enumerate((0.25, 0.31))
    ]
    write(tables["lmcd_mastery"], rows)
    page = "".join(diagnosis_cards(tables))
    assert "AUC 0.610 is below 0.700" in page
    assert "between 0.25 and 0.31, below" in page


def test_exercises_that_are_not_told_apart_are_named_on_the_page(tmp_path: Path) -> None:
    tables = run(tmp_path / "flat")
    observed = [0.27, 0.30, 0.34, 0.42, 0.5, 0.6, 0.67]
    rows = [
        {
            "part": "test",
            "predicted": 0.4 + i / 1000,
            "observed": share,
            "answers": 60,
            "difficulty": 0.1,
            "discrimination": 0.871 + i / 1000,
        }
        for i, share in enumerate(observed)
    ]
    write(tables["lmcd_items"], rows)
    write(tables["lmcd_scores"], [{**row, "nll": 0.743} for row in scores(0)])
    page = "".join(diagnosis_cards(tables))
    assert "hardly told apart" in page
    assert "NLL 0.743 is worse than that of a coin, 0.693" in page
    items = next(drawing for drawing in draw_diagnosis(tables) if drawing.name == "lmcd-items")
    for low, high in (items.figure.axes[1].get_xlim(), items.figure.axes[1].get_ylim()):
        assert high - low == pytest.approx(0.5)


def test_the_heat_map_goes_from_the_weakest_to_the_strongest(tmp_path: Path) -> None:
    with run(tmp_path)["lmcd_mastery"].open(encoding="utf-8") as file:
        figure = mastery_figure(list(csv.DictReader(file)))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 40
    assert labels == sorted(labels, reverse=True)
    assert (labels[0], labels[-1]) == ("s59", "s00")


def test_of_hundreds_of_skills_some_are_named_and_all_are_drawn(tmp_path: Path) -> None:
    """Their names would lie upon each other, and so many cells make a drawing of megabytes."""
    rows = [
        {"student_id": f"s{s}", "kc_id": k, "kc": f"skill {k}", "predicted": k / 300}
        for s in range(40)
        for k in range(300)
    ]
    table = write(tmp_path / "lmcd_mastery.csv", rows)
    (drawing,) = draw_diagnosis({"lmcd_mastery": table})
    labels = [label.get_text() for label in drawing.figure.axes[0].get_xticklabels()]
    assert len(labels) == 40
    assert (labels[0], labels[-1]) == ("skill 0", "skill 299")
    assert "40 of 300 skills are named" in drawing.caption
    assert drawing.figure.axes[0].get_xlim() == (-0.5, 299.5)
    assert len(drawing.svg) < 500_000


def test_a_student_of_whom_nothing_is_predicted_comes_last() -> None:
    rows = [
        {"student_id": student, "kc_id": "k", "kc": "add", "predicted": value}
        for student, value in (("none", ""), ("nan", "nan"), ("good", "0.9"), ("poor", "0.1"))
    ]
    axes = mastery_figure(rows).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["poor", "good", "none", "nan"]


def test_folds_of_the_same_split_are_found_beside_the_run(tmp_path: Path) -> None:
    run(tmp_path / "version_0", 2, auc=0.1)
    run(tmp_path / "version_1", 2, auc=0.85)  # the newer run of that fold
    run(tmp_path / "version_2", 1, seed=7)  # another split
    tables = run(tmp_path / "version_3", 0)
    run(tmp_path / "version_4", 0, auc=0.2)  # the fold of this run
    folds = fold_scores(tables)
    assert [(rows[0]["fold"], rows[0]["auc"]) for rows in folds] == [("0", "0.8"), ("2", "0.85")]
    drawn = {drawing.name: drawing for drawing in draw_diagnosis(tables)}
    assert "lmcd-folds" in drawn
    assert "other folds" in drawn["lmcd-curves"].caption


def test_an_upper_bound_is_named_and_is_no_fold_of_the_others(tmp_path: Path) -> None:
    tables, other = run(tmp_path / "version_0"), run(tmp_path / "version_1", fold=1)
    assert len(fold_scores(tables)) == 2
    assert "Not a cold test" not in "".join(diagnosis_cards(tables))
    write(other["lmcd_scores"], [{**row, "train_on_oracle": 1} for row in scores(1)])
    assert len(fold_scores(tables)) == len(fold_scores(other)) == 1
    assert "Not a cold test" in "".join(diagnosis_cards(other))
    third = run(tmp_path / "version_2", fold=2)
    write(third["lmcd_scores"], [{**row, "train_on_oracle": 0} for row in scores(2)])
    assert len(fold_scores(tables)) == 2  # one that does not say is one of old


@pytest.mark.parametrize("broken", ["system\nlmcd\n", "\x00", ""])
def test_a_broken_table_is_named_and_does_not_stop_the_page(broken: str, tmp_path: Path) -> None:
    tables = run(tmp_path)
    tables["lmcd_scores"].write_text(broken)
    assert "Not shown" in "".join(diagnosis_cards(tables))
    assert diagnosis_cards({}) == []
