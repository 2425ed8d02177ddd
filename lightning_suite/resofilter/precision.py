"""How many bits the arithmetic has in which gradients are made, and who needs them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_suite.errors import SuiteError
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.targets import Target

FULL = "ieee"  # torch's word for products of float32 that are float32


def refuse_low_precision(
    features: Sequence[Feature], targets: Sequence[Target], autocast: torch.dtype | None = None
) -> None:
    """Refuse 16 bits for features that count entries near 1e-8.

    Args:
        features: What is computed.
        targets: What is watched.
        autocast: In which the forward pass runs; None without.

    Raises:
        SuiteError: One of the weights, or ``autocast``, has less than 32 bits.
    """
    sensitive = [f.name for f in features if f.counts_small_entries]
    dtypes = {f"{t.name} has {t.weight.dtype} weights": t.weight.dtype for t in targets}
    if autocast is not None:
        dtypes["autocast is on"] = autocast
    what = next((what for what, dtype in dtypes.items() if dtype.itemsize < 4), None)
    if sensitive and what:
        raise SuiteError(
            f"{' and '.join(sensitive)} count entries near 1e-8, and {what}: on SmolLM2-135M with "
            "GSM8K, bfloat16 weights left a rank correlation of 0.05 with the right order, "
            "bfloat16 autocast 0.965. Load the model with dtype float32, ask for grad_norm "
            "(0.9993 under autocast), or allow low precision."
        )


def precision_of(model: nn.Module, device: torch.device) -> dict[str, str | None]:
    """Return what decides the digits of a forward pass besides the weights' types.

    Args:
        model: Looked through for convolutions: on CUDA they are TF32 unless told otherwise.
        device: Where it runs.

    Returns:
        ``autocast``: a dtype or None; ``matmul`` and, with convolutions, ``convolution``: how
        products of float32 are computed, ``ieee`` (in full), ``tf32`` or ``bf16``.
    """
    autocast = None
    if torch.is_autocast_enabled(device.type):
        autocast = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
    backends: Any = torch.backends
    cuda = device.type == "cuda"
    matmul, conv = (backends.cuda.matmul, backends.cudnn) if cuda else (backends.mkldnn,) * 2
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # from torch 2.9 on
        matmul = matmul if cuda else backends.mkldnn.matmul
        conv = conv.conv
    found = {"autocast": autocast, "matmul": _float32(matmul)}
    if any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        found["convolution"] = _float32(conv)
    return found


def warn_of_rounded_products(
    features: Sequence[Feature], precision: Mapping[str, str | None]
) -> None:
    """Warn where features that count entries near 1e-8 are made of rounded products.

    Args:
        features: What is computed.
        precision: As :func:`precision_of` returns it.
    """
    sensitive = [f.name for f in features if f.counts_small_entries]
    rounded = [
        f"{what} in {kind}"
        for what, kind in precision.items()
        if what != "autocast" and kind not in (FULL, None)
    ]
    if sensitive and rounded:
        rank_zero_warn(
            f"{' and '.join(sensitive)} count entries near 1e-8, and float32 is rounded "
            f"({', '.join(rounded)}). For exact scores call "
            "torch.set_float32_matmul_precision('highest') and set "
            "torch.backends.cudnn.allow_tf32 = False."
        )


def _float32(backend: Any) -> str:
    precision = getattr(backend, "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return "tf32" if getattr(backend, "allow_tf32", False) else FULL
    return FULL if precision == "none" else str(precision)
