"""A training by command line that is killed and resumed ends where an uninterrupted one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cold_start_folders import write_plain
from glass_lm import glass_tokenizer
from tiny_lmcd import CONFIG

from lightning_suite.cli.main import main
from lightning_suite.language.loading import causal_lm_from_config

CONFIGS = Path(__file__).parents[2] / "configs"
KILLED_AT, LAST = 14, 35  # steps; an epoch has eleven
OVERLAY = """
trainer:
  callbacks+:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: FOLDER, filename: "{step}", every_n_train_steps: 7, save_top_k: -1}
"""
# It dies as a lost machine does, as soon as its checkpoint of the second epoch is there.
DIES = f"""
import os, signal, sys
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_suite.cli.main import main

save = ModelCheckpoint._save_checkpoint
def save_and_die(self, trainer, path):
    save(self, trainer, path)
    if trainer.global_step == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
ModelCheckpoint._save_checkpoint = save_and_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of ModelCheckpoint, as it should
@pytest.mark.parametrize("name", ["verbagg", "lora"])
def test_killed_and_resumed_is_uninterrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_plain(Path("class"))
    tokenizer = glass_tokenizer()
    tokenizer.save_pretrained("lm")
    torch.manual_seed(0)
    config = {**CONFIG, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    causal_lm_from_config(config).save_pretrained("lm")

    def arguments(folder: str) -> list[str]:
        overlay = Path(f"{folder}.yaml")
        overlay.write_text(OVERLAY.replace("FOLDER", folder))
        return [
            *("fit", "-c", str(CONFIGS / f"lmcd/{name}.yaml"), "-c", str(overlay)),
            *("--trainer.max_epochs=4", "--trainer.accelerator=cpu"),
            *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
            *("--model.init_args.pretrained=lm", "--data.init_args.source=class"),
            "--data.init_args.students_per_exercise=4",
        ]

    assert main(arguments("whole")) == 0
    killed = subprocess.run(
        [sys.executable, "-c", DIES, *arguments("cut")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = sorted(path.name for path in Path("cut").iterdir())
    assert saved == ["step=14.ckpt", "step=7.ckpt"]
    assert main([*arguments("cut"), f"--ckpt_path=cut/step={KILLED_AT}.ckpt"]) == 0

    whole, resumed = (
        torch.load(f"{folder}/step={LAST}.ckpt", weights_only=True) for folder in ("whole", "cut")
    )
    assert whole["global_step"] == resumed["global_step"] == LAST
    for part in ("state_dict", "optimizer_states", "lmcd"):
        wanted, got = flat(whole[part]), flat(resumed[part])
        assert got.keys() == wanted.keys()
        different = [key for key in wanted if not same(wanted[key], got[key])]
        assert different == []


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their path."""
    if not isinstance(tree, dict | list):
        return {key: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for name, part in items for k, v in flat(part, f"{key}/{name}").items()}


def same(a: Any, b: Any) -> bool:
    # texts that are read once are read in other company after a resume: the last digit differs
    return torch.allclose(a, b, 1e-4, 1e-6) if isinstance(a, torch.Tensor) else bool(a == b)
