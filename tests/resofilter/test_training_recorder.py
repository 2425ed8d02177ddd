"""Rows of the batches of a training: each batch once, compared with autograd's gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.online import read_samples
from lightning_suite.resofilter.targets import find_targets
from lightning_suite.resofilter.training_recorder import TrainingRecorder, group_of

X = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 5.0], [3.0, 0.0, 4.0]])


class Tied(nn.Module):
    """Uses a layer's weight once more without a call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + nn.functional.linear(x, self.fc.weight)


def recorder_of(model: nn.Module, **options: bool) -> TrainingRecorder:
    return TrainingRecorder(find_targets(model).found, make_features(["grad_norm"]), **options)


def hooks(model: nn.Module) -> int:
    on_modules = sum(len(module._forward_hooks) for module in model.modules())
    return on_modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def test_a_batch_becomes_rows_with_what_all_of_them_share() -> None:
    model = nn.Linear(3, 2, bias=False)
    recorder = recorder_of(model)
    recorder.start(read_samples(X))
    assert recorder.waits
    model(X)[:, 0].mean().backward()
    recorder.take(step=7, lr=0.5)
    assert not recorder.waits
    rows = recorder.end()
    assert rows is not None
    assert (rows["step"], rows["lr"].tolist()) == ([7] * 3, [0.5] * 3)
    assert rows[".grad_norm"].tolist() == [3.0, 5.0, 5.0]  # the mean over the batch is undone
    assert recorder.end() is None


def test_only_the_first_backward_pass_of_a_batch_counts() -> None:
    model = nn.Linear(3, 2, bias=False)
    recorder = recorder_of(model)
    recorder.start(read_samples(X))
    model(X)[:, 0].mean().backward()
    recorder.take()
    (7 * model(X)).mean().backward()
    recorder.take()
    rows = recorder.end()
    assert rows is not None
    assert rows[".grad_norm"].tolist() == [3.0, 5.0, 5.0]


def test_a_batch_that_is_not_started_or_not_differentiated_has_no_rows() -> None:
    model = nn.Linear(3, 2)
    recorder = recorder_of(model)
    model(X).mean().backward()
    recorder.take()
    assert recorder.end() is None
    recorder.start(read_samples(X))
    model(X)
    assert recorder.end() is None


def test_what_is_recorded_must_be_autograd_s_gradient() -> None:
    model = Tied()
    recorder = recorder_of(model)
    recorder.start(read_samples(X))
    model(X).mean().backward()
    with pytest.raises(SuiteError, match="fc"):
        recorder.take()
    model = Tied()
    trusting = recorder_of(model, verify=False)
    trusting.start(read_samples(X))
    model(X).mean().backward()
    trusting.take()


def test_one_comparison_that_passes_is_enough() -> None:
    model = nn.Linear(3, 2, bias=False)
    recorder = recorder_of(model)
    plain = hooks(model)
    for compared in (True, False):
        recorder.start(read_samples(X))
        assert (hooks(model) > plain) == compared
        model(X).mean().backward()
        recorder.take()
        recorder.end()


def test_nothing_is_left_on_the_model() -> None:
    model = nn.Linear(3, 2, bias=False)
    recorder = recorder_of(model)
    recorder.start(read_samples(X))
    recorder.detach()
    assert hooks(model) == 0
    assert not recorder.waits


def test_a_batch_that_was_never_ended_leaves_no_hook_behind() -> None:
    model = nn.Linear(3, 2, bias=False)
    recorder = recorder_of(model)
    recorder.start(read_samples(X))  # Lightning ends no batch whose start hook returned -1
    recorder.start(read_samples(X))
    model(X).mean().backward()
    recorder.take()
    recorder.detach()
    assert hooks(model) == 0


def test_the_rate_is_that_of_the_group_that_trains_the_target() -> None:
    first, second, third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.2}]
    optimizers = [SGD(groups, lr=0.1), SGD(third.parameters(), lr=0.3)]
    rates = [
        group_of(find_targets(layer).found[0], optimizers)["lr"] for layer in (first, second, third)
    ]
    assert rates == [0.1, 0.2, 0.3]
    stranger = find_targets(nn.Linear(2, 2)).found[0]
    assert group_of(stranger, optimizers)["lr"] == 0.1
    assert math.isnan(group_of(stranger, [])["lr"])  # Lightning trains without one, too
