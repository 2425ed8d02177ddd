"""The shipped configs of ResoFilter, run one after the other as their comments say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from tiny_scoring import MODEL
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_suite.cli.main import main
from lightning_suite.resofilter.store import merge_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Found . module", "ignore:The dirpath has changed"),
]

FAST = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A saved model in the current folder, which is empty otherwise."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    values = {key: value for key, value in MODEL.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**{**values, "max_position_embeddings": 800}))
    model.save_pretrained("tiny")
    return "tiny"


def test_score_select_and_fit(tiny: str) -> None:
    """The three commands of the method card."""
    model = [f"--model.init_args.pretrained={tiny}", "--data.init_args.tokenizer=bytes"]
    score = ["score", "-c", "resofilter/score", *model, "--threads=1", "--accelerator=cpu"]
    assert main([*score, "--data.init_args.source=word_problems:40"]) == 0
    assert main(["select", "runs/scores", "--keep", "0.5", "--compat", "resofilter"]) == 0
    kept = Path("runs/scores/kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 20
    fit = ["fit", "-c", "resofilter/select_and_fit", *model, *FAST]
    fit += ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1"]
    fit += ["--data.init_args.val_fraction=0.2"]
    assert main(fit) == 0
    run = Path("lightning_logs/version_0")
    assert "train_loss" in (run / "metrics.csv").read_text()
    assert main(["report", str(run)]) == 0


def test_the_quickstart_twice(tiny: str) -> None:
    """The second time nothing is scored again and the kept half is written anew."""
    score = ["score", "-c", "quickstart/resofilter", f"--model.init_args.pretrained={tiny}"]
    score += ["--data.init_args.tokenizer=bytes", "--threads=1", "--accelerator=cpu"]
    select = ["select", "runs/quickstart_resofilter", "--keep", "0.5", "--compat", "resofilter"]
    kept = Path("runs/quickstart_resofilter/kept.jsonl")
    written = []
    for _ in range(2):
        assert main(score) == 0
        assert main([*select, "--force"]) == 0
        written.append(kept.read_text(encoding="utf-8"))
    assert len(written[0].splitlines()) == 24
    assert written[0] == written[1]
    assert kept.with_name("report.html").exists()


def test_online_and_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "-c", "resofilter/online", *FAST]
    assert main([*fit, "--trainer.max_epochs=1"]) == 0
    (saved,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    assert main([*fit, "--trainer.max_epochs=2", f"--ckpt_path={saved}"]) == 0
    first, both = (
        merge_shards(Path("lightning_logs", version, "gradient_features")).to_pylist()
        for version in ("version_0", "version_1")
    )
    steps = {row["step"] for row in both}
    assert steps == set(range(0, max(steps) + 1, 5))
    assert [row for row in both if row["step"] <= max(r["step"] for r in first)] == first
    metrics = Path("lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert "resofilter/grad_norm" in metrics


def test_the_overlay_goes_with_any_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    overlays = ["overlays/gradient_features", "overlays/feature_dynamics"]
    assert main(["check", "depth_mup/digits", *overlays]) == 0
    assert main(["check", "depth_mup/llama_from_scratch", *overlays, "overlays/depth_mup"]) == 0
    options = ["--trainer.max_steps=12", "--model.init_args.depth=4"]
    assert main(["fit", "-c", "depth_mup/digits", "-c", overlays[0], *FAST, *options]) == 0
    table = merge_shards("lightning_logs/version_0/gradient_features")
    assert len(table) == 2 * 64
    manifest = json.loads(
        Path("lightning_logs/version_0/gradient_features/manifest.json").read_text()
    )
    assert manifest["model"] == "ResidualNetModule"


def test_print_config_knows_every_argument(capsys: Any) -> None:
    seed_everything(0, verbose=False)
    assert main(["fit", "-c", "resofilter/online", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert "every_n_steps: 5" in shown
    assert "rows_per_shard: 4096" in shown
