r"""The two multipliers that a rule asks for, on models that have none of their own.

Residual branches are multiplied by :math:`c = r_L^{-\alpha}` and the readout's input by
:math:`1 / r_n`, both relative to the base model, by forward hooks. Hooks leave the weights alone:
:func:`fold_residual_scale` moves the multipliers into the weights for use without hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_name

ScaleMode = Literal["auto", "model", "none"]


@dataclass(frozen=True)
class Multipliers:
    """Which multipliers the hooks apply, and who applies the others.

    Attributes:
        residual: Factor on every branch's output; 1 registers no hook.
        readout: Factor on the readout's input; 1 registers no hook.
        readout_is_scaled: Whether hooks or the model itself multiply the readout's input.
        keeps_function: Whether the weights are pretrained, so that hooks would change what they
            compute.
        note: Who applies the residual multiplier and why, for the reader of the table.
        warning: What the user should know about, or an empty string.
    """

    residual: float
    readout: float
    readout_is_scaled: bool
    keeps_function: bool
    note: str
    warning: str = ""

    @property
    def by_hooks(self) -> str:
        """What hooks multiply, in words; empty where they multiply nothing."""
        return describe_hooks(self.residual, self.readout)


def describe_hooks(residual: float, readout: float) -> str:
    """Say in words what hooks multiply; an empty string where both factors are 1."""
    parts = {"the branches' outputs": residual, "the readout's input": readout}
    return " and ".join(f"{what} by {factor:.4g}" for what, factor in parts.items() if factor != 1)


def choose_multipliers(
    model: nn.Module,
    parametrization: Parametrization,
    role_map: RoleMap,
    *,
    residual_scale: ScaleMode = "auto",
    readout_scale: ScaleMode = "auto",
    pretrained: bool | None = None,
) -> Multipliers:
    """Decide what the hooks must multiply.

    ``"auto"`` means: trust a model that was built with an equal parametrisation of its own (our
    residual nets); leave the function of pretrained weights alone; give hooks to every other
    model. A multiplier in a configuration (Granite's) is one constant for all depths, and the
    hooks multiply on top of it. ``"model"`` trusts the model, ``"none"`` applies nothing and counts
    on nothing.

    Args:
        model: The model whose roles were assigned.
        parametrization: The rule and the shapes.
        role_map: From :func:`~lightning_suite.depth_mup.roles.assign_roles`.
        residual_scale: For the residual branches.
        readout_scale: For the readout.
        pretrained: Whether the weights come from elsewhere; None asks the model's configuration.

    Raises:
        SuiteError: The model was built with multipliers of another rule or base shape, or a
            readout that is tied to the embedding would need a learning rate of its own.
    """
    residual = parametrization.residual_multiplier()
    readout = parametrization.readout_multiplier
    own = _own_parametrization(model, role_map, parametrization)
    source = pretrained_source(model, role_map) if pretrained is None else None
    keep = bool(pretrained) or source is not None
    if residual_scale == "auto":
        if own:
            note = "the model's own"
        elif keep:
            note = "none: the weights are pretrained"
        else:
            note = f"{residual:g} by forward hooks on {len(role_map.branch_ends)} branch ends"
            constant = _config_value(model, role_map, "residual_multiplier")
            if constant not in (None, 1, 1.0):
                note += f", on top of config.residual_multiplier={constant:g}"
        by_hooks = not own and not keep
    else:
        note = "the model's own" if residual_scale == "model" else "none"
        by_hooks = False
    if by_hooks and residual != 1.0 and not role_map.branch_ends:
        raise SuiteError(
            "the residual multiplier has nowhere to go: no module whose output is added to the "
            "stream is known. Name the last matrix of each branch with "
            "patterns={'…': 'hidden_last'}, or say residual_scale='model' if the model multiplies "
            "its branches itself."
        )

    model_scales = readout_scale == "model" or (readout_scale == "auto" and own)
    hooked = readout_scale == "auto" and not model_scales and not keep and bool(role_map.readouts)
    is_scaled = model_scales or hooked or readout == 1.0
    tied = _tied_readout(model, role_map)
    if tied and not is_scaled:
        raise SuiteError(
            f"the readout {tied!r} shares its weight with the embedding, and at width ratio "
            f"{parametrization.width_ratio:g} without a readout multiplier the two would need "
            "different learning rates. Say readout_scale='auto' with pretrained=False to let "
            "hooks multiply the readout's input, readout_scale='model' if the model does it "
            "itself, untie the embedding, or leave base_width out to correct for depth alone."
        )
    changes = (residual_scale == "auto" and residual != 1.0) or not is_scaled
    warning = ""
    if source and changes and not own:
        warning = (
            f"the weights look pretrained ({source!r}): DepthMuPLRCallback scales their learning "
            "rates and leaves the model's function alone (no residual or readout multiplier). Say "
            "pretrained=True if that is what you want, or pretrained=False if the weights are "
            "fresh or were trained with the multipliers."
        )
    return Multipliers(
        residual if by_hooks else 1.0, readout if hooked else 1.0, is_scaled, keep, note, warning
    )


def _around_blocks(model: nn.Module, role_map: RoleMap) -> list[tuple[str, nn.Module]]:
    """Return the modules that hold the blocks, outermost first: no teacher, no second network."""
    found = [(clean_name(f"{name}.").rstrip("."), module) for name, module in model.named_modules()]
    return [(n, m) for n, m in found if not n or role_map.blocks[0].startswith(f"{n}.")]


def _own_parametrization(model: nn.Module, role_map: RoleMap, wanted: Parametrization) -> bool:
    """Whether a module inside multiplies as ``wanted`` asks; an SP module leaves it to hooks."""
    for name, module in _around_blocks(model, role_map):
        own = getattr(module, "parametrization", None)
        if not isinstance(own, Parametrization):
            continue
        if own.base_depth == wanted.base_depth:
            if (own.residual_multiplier(), own.readout_multiplier) == (
                wanted.residual_multiplier(),
                wanted.readout_multiplier,
            ):
                return True
            if own.rule == "sp":
                return False
        raise SuiteError(
            f"{type(module).__name__} at {name or 'the top'!r} was built with "
            f"rule={own.rule!r}, base_depth={own.base_depth}, base_width={own.base_width}, and "
            f"the callback says rule={wanted.rule!r}, base_depth={wanted.base_depth}, "
            f"base_width={wanted.base_width}. Give both the same values; or build the model with "
            f"rule='sp' and base_depth={wanted.base_depth}, and the callback adds the multipliers."
        )
    return False


def _config_value(model: nn.Module, role_map: RoleMap, name: str) -> Any:
    for _, module in _around_blocks(model, role_map):
        value = getattr(getattr(module, "config", None), name, None)
        if value is not None:
            return value
    return None


def pretrained_source(model: nn.Module, role_map: RoleMap) -> str | None:
    """Return where the weights of a Hugging Face model came from, or None."""
    source = _config_value(model, role_map, "name_or_path")
    return source if isinstance(source, str) and source else None


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {clean_name(f"{name}.").rstrip("."): module for name, module in model.named_modules()}


def _tied_readout(model: nn.Module, role_map: RoleMap) -> str | None:
    """Return the name of a readout whose weight is the embedding's, or None."""
    modules = _modules(model)
    inputs = {
        id(p)
        for name, p in model.named_parameters()
        if role_map.roles.get(clean_name(name)) == "input"
    }
    return next(
        (
            name
            for name in role_map.readouts
            if id(getattr(modules[name], "weight", None)) in inputs
        ),
        None,
    )


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

    modules = _modules(model)
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

    modules = _modules(model)
    return [modules[name].register_forward_pre_hook(multiply) for name in role_map.readouts]


def hook_targets(model: nn.Module, role_map: RoleMap) -> list[nn.Module | None]:
    """Return the modules that the hooks belong on, None for names that ``model`` has not."""
    modules = _modules(model)
    return [modules.get(name) for name in (*role_map.branch_ends, *role_map.readouts)]


def attach_multipliers(
    model: nn.Module, role_map: RoleMap, multipliers: Multipliers
) -> list[RemovableHandle]:
    """Register the hooks of both multipliers."""
    return [
        *attach_residual_scale(model, role_map, multipliers.residual),
        *attach_readout_scale(model, role_map, multipliers.readout),
    ]


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
        SuiteError: The readout shares its weight with the embedding, or a branch end or readout
            computes its output from anything but one weight and one bias, or is Gemma's norm.
    """
    modules = _modules(model)
    tied = _tied_readout(model, role_map)
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
