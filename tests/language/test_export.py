"""A checkpoint becomes a model folder that computes what the trained module computed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny import TINY
from transformers import AutoModelForCausalLM

from lightning_suite import CausalLMModule, DepthMuPLRCallback, TextDataModule
from lightning_suite.cli.main import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:the checkpoint was trained with DepthMuPLRCallback"
)

LORA = {
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "down_proj"],
    "init_lora_weights": False,
}
TOKENS = torch.arange(40).reshape(2, 20)


def trained(folder: Path, *, callbacks: Any = (), **options: Any) -> tuple[Path, Any]:
    """Train three steps; return the checkpoint and the module."""
    module = CausalLMModule(
        config=TINY["llama"], optimizer=partial(torch.optim.AdamW, lr=1e-2), init_seed=0, **options
    )
    data = TextDataModule(block_size=32, batch_size=8, val_fraction=0.002)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=data)
    path = folder / "trained.ckpt"
    trainer.save_checkpoint(path)
    return path, module


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def exported(path: Path) -> Any:
    out = path.with_name("model")
    assert main(["export", str(path), str(out)]) == 0
    return AutoModelForCausalLM.from_pretrained(out)


def test_the_folder_computes_what_was_trained(tmp_path: Path) -> None:
    path, module = trained(tmp_path)
    torch.testing.assert_close(logits(exported(path)), logits(module.model), rtol=0, atol=0)


def test_adapters_are_merged(tmp_path: Path) -> None:
    path, module = trained(tmp_path, lora=LORA)
    model = exported(path)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(model), logits(module.model), rtol=1e-4, atol=1e-5)
    plain = CausalLMModule(config=TINY["llama"], init_seed=0).model
    assert (logits(model) - logits(plain)).abs().max() > 1e-2, "without adapters it is another one"


@pytest.mark.filterwarnings("ignore:.*base_width")
def test_multipliers_of_hooks_are_folded(tmp_path: Path) -> None:
    """The truth is the callback's own fold, on the module that it trained."""
    callback = DepthMuPLRCallback(base_depth=1, rule="depth_mup")
    path, module = trained(tmp_path, callbacks=[callback])
    unfolded = logits(module.model)
    callback.fold(module)
    model = exported(path)
    torch.testing.assert_close(logits(model), logits(module.model), rtol=1e-5, atol=1e-6)
    assert (logits(model) - unfolded).abs().max() > 1e-2


def test_what_is_no_language_model_is_refused(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"width": 3}}, path)
    assert main(["export", str(path), str(tmp_path / "model")]) == 2
    assert "other.ckpt: is no checkpoint of CausalLMModule" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.ckpt"), str(tmp_path / "model")]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path: Path, capsys: Any) -> None:
    path, _ = trained(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/theirs.txt").write_text("theirs")
    assert main(["export", str(path), str(tmp_path / "model"), "--force"]) == 2
    assert "Choose another name" in capsys.readouterr().err
    assert (tmp_path / "model/theirs.txt").read_text() == "theirs"
    again = str(tmp_path / "again")
    assert main(["export", str(path), again]) == 0
    assert main(["export", str(path), again]) == 2
    assert "Add --force" in capsys.readouterr().err
    assert main(["export", str(path), again, "--force"]) == 0
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"trained.ckpt", "model", "again"}, "no half-written folder lies about"
