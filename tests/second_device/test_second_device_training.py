"""Trainings with every recording callback: the same weights, metrics and rows as on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from second_device import NAME, on_cpu, trainer_options, waits_counted
from tiny import TINY
from tiny_scoring import rows, write_rows
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite import (
    CausalLMModule,
    DepthMuPLRCallback,
    FeatureDynamicsMonitor,
    GradientFeatureCallback,
    InstructionDataModule,
    ResidualNetModule,
)
from lightning_suite.resofilter.store import merge_shards

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
STEPS = 6


class Images(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8 * STEPS, 1, 8, 8, generator=generator)
        labels = torch.randint(10, (8 * STEPS,), generator=generator)
        return DataLoader(TensorDataset(images, labels), batch_size=8)


class Device(Callback):
    """Sees where the training really was."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.used = {p.device.type for p in pl_module.parameters()}


def fit(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path,
    *callbacks: Callback,
    second: bool,
) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Train, and return weights and metrics by name, and what the host waited for."""
    torch.manual_seed(0)
    device = Device()
    trainer = Trainer(
        **trainer_options(second=second),
        callbacks=[*callbacks, device],
        max_steps=STEPS,
        logger=False,
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with waits_counted() as waits:
        trainer.fit(module, datamodule=data)
    assert device.used == {NAME if second else "cpu"}
    found = {**module.state_dict(), **trainer.callback_metrics}
    return {name: on_cpu(value) for name, value in found.items()}, waits


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def net(architecture: Any = "mlp") -> ResidualNetModule:
    torch.manual_seed(0)
    return ResidualNetModule(architecture, (1, 8, 8), depth=4, width=16, base_depth=2)


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_depth_aware_rates_wait_for_nothing(tmp_path: Path, apply: Any) -> None:
    plain, waits_of_plain = fit(net(), Images(), tmp_path, second=True)
    rates: Callable[[], Callback] = lambda: DepthMuPLRCallback(2, apply=apply)  # noqa: E731
    there, waits = fit(net(), Images(), tmp_path, rates(), second=True)
    here, _ = fit(net(), Images(), tmp_path, rates(), second=False)
    assert waits == waits_of_plain
    assert_same(there, here)
    assert any(not torch.equal(there[name], value) for name, value in plain.items())


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_a_network_with_all_recording_callbacks(tmp_path: Path, architecture: Any) -> None:
    features: list[Any] = ["grad_norm", "adam1_mean_abs", {"name": "sketch", "size": 4}]
    results = []
    for second in (True, False):
        folder = tmp_path / str(second)
        callbacks = (
            DepthMuPLRCallback(2),
            FeatureDynamicsMonitor(2),
            GradientFeatureCallback(features, folder=str(folder)),
        )
        results.append(fit(net(architecture), Images(), tmp_path, *callbacks, second=second)[0])
    assert any(name.startswith("depth_mup/") for name in results[1])
    assert "resofilter/grad_norm" in results[1]
    assert_same(*results)
    assert_same_rows(tmp_path / "True", tmp_path / "False")


def assert_same_rows(found: Path, expected: Path) -> None:
    there, here = merge_shards(found).to_pydict(), merge_shards(expected).to_pydict()
    assert there.keys() == here.keys()
    for name, values in here.items():
        if isinstance(values[0], str):
            assert there[name] == values, name
        else:
            one, other = torch.tensor(there[name]), torch.tensor(values)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7, msg=name, equal_nan=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama with LoRA"])
def test_a_language_model_with_all_recording_callbacks(tmp_path: Path, kind: str) -> None:
    source = write_rows(tmp_path / "data.jsonl", rows(24))
    results = []
    for second in (True, False):
        folder = tmp_path / str(second)
        model_type, _, lora_too = kind.partition(" with ")
        config = TINY[model_type]
        lora = {"r": 2, "target_modules": ["q_proj", "up_proj"]} if lora_too else None
        module = CausalLMModule(config, lora=lora, init_seed=0)
        data = InstructionDataModule(
            str(source), tokenizer="bytes", max_length=60, batch_tokens=200, val_fraction=0.2
        )
        callbacks: list[Callback] = [
            GradientFeatureCallback(["grad_norm", "adam1_mean_abs"], folder=str(folder))
        ]
        if lora is None:
            callbacks += [DepthMuPLRCallback(2), FeatureDynamicsMonitor(2)]
        results.append(fit(module, data, tmp_path, *callbacks, second=second)[0])
    assert_same(*results)
    assert_same_rows(tmp_path / "True", tmp_path / "False")


def test_features_of_a_language_model_wait_once_a_layer(tmp_path: Path) -> None:
    """For which rows have a gradient; padding keeps that from being known."""
    source = write_rows(tmp_path / "data.jsonl", rows(24))
    callback = GradientFeatureCallback(
        ["grad_norm"], modules="*proj", folder=str(tmp_path / "rows")
    )
    callback.verify = False
    found = []
    for callbacks in ((), (callback,)):
        data = InstructionDataModule(
            str(source), tokenizer="bytes", max_length=60, batch_tokens=200, val_fraction=0.2
        )
        module = CausalLMModule({**TINY["llama"], "num_hidden_layers": 6}, init_seed=0)
        _, waits = fit(module, data, tmp_path, *callbacks, second=True)
        found.append(waits.total())
    plain, recorded = found
    layers = 6 * 7
    assert STEPS * layers <= recorded - plain < STEPS * (layers + 25)
