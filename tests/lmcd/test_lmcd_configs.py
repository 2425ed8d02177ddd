"""Every shipped LMCD config runs by the command line; only model and data are made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from backbones import BACKBONES
from cold_start_folders import write_plain
from glass_lm import glass_tokenizer

from lightning_suite import ColdStartDataModule
from lightning_suite.cli.main import main
from lightning_suite.language.loading import causal_lm_from_config

CONFIGS = Path(__file__).parents[2] / "configs" / "lmcd"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
# the class has ten exercises and five skills
MORE = {
    "attach.yaml": ["--data.init_args.support=4"],
    "kancd.yaml": ["--data.init_args.folds=5"],
}


def load(name: str) -> Any:
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name", ["attach.yaml", "kancd.yaml", "lora.yaml", "verbagg.yaml", "../quickstart/lmcd.yaml"]
)
def test_the_shipped_data_leaves_enough_to_train_and_validate_on(name: str) -> None:
    options = load(name)["data"]["init_args"]
    data = ColdStartDataModule(**options, tokenizer="bytes")
    data.setup()
    exercises = data.manifest["exercises"]
    assert exercises["train"] >= 12
    assert exercises["val"] >= 2
    assert exercises["test"] >= 4
    assert data.manifest["answers"]["train"] >= 3000


@pytest.mark.parametrize("name", [*NAMES, "../quickstart/lmcd.yaml"])
def test_the_epoch_that_is_kept_is_that_of_the_likeliest_validation(name: str) -> None:
    """Of few answers the AUC is luck: it kept the first epoch of small classes."""
    callbacks = load(name)["trainer"]["callbacks"]
    watched = [c["init_args"] for c in callbacks if "monitor" in c.get("init_args", {})]
    assert len(watched) >= 1
    assert {(c["monitor"], c["mode"]) for c in watched} == {("lmcd/val_nll", "min")}


@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.parametrize("name", NAMES)
def test_config_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "class")
    tokenizer = glass_tokenizer()
    tokenizer.save_pretrained(tmp_path / "lm")
    torch.manual_seed(0)
    config = {**BACKBONES["llama"], "vocab_size": len(tokenizer), "num_hidden_layers": 1}
    model = causal_lm_from_config({**config, "max_position_embeddings": 256})
    model.save_pretrained(tmp_path / "lm")
    small = [
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--model.init_args.pretrained={tmp_path / 'lm'}",
        f"--data.init_args.source={tmp_path / 'class'}",
    ]
    assert main(["fit", "-c", str(CONFIGS / name), *small, *MORE.get(name, [])]) == 0
    assert list(tmp_path.rglob("*.ckpt"))
