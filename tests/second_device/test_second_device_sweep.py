"""A learning-rate sweep in one batch on another device: the losses of the CPU."""

from __future__ import annotations

import pytest
import torch
from second_device import NAME, on_cpu, waits_counted

from lightning_suite.depth_mup.batched import Run, train_batched
from lightning_suite.depth_mup.models import ResidualMLP
from lightning_suite.depth_mup.stacked_optimizer import OptimizerSettings

STEPS = 10


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_batched_sweep_is_the_cpu_s(optimizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 1, 4, 4, generator=generator)
    labels = torch.randint(3, (64,), generator=generator)

    def net(seed: int) -> ResidualMLP:
        return ResidualMLP(16, 3, width=8, generator=torch.Generator().manual_seed(seed))

    def train(device: str) -> tuple[torch.Tensor, list[int | None]]:
        result = train_batched(
            net,
            [Run(0, 0.1), Run(1, 0.01), Run(0, 1e30)],
            OptimizerSettings(optimizer),
            (images, labels),
            steps=STEPS,
            batch_size=16,
            val=(images, labels),
            device=device,
        )
        assert result.val_loss is not None
        return torch.cat([result.losses, on_cpu(result.val_loss)[:, None]], 1), result.diverged_at

    with waits_counted() as waits:
        there, diverged_there = train(NAME)
    here, diverged = train("cpu")
    assert diverged_there == diverged
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert 0 < waits.total() < STEPS, "not in every step"
