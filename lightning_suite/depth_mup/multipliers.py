r"""Who applies the two multipliers that a rule asks for: forward hooks, the model, or nobody.

Residual branches are multiplied by :math:`c = r_L^{-\alpha}` and the readout's input by
:math:`1 / r_n`, both relative to the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_module_name, clean_name, modules_by_name

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
    tied = tied_readout(model, role_map)
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
    found = [(clean_module_name(name), module) for name, module in model.named_modules()]
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


def tied_readout(model: nn.Module, role_map: RoleMap) -> str | None:
    """Return the name of a readout whose weight is the embedding's, or None."""
    modules = modules_by_name(model)
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
