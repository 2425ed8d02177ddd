"""Both ways to multiply rows, a CPU's and an accelerator's, against the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_suite.resofilter.features import REGISTRY, compute_features, make_features
from lightning_suite.resofilter.rows import InputRows, LayerGradients
from lightning_suite.resofilter.step_features import AdamMeanAbs, AdamState

# One row, many, none, and some that end before the padding at the end of all.
RANGES = ((0, 1), (1, 20), (20, 20), (23, 90))
N_OUT, N_IN = 9, 12
LR, EPS, DECAY = 1e-5, 1e-8, 0.01


def mean_step(W: Tensor, G: Tensor) -> Tensor:
    return LR * (DECAY * W + G / (G.abs() + EPS)).abs().mean()


def rounded_step(W: Tensor, G: Tensor) -> Tensor:
    parameter = W.clone().requires_grad_()
    optimizer = torch.optim.AdamW([parameter], lr=LR, eps=EPS, weight_decay=DECAY)
    parameter.grad = G
    optimizer.step()
    return (W - parameter.detach()).abs().mean()


def rank(W: Tensor, G: Tensor) -> Tensor:
    values = torch.linalg.svdvals(G)
    share = values / values.sum() if values.sum() else values
    return torch.special.entr(share).sum().exp() if values.sum() else values.sum()


TRUTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_norm": lambda _, G: G.norm(),
    "grad_l1": lambda _, G: G.abs().sum(),
    "grad_max": lambda _, G: G.abs().max(),
    "wdotg": lambda W, G: (W * G).sum(),
    "weight_norm_change": lambda W, G: (W - LR * G).norm() - W.norm(),
    "step_norm": lambda _, G: LR * G.norm(),
    "nuclear_norm": lambda _, G: torch.linalg.svdvals(G).sum(),
    "effective_rank": rank,
    "sgd_mean_abs": lambda _, G: G.abs().mean(),
    "adam1_mean_abs": mean_step,
    "adam1_mean_abs_rounded": rounded_step,
    "unsaturation": lambda _, G: (EPS / (G.abs() + EPS)).mean(),
}
WITHOUT_STATE = sorted(set(REGISTRY) - {"adam_mean_abs", "sketch"})


def rows(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    x, g = torch.randn(92, N_IN).double(), scale * torch.randn(92, N_OUT).double()
    return x, g, torch.randn(N_OUT, N_IN).double()


@pytest.fixture(params=["CPU", "accelerator"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take one of the two ways; the accelerator's is padded, and here it runs on the CPU."""
    from lightning_suite.resofilter import rows as module

    chosen = request.param == "CPU"
    monkeypatch.setattr(module, "_sample_by_sample", lambda _: chosen)
    return str(request.param)


@pytest.mark.parametrize("name", WITHOUT_STATE)
def test_every_feature_is_that_of_the_gradient(way: str, name: str) -> None:
    scale = 1e-6 if name in ("unsaturation", "adam1_mean_abs") else 1.0
    x, g, W = rows(scale)
    layer = LayerGradients("layer", InputRows(x, RANGES), g, W)
    gradients = [g[a:b].mT @ x[a:b] for a, b in RANGES]
    expected = torch.stack([TRUTH[name](W, G) for G in gradients])
    (feature,) = make_features([name])
    found = compute_features(layer, [feature])[name]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    if feature.reads_rows:
        again = LayerGradients("layer", InputRows(x, RANGES), g, W)
        torch.testing.assert_close(feature.of_rows(again).double(), expected, rtol=1e-9, atol=1e-15)


def test_samples_that_all_reach_no_layer_have_features_of_0(way: str) -> None:
    x, g, W = rows(1.0)
    layer = LayerGradients("layer", InputRows(x[:0], ((0, 0),) * 3), g[:0], W)
    found = compute_features(layer, make_features([*TRUTH, "sketch"]))
    for name, truth in TRUTH.items():
        expected = truth(W, torch.zeros_like(W)).expand(3)
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-15)
    assert not found["sketch"].any()


def test_the_next_step_of_an_optimizer_is_that_of_the_gradient(way: str) -> None:
    x, g, W = rows(1.0)
    parameter = W.clone().requires_grad_()
    optimizer = torch.optim.AdamW([parameter], lr=LR, eps=EPS, weight_decay=DECAY)
    parameter.grad = torch.randn_like(W)
    optimizer.step()
    seen: Any = optimizer.state[parameter]
    state = AdamState(seen["exp_avg"].clone(), seen["exp_avg_sq"].clone(), 1)
    before, saved = parameter.detach().clone(), deepcopy(optimizer.state_dict())
    expected = []
    for a, b in RANGES:
        parameter.data.copy_(before)
        optimizer.load_state_dict(deepcopy(saved))
        parameter.grad = g[a:b].mT @ x[a:b]
        optimizer.step()
        expected.append((before - parameter.detach()).abs().mean())
    layer = LayerGradients("layer", InputRows(x, RANGES), g, before)
    found = compute_features(layer, [AdamMeanAbs(states={"layer": state})])["adam_mean_abs"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-15)


def test_a_sketch_is_the_projection_of_the_gradient(way: str) -> None:
    x, g, W = rows(1.0)
    (sketch,) = make_features(["sketch"])
    layer = LayerGradients("layer", InputRows(x, RANGES), g, W)
    P: Any = sketch
    left, right = (
        P.projection("layer", side, n).double() for side, n in (("out", N_OUT), ("in", N_IN))
    )
    expected = torch.stack([(left @ (g[a:b].mT @ x[a:b]) @ right.mT).flatten() for a, b in RANGES])
    torch.testing.assert_close(compute_features(layer, [sketch])["sketch"], expected)


class Largest(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that is made, and is no view of a given one."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {values.untyped_storage().data_ptr() for values in given}
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                if storage.data_ptr() not in self.given:
                    self.found = max(self.found, storage.nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"adam_mean_abs"}))
def test_no_copy_of_a_weight_nor_a_whole_gradient_is_made(
    way: str, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_CPU_BLOCK", "_DEVICE_BLOCK", "_WEIGHT_BLOCK"):
        monkeypatch.setattr(f"lightning_suite.resofilter.rows.{limit}", 4096)
    x, g, W = torch.randn(12, 256), torch.randn(12, 512), torch.randn(512, 256).to(dtype)
    layer = LayerGradients("layer", InputRows(x, ((0, 7), (7, 12))), g, W)
    features = make_features([name])
    with Largest(x, g, W) as largest:
        compute_features(layer, features)
    assert 0 < largest.found < W.untyped_storage().nbytes() / 4


@pytest.mark.parametrize("name", ["wdotg", "weight_norm_change"])
def test_a_weight_read_in_parts_gives_the_same(
    way: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_suite.resofilter.rows._WEIGHT_BLOCK", 5 * N_IN)
    x, g, W = rows(1.0)
    W = W.bfloat16()
    layer = LayerGradients("layer", InputRows(x, RANGES), g, W)
    (feature,) = make_features([name])
    expected = torch.stack([TRUTH[name](W.double(), g[a:b].mT @ x[a:b]) for a, b in RANGES])
    torch.testing.assert_close(feature.of_rows(layer), expected, rtol=1e-9, atol=1e-15)


def test_the_way_is_the_device_s() -> None:
    from lightning_suite.resofilter.rows import _sample_by_sample

    assert _sample_by_sample(torch.empty(0))
    elsewhere: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    assert not _sample_by_sample(elsewhere)
