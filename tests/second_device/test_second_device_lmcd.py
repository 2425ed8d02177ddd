"""A diagnosis on another device: trained, tested and predicted as on the CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import on_cpu, trainer_options
from tiny_lmcd import quiet, tiny_class, tiny_diagnosis

from lightning_suite import DiagnosisReportCallback, LMCDModule

pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")
CASES: dict[str, dict[str, Any]] = {
    **{head: {"head": head} for head in ("irt", "kancd")},
    **{mode: {"reader": "student", "mode": mode} for mode in ("packed", "cached")},
    "lora": {"reader": "student", "backbone": "lora", "lora": {"r": 2}},
}


def diagnosed(folder: Path, *, second: bool, **options: Any) -> dict[str, torch.Tensor]:
    """Return weights, metrics and predictions."""
    torch.manual_seed(0)
    data = tiny_class(folder / "class")
    module: LMCDModule = tiny_diagnosis(**options)
    report = DiagnosisReportCallback(str(folder / f"report{second}"), resamples=20)
    trainer = quiet(folder, report, **trainer_options(second=second), max_epochs=2)
    trainer.fit(module, data)
    (metrics,) = trainer.test(module, data, verbose=False)
    found = {**module.state_dict(), **{k: v for k, v in metrics.items() if not math.isnan(v)}}
    predictions = trainer.predict(module, data) or []
    for n, batch in enumerate(predictions):
        found |= {f"{n} {k}": v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    return {name: on_cpu(value) for name, value in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_diagnosis_is_the_cpu_s(tmp_path: Path, case: str) -> None:
    (tmp_path / "class").mkdir()
    there = diagnosed(tmp_path, second=True, **CASES[case])
    here = diagnosed(tmp_path, second=False, **CASES[case])
    assert there.keys() == here.keys()
    assert any("auc" in name for name in here)
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-4, msg=name)
