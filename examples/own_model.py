"""Your own `nn.Module` under depth-muP, and a feature of your own for each sample's gradient.

First without Lightning: roles and factors come from plain functions. Then the same net is trained
with Lightning, and a column that this file defines is written for each sample. Run it:
``python examples/own_model.py``
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite import DepthMuPLRCallback, GradientFeatureCallback
from lightning_suite.depth_mup.roles import assign_roles
from lightning_suite.depth_mup.rules import lr_factor
from lightning_suite.resofilter.feature import Feature, sum_of_entries
from lightning_suite.resofilter.rows import Block, LayerGradients

ROLES = {
    r"\.mix\.": "hidden_first",
    r"\.out\.": "hidden_last",
    r"embed\.": "input",
    r"classify\.": "output",
}


class Mixer(nn.Module):
    """h + W2 sin(W1 h): a residual block that no library knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.out(torch.sin(self.mix(h)))


class Net(nn.Module):
    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(20, width)
        self.mixers = nn.ModuleList(Mixer(width) for _ in range(depth))
        self.classify = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for mixer in self.mixers:
            h = mixer(h)
        out: Tensor = self.classify(h)
        return out


@dataclass(frozen=True)
class ShareOfSmall(Feature):
    """Share of the gradient's entries that are smaller than ``below``.

    A subclass enters the registry by its name: features, YAML and columns then know it.
    """

    name: ClassVar[str] = "share_of_small"
    reads_entries: ClassVar[bool] = True

    below: float = 1e-4

    def of_block(self, block: Block, layer: LayerGradients) -> Tensor:
        return sum_of_entries((block.magnitude < self.below).to(block.gradient.dtype))

    def finish(self, total: Tensor, layer: LayerGradients) -> Tensor:
        return total / layer.weight.numel()


class YourModule(LightningModule):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net = Net(depth)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    torch.manual_seed(0)

    # 1. What each parameter is, and what the rule makes of a rate tuned on four blocks.
    roles = assign_roles(Net(depth=16), patterns=ROLES)
    print(f"{roles.depth} blocks of width {roles.width}")
    for name in ("embed.weight", "mixers.15.mix.weight", "mixers.15.out.weight"):
        role = roles.roles[name]
        factor = lr_factor(role, "depth_mup", "adam", depth_ratio=roles.depth / 4)
        print(f"  {name:<22} {role:<12} rate × {factor:g}")

    # 2. The same in a trainer, with a column of your own.
    x = torch.randn(512, 20)
    data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                DepthMuPLRCallback(base_depth=4, rule="depth_mup", patterns=ROLES),
                GradientFeatureCallback(
                    ["grad_norm", {"name": "share_of_small", "below": 1e-3}],
                    modules=["mix"],
                    layers="last:1",
                    every_n_steps=4,
                    folder=folder,
                ),
            ],
        )
        trainer.fit(YourModule(depth=16), DataLoader(data, batch_size=32, shuffle=True))
        table = parquet.read_table(sorted(Path(folder).rglob("*.parquet")))
    column = next(name for name in table.column_names if name.endswith("share_of_small"))
    values = table[column].to_numpy()
    print(f"{column}: {len(values)} samples, mean {values.mean():.3f}")


if __name__ == "__main__":
    main()
