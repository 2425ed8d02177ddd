"""What is logged of features while a model trains: means over finite samples."""

from __future__ import annotations

import torch
from torch import nn

from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.recorder import FeatureRecorder
from lightning_suite.resofilter.running_means import RunningMeans
from lightning_suite.resofilter.targets import find_targets


def test_running_means_are_of_finite_samples_since_the_last_time() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    recorder = FeatureRecorder(find_targets(model).found, make_features(["grad_norm", "sketch"]))
    means = RunningMeans(recorder)

    def rows(first: list[float], second: list[float]) -> dict[str, torch.Tensor]:
        sketch = torch.zeros(len(first), 64)
        return {
            "0.grad_norm": torch.tensor(first),
            "1.grad_norm": torch.tensor(second),
            "0.sketch": sketch,
            "1.sketch": sketch,
        }

    means.add(rows([1.0, torch.nan], [3.0, 1.0]))
    means.add(rows([6.0], [6.0]))
    assert means.summary(*means.pop()) == {"grad_norm": 4.0, "grad_norm_max": 6.0, "samples": 2}
    means.add(rows([1.0], [1.0]))
    assert means.summary(*means.pop()) == {"grad_norm": 1.0, "grad_norm_max": 1.0, "samples": 1}


def test_means_go_on_from_a_checkpoint() -> None:
    model = nn.Linear(2, 2)
    recorder = FeatureRecorder(find_targets(model).found, make_features(["grad_norm"]))

    def means(*norms: float) -> RunningMeans:
        made = RunningMeans(recorder)
        made.add({".grad_norm": torch.tensor(norms, dtype=torch.float64)})
        return made

    whole, first, second, gone_on = means(1.0, 2.0, 6.0), means(1.0), means(2.0), means(6.0)
    gone_on.restore([first.state(), second.state()])
    assert gone_on.summary(*gone_on.pop()) == whole.summary(*whole.pop())
    gone_on.restore([means().state()])
    assert gone_on.summary(*gone_on.pop()) == {}
