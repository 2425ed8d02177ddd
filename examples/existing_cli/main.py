"""A LightningCLI project that knows nothing of lightning-suite. Its config names the callbacks.

From this folder::

    python main.py fit -c config.yaml                          # as it always was
    python main.py fit -c config.yaml -c with_suite.yaml       # with ours
    lightning-suite report lightning_logs --index compare.html # both runs side by side

The second file is all that was added; this one was not touched.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(self.norm(h))))


class Classifier(LightningModule):
    def __init__(self, depth: int = 8, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Linear(20, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(h)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


class Points(LightningDataModule):
    """Points whose class is the sign of the product of two coordinates."""

    def __init__(self, rows: int = 512, batch_size: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()

    def _loader(self, seed: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.hparams["rows"], 20, generator=generator)
        data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
        return DataLoader(data, self.hparams["batch_size"], shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(1, shuffle=False)


if __name__ == "__main__":
    LightningCLI(Classifier, Points, save_config_kwargs={"overwrite": True})
