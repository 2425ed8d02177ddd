"""A teacher's way through the command line: describe, train, predict, attach, read the page."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from cold_start_folders import write_plain
from glass_lm import glass_tokenizer
from tiny_lmcd import CONFIG

from lightning_suite.cli.main import main
from lightning_suite.language.loading import causal_lm_from_config

CONFIGS = Path(__file__).parents[2] / "configs"


pytestmark = [
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # of ModelCheckpoint
]
QUIET = [
    "--model.init_args.pretrained=lm",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
LOG = """student_id,exercise_id,correct
ann,halves,1
ann,thirds,1
ann,minus,0
ann,area,1
ben,halves,1
ben,thirds,0
ben,minus,0
ben,area,0
cem,halves,0
cem,thirds,1
cem,minus,1
dia,halves,1
dia,minus,1
dia,area,1
"""
EXERCISES = """exercise_id,text,kc_ids
halves,"What is 1/2 + 1/2?",add
thirds,"What is 1/3 + 1/2?",add;common
minus,"What is 3/4 - 1/2, in lowest terms?",common
area,"A field is 3 m by 4 m. How large is it?",area
new,"What is 2/3 - 1/6?",common
"""
SKILLS = """kc_id,name
add,Add fractions
common,Find a common denominator
area,Work out areas
"""


def save_tiny_lm(folder: str) -> None:
    tokenizer = glass_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = {**CONFIG, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    causal_lm_from_config(config).save_pretrained(folder)


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_class_of_one_s_own_is_diagnosed_and_a_student_who_came_later_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_lm("lm")
    mine = tmp_path / "my_class"
    mine.mkdir()
    for name, text in (("interactions", LOG), ("exercises", EXERCISES), ("kcs", SKILLS)):
        (mine / f"{name}.csv").write_text(text)
    (tmp_path / "new.csv").write_text("student_id,exercise_id,correct\neve,halves,1\neve,area,0\n")
    base = ["-c", str(CONFIGS / "lmcd/my_class.yaml"), *QUIET]
    trained = ["--ckpt_path=runs/my_class_checkpoints/best.ckpt"]

    assert main(["fit", *base, "--trainer.max_epochs=2"]) == 0
    assert main(["predict", *base, *trained]) == 0
    artifacts = Path("runs/my_class/version_1/artifacts")
    rows = read_rows(artifacts / "predictions.csv")
    pairs = {(row["student_id"], row["exercise_id"]): row for row in rows}
    assert len(rows) == len(pairs) == 4 * 5  # the exercise that nobody has answered, too
    assert all(0 < float(row["probability"]) < 1 for row in rows)
    assert pairs["ben", "thirds"]["correct"] in ("0", "0.0")
    assert pairs["dia", "thirds"]["correct"] == pairs["ann", "new"]["correct"] == ""
    mastery = read_rows(artifacts / "lmcd_mastery.csv")
    assert len(mastery) == 4 * 3
    assert {row["kc"] for row in mastery} == {
        "Add fractions",
        "Find a common denominator",
        "Work out areas",
    }
    suggested = {row["exercise_id"] for row in read_rows(artifacts / "lmcd_next.csv")}
    assert suggested <= {"new", "thirds", "area"}  # what somebody has not answered

    overlay = ["-c", str(CONFIGS / "overlays/attach_students.yaml")]
    later = ["--data.init_args.new_students=new.csv"]
    assert main(["predict", *base[:2], *overlay, *QUIET, *later, *trained]) == 0
    artifacts = Path("runs/my_class/version_2/artifacts")
    again = {
        (row["student_id"], row["exercise_id"]): row
        for row in read_rows(artifacts / "predictions.csv")
    }
    assert len(again) == 5 * 5
    for pair, row in pairs.items():  # nobody else has moved
        assert float(again[pair]["probability"]) == pytest.approx(
            float(row["probability"]), abs=1e-6
        )
    assert {row["kc_id"] for row in read_rows(artifacts / "lmcd_mastery.csv")} == {
        "add",
        "common",
        "area",
    }
    assert main(["report", "runs/my_class/version_2"]) == 0
    assert "eve" in Path("runs/my_class/version_2/report.html").read_text()


def test_from_three_files_to_a_page_with_a_new_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "class")
    save_tiny_lm("lm")
    (tmp_path / "new.csv").write_text("student_id,exercise_id,correct\nzoe,e1,1\nzoe,e2,1\n")
    base = ["-c", str(CONFIGS / "quickstart/lmcd.yaml")]
    data = ["--data.init_args.source=class", "--data.init_args.text=both"]
    data += ["--data.init_args.descriptions=descriptions.jsonl"]
    small = [*data, *QUIET]

    assert main(["diffuse", *base, *data]) == 0
    assert main(["fit", *base, *small, "--trainer.max_epochs=1"]) == 0
    trained = "runs/quickstart_lmcd_checkpoints/best.ckpt"  # where this config keeps it
    overlay = ["-c", str(CONFIGS / "overlays/attach_students.yaml")]
    new = ["--data.init_args.new_students=new.csv", f"--ckpt_path={trained}"]
    assert main(["predict", *base, *overlay, *small, *new]) == 0
    run = Path("runs/quickstart_lmcd/version_1")
    assert "zoe," in (run / "artifacts/lmcd_next.csv").read_text()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert all(title in page for title in ("Students and skills", "Calibration and ROC", "floor"))

    # without its own file, the checkpoint still knows the student
    overlay = ["-c", str(CONFIGS / "overlays/diagnosis_report.yaml")]
    saved = run / "checkpoints/attached.ckpt"
    plain = ["-c", str(CONFIGS / "lmcd/verbagg.yaml")]
    assert main(["test", *plain, *overlay, *small, f"--ckpt_path={saved}"]) == 0
    assert Path("lightning_logs/version_0/artifacts/lmcd_scores.csv").exists()
