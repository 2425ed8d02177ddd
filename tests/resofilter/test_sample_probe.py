"""Scoring any network that has a loss per sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_suite.depth_mup.models import ResidualConvNet
from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.probe import SampleProbe
from lightning_suite.resofilter.targets import find_targets


def test_an_image_classifier_is_scored_sample_by_sample() -> None:
    model = ResidualConvNet(1, 10, width=8, depth=2).double()
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (6,))
    targets = find_targets(model).found
    with SampleProbe(model, targets, make_features(["grad_norm"])) as probe:
        rows = probe.score(
            [f"{i}" for i in range(6)],
            lambda: nn.functional.cross_entropy(model(x), y, reduction="none"),
        )
    assert rows["status"] == ["ok"] * 6
    names = [name.removesuffix(".grad_norm") for name in rows if name.endswith("grad_norm")]
    assert len(names) == len(targets) > 3
    for i in range(6):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name in names:
            expected = model.get_submodule(name).weight.grad.norm().item()
            assert rows[f"{name}.grad_norm"][i].item() == pytest.approx(expected, rel=1e-9)


def test_a_loss_that_is_already_a_mean_is_refused() -> None:
    model = nn.Linear(2, 1)
    probe = SampleProbe(model, find_targets(model).found, make_features(["grad_norm"]))
    with probe, pytest.raises(SuiteError, match="expected one loss for each of 3 samples"):
        probe.score(["a", "b", "c"], lambda: model(torch.randn(3, 2)).mean())


@pytest.mark.filterwarnings("ignore:1 of 2 watched layers took no part")
def test_a_layer_that_is_not_used_costs_no_sample_its_status() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "idle": nn.Linear(3, 1)})
    with SampleProbe(model, find_targets(model).found, make_features(["grad_norm"])) as probe:
        rows = probe.score(["a", "b"], lambda: model["used"](torch.randn(2, 3)).squeeze(1))
    assert rows["status"] == ["ok", "ok"]
    assert rows["idle.grad_norm"].tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:1 of 1 watched layers took no part")
def test_a_sample_that_reaches_no_watched_layer_has_a_gradient_of_0_and_verifies_nothing() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            tied = nn.functional.linear(x, self.a.weight)  # in which autograd finds more than rows
            return self.b(x) if x[0, 0] < 0 else self.a(x) + tied

    model = Routed()
    targets = find_targets(model, "a").found
    with SampleProbe(model, targets, make_features(["grad_norm"])) as probe:
        x = torch.tensor([[-3.0, 4.0]])
        rows = probe.score(["elsewhere"], lambda: model(x).squeeze(1))
        assert (rows["status"], rows["a.grad_norm"].tolist()) == (["ok"], [0.0])
        with pytest.raises(SuiteError, match="a: norm .* from its rows, .* by autograd"):
            probe.score(["here"], lambda: model(-x).squeeze(1))


def test_a_loss_that_is_not_finite_is_marked() -> None:
    model, x = nn.Linear(2, 1), torch.randn(3, 2)
    x[1] = torch.inf
    with SampleProbe(model, find_targets(model).found, make_features(["grad_norm"])) as probe:
        rows = probe.score(["a", "b", "c"], lambda: model(x).squeeze(1))
    assert rows["status"] == ["ok", "nonfinite", "ok"]


def test_batch_statistics_in_evaluation_mode_are_refused_for_several_samples() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    probe = SampleProbe(model, find_targets(model).found, make_features(["grad_norm"]))
    with probe, pytest.raises(SuiteError, match="1: batch normalisation without running statis"):
        probe.score(["a", "b", "c"], lambda: model(torch.randn(3, 2)).sum(1))


def test_torch_s_encoder_is_not_fused_where_padding_is_masked() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]

    def losses(rows: slice) -> Tensor:
        return model(x[rows], src_key_padding_mask=padding[rows])[:, 0].square().sum(1)

    targets = find_targets(model, "linear1").found
    with SampleProbe(model, targets, make_features(["grad_norm"])) as probe:
        found = probe.score(["a", "b", "c"], lambda: losses(slice(None)))
    assert torch.backends.mha.get_fastpath_enabled()
    for n in range(3):
        model.zero_grad()
        losses(slice(n, n + 1)).backward()
        for target in targets:
            expected = model.get_submodule(target.name).weight.grad.norm().item()
            assert found[f"{target.name}.grad_norm"][n].item() == pytest.approx(expected, rel=1e-9)
