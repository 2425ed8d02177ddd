r"""Residual networks in the form that the theory speaks about: a stream, and branches added to it.

Pre-activation residual stream with standard weights :math:`W \sim N(0, 1/\text{fan-in})`:

* one matrix a branch (``block_depth=1``): :math:`h_l = h_{l-1} + c\,W_l\,\varphi(h_{l-1})`
* two matrices (``block_depth=2``):
  :math:`h_l = h_{l-1} + c\,W_2\,\varphi(W_1\,a(h_{l-1}))`, where a is the identity, the
  activation, or a normalisation.

The names ``first`` and ``last`` of the matrices are the roles ``hidden_first`` and
``hidden_last`` of :mod:`lightning_suite.depth_mup.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.rules import Rule
from lightning_suite.errors import SuiteError, check_choice

Activation = Literal["tanh", "relu", "gelu", "silu", "identity"]
BranchInput = Literal["identity", "activation", "norm"]
ReadoutInit = Literal["zero", "normal"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}


class ResidualBlock(nn.Module):
    """One residual branch added to the stream: ``h + c * branch(h)``.

    Args:
        make_matrix: Returns one matrix of the branch (a linear map or a convolution).
        make_norm: Returns the normalisation at the branch's input, used by ``branch_input="norm"``.
        block_depth: Matrices in the branch, 1 or 2.
        activation: The nonlinearity; for two matrices it stands between them, for one before it.
        branch_input: What the branch applies to the stream first, for two matrices.
        multiplier: c.

    Shape:
        ``[N, ...]`` to the same shape.
    """

    def __init__(
        self,
        make_matrix: Callable[[], nn.Module],
        make_norm: Callable[[], nn.Module],
        block_depth: int,
        activation: Activation,
        branch_input: BranchInput,
        multiplier: float,
    ) -> None:
        super().__init__()
        act = _ACTIVATIONS[activation]
        self.multiplier = multiplier
        self.pre: nn.Module = nn.Identity()
        if branch_input == "norm":
            self.pre = make_norm()
        elif branch_input == "activation" and block_depth == 2:
            self.pre = act()
        self.first = make_matrix() if block_depth == 2 else None
        self.act = act()
        self.last = make_matrix()

    def forward(self, h: Tensor) -> Tensor:
        """Add the branch to the stream ``h``."""
        z = self.pre(h)
        if self.first is not None:
            z = self.first(z)
        out: Tensor = h + self.multiplier * self.last(self.act(z))
        return out


class ResidualNet(nn.Module):
    """What :class:`ResidualMLP` and :class:`ResidualConvNet` share: embed, blocks, norm, readout.

    The parametrisation says how the residual multiplier, the readout multiplier and the initial
    readout depend on the shape; learning rates are the optimizer's business (see
    :class:`~lightning_suite.DepthMuPLRCallback`).

    Attributes:
        parametrization: The rule and the shapes it compares.
        residual_multiplier: c = c0 r_L^-alpha, as used by every block.
        readout_multiplier: Factor on the readout's input.
    """

    embed: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    readout: nn.Linear

    def __init__(
        self, parametrization: Parametrization, base_residual_multiplier: float | None
    ) -> None:
        super().__init__()
        if base_residual_multiplier is None:
            base_residual_multiplier = 1 / math.sqrt(parametrization.base_depth)
        self.parametrization = parametrization
        self.residual_multiplier = parametrization.residual_multiplier(base_residual_multiplier)
        self.readout_multiplier = parametrization.readout_multiplier

    @torch.no_grad()
    def reset_parameters(
        self, readout_init: ReadoutInit, generator: torch.Generator | None = None
    ) -> None:
        """Draw all matrices from N(0, 1/fan-in); set gains to 1 and biases to 0.

        Args:
            readout_init: ``"zero"``, or ``"normal"``: N(0, 1/n0), which together with the readout
                multiplier n0/n is muP's N(0, 1/n0) / r_n (under ``sp``: N(0, 1/n)).
            generator: Source of randomness; default: torch's global one.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.reset_parameters()
        if readout_init == "zero":
            self.readout.weight.zero_()
        else:
            self.readout.weight.mul_(self.readout_multiplier**-0.5)

    def pool(self, h: Tensor) -> Tensor:
        """Reduce the stream to ``[N, width]`` before the readout."""
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of inputs to logits ``[N, num_classes]``."""
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        h = self.pool(self.final_norm(h))
        out: Tensor = self.readout(self.readout_multiplier * h)
        return out


def _check_arguments(
    block_depth: int, activation: str, branch_input: str, readout_init: str
) -> None:
    if block_depth not in (1, 2):
        raise SuiteError(f"block_depth={block_depth}; a branch has 1 or 2 matrices.")
    check_choice("activation", activation, get_args(Activation))
    check_choice("branch_input", branch_input, get_args(BranchInput))
    check_choice("readout_init", readout_init, get_args(ReadoutInit))


class ResidualMLP(ResidualNet):
    """Fully connected residual network.

    Args:
        in_features: Numbers in one input after flattening.
        num_classes: Number of logits.
        width: n, the stream's dimension; the branches have the same width.
        depth: L, number of residual blocks.
        block_depth: Matrices in a branch, 1 or 2.
        activation: Nonlinearity of the branches.
        branch_input: What a two-matrix branch applies to the stream first; with ``"norm"`` there
            is also a final norm. One-matrix branches start with the activation anyway.
        bias: Whether the matrices of the branches have biases.
        rule: Rule for the residual multiplier, the readout multiplier and the readout's init.
        base_depth: L0; default: ``depth``.
        base_width: n0; default: ``width``.
        base_residual_multiplier: c0; default 1/sqrt(L0).
        readout_init: ``"zero"`` or ``"normal"``.
        generator: Source of the initial weights; default: torch's global one.

    Shape:
        ``[N, ...]`` with ``in_features`` numbers a row, to ``[N, num_classes]``.

    Raises:
        SuiteError: An argument is not one of the values above.

    Example:
        >>> net = ResidualMLP(64, 10, width=32, depth=8, rule="nfd", base_depth=2)
        >>> round(net.residual_multiplier, 4)  # 2 ** -0.5 * (8 / 2) ** -0.5
        0.3536
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 64,
        depth: int = 4,
        block_depth: int = 2,
        activation: Activation = "tanh",
        branch_input: BranchInput = "identity",
        bias: bool = False,
        rule: Rule = "sp",
        base_depth: int | None = None,
        base_width: int | None = None,
        base_residual_multiplier: float | None = None,
        readout_init: ReadoutInit = "zero",
        generator: torch.Generator | None = None,
    ) -> None:
        _check_arguments(block_depth, activation, branch_input, readout_init)
        super().__init__(
            Parametrization(
                rule,
                depth if base_depth is None else base_depth,
                depth,
                width if base_width is None else base_width,
                width,
            ),
            base_residual_multiplier,
        )
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(in_features, width, bias=False))
        self.blocks = nn.ModuleList(
            ResidualBlock(
                lambda: nn.Linear(width, width, bias=bias),
                lambda: nn.LayerNorm(width),
                block_depth,
                activation,
                branch_input,
                self.residual_multiplier,
            )
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width) if branch_input == "norm" else nn.Identity()
        self.readout = nn.Linear(width, num_classes, bias=False)
        self.reset_parameters(readout_init, generator)


class ResidualConvNet(ResidualNet):
    """Convolutional residual network of constant width, for images of CIFAR's size or smaller.

    Every matrix of :class:`ResidualMLP` is a 3x3 convolution here; the stem halves the resolution
    ``downsample`` times, and the readout sees the activated stream's mean over positions.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of logits.
        width: n, channels of the stream.
        depth: L, number of residual blocks.
        downsample: How often the stem halves the resolution.
        block_depth: See :class:`ResidualMLP`, as for all further arguments.
        activation: See :class:`ResidualMLP`.
        branch_input: See :class:`ResidualMLP`; the norm is a group norm with one group.
        bias: See :class:`ResidualMLP`.
        rule: See :class:`ResidualMLP`.
        base_depth: See :class:`ResidualMLP`.
        base_width: See :class:`ResidualMLP`.
        base_residual_multiplier: See :class:`ResidualMLP`.
        readout_init: See :class:`ResidualMLP`.
        generator: See :class:`ResidualMLP`.

    Shape:
        ``[N, in_channels, H, W]`` to ``[N, num_classes]``.

    Raises:
        SuiteError: An argument is not one of the values above.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 32,
        depth: int = 4,
        downsample: int = 0,
        block_depth: int = 2,
        activation: Activation = "relu",
        branch_input: BranchInput = "norm",
        bias: bool = False,
        rule: Rule = "sp",
        base_depth: int | None = None,
        base_width: int | None = None,
        base_residual_multiplier: float | None = None,
        readout_init: ReadoutInit = "zero",
        generator: torch.Generator | None = None,
    ) -> None:
        _check_arguments(block_depth, activation, branch_input, readout_init)
        super().__init__(
            Parametrization(
                rule,
                depth if base_depth is None else base_depth,
                depth,
                width if base_width is None else base_width,
                width,
            ),
            base_residual_multiplier,
        )
        self.embed = nn.Conv2d(in_channels, width, 3, stride=2**downsample, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                lambda: nn.Conv2d(width, width, 3, padding=1, bias=bias),
                lambda: nn.GroupNorm(1, width),
                block_depth,
                activation,
                branch_input,
                self.residual_multiplier,
            )
            for _ in range(depth)
        )
        self.final_norm = nn.GroupNorm(1, width) if branch_input == "norm" else nn.Identity()
        self.act = _ACTIVATIONS[activation]()
        self.readout = nn.Linear(width, num_classes, bias=False)
        self.reset_parameters(readout_init, generator)

    def pool(self, h: Tensor) -> Tensor:
        """Activate and average over positions: ``[N, width, H, W]`` to ``[N, width]``."""
        # without the activation, the mean of a normalised map would say next to nothing
        activated: Tensor = self.act(h)
        return activated.mean(dim=(-2, -1))
