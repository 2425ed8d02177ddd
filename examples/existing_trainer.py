"""Three lines for a trainer that you already have.

The module, the optimizer and the schedule below stand for yours. The learning rate was tuned on
four blocks; the model that is trained has sixteen. Run it: ``python examples/existing_trainer.py``
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite import DepthMuPLRCallback  # line 1


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(self.norm(h))))


class YourModule(LightningModule):
    def __init__(self, depth: int = 16, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(20, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        h = self.stem(x)
        for layer in self.layers:
            h = layer(h)
        loss = F.cross_entropy(self.head(h), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=64)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 20)
    data = TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())
    callback = DepthMuPLRCallback(  # line 2
        base_depth=4,
        rule="depth_mup",  # with SGD, try "nfd" as well
        # Names of known architectures (Llama, GPT-2, ResNet, ...) need no patterns.
        patterns={
            r"\.up\.": "hidden_first",
            r"\.down\.": "hidden_last",
            r"stem\.": "input",
            r"head\.": "output",
        },
    )
    trainer = Trainer(
        max_epochs=4,
        callbacks=[callback],  # line 3
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(YourModule(), DataLoader(data, batch_size=32, shuffle=True))


if __name__ == "__main__":
    main()
