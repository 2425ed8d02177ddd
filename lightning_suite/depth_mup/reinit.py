"""Draw the initial weights that the theory assumes, for training from scratch."""

from __future__ import annotations

import torch
from torch import nn

from lightning_suite.depth_mup.correction import Correction
from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.depth_mup.rules import Role
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_module_name, clean_name

_VECTORS: tuple[Role, ...] = ("vector", "final_norm", "output_bias")


@torch.no_grad()
def reinitialize(
    model: nn.Module,
    role_map: RoleMap,
    parametrization: Parametrization,
    *,
    readout_multiplier: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Draw all matrices of ``model`` anew; whatever they held is lost.

    * Matrices and convolutions: N(0, 1/fan-in).
    * Embedding tables: N(0, 1) (their fan-in is 1, the token's one-hot vector), or as the readout
      where the two share a weight.
    * Readout: N(0, 1/n0) under its multiplier 1/r_n, that times 1/r_n without one (``sp``:
      N(0, 1/n)).
    * Biases 0. Every other vector keeps its value: gains of norms are 1 in one library and 0 in
      another (Gemma multiplies by 1 + w), and layer scales start where their authors put them.
    * Frozen parameters that have no role, as those of a teacher, keep their values.

    Args:
        model: The model whose roles were assigned.
        role_map: Names the readouts and says which parameter plays which role.
        parametrization: The rule and the shapes.
        readout_multiplier: Whether the model or a hook multiplies the readout's input by 1/r_n.
        generator: Source of randomness, on the CPU; default: torch's global one.

    Raises:
        SuiteError: The weights are on the meta device, or adapters are attached.
    """
    modules = dict(model.named_modules())
    readouts = {
        id(getattr(module, "weight", None))
        for name, module in modules.items()
        if clean_module_name(name) in role_map.readouts
    }
    for name, parameter in model.named_parameters():
        role = role_map.roles.get(clean_name(name))
        if role is None:
            continue
        if parameter.is_meta:
            raise SuiteError(
                f"{name!r} has no storage yet (meta device): it cannot be initialised."
            )
        if ".lora_" in name:
            raise SuiteError(
                f"{name!r} is an adapter, which belongs to pretrained weights: leave reinit out."
            )
        owner = modules[name.rpartition(".")[0]]
        if role in _VECTORS or parameter.ndim < 2:
            if name.endswith("bias"):
                parameter.zero_()
            continue
        std = fan_in(parameter, owner, role) ** -0.5
        if role == "output" or id(parameter) in readouts:
            inputs = parameter.shape[-1]
            multiplier = parametrization.readout_multiplier
            std = inputs**-0.5 * multiplier ** (-0.5 if readout_multiplier else 0.5)
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.copy_(noise.to(parameter.dtype) * std)
        if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
            parameter[owner.padding_idx] = 0.0


def draw_initial_weights(
    model: nn.Module, correction: Correction, *, built_late: bool = False
) -> None:
    """:func:`reinitialize` a model that is about to be trained, the same for one seed of torch.

    Args:
        model: The model that was corrected.
        correction: Its roles, shapes and multipliers.
        built_late: Whether a checkpoint may have been loaded into it already.

    Raises:
        SuiteError: Something would be lost: pretrained weights, or those of a checkpoint.
    """
    if correction.multipliers.keeps_function:
        raise SuiteError(
            "reinit=True would overwrite pretrained weights. Leave reinit out, or say "
            "pretrained=False if they are meant to be lost."
        )
    if built_late:
        raise SuiteError("reinit=True needs a LightningModule that builds its network in __init__.")
    reinitialize(
        model,
        correction.role_map,
        correction.parametrization,
        readout_multiplier=correction.multipliers.readout_is_scaled,
        generator=torch.Generator().manual_seed(torch.initial_seed()),
    )


def fan_in(parameter: torch.Tensor, owner: nn.Module, role: Role) -> int:
    """Return the number of inputs that one output of a matrix or convolution sums over."""
    bare = not hasattr(owner, "weight")
    if isinstance(owner, nn.Embedding) or (bare and role == "input"):
        return 1  # tables of tokens and positions
    if type(owner).__name__ == "Conv1D":  # GPT-2 stores its matrices transposed
        return int(parameter.shape[0])
    return int(parameter[0].numel())
