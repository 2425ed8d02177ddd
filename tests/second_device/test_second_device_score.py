"""``lightning-suite score`` on another device: the table of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import SingleDeviceStrategy
from second_device import NAME, SecondAccelerator, on_cpu
from tiny_scoring import MODEL, write_config

from lightning_suite.cli.main import main
from lightning_suite.resofilter.language_probe import CausalLMProbe

FEATURES: list[Any] = [
    *("adam1_mean_abs", "adam1_mean_abs_rounded", "grad_norm", "unsaturation"),
    {"name": "sketch", "size": 4},
]
MODELS = {
    "whole": {"config": MODEL},
    "with LoRA": {"config": MODEL, "lora": {"r": 2, "target_modules": ["up_proj"]}},
}


@pytest.mark.parametrize("model", MODELS)
def test_score_writes_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    import lightning_suite.cli.commands.score as command

    options = {
        "features": FEATURES,
        "modules": "all",
        "layers": "all",
        "model": {"class_path": "CausalLMModule", "init_args": {**MODELS[model], "init_seed": 0}},
    }
    config = write_config(tmp_path, **options)
    used = []
    score = CausalLMProbe.score_batch

    def seen(self: Any, batch: Any) -> Any:
        used.append(next(self.model.parameters()).device.type)
        return score(self, batch)

    monkeypatch.setattr(CausalLMProbe, "score_batch", seen)
    assert main(["score", "-c", str(config), "--out", str(tmp_path / "here")]) == 0
    assert set(used) == {"cpu"}
    used.clear()
    device = torch.device(NAME, 0)
    strategy = SingleDeviceStrategy(device=device, accelerator=SecondAccelerator())
    monkeypatch.setattr(command, "_launch", lambda *_: Fabric(strategy=strategy))
    assert main(["score", "-c", str(config), "--out", str(tmp_path / "there")]) == 0
    assert set(used) == {NAME}

    here, there = (
        pq.read_table(tmp_path / name / "scores.parquet").to_pydict() for name in ("here", "there")
    )
    assert here.keys() == there.keys()
    assert len(here) > 20
    for name, values in here.items():
        if isinstance(values[0], float | list):
            one, other = on_cpu(there[name]), on_cpu(values)
            # of unsaturation, a share of entries, some are at the bound but for the last digit
            share = 0.01 if name.endswith("unsaturation") else 2e-4
            atol = share * float(other.nan_to_num().abs().max())
            torch.testing.assert_close(one, other, rtol=2e-4, atol=atol, msg=name, equal_nan=True)
        else:
            assert there[name] == values, name
