"""What users bring: a LightningModule of their own, and short ways to train it in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 8


class ForeignBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.down(F.gelu(self.up(self.norm(h))))


class ForeignNet(nn.Module):
    """A residual net whose names no preset knows."""

    def __init__(self, depth: int = 4, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.tower = nn.Sequential(*[ForeignBlock(width) for _ in range(depth)])
        self.tail_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.tail_norm(self.tower(self.stem(x))))
        return out


PATTERNS: dict[str, Any] = {
    r"\.up\.": "hidden_first",  # their biases are vectors all the same
    r"\.down\.": "hidden_last",
    r"stem\.": "input",
    r"tail_norm\.": "final_norm",
    r"head\.": "output",
}


class Batches:
    """A loader that can say where it is, so that a run can go on in the middle of an epoch."""

    def __init__(self, count: int = 4, size: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (
                torch.randn(size, 4, generator=generator),
                torch.randint(0, 3, (size,), generator=generator),
            )
            for _ in range(count)
        ]
        self._start = self._next = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self._start = self._start, 0
        for index in range(start, len(self.batches)):
            self._next = index + 1
            yield self.batches[index]

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = state["next"]


class ForeignModule(LightningModule):
    """A user's module: own net, own optimizer with own groups, own scheduler."""

    def __init__(
        self,
        make_optimizer: Callable[[Any], Any] = torch.optim.AdamW,
        make_scheduler: Callable[[Any], Any] | None = None,
        depth: int = 4,
        seed: int = 0,
        interval: str = "step",
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.backbone = ForeignNet(depth)
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.interval = interval

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.backbone(x.to(self.backbone.stem.weight.dtype)), y)
        self.log("train_loss", loss)
        return loss

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        out: Tensor = self.backbone(batch[0])
        return out

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self.backbone(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        head = [p for n, p in self.named_parameters() if "head" in n]
        rest = [p for n, p in self.named_parameters() if "head" not in n]
        optimizer = self.make_optimizer(
            [{"params": rest, "weight_decay": 0.1}, {"params": head, "lr": 0.02}]
        )
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self.make_scheduler(optimizer),
                "interval": self.interval,
                "monitor": "train_loss",
            },
        }


def quiet_trainer(callbacks: Sequence[Callback] = (), cls: Any = Trainer, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
    }
    return cls(callbacks=list(callbacks), **{**defaults, **options})


def built_late_in(hook: str) -> type[ForeignModule]:
    """Return a module that has no net before Lightning calls ``hook``."""

    class Late(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.waiting = [self.backbone]  # in a list, it is no part of the module
            del self.backbone

        def build(self, stage: str = "") -> None:
            if self.waiting:
                self.backbone = self.waiting.pop()

    setattr(Late, hook, Late.build)
    return Late


class TwoOptimizers(ForeignModule):
    """Each batch is two steps, one of each optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        net = self.backbone
        return [
            torch.optim.SGD([*net.stem.parameters(), *net.tower.parameters()], lr=0.05),
            torch.optim.SGD([*net.tail_norm.parameters(), *net.head.parameters()], lr=0.02),
        ]


class KilledError(Exception):
    """Ends a training in its middle."""


class SaveThenDie(Callback):
    """Saves at the end of a batch, counted from the first, and dies at that of a later one."""

    def __init__(self, path: Path, batch: int, later: int = 2) -> None:
        self.path, self.batch, self.later = path, batch, later

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        done = trainer.current_epoch * trainer.num_training_batches + args[-1] + 1
        if done == self.batch:
            trainer.save_checkpoint(self.path)
        elif done == self.batch + self.later:
            raise KilledError


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
