"""The multipliers on models that have none of their own: by forward hooks, or in the weights.

Hooks leave the weights alone: :func:`fold_residual_scale` moves the multipliers into the weights
for use without hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup.multipliers import Multipliers, tied_readout
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import modules_by_name


def attach_residual_scale(model: nn.Module, role_map: RoleMap, c: float) -> list[RemovableHandle]:
    """Multiply the output of every branch of ``model`` by ``c``, with forward hooks.

    Args:
        model: The model whose roles were assigned.
        role_map: Names the modules whose output is added to the stream.
        c: The residual multiplier relative to the base model; 1 registers nothing.

    Returns:
        Handles whose ``remove()`` gives the model back as it was.
    """
    if c == 1.0:
        return []

    def multiply(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        if isinstance(output, tuple):
            return (output[0] * c, *output[1:])
        return output * c

    modules = modules_by_name(model)
    return [modules[name].register_forward_hook(multiply) for name in role_map.branch_ends]


def attach_readout_scale(model: nn.Module, role_map: RoleMap, m: float) -> list[RemovableHandle]:
    """Multiply the input of the readout of ``model`` by ``m``, with a forward pre-hook.

    The readout's bias is not multiplied, and a weight that is tied to the embedding stays tied.

    Args:
        model: The model whose roles were assigned.
        role_map: Names the readouts.
        m: The readout multiplier; 1 registers nothing.

    Returns:
        Handles whose ``remove()`` gives the model back as it was.
    """
    if m == 1.0:
        return []

    def multiply(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        return (args[0] * m, *args[1:])

    modules = modules_by_name(model)
    return [modules[name].register_forward_pre_hook(multiply) for name in role_map.readouts]


def hook_targets(model: nn.Module, role_map: RoleMap) -> list[nn.Module | None]:
    """Return the modules that the hooks belong on, None for names that ``model`` has not."""
    modules = modules_by_name(model)
    return [modules.get(name) for name in (*role_map.branch_ends, *role_map.readouts)]


class AttachedMultipliers:
    """The hooks of both multipliers on one model, until :meth:`remove`.

    Args:
        model: The model whose roles were assigned.
        role_map: Names the modules that are multiplied.
        multipliers: By what; a factor of 1 registers no hook.
    """

    def __init__(self, model: nn.Module, role_map: RoleMap, multipliers: Multipliers) -> None:
        self._role_map = role_map
        self._targets = hook_targets(model, role_map)
        self._handles = [
            *attach_residual_scale(model, role_map, multipliers.residual),
            *attach_readout_scale(model, role_map, multipliers.readout),
        ]

    @property
    def registered(self) -> bool:
        """Whether there is a hook at all."""
        return bool(self._handles)

    def belong_to(self, model: nn.Module) -> bool:
        """Whether these are still the layers of ``model``: it may have been built anew since."""
        return self._targets == hook_targets(model, self._role_map)

    def remove(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def fold_residual_scale(
    model: nn.Module, role_map: RoleMap, c: float = 1.0, m: float = 1.0
) -> None:
    """Move the multipliers into the weights, so that the model computes the same without hooks.

    For inference elsewhere (export, ``save_pretrained``). Training the folded model further would
    be another parametrisation: keep the unfolded checkpoint for that.

    Args:
        model: A model that was trained with :func:`attach_residual_scale` and
            :func:`attach_readout_scale`; its weights are changed in place, its hooks are not.
        role_map: As given to those.
        c: As given to :func:`attach_residual_scale`; weights and biases of branch ends.
        m: As given to :func:`attach_readout_scale`; weights of the readout.

    Raises:
        SuiteError: The model lacks these layers; the readout shares its weight with the
            embedding; or a branch end or readout computes its output from anything but one weight
            and one bias, or is Gemma's norm.
    """
    if None in hook_targets(model, role_map):
        raise SuiteError(
            f"{type(model).__name__} lacks layers of the model that was trained. Give fold() the "
            "LightningModule that the trainer had."
        )
    modules = modules_by_name(model)
    tied = tied_readout(model, role_map)
    if m != 1.0 and tied:
        raise SuiteError(
            f"the readout {tied!r} shares its weight with the embedding: multiplying it would "
            "change the embedding as well. Untie the two first, or keep the hooks."
        )
    targets: list[tuple[str, float, tuple[str, ...]]]
    targets = [(name, c, ("weight", "bias")) for name in role_map.branch_ends if c != 1.0]
    targets += [(name, m, ("weight",)) for name in role_map.readouts if m != 1.0]
    for name, _, _ in targets:
        found = {parameter for parameter, _ in modules[name].named_parameters()}
        if not {"weight"} <= found <= {"weight", "bias"}:
            raise SuiteError(
                f"{name!r} has the parameters {sorted(found)}; only a module with one weight and "
                "at most one bias can take up a multiplier. Merge adapters first "
                "(merge_and_unload)."
            )
        if type(modules[name]).__name__.startswith("Gemma"):
            raise SuiteError(
                f"{name!r} ({type(modules[name]).__name__}) multiplies by 1 + weight, which cannot "
                "take up a multiplier. Keep the hooks."
            )
    for name, factor, parameters in targets:
        for parameter in parameters:
            tensor = getattr(modules[name], parameter)
            if tensor is not None:
                tensor.mul_(factor)
