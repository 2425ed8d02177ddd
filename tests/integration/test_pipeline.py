"""The pipeline of docs/pipeline.md through the command line, on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from tiny_editing import TEMPLATE, edit_rows, write_edits, write_model
from tiny_scoring import write_rows
from wandb_records import read_offline_run

from lightning_suite.cli.main import main
from lightning_suite.resofilter.store import merge_shards

pytestmark = pytest.mark.filterwarnings("ignore:Found . module", "ignore:Checkpoint directory")

FAST = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
WORDS = f"--data.init_args.prompt_template={TEMPLATE}"
TINY = ["--model.init_args.pretrained=tiny", WORDS]
HELD_OUT = "--data.init_args.val_source=held_out.jsonl"
EDITS = [
    *FAST,
    f"--model.init_args.prompt_template={TEMPLATE}",
    "--model.init_args.layer=1",
    "--model.init_args.gate=closed",
    "--model.init_args.training={lr: 0.03, lr_a: 0.03, initial: random, decay: false, steps: 40}",
    "--model.init_args.max_new_tokens=6",
    "--model.init_args.checkpoints=[2,4]",
    "--data.init_args.source=edits.jsonl",
]
RUNS = Path("runs/pipeline")
LAYERS = 4  # of the tiny model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a small trained model, and edits of its own."""
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # a service that an earlier test started writes into that test's folder
    write_model(tmp_path / "tiny")
    write_edits(tmp_path / "edits.jsonl", edit_rows(4))
    write_rows(tmp_path / "sums.jsonl", sums(12))
    write_rows(tmp_path / "held_out.jsonl", sums(18)[12:])
    return tmp_path


def sums(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"s{n}", "question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."}
        for n in range(count)
    ]


def run(*args: str) -> None:
    try:
        assert main(list(args)) == 0
    finally:
        wandb.finish()


def written(run: Path) -> int:
    """Return when an offline run was closed: two may have begun in the same second of its name."""
    (log,) = run.glob("run-*.wandb")
    return log.stat().st_mtime_ns


def last(run: str, key: str) -> float:
    """Return the last value of a metric of a run."""
    with (RUNS / run / "metrics.csv").open(newline="") as file:
        values = [row[key] for row in csv.DictReader(file) if row.get(key)]
    return float(values[-1])


def test_score_select_fine_tune_export_edit_and_evaluate(folder: Path) -> None:
    offline = ["-c", "overlays/wandb_offline"]
    source = "--data.init_args.source=sums.jsonl"
    run("score", "-c", "pipeline/score", *TINY, source)
    run("select", str(RUNS / "scores"), "--keep", "0.5", "--out", str(RUNS / "kept.jsonl"))
    kept = [json.loads(line) for line in (RUNS / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == 6

    tuning = ["-c", "pipeline/fine_tune", *TINY, *FAST, HELD_OUT]
    tuning.append("--model.init_args.lora.layers_to_transform=[1,2]")
    run("validate", *tuning, *offline)
    run("fit", *tuning, "-c", "overlays/gradient_features", *offline)
    assert last("fine_tune/version_1", "val_loss") < last("fine_tune/version_0", "val_loss")
    recorded = merge_shards(RUNS / "fine_tune/version_1/gradient_features").to_pylist()
    assert {row["sample_id"] for row in recorded} <= {row["sample_id"] for row in kept}
    rate = 4e-3 * (LAYERS / 8) ** -0.5  # of its role in a model of so many blocks
    assert [row["lr"] for row in recorded] == pytest.approx([rate] * len(recorded))
    assert recorded

    run("export", str(RUNS / "checkpoints/fine_tuned.ckpt"), str(RUNS / "model"))
    run("fit", "-c", "pipeline/edit", *offline, *EDITS)
    run("test", "-c", "pipeline/edit", *offline, *EDITS)
    assert last("edit/version_1", "scen/reliability") > 0.7
    with (RUNS / "edit/version_1/artifacts/scen_summary.csv").open(newline="") as file:
        assert [row["system"] for row in csv.DictReader(file)] == ["scen", "no_edit"]

    run("validate", "-c", "pipeline/evaluate", *offline, *FAST, WORDS, HELD_OUT)
    assert last("evaluate/version_0", "scen/edits") == 4
    assert last("evaluate/version_0", "scen/fired_rate") == 0
    # no edit fires on these problems: the merged, edited model is the one that was fine-tuned
    tuned = last("fine_tune/version_1", "val_loss")
    assert last("evaluate/version_0", "val_loss") == pytest.approx(tuned, rel=1e-5)

    run("report", str(RUNS), "--index", "runs/pipeline.html")
    page = Path("runs/pipeline.html").read_text()
    for name in ("scores", "fine_tune/version_1", "edit/version_1", "evaluate/version_0"):
        assert f"pipeline/{name}/report.html" in page
    assert "Not shown" not in page

    wandb.teardown()  # its service has written all to the disk when it has gone
    runs = sorted(folder.glob("wandb/offline-run-*"), key=written)
    tracked = [read_offline_run(run) for run in runs]
    assert len(tracked) == 5
    before, fine_tuning, editing, testing, evaluation = tracked
    assert "val_loss" in before.metrics & evaluation.metrics
    assert "scen/reliability" in testing.metrics
    assert "scen/loss" in editing.metrics
    assert {"train_loss", "val_loss", "depth_mup/lr/hidden_first", "resofilter/grad_norm"} <= (
        fine_tuning.metrics
    )
    # CausalLMModule has an argument `config` of its own, which W&B shows beside this one
    whole = fine_tuning.config["lightning_suite"]
    callbacks = [entry["class_path"].split(".")[-1] for entry in whole["trainer"]["callbacks"]]
    assert callbacks == ["DepthMuPLRCallback", "ModelCheckpoint", "GradientFeatureCallback"]
    assert whole["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 4e-3
