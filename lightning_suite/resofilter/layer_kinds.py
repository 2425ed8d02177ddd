"""Which kinds of layers are linear maps of rows, and which only look like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["linear", "conv1d", "conv2d"]

# Subclasses whose own forward is W·x + b all the same.
_AS_LINEAR = {"transformers.models.falcon.modeling_falcon.FalconLinear"}


def kind_of(module: nn.Module) -> Kind | None:
    """Return which linear map a module is, or a subclass of; None for all others."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    return None if _hf_conv1d(module) is None else "conv1d"


def _hf_conv1d(module: nn.Module) -> type | None:
    """Return transformers' Conv1D, a linear layer whose weight is [in, out], if it is one."""
    for cls in type(module).__mro__:  # not imported for its name
        if cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils":
            return cls
    return None


def has_own_forward(module: nn.Module, kind: Kind) -> bool:
    """Return whether the layer's class, or the layer itself, replaces the supported forward."""
    cls = type(module)
    if f"{cls.__module__}.{cls.__qualname__}" in _AS_LINEAR:
        return False
    # accelerate puts its own in front of the layer's, to move tensors between devices
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return True
    plain: Any = {"linear": nn.Linear, "conv2d": nn.Conv2d}.get(kind) or _hf_conv1d(module)
    return any(
        getattr(cls, method) is not getattr(plain, method)
        for method in ("forward", "_conv_forward")
        if hasattr(plain, method)
    )


def stacked_matrices(module: nn.Module) -> list[str]:
    """Return parameters [E, O, I] of E > 1 matrices, such as the experts of one layer."""
    if isinstance(module, nn.modules.conv._ConvNd | nn.Bilinear):
        return []
    own = module.named_parameters(recurse=False)
    return [name for name, values in own if values.ndim == 3 and len(values) > 1]


def never_called(model: nn.Module) -> set[nn.Module]:
    """Return layers whose parent uses the weight without calling them."""
    attentions = (m for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    return {attention.out_proj for attention in attentions}


def sequence_first(model: nn.Module) -> set[nn.Module]:
    """Return what is inside Transformer layers of torch that see [T, N]."""
    kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return {
        module
        for layer in model.modules()
        if isinstance(layer, kinds) and not layer.self_attn.batch_first
        for module in layer.modules()
    }


def unfold(module: nn.Module, x: Tensor) -> Tensor:
    """Return the patches of a convolution's input: [N, C, H, W] -> [N, H'·W', C·kh·kw]."""
    assert isinstance(module, nn.Conv2d)
    # torch keeps the padding of all modes ("same" too) in the form that F.pad wants
    padding: Callable[..., Tensor] = F.pad
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = padding(x, module._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(
        x,
        kernel_size=module.kernel_size,
        dilation=module.dilation,
        stride=module.stride,
    )
    return patches.mT
