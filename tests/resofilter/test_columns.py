"""Columns of a batch come to the CPU together, each as it was."""

from __future__ import annotations

import torch
from torch import nn

from lightning_suite.resofilter.columns import on_cpu
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.recorder import FeatureRecorder
from lightning_suite.resofilter.targets import find_targets


def test_each_column_is_as_it_was_and_in_its_place() -> None:
    columns = {"a": torch.tensor([1.0, 2.0]), "b": torch.rand(2, 3), "c": torch.rand(2)}
    found = on_cpu(columns)
    assert list(found) == ["a", "b", "c"]
    for name, values in columns.items():
        assert torch.equal(found[name], values)


def test_all_features_of_a_batch_come_in_one_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    features = make_features(["grad_norm", {"name": "sketch", "size": 2}])
    with FeatureRecorder(find_targets(model).found, features) as recorder:
        recorder.start(n_samples=5)
        model(torch.randn(5, 3)).sum().backward()
        found = recorder.finish()
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "0.grad_norm": (5,),
        "0.sketch": (5, 4),
        "2.grad_norm": (5,),
        "2.sketch": (5, 4),
    }
    assert len({values.untyped_storage().data_ptr() for values in found.values()}) == 1
