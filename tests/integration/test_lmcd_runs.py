"""A teacher's way through the command line: describe, train, predict, attach, read the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cold_start_folders import write_plain
from glass_lm import glass_tokenizer
from tiny_lmcd import CONFIG

from lightning_suite.cli.main import main
from lightning_suite.language.loading import causal_lm_from_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of ModelCheckpoint, as it should
def test_from_three_files_to_a_page_with_a_new_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "class")
    tokenizer = glass_tokenizer()
    tokenizer.save_pretrained("lm")
    torch.manual_seed(0)
    config = {**CONFIG, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    causal_lm_from_config(config).save_pretrained("lm")
    (tmp_path / "new.csv").write_text("student_id,exercise_id,correct\nzoe,e1,1\nzoe,e2,1\n")
    base = ["-c", str(CONFIGS / "quickstart/lmcd.yaml")]
    data = ["--data.init_args.source=class", "--data.init_args.text=both"]
    data += ["--data.init_args.descriptions=descriptions.jsonl"]
    small = [*data, "--model.init_args.pretrained=lm"]
    small += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]

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
