"""Which arithmetic gradients are made in, and the warning where it is too coarse."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.precision import precision_of, warn_of_rounded_products

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Start from torch's defaults, and come back to them."""
    before = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(before)


def test_products_are_whole_by_default_except_for_convolutions_on_cuda() -> None:
    linear, convolution = nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1))
    assert precision_of(linear, CPU) == {"autocast": None, "matmul": "ieee"}
    assert precision_of(linear, CUDA) == {"autocast": None, "matmul": "ieee"}
    assert precision_of(convolution, CPU)["convolution"] == "ieee"
    assert precision_of(convolution, CUDA)["convolution"] == "tf32"
    torch.backends.cudnn.allow_tf32 = False
    assert precision_of(convolution, CUDA)["convolution"] == "ieee"


@pytest.mark.parametrize("level", ["high", "medium"])
def test_tf32_is_seen_and_warned_of_where_small_entries_count(level: str) -> None:
    torch.set_float32_matmul_precision(level)
    precision = precision_of(nn.Linear(2, 2), CUDA)
    assert precision["matmul"] == "tf32"
    with pytest.warns(UserWarning, match=r"adam1_mean_abs count .* \(matmul in tf32\)"):
        warn_of_rounded_products(make_features(["adam1_mean_abs", "grad_norm"]), precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rounded_products(make_features(["grad_norm"]), precision)


def test_autocast_is_recorded() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert precision_of(nn.Linear(2, 2), CPU)["autocast"] == "bfloat16"
