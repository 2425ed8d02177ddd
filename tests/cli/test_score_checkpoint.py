"""``lightning-suite score --ckpt_path``: a checkpoint's weights, and its optimizer's next step."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from tiny_scoring import MODEL, write_config

from lightning_suite import CausalLMModule, InstructionDataModule
from lightning_suite.cli.main import main
from lightning_suite.resofilter.selection import table_columns
from lightning_suite.resofilter.store import merge_shards

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*nothing to learn within max_length"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
FEATURES = ["adam1_mean_abs", "adam_mean_abs"]


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.8, 0.95), weight_decay=0.1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """Train three steps in float64; returns the checkpoint and the model section of a config."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    L.seed_everything(1, verbose=False)
    module = CausalLMModule(MODEL, dtype="float64", optimizer=optimizer)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, InstructionDataModule("data.jsonl", tokenizer="bytes", max_length=90))
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    settings = {"lr": 1e-3, "betas": [0.8, 0.95], "weight_decay": 0.1}
    made = {"class_path": "torch.optim.AdamW", "init_args": settings}
    arguments = {"config": MODEL, "dtype": "float64", "optimizer": made}
    return tmp_path / "three.ckpt", {"class_path": "CausalLMModule", "init_args": arguments}


def score(model: dict[str, Any], *args: str, **options: Any) -> int:
    config = write_config(Path.cwd(), features=FEATURES, model=model, **options)
    return main(["score", "-c", str(config), *args])


def test_the_next_step_is_that_of_the_checkpoint_s_optimizer(
    run: tuple[Path, dict[str, Any]],
) -> None:
    path, model = run
    assert score(model, "--ckpt_path", str(path)) == 0
    columns = table_columns(merge_shards("scores"))

    module = CausalLMModule(MODEL, dtype="float64", optimizer=optimizer)
    checkpoint = torch.load(path, weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    data = InstructionDataModule("data.jsonl", tokenizer="bytes", max_length=90)
    samples = data.samples("train")
    places = {sample_id: n for n, sample_id in enumerate(samples.ids)}
    names = [f"model.layers.{n}.mlp.up_proj" for n in (1, 2, 3)]
    for row, sample_id in enumerate(columns["sample_id"][:6]):
        twin = deepcopy(module)
        literal: Any = twin.configure_optimizers()
        literal.load_state_dict(deepcopy(checkpoint["optimizer_states"][0]))
        for group in literal.param_groups:
            group["lr"] = 1e-5
        batch = samples[places[sample_id]]
        twin({k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss.backward()
        literal.step()
        for name in names:
            change = module.model.get_submodule(name).weight - twin.model.get_submodule(name).weight
            found = columns[f"{name}.adam_mean_abs"][row]
            np.testing.assert_allclose(found, change.abs().mean().item(), rtol=1e-6)
    assert not np.allclose(columns[f"{names[0]}.adam_mean_abs"],
                           columns[f"{names[0]}.adam1_mean_abs"], rtol=1e-2)  # fmt: skip


def test_scores_at_a_checkpoint_are_not_mixed_with_those_of_the_base(
    run: tuple[Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    path, model = run
    assert score(model, "--ckpt_path", str(path)) == 0
    with pytest.warns(UserWarning, match="adam_mean_abs has no optimizer state"):
        assert score(model) == 2
    assert "weights: " in capfd.readouterr().err


def test_a_file_that_does_not_fit_is_named(
    run: tuple[Path, dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    path, model = run
    weights = torch.load(path, weights_only=True)
    torch.save({**weights, "optimizer_states": []}, "weights.ckpt")
    torch.save({"epoch": 1}, "empty.ckpt")
    smaller = deepcopy(model)
    smaller["init_args"]["config"] = {**MODEL, "intermediate_size": 8}
    for this, file, message in (
        (model, "nowhere.ckpt", "nowhere.ckpt: there is no such file"),
        (model, "empty.ckpt", "needs the file of a checkpoint that `fit` wrote"),
        (model, "weights.ckpt", "the checkpoint has no optimizer state"),
        (smaller, "three.ckpt", "is not a checkpoint of this CausalLMModule"),
    ):
        assert score(this, "--ckpt_path", file) == 2
        assert message in capfd.readouterr().err
        assert not Path("scores/manifest.json").exists()
