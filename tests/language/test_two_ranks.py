"""Two processes train the same model as one, on the same text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Trainer
from tiny import TINY

from lightning_suite import CausalLMModule, TextDataModule


def train(ranks: int, **trainer: Any) -> tuple[CausalLMModule, dict[str, Any]]:
    module = CausalLMModule(
        config=TINY["llama"],
        dtype="float64",
        optimizer=partial(torch.optim.SGD, lr=0.1),
        init_seed=0,
    )
    fitted = Trainer(
        accelerator="cpu",
        max_steps=4,
        val_check_interval=4,
        limit_val_batches=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    fitted.fit(module, datamodule=TextDataModule(block_size=32, batch_size=8 // ranks))
    return module, dict(fitted.callback_metrics)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_two_ranks_are_one_rank_with_a_batch_of_twice_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))  # taken away again after
    one, metrics = train(1)
    two, metrics_of_two = train(2, strategy="ddp_fork", devices=2)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-12, atol=1e-14)
    assert two.tokens_seen == one.tokens_seen == 4 * 8 * 31
    for name in ("val_loss", "val_perplexity"):
        torch.testing.assert_close(metrics_of_two[name], metrics[name])
