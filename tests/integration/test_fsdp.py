"""Weights that two processes share (FSDP2, `fully_shard`) train as whole ones do in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer
from lightning.pytorch import Trainer
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from two_ranks import run_in_two

from lightning_suite import DepthMuPLRCallback

MODES = ("groups", "step")


class Sharded(ForeignModule):
    """As Lightning's ModelParallelStrategy wants it: each block in shards, and the rest."""

    def configure_model(self) -> None:
        if isinstance(next(self.parameters()), DTensor):
            return
        mesh: Any = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in self.backbone.tower:
            fully_shard(block, mesh=mesh)
        fully_shard(self.backbone, mesh=mesh)


def train(
    module: ForeignModule, apply: Any, *, epochs: int, rank: int = 0, ranks: int = 1, **options: Any
) -> tuple[Trainer, dict[str, torch.Tensor]]:
    """Train on this rank's rows of every batch, and return whole weights."""
    data = Batches(4, 8)
    data.batches = [(x[rank::ranks], y[rank::ranks]) for x, y in data.batches]
    callback = DepthMuPLRCallback(1, 4, patterns=PATTERNS, apply=apply)
    resumed = options.pop("ckpt_path", None)
    trainer = quiet_trainer([callback], max_epochs=epochs, **options)
    trainer.fit(module, data, ckpt_path=resumed)
    weights = module.state_dict()
    assert ranks == 1 or all(isinstance(values, DTensor) for values in weights.values())
    return trainer, {
        name: (values.full_tensor() if isinstance(values, DTensor) else values).detach().clone()
        for name, values in weights.items()
    }


BODY = """
import os
from lightning.pytorch.strategies import ModelParallelStrategy
from test_fsdp import MODES, Sharded, train

def sharded(apply, **options):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    options.update(rank=int(os.environ.get("LOCAL_RANK", 0)), ranks=2, devices=2)
    return train(Sharded(), apply, strategy=strategy, use_distributed_sampler=False, **options)

for apply in MODES:
    _, whole = sharded(apply, epochs=2)
    trainer, _ = sharded(apply, epochs=1)
    trainer.save_checkpoint(f"{apply}.ckpt")
    trainer, resumed = sharded(apply, epochs=2, ckpt_path=f"{apply}.ckpt")
    if trainer.is_global_zero:
        torch.save([whole, resumed], f"{apply}.pt")
"""


@pytest.mark.slow
def test_two_ranks_with_shards_equal_one_and_resume_so(tmp_path: Path) -> None:
    run_in_two(tmp_path, BODY, __file__)
    for apply in MODES:
        _, one = train(ForeignModule(), apply, epochs=2)
        for found in torch.load(tmp_path / f"{apply}.pt", weights_only=True):
            assert found.keys() == one.keys()
            for name, weight in one.items():
                torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)
