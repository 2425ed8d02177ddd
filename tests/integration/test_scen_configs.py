"""The shipped configs of SCEN, run one after the other as their comments say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_editing import TEMPLATE, edit_rows, write_edits, write_model

from lightning_suite.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
FAST = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a small trained model, and edits of its own."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "tiny")
    write_edits(tmp_path / "edits.jsonl", edit_rows(6))
    return tmp_path


def options(*more: str) -> list[str]:
    return [
        *FAST,
        "--model.init_args.pretrained=tiny",
        f"--model.init_args.prompt_template={TEMPLATE}",
        "--model.init_args.max_new_tokens=6",
        "--model.init_args.calibrate=false",
        "--data.init_args.source=edits.jsonl",
        *more,
    ]


def test_no_shipped_fit_counts_the_parameters_of_a_model_that_it_does_not_train() -> None:
    """Lightning's summary said "Trainable params: 1", which is the counter of groups."""
    configs = [
        config
        for path in CONFIGS.glob("*/*.yaml")
        if "SCENModule"
        in (config := yaml.safe_load(path.read_text())).get("model", {}).get("class_path", "")
        and "max_epochs" in config.get("trainer", {})
    ]
    assert len(configs) >= 4
    assert not [config for config in configs if config["trainer"].get("enable_model_summary", True)]


@pytest.mark.slow
def test_edit_test_with_baselines_predict_and_report(folder: Path) -> None:
    short = [
        "--model.init_args.checkpoints=[2,6]",
        "--model.init_args.baselines=[no_edit,in_context_subject,{name: grace, steps: 2}]",
    ]
    assert main(["fit", "-c", "scen/edit", *options()]) == 0
    both = ["-c", "scen/edit", "-c", "scen/baselines"]
    assert main(["test", *both, *options(*short)]) == 0
    run = Path("lightning_logs/version_1")
    summary = (run / "artifacts/scen_summary.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in summary] == [
        "system",
        "scen",
        "no_edit",
        "in_context_subject",
        "grace",
    ]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Not shown" not in page
    assert "the dog likes" in page
    Path("asked.txt").write_text("Alice likes\nWhy did it rain?\n")
    asked = "--data.init_args.prompts=asked.txt"
    assert main(["predict", "-c", "scen/predict", *options(asked)]) == 0
    lines = Path("lightning_logs/version_2/artifacts/answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [(row["prompt"], row["fired"]) for row in answers] == [
        ("Alice likes", "e0"),
        ("Why did it rain?", None),
    ]


@pytest.mark.slow
def test_quickstart(folder: Path) -> None:
    for command in ("fit", "predict"):
        assert main([command, "-c", "quickstart/scen", *options()]) == 0
    runs = Path("runs/quickstart_scen")
    answers = (runs / "version_1/artifacts/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["fired"] for line in answers] == [f"e{n}" for n in range(6)]
    assert main(["report", str(runs)]) == 0
    assert "the dog likes" in (runs / "report.html").read_text()
    assert main(["fit", "-c", "quickstart/scen", *options()]) == 0, "a second time, nothing to do"


@pytest.mark.slow
def test_published(folder: Path) -> None:
    for command in ("fit", "test"):
        assert main([command, "-c", "scen/published", *options()]) == 0
    gates = Path("lightning_logs/version_1/artifacts/scen_gate.csv").read_text()
    assert "rephrase" in gates


@pytest.mark.slow
def test_the_overlay_goes_with_a_module_that_knows_nothing_of_edits(folder: Path) -> None:
    assert main(["fit", "-c", "scen/edit", *options()]) == 0
    rows = [{"instruction": f"{name} likes", "output": "tea"} for name in ("Alice", "Bob", "Eve")]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fit = [
        *("fit", "-c", "resofilter/select_and_fit", "-c", "overlays/expert_gate", *FAST),
        "--model.init_args.pretrained=tiny",
        "--data.init_args.source=chat.jsonl",
        f"--data.init_args.prompt_template={TEMPLATE}",
        "--data.init_args.max_length=64",
        "--data.init_args.val_fraction=0.3",
        "--model.init_args.lora.target_modules=[q_proj]",
        "--trainer.max_steps=1",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(fit) == 0
    metrics = Path("lightning_logs/version_1/metrics.csv").read_text()
    assert "scen/fired_rate" in metrics
    assert Path("lightning_logs/version_1/artifacts/bank.json").exists()
