"""What `score` scores: the batches that a training step would get, of any LightningModule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite.cli.scoring import open_probe
from lightning_suite.cli.scoring_data import open_data, prepare_data
from lightning_suite.cli.stable_data import RandomDataError, refuse_random_data
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.targets import find_targets

X = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])  # of norm 3 and 5


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X))


class Doubling(Data):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * values for values in batch]


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).sum(1).mean()


class Tripling(Module):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [3 * values for values in batch]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [7 * values for values in batch]


class Unnumbered(Module):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return self.layer(batch[0]).sum(1).mean()


class Asking(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).mean() / self.trainer.max_epochs


class ByHand(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Asking(), "Asking.training_step asks its trainer .*self.trainer.max_epochs"),
        (ByHand(), "ByHand optimizes by hand in its training_step"),
    ],
)
def test_a_step_that_cannot_be_taken_alone_is_named(module: Any, reason: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module.fabric = fabric  # as the command does; the module holds it weakly
    with pytest.raises(SuiteError, match=f"{reason}.* Give the module a method sample_losses"):
        norms(module, Data())


def norms(module: LightningModule, data: LightningDataModule) -> list[float]:
    opened = open_data(data, module)
    targets = find_targets(module).found
    with open_probe(module, targets, make_features(["grad_norm"]), opened) as score:
        found: list[float] = score([0, 1])["layer.grad_norm"].tolist()
    return found


@pytest.mark.parametrize(
    ("module", "data", "factor"),
    [
        (Module(), Data(), 1),
        (Module(), Doubling(), 2),
        (Tripling(), Data(), 21),
        (Tripling(), Doubling(), 6),  # each hook is the data module's where it has it, as in `fit`
        (Unnumbered(), Data(), 1),
    ],
)
def test_a_step_gets_what_it_gets_in_a_training(module: Any, data: Any, factor: int) -> None:
    assert norms(module, data) == pytest.approx([3 * factor, 5 * factor])


def test_the_fingerprint_is_of_what_the_hooks_make_of_the_data() -> None:
    plain, doubled = (open_data(data, Module()).fingerprint() for data in (Data(), Doubling()))
    assert plain["samples"] == doubled["samples"] == 2
    assert plain["sha256"] != doubled["sha256"]


def test_only_who_prepares_the_data_downloads() -> None:
    class Downloading(Data):
        prepared = 0

        def prepare_data(self) -> None:
            self.prepared += 1

    data = Downloading()
    prepare_data(data, Module())
    assert norms(Module(), data) == pytest.approx([3, 5])  # as another process would
    assert data.prepared == 1


def test_a_data_set_of_whole_batches_is_refused() -> None:
    class Batched(Data):
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(X[None]), batch_size=None)

    with pytest.raises(SuiteError, match="Batched has batch_size=None: its data set gives whole"):
        open_data(Batched(), Module())


def test_a_hook_that_draws_random_numbers_is_refused() -> None:
    class Noisy(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [values + torch.randn(values.shape) for values in batch]

    with pytest.raises(RandomDataError, match="is another one each time it is read"):
        refuse_random_data(open_data(Noisy(), Module()), "Noisy")


def test_a_hook_that_asks_a_trainer_is_named() -> None:
    class Asking(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch if self.trainer.training else []

    with pytest.raises(SuiteError, match="Asking.on_after_batch_transfer: .* without a trainer"):
        norms(Module(), Asking())
