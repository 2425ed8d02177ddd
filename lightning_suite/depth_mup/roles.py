"""Find the residual blocks of a model and give every parameter its role, or refuse.

A parameter without a role would silently train at the base model's rate: that is why there is no
default role, and the refusal lists every name that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_suite.depth_mup.parametrization import Parametrization
from lightning_suite.depth_mup.presets import PRESETS, Preset
from lightning_suite.depth_mup.rules import (
    OptimizerFamily,
    Role,
    check_role,
    unscaled_readout_lr_factor,
)
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.module_names import clean_name

# What PEFT inserts between a wrapped module's name and the name of a parameter.
_ADAPTERS = re.compile(
    r"\.(?:base_layer|original_module|modules_to_save\.[^.]+"
    r"|lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\.[^.]+)(?=\.|$)"
)


@dataclass(frozen=True)
class RoleMap:
    """What :func:`assign_roles` found.

    Attributes:
        preset: Name of the preset that was used, or ``"patterns"``.
        blocks: Module names of the residual blocks, in order; their number is L.
        roles: Parameter name (see :func:`clean_name`) to role; every parameter, frozen ones too.
        branch_ends: Names of the modules whose output is added to the stream.
        readouts: Names of the modules that make the logits; empty for a headless model.
        width: n: the size of the final norm, else the readout's number of inputs, else None.
    """

    preset: str
    blocks: tuple[str, ...]
    roles: dict[str, Role]
    branch_ends: tuple[str, ...]
    readouts: tuple[str, ...]
    width: int | None

    @property
    def depth(self) -> int:
        """L, the number of residual blocks."""
        return len(self.blocks)


def _wrapped_name(name: str) -> str:
    """Return the name that an adapter's parameter would have without the adapter."""
    return _ADAPTERS.sub("", name)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by clean name; the innermost of several that a wrapper gives the same name."""
    return {clean_name(f"{name}.").rstrip("."): module for name, module in model.named_modules()}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _find_container(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the children of the longest list of same-type blocks, outermost first on a tie."""
    best: tuple[str, ...] = ()
    for name, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        children = list(module.named_children())
        same = len({type(child) for _, child in children}) == 1
        deep = all(any(True for _ in child.children()) for _, child in children)
        weighty = all(any(True for _ in child.parameters()) for _, child in children)
        if same and deep and weighty and len(children) > len(best):
            best = tuple(f"{name}.{child}".lstrip(".") for child, _ in children)
    return best


def _blocks_at(container: str, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the blocks inside ``container``, the value of the user's ``blocks``."""
    hits = [name for name in modules if name == container or name.endswith(f".{container}")]
    if not hits:
        lists = [n for n, m in modules.items() if isinstance(m, (nn.ModuleList, nn.Sequential))]
        raise SuiteError(
            f"blocks={container!r}: the model has no such module."
            f"{did_you_mean(container, modules)} Lists of modules in it: "
            f"{', '.join(lists) or 'none'}."
        )
    name = hits[0]
    blocks = tuple(f"{name}.{child}".lstrip(".") for child, _ in modules[name].named_children())
    if not blocks:
        raise SuiteError(f"blocks={container!r}: the module {name!r} has no children.")
    return blocks


def _innermost(blocks: Iterable[str]) -> tuple[str, ...]:
    """Sort by number and keep only those that contain no other."""
    names = sorted(blocks, key=_natural)
    return tuple(name for name in names if not any(other.startswith(f"{name}.") for other in names))


def _matching_preset(
    modules: Mapping[str, nn.Module], names: Iterable[str], candidates: Iterable[Preset]
) -> tuple[Preset, tuple[str, ...]] | None:
    names = [_wrapped_name(name) for name in names]
    for preset in candidates:
        pattern = re.compile(preset.blocks)
        marker = re.compile(preset.marker)
        blocks = _innermost(name for name in modules if pattern.fullmatch(name))
        if any(
            marker.match(name[len(block) + 1 :])
            for block in blocks
            for name in names
            if name.startswith(f"{block}.")
        ):
            return preset, blocks
    return None


def _role_inside(name: str, ndim: int, patterns: Iterable[tuple[str, Role]]) -> Role | None:
    role = next((role for pattern, role in patterns if re.match(pattern, name)), None)
    if role == "hidden_stream" and ndim < 2:
        return "final_norm"  # a vector on the skip path: outside every branch
    return "vector" if ndim < 2 else role


def _role_outside(name: str, ndim: int, patterns: Iterable[tuple[str, Role]]) -> Role | None:
    role = next(
        (role for pattern, role in patterns if re.search(rf"(?:^|\.){pattern}", name)), None
    )
    if ndim < 2 and role == "output":
        return "output_bias"
    if ndim < 2 and role == "hidden_stream":
        return "final_norm"
    return role


# A pattern for a module (``\.up\.``) catches its bias as well, which is no matrix.
_ROLE_OF_VECTOR: dict[Role, Role] = {
    "hidden_first": "vector",
    "hidden_last": "vector",
    "hidden_stream": "final_norm",
    "output": "output_bias",
}


def _refuse(unassigned: list[str], preset: str) -> SuiteError:
    listed = "\n  ".join(unassigned)
    example = re.sub(r"\d+", r"\\d+", unassigned[0].replace(".", r"\."))
    return SuiteError(
        f"{len(unassigned)} parameter(s) have no role (preset: {preset}):\n  {listed}\n"
        "Give each one with patterns (regular expression: role), for example "
        f"patterns={{{example!r}: 'hidden_last'}}. In a residual block, 'hidden_last' is the "
        "matrix whose output is added to the stream, 'hidden_first' every other matrix, 'vector' "
        "biases and gains; outside, 'input' is the embedding, 'final_norm' the last norm and "
        "'output' the readout."
    )


def assign_roles(
    model: nn.Module,
    *,
    blocks: str | None = None,
    preset: str = "auto",
    patterns: Mapping[str, Role] | None = None,
) -> RoleMap:
    r"""Give every parameter of ``model`` its role.

    Args:
        model: Any module; the residual network may sit anywhere in it.
        blocks: Name of the list that holds the residual blocks, for example ``"model.layers"``.
            Default: the preset's, else the longest ``ModuleList`` or ``Sequential`` of blocks of
            one type.
        preset: Name of a preset, ``"auto"`` to choose it by the names, or ``"none"``.
        patterns: Regular expression, searched in the parameter's full name, to role. They come
            before the preset's. A bias that the pattern of a matrix catches is a vector. A module
            that owns a ``hidden_last`` matrix found this way is a branch end.

    Returns:
        The roles, the blocks, and where branches end.

    Raises:
        SuiteError: No blocks were found, a parameter has no role (all are listed), or an argument
            names a preset, role or module that does not exist.

    Example:
        >>> from lightning_suite.depth_mup.models import ResidualMLP
        >>> role_map = assign_roles(ResidualMLP(64, 10, depth=3))
        >>> role_map.depth, role_map.roles["blocks.0.first.weight"]
        (3, 'hidden_first')
    """
    own = {pattern: check_role(role) for pattern, role in (patterns or {}).items()}
    if preset not in ("auto", "none", *PRESETS):
        raise SuiteError(
            f"unknown preset {preset!r}.{did_you_mean(preset, PRESETS)} The presets are: auto, "
            f"none, {', '.join(PRESETS)}."
        )
    modules = _modules(model)
    parameters = {clean_name(name): p for name, p in model.named_parameters()}

    candidates = {"auto": list(PRESETS.values()), "none": []}.get(preset) or (
        [PRESETS[preset]] if preset in PRESETS else []
    )
    found = _matching_preset(modules, parameters, candidates)
    if found is None and preset in PRESETS:
        raise SuiteError(
            f"preset={preset!r} does not fit: the model has no block named like "
            f"'{PRESETS[preset].blocks}'. Use preset='auto', or patterns."
        )
    chosen = found[0] if found else None
    names = _blocks_at(blocks, modules) if blocks else found[1] if found else ()
    names = names or _find_container(modules)
    if not names:
        raise SuiteError(
            "no residual blocks were found: the model has no ModuleList or Sequential of two or "
            "more blocks of one type. Name the list that holds them with blocks='…'."
        )

    roles: dict[str, Role] = {}
    unassigned: list[str] = []
    for full, parameter in parameters.items():
        name = _wrapped_name(full)
        block = next((b for b in names if name.startswith(f"{b}.")), None)
        role = next((role for pattern, role in own.items() if re.search(pattern, full)), None)
        if role is not None and parameter.ndim < 2:
            role = _ROLE_OF_VECTOR.get(role, role)
        if role is None and block is not None:
            inside = chosen.inside if chosen else ()
            role = _role_inside(name[len(block) + 1 :], parameter.ndim, inside)
        elif role is None and chosen is not None:
            role = _role_outside(name, parameter.ndim, chosen.outside)
        if role is None:
            unassigned.append(full)
        else:
            roles[full] = role
    if unassigned:
        raise _refuse(unassigned, chosen.name if chosen else "none")

    readouts = _readouts(modules, roles, chosen)
    return RoleMap(
        preset=chosen.name if chosen else "patterns",
        blocks=names,
        roles=roles,
        branch_ends=_branch_ends(modules, names, roles, chosen, own),
        readouts=readouts,
        width=_width(modules, parameters, roles, names, readouts),
    )


def _owner(parameter: str) -> str:
    return _wrapped_name(parameter).rpartition(".")[0]


def _branch_ends(
    modules: Mapping[str, nn.Module],
    blocks: tuple[str, ...],
    roles: Mapping[str, Role],
    preset: Preset | None,
    own: Mapping[str, Role],
) -> tuple[str, ...]:
    ends: dict[str, None] = {}
    for block in blocks:
        for name in modules:
            inside = name[len(block) + 1 :] if name.startswith(f"{block}.") else ""
            if preset and inside and re.fullmatch(preset.branch_ends, inside):
                ends[name] = None
    for name, role in roles.items():
        by_user = any(re.search(pattern, name) for pattern in own)
        if role == "hidden_last" and (by_user or preset is None) and _owner(name) in modules:
            ends[_owner(name)] = None
    return tuple(ends)


def _readouts(
    modules: Mapping[str, nn.Module], roles: Mapping[str, Role], preset: Preset | None
) -> tuple[str, ...]:
    found = dict.fromkeys(_owner(name) for name, role in roles.items() if role == "output")
    if preset:  # a readout that is tied to the embedding owns no parameter of its own
        pattern = re.compile(rf"(?:.*\.)?{preset.readout}")
        for name, module in modules.items():
            weight = getattr(module, "weight", None)
            if pattern.fullmatch(name) and getattr(weight, "ndim", 0) >= 2:
                found[name] = None
    return tuple(name for name in found if name in modules)


def _width(
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    blocks: tuple[str, ...],
    readouts: tuple[str, ...],
) -> int | None:
    # The final norm comes first: a readout may see a projection of the stream (OPT-350M).
    norms = [
        name
        for name, role in roles.items()
        if role == "final_norm" and not name.startswith(tuple(f"{b}." for b in blocks))
    ]
    if norms:
        return parameters[norms[-1]].numel()
    features = [getattr(modules[name], "in_features", None) for name in readouts]
    return next((n for n in features if isinstance(n, int)), None)


def format_table(
    role_map: RoleMap,
    parametrization: Parametrization,
    family: OptimizerFamily,
    *,
    readout_multiplier: bool = True,
) -> str:
    """Return the printable table name -> role -> learning-rate factor.

    Parameters that differ only in the number of their block share a row.

    Args:
        role_map: From :func:`assign_roles`.
        parametrization: The rule and the shapes.
        family: The optimizer's family.
        readout_multiplier: Whether the model multiplies its readout's input by 1/r_n.
    """

    def factor(role: Role) -> float:
        if role == "output" and not readout_multiplier:
            return unscaled_readout_lr_factor(
                parametrization.rule, family, parametrization.width_ratio
            )
        return parametrization.lr_factor(role, family)

    rows: dict[tuple[str, Role], int] = {}
    for full, role in role_map.roles.items():
        name = full
        block = next((b for b in role_map.blocks if full.startswith(f"{b}.")), None)
        if block is not None:
            name = f"{block.rpartition('.')[0]}.*.{full[len(block) + 1 :]}".lstrip(".")
        rows[name, role] = rows.get((name, role), 0) + 1
    cells = [("parameter", "count", "role", "lr factor")] + [
        (name, str(count), role, f"{factor(role):.4g}") for (name, role), count in rows.items()
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)
