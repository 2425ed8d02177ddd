"""Per-sample features of any network against autograd, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.batch import AmbiguousRowsError
from lightning_suite.resofilter.features import REGISTRY, make_features
from lightning_suite.resofilter.recorder import (
    FeatureRecorder,
    probing,
    refuse_compiled,
    refuse_mixing_layers,
)
from lightning_suite.resofilter.targets import find_targets
from tests.reference.resofilter_reference import autograd_gradients

NAMES = ["grad_norm", "grad_l1", "grad_max", "wdotg", "nuclear_norm", "adam1_mean_abs"]


class TwoLayers(nn.Module):
    """A network whose second layer is called on every position of a sequence."""

    def __init__(self, inplace: bool = False, checkpointed: bool = False) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(5, 7), nn.ReLU(inplace), nn.Linear(7, 3)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


class CallsTwice(nn.Module):
    """The same layer applied twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


def per_sample_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().flatten(1).sum(1)


def record(model: nn.Module, x: Tensor, **find: object) -> dict[str, Tensor]:
    targets = find_targets(model, biases=True, **find).found
    with probing(model), FeatureRecorder(targets, make_features(NAMES)) as recorder:
        recorder.start(len(x))
        per_sample_loss(model, x).sum().backward()
        return recorder.finish()


def truth(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.eval()
    losses = [lambda m, i=i: per_sample_loss(m, x[i : i + 1]).sum() for i in range(len(x))]
    parameters = dict(model.named_parameters())
    expected = {}
    for name, gradients in autograd_gradients(model, losses, list(parameters)).items():
        W = parameters[name].detach()
        G = gradients.flatten(2) if W.ndim > 1 else gradients[:, :, None]
        step = 0.01 * W + gradients / (gradients.abs() + 1e-8)
        layer = name.removesuffix(".weight")
        expected |= {
            f"{layer}.grad_norm": G.flatten(1).norm(dim=1),
            f"{layer}.grad_l1": G.flatten(1).abs().sum(1),
            f"{layer}.grad_max": G.flatten(1).abs().amax(1),
            f"{layer}.wdotg": (gradients * W).flatten(1).sum(1),
            f"{layer}.nuclear_norm": torch.linalg.svdvals(G).sum(1),
            f"{layer}.adam1_mean_abs": 1e-5 * step.abs().flatten(1).mean(1),
        }
    return expected


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (TwoLayers, (5,)),
    "sequences": (TwoLayers, (6, 5)),
    "two axes of positions": (TwoLayers, (3, 2, 5)),
    "in-place activation": (lambda: TwoLayers(inplace=True), (6, 5)),
    "activation checkpointing": (lambda: TwoLayers(checkpointed=True), (6, 5)),
    "a layer called twice": (CallsTwice, (6, 4)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2)
        ),
        (3, 9, 8),
    ),
    "convolution, padding same and circular, dilated": (
        lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular", dilation=2),
        (2, 7, 6),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_every_kind_of_layer_agrees_with_autograd(case: str) -> None:
    make, shape = MODELS[case]
    model, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)

    found, expected = record(model, x), truth(model, x)

    expected = {name.lstrip("."): values for name, values in expected.items()}
    assert {name.lstrip(".") for name in found} == {
        n.replace("weight.", "") if case.endswith("dilated") else n for n in expected
    }
    for name, values in found.items():
        key = name.lstrip(".")
        if key not in expected:
            key = f"weight.{key}"
        torch.testing.assert_close(values, expected[key], rtol=1e-10, atol=1e-15, msg=name)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(TwoLayers, (6, 5)), (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), (4, 6, 6))],
    ids=["linear", "convolution with groups"],
)
def test_biases_are_watched_where_their_weights_cannot_be(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    expected = truth(model, x)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    found = record(model, x)
    biases = {name for name in expected if ".bias." in name}
    assert set(found) == biases
    for name in biases:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-15, msg=name)


@pytest.mark.parametrize("common", [10.0, 100.0, 1000.0])
def test_norms_keep_their_digits_where_the_parts_of_a_gradient_cancel(common: float) -> None:
    """Nearly parallel inputs, output gradients that sum to 0; and an ordinary sample beside it."""
    model = nn.Linear(256, 256)
    x, factors = torch.randn(2, 40, 256), torch.randn(2, 40, 256)
    x[0] += common * torch.randn(256)
    factors[0] -= factors[0].mean(0)
    targets = find_targets(model).found
    with FeatureRecorder(targets, make_features(["grad_norm", "step_norm"])) as recorder:
        recorder.start(2)
        (factors * model(x)).sum().backward()
        found = recorder.finish()
    for n in range(2):
        double = nn.Linear(256, 256).double()
        (factors[n].double() * double(x[n].double())).sum().backward()
        expected = double.weight.grad.norm().item()
        assert found[".grad_norm"][n].item() == pytest.approx(expected, rel=2e-6)
        assert found[".step_norm"][n].item() == pytest.approx(1e-5 * expected, rel=2e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = TwoLayers().train()
    model.act.eval()
    model.first.bias.requires_grad_(False)

    record(model, torch.randn(2, 5), modules=["second"])

    assert model.training
    assert not model.act.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["first.bias"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_backward_pass_ends_at_the_lowest_watched_layer() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    reached = []

    def report(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, y: Tensor) -> None:
            if y.requires_grad:
                y.register_hook(lambda _g: reached.append(layer))

        return hook

    for i, layer in enumerate(model):
        layer.register_forward_hook(report(i))
    record(model, torch.randn(2, 4), modules=["3"])
    assert reached == [4, 3]


def test_multipliers_undo_the_mean_over_a_batch() -> None:
    model, x = TwoLayers().double(), torch.randn(6, 5, dtype=torch.float64)
    recorder = FeatureRecorder(find_targets(model).found, make_features(["grad_norm"]))
    weights = torch.rand(6, dtype=torch.float64) + 0.5
    with recorder:
        recorder.start(6, multipliers=1 / weights)
        (weights * per_sample_loss(model, x)).sum().backward()
        found = recorder.finish()
    alone = truth(model, x)
    for name, values in found.items():
        torch.testing.assert_close(values, alone[name], rtol=1e-10, atol=0)


def test_a_hook_that_changes_a_layer_s_output_is_no_part_of_the_layer() -> None:
    """As one that scales residual branches."""
    model, x = TwoLayers().double(), torch.randn(4, 6, 5, dtype=torch.float64)
    model.first.register_forward_hook(lambda _m, _x, y: 3 * y)
    found, expected = record(model, x), truth(model, x)
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-10, atol=1e-15, msg=name)


def test_features_do_not_disturb_training() -> None:
    x = torch.randn(4, 6, 5)
    plain, watched = TwoLayers(), TwoLayers()
    watched.load_state_dict(plain.state_dict())
    per_sample_loss(plain, x).sum().backward()
    with FeatureRecorder(find_targets(watched).found, make_features(NAMES)) as recorder:
        recorder.start(4)
        per_sample_loss(watched, x).sum().backward()
        recorder.finish()
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_copy_of_the_model_made_meanwhile_is_not_watched() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    x = torch.randn(4, 3)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4)
        loss = model(x).sum()
        copy = deepcopy(model)
        (7 * copy(x)).sum().backward()
        loss.backward()
        found = recorder.finish()
    torch.testing.assert_close(found["1.grad_norm"], model[0](x).norm(dim=1).double())
    assert torch.equal(copy(x), model(x))


def test_the_rows_samples_are_not_compared_layer_by_layer() -> None:
    class Compared(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.count += func is torch.ops.aten.equal.default
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    x = torch.randn(3, 5, 4)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        for segments in (None, torch.arange(3)[:, None].expand(3, 5)):
            recorder.start(3, segments)
            with Compared() as compared:  # each one waits for the device
                model(x).square().sum().backward()
            recorder.finish()
            assert compared.count == 2, "of the layer that is seen first alone"


def test_segments_split_rows_that_hold_several_samples() -> None:
    model, x = TwoLayers().double(), torch.randn(1, 9, 5, dtype=torch.float64)
    segments = torch.tensor([[0, 0, 0, 1, 1, -1, 2, 2, 2]])
    with FeatureRecorder(find_targets(model).found, make_features(NAMES)) as recorder:
        recorder.start(3, segments=segments)
        model(x).square()[segments >= 0].sum().backward()
        found = recorder.finish()
    for n in range(3):
        alone = record(model, x[:, segments[0] == n])
        for name in found:
            torch.testing.assert_close(found[name][n], alone[name][0], rtol=1e-10, atol=1e-15)


def test_a_layer_that_takes_no_part_has_a_gradient_of_0_and_is_named_once() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    features = make_features([name for name in REGISTRY if name != "adam_mean_abs"])
    with FeatureRecorder(find_targets(model).found, features) as recorder:
        for batch in range(2):
            recorder.start(2)
            model["used"](torch.randn(2, 3)).sum().backward()
            with (
                pytest.warns(UserWarning, match=r"1 of 2 .* no part in the loss .*: idle\.")
                if batch == 0
                else nullcontext()
            ):
                found = recorder.finish()
    assert all(values.isfinite().all() for values in found.values())
    assert found["used.grad_norm"].all()
    weight = model["idle"].weight.detach()
    expected = {
        "unsaturation": 1.0,
        "adam1_mean_abs": 1e-7 * weight.abs().mean().double(),
        "adam1_mean_abs_rounded": (weight - weight * (1 - 1e-7)).abs().mean().double(),
    }
    for feature in features:
        values = found[f"idle.{feature.name}"]
        assert values.shape == found[f"used.{feature.name}"].shape
        wanted = torch.as_tensor(expected.get(feature.name, 0.0)).double().expand_as(values)
        torch.testing.assert_close(values, wanted, rtol=1e-6, atol=1e-12)


def test_a_sample_that_does_not_reach_a_layer_is_the_same_in_every_batch() -> None:
    """As in a mixture of experts: whether another sample of the batch uses it must not matter."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            routed = x[:, :1] > 0
            return torch.where(routed, self.expert(x), x[:, :2]) if routed.any() else x[:, :2] + 0

    model, x = Routed(), torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0]])
    both = record(model, x)
    with FeatureRecorder(find_targets(model, biases=True).found, make_features(NAMES)) as recorder:
        recorder.start(1)
        model(x[1:])
        alone = recorder.finish(name_idle=False)
    for name, values in both.items():
        assert torch.equal(values[1:], alone[name]), name


def test_a_nan_sample_leaves_the_others_alone() -> None:
    model, x = TwoLayers(), torch.randn(3, 6, 5)
    clean = record(model, x)
    broken = x.clone()
    broken[1, 2, 3] = torch.nan
    found = record(model, broken)
    for name, values in found.items():
        assert torch.equal(values[[0, 2]], clean[name][[0, 2]]), name
    assert found["first.adam1_mean_abs"][1].isnan()


def test_rows_that_mix_samples_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Linear(12, 2))
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4)
        loss = model(torch.randn(4, 3)).sum()
        with pytest.raises(SuiteError, match=r"1: cannot tell the samples apart"):
            loss.backward()


class OneExpert(nn.Module):
    """A layer that gets some of the tokens [B, T, …] only."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.expert, self.rows = nn.Linear(5, 3, bias=False), rows

    def forward(self, x: Tensor) -> Tensor:
        return self.expert(x.reshape(-1, 5)[: self.rows])


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_as_many_rows_as_samples_are_not_the_samples_where_a_sample_is_several(rows: int) -> None:
    model, x = OneExpert(rows).double(), torch.randn(3, 2, 5, dtype=torch.float64)
    segments = torch.arange(3)[:, None].expand(3, 2)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(3, segments=segments)
        with pytest.raises(
            SuiteError, match=r"expert: cannot tell .*as an expert does.*one sample"
        ):
            model(x).square().sum().backward()
        model.zero_grad()
        recorder.start(1, segments=segments[:1])  # alone: all its rows are the sample's
        model(x[:1]).square().sum().backward()
        found = recorder.finish()
    torch.testing.assert_close(found["expert.grad_norm"][0], model.expert.weight.grad.norm())


def test_as_many_rows_as_samples_do_not_show_the_axis_of_the_samples() -> None:
    model = nn.Linear(5, 3)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4)
        model(torch.randn(4, 5)).sum().backward()
        recorder.finish()
        assert not recorder.unambiguous
        recorder.start(4)
        with pytest.raises(AmbiguousRowsError):
            model(torch.randn(4, 4, 5)).sum().backward()


class SequenceFirst(nn.Module):
    """Hand-written: its layer sees [T, N, …], whatever the batch is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("positions", [3, 4, 5])
def test_a_layer_that_takes_the_sequence_first_is_refused_at_any_length(positions: int) -> None:
    with pytest.raises(SuiteError, match="layer: cannot tell the samples apart"):
        record(SequenceFirst().double(), torch.randn(4, positions, 5, dtype=torch.float64))


@pytest.mark.parametrize("positions", [3, 4])
def test_a_transformer_layer_of_torch_says_how_to_build_it(positions: int) -> None:
    model = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4, batch_first={"linear1", "linear2"})
        loss = model(torch.randn(positions, 4, 6)).sum()
        with pytest.raises(SuiteError, match=r"linear2: .*Build that with batch_first=True"):
            loss.backward()


def test_as_many_samples_as_positions_are_told_apart_once_it_is_known() -> None:
    model, x = TwoLayers().double(), torch.randn(4, 4, 5, dtype=torch.float64)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4)
        with pytest.raises(AmbiguousRowsError, match="say so with batch_first=True"):
            per_sample_loss(model, x).sum().backward()
        recorder.start(3)
        per_sample_loss(model, x[:3]).sum().backward()
        recorder.finish()
        assert recorder.unambiguous == {"first", "second"}
        recorder.start(4, batch_first=recorder.unambiguous)
        per_sample_loss(model, x).sum().backward()
        found = recorder.finish()
    for name, values in truth(model, x).items():
        if name in found:
            torch.testing.assert_close(found[name], values, rtol=1e-10, atol=0)


def test_a_batch_of_one_sample_is_that_sample_s_however_its_rows_lie() -> None:
    model, x = SequenceFirst().double(), torch.randn(1, 4, 5, dtype=torch.float64)
    found = record(model, x)
    for name, values in truth(model, x).items():
        torch.testing.assert_close(found[name], values, rtol=1e-10, atol=0)


def test_half_precision_is_accumulated_in_float32() -> None:
    model, x = TwoLayers(), torch.randn(4, 64, 5)
    exact = record(model.double(), x.double())
    low = record(model.bfloat16(), x.bfloat16())
    for name in ("first.grad_norm", "second.grad_norm"):
        assert low[name].dtype == torch.float64
        torch.testing.assert_close(low[name], exact[name], rtol=0.02, atol=0)


def test_a_layer_called_twice_inside_reentrant_checkpointing_is_refused() -> None:
    """There its calls are not known beforehand, and the parts would be taken for the whole."""
    torch.manual_seed(0)
    model = CallsTwice()
    x = torch.randn(3, 4, requires_grad=True)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(len(x))
        loss = checkpoint(model, x, use_reentrant=True).sum()
        with pytest.raises(SuiteError, match="use_reentrant=False"):
            loss.backward()


def test_a_step_that_differentiates_before_its_loss_is_refused() -> None:
    model, x = nn.Linear(3, 1), torch.randn(4, 3, requires_grad=True)
    with FeatureRecorder(find_targets(model).found, make_features(["grad_norm"])) as recorder:
        recorder.start(4)
        (g,) = torch.autograd.grad(model(x).sum(), x)
        model(x + g).sum().backward()
        with pytest.raises(SuiteError, match="the step differentiates through it before its loss"):
            recorder.finish()


def test_a_mixing_layer_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(SuiteError, match="1: batch normalisation in training mode"):
        refuse_mixing_layers(model)
    refuse_mixing_layers(model.eval())


def test_a_model_with_a_compiled_part_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    refuse_compiled(model)
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    with pytest.raises(SuiteError, match=r"Train without torch\.compile"):
        refuse_compiled(model)
