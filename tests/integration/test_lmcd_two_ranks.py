"""LMCD in two processes: the same scores as in one, and a training that both end with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cold_start_folders import write_plain
from lightning.pytorch import Trainer, seed_everything
from two_ranks import run_in_two

from lightning_suite import ColdStartDataModule, LMCDModule

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
}
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")


def run(folder: Path, **options: Any) -> tuple[Trainer, LMCDModule, dict[str, float]]:
    """Test a model as it begins, train it, test it again; returns both tests' metrics."""
    seed_everything(0)
    source = ColdStartDataModule(
        str(folder), tokenizer="bytes", system="", val_fraction=0.2, students_per_exercise=12
    )
    optimizer = partial(torch.optim.Adam, lr=5e-3)
    module = LMCDModule(config=CONFIG, head="ncdm", optimizer=optimizer)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    metrics = {}
    for stage in ("before", "after"):
        if stage == "after":
            trainer.fit(module, source)
        (found,) = trainer.test(module, source, verbose=False)
        metrics |= {f"{stage} {name}": value for name, value in found.items()}
    return trainer, module, metrics


BODY = """
import json
from pathlib import Path
from test_lmcd_two_ranks import run
trainer, module, metrics = run(Path("."), devices=2, strategy="ddp")
torch.save(module.state_dict(), f"rank{trainer.global_rank}.pt")
Path(f"rank{trainer.global_rank}.json").write_text(json.dumps(metrics))
"""


@pytest.mark.slow
def test_two_processes_score_as_one_and_train_to_the_same_weights(tmp_path: Path) -> None:
    write_plain(tmp_path)
    run_in_two(tmp_path, BODY, __file__)

    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    _, _, one = run(tmp_path, devices=1)
    assert one.keys() == ranks[0].keys()
    for name in one:
        if name.startswith("before") and one[name] == one[name]:
            assert ranks[0][name] == pytest.approx(one[name], abs=1e-6), name
    weights = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=0, atol=0, msg=name)
    trained = {k.removeprefix("after "): v for k, v in ranks[0].items() if k.startswith("after")}
    assert any(ranks[0][f"before {name}"] != value for name, value in trained.items())
