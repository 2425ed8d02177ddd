"""Find the residual blocks of a model and give every parameter its role, or refuse.

A parameter without a role would silently train at the base model's rate: that is why there is no
default role, and the refusal lists every name that is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_suite.depth_mup.networks import Network, find_network
from lightning_suite.depth_mup.presets import PRESETS
from lightning_suite.depth_mup.rules import (
    Role,
    check_role,
)
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.module_names import clean_name, modules_by_name

# What PEFT inserts between a wrapped module's name and the name of a parameter.
_ADAPTERS = re.compile(
    r"\.(?:base_layer|original_module|modules_to_save\.[^.]+"
    r"|lora_(?:A|B|magnitude_vector)\.[^.]+)(?=\.|$)"
)
# These stand for the weight itself.
_EMBEDDING_ADAPTERS = re.compile(r"\.lora_embedding_[AB]\.[^.]+$")


@dataclass(frozen=True)
class RoleMap:
    """What :func:`assign_roles` found.

    Attributes:
        preset: Name of the preset that was used, or ``"patterns"``.
        blocks: Module names of the residual blocks, in order; their number is L.
        roles: Parameter name (see :func:`clean_name`) to role. Frozen parameters have roles too,
            but those outside the blocks that no name gives a role to, and those of other networks
            (a frozen copy, a teacher) that no pattern of the user names, are left out.
        branch_ends: Names of the modules whose output is added to the stream.
        readouts: Names of the modules that make the logits; empty for a headless model.
        width: n: the size of the final norm, else of the last block's output, else the readout's
            number of inputs, else None.
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
    return _ADAPTERS.sub("", _EMBEDDING_ADAPTERS.sub(".weight", name))


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


_MOST_LINES = 20


def _refuse(unassigned: list[str], blocks: tuple[str, ...], preset: str) -> SuiteError:
    counts = Counter(row_name(name, blocks) for name in unassigned)
    lines = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [f"… and {len(lines) - _MOST_LINES + 1} more"]
    inside = unassigned[0].startswith(tuple(f"{b}." for b in blocks))
    example = re.sub(r"\d+", r"\\d+", unassigned[0].replace(".", r"\."))
    role = "hidden_last" if inside else "input"
    return SuiteError(
        f"{len(unassigned)} parameter(s) have no role (preset: {preset}):\n  "
        + "\n  ".join(lines)
        + "\nGive each one with patterns (regular expression: role), for example "
        f"patterns={{{example!r}: {role!r}}}, or in YAML (the overlay), among the callback's "
        f"init_args:\n  patterns: {{'{example}': {role}}}\n"
        "In a residual block, 'hidden_last' is the "
        "matrix whose output is added to the stream, 'hidden_first' every other matrix, 'vector' "
        "biases and gains; outside, 'input' is the embedding, 'final_norm' the last norm and "
        "'output' the readout. Frozen parameters outside the blocks (a teacher's) need no role."
    )


def row_name(parameter: str, blocks: Iterable[str]) -> str:
    """Return a parameter's name with ``*`` for the number of its block.

    Args:
        parameter: Its name.
        blocks: Names of the residual blocks.

    Example:
        >>> row_name("tower.3.fc1.weight", ["tower.2", "tower.3"])
        'tower.*.fc1.weight'
    """
    block = next((b for b in blocks if parameter.startswith(f"{b}.")), None)
    if block is None:
        return parameter
    return f"{block.rpartition('.')[0]}.*.{parameter[len(block) + 1 :]}".lstrip(".")


def _refuse_frozen(unassigned: list[str], blocks: tuple[str, ...]) -> SuiteError:
    listed = ", ".join(unassigned[:3]) + (", …" if len(unassigned) > 3 else "")
    return SuiteError(
        f"the {len(blocks)} residual blocks ({blocks[0]}, …) are frozen, and what is trained "
        f"({listed}) is no part of them: nothing here depends on depth. Leave the depth-muP "
        "overlays out; or give what is trained a role each with patterns."
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
            one type; of several networks the one that is not entirely frozen. Parameters of the
            others need a role in ``patterns`` unless they are frozen.
        preset: Name of a preset, ``"auto"`` to choose it by the names, or ``"none"``.
        patterns: Regular expression, searched in the parameter's full name, to role. They come
            before the preset's. A bias that the pattern of a matrix catches is a vector. A module
            that owns a ``hidden_last`` matrix found this way is a branch end.

    Returns:
        The roles, the blocks, and where branches end.

    Raises:
        SuiteError: No blocks were found or those of several trained networks, a parameter has no
            role (all are listed), blocks of one type differ in their roles, some blocks have no
            branch end, or an argument names a preset, role or module that does not exist.

    Example:
        >>> from lightning_suite.depth_mup.models import ResidualMLP
        >>> role_map = assign_roles(ResidualMLP(64, 10, depth=3))
        >>> role_map.depth, role_map.roles["blocks.0.first.weight"]
        (3, 'hidden_first')
    """
    own = {_check_pattern(pattern): check_role(role) for pattern, role in (patterns or {}).items()}
    if preset not in ("auto", "none", *PRESETS):
        raise SuiteError(
            f"unknown preset {preset!r}.{did_you_mean(preset, PRESETS)} The presets are: auto, "
            f"none, {', '.join(PRESETS)}."
        )
    modules = modules_by_name(model)
    parameters = {clean_name(name): p for name, p in model.named_parameters()}

    candidates = {"auto": list(PRESETS.values()), "none": []}.get(preset) or (
        [PRESETS[preset]] if preset in PRESETS else []
    )
    # A matrix with a trained adapter counts as trained.
    plain = {_wrapped_name(name): p for name, p in parameters.items() if not p.requires_grad}
    plain |= {_wrapped_name(name): p for name, p in parameters.items() if p.requires_grad}
    network = find_network(modules, plain, candidates, blocks)
    if preset in PRESETS and (network is None or network.preset is None):
        raise SuiteError(
            f"preset={preset!r} does not fit: the model has no block named like "
            f"'{PRESETS[preset].blocks}'. Use preset='auto', or patterns."
        )
    if network is None:
        raise SuiteError(
            "no residual blocks were found: the model has no ModuleList or Sequential of two or "
            "more blocks of one type. Name the list that holds them with blocks='…'."
        )
    chosen, names = network.preset, network.blocks

    roles: dict[str, Role] = {}
    unassigned: list[str] = []
    for full, parameter in parameters.items():
        name = _wrapped_name(full)
        block = next((b for b in names if name.startswith(f"{b}.")), None)
        role = next((role for pattern, role in own.items() if re.search(pattern, full)), None)
        if role is not None and parameter.ndim < 2:
            role = _ROLE_OF_VECTOR.get(role, role)
        foreign = not network.holds(name)
        if role is None and block is not None:
            inside = chosen.inside if chosen else ()
            role = _role_inside(name[len(block) + 1 :], parameter.ndim, inside)
        elif role is None and chosen is not None and not foreign:
            role = _role_outside(name, parameter.ndim, chosen.outside)
        if role is not None:
            roles[full] = role
        elif block is not None or parameter.requires_grad:
            unassigned.append(full)
    if unassigned:
        prefixes = tuple(f"{b}." for b in names)
        trained = [_wrapped_name(full) for full, p in parameters.items() if p.requires_grad]
        if not any(name.startswith(prefixes) for name in [*trained, *unassigned]):
            raise _refuse_frozen(unassigned, names)
        raise _refuse(unassigned, names, chosen.name if chosen else "none")
    _check_equal_blocks(modules, roles, names)

    readouts = _readouts(modules, roles, network)
    return RoleMap(
        preset=chosen.name if chosen else "patterns",
        blocks=names,
        roles=roles,
        branch_ends=_branch_ends(modules, roles, network, own),
        readouts=readouts,
        width=_width(modules, parameters, roles, names, readouts),
    )


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SuiteError(
            f"patterns: {pattern!r} is no regular expression: {error}. A dot in a name is written "
            r"'\.', any number '\d+'."
        ) from error
    return pattern


def _check_equal_blocks(
    modules: Mapping[str, nn.Module], roles: Mapping[str, Role], blocks: tuple[str, ...]
) -> None:
    """Refuse a parameter whose role differs from that of its like in another block."""
    first: dict[tuple[type, str], str] = {}
    for block in blocks:
        for name in (name for name in roles if name.startswith(f"{block}.")):
            like = first.setdefault((type(modules[block]), name[len(block) + 1 :]), name)
            if roles[like] != roles[name]:
                raise SuiteError(
                    f"blocks of one type must have the same roles, and {like!r} is "
                    f"{roles[like]!r} but {name!r} is {roles[name]!r}. Let the pattern match the "
                    r"number of any block ('\d+')."
                )


def _owner(parameter: str) -> str:
    return _wrapped_name(parameter).rpartition(".")[0]


def _branch_ends(
    modules: Mapping[str, nn.Module],
    roles: Mapping[str, Role],
    network: Network,
    own: Mapping[str, Role],
) -> tuple[str, ...]:
    ends: dict[str, None] = {}
    blocks, preset = network.blocks, network.preset
    for block in blocks:
        for name in modules:
            inside = name[len(block) + 1 :] if name.startswith(f"{block}.") else ""
            if preset and inside and re.fullmatch(preset.branch_ends, inside):
                ends[name] = None
    for name, role in roles.items():
        by_user = any(re.search(pattern, name) for pattern in own)
        if role == "hidden_last" and (by_user or preset is None) and network.holds(name):
            ends |= {_owner(name): None} if _owner(name) in modules else {}
    without = [b for b in blocks if not any(end.startswith(f"{b}.") for end in ends)]
    if ends and without:
        raise SuiteError(
            f"the blocks {', '.join(without)} have no branch end, and the others have: the "
            "residual multiplier would reach only some of them. Name the last matrix of each "
            "branch with patterns={'…': 'hidden_last'}."
        )
    return tuple(ends)


def _readouts(
    modules: Mapping[str, nn.Module], roles: Mapping[str, Role], network: Network
) -> tuple[str, ...]:
    found = dict.fromkeys(_owner(name) for name, role in roles.items() if role == "output")
    if network.preset:  # a readout that is tied to the embedding owns no parameter of its own
        pattern = re.compile(rf"(?:.*\.)?{network.preset.readout}")
        for name, module in modules.items():
            weight = getattr(module, "weight", None)
            if pattern.fullmatch(name) and getattr(weight, "ndim", 0) >= 2:
                found[name] = None
    return tuple(name for name in found if name in modules and network.holds(name))


def _width(
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, Role],
    blocks: tuple[str, ...],
    readouts: tuple[str, ...],
) -> int | None:
    # The readout comes last: it may see a projection of the stream (OPT-350M, which has no norm).
    norms = [
        name
        for name, role in roles.items()
        if role == "final_norm" and not name.startswith(tuple(f"{b}." for b in blocks))
    ]
    if norms:
        return parameters[norms[-1]].numel()
    last = [
        n for n, role in roles.items() if role == "hidden_last" and n.startswith(f"{blocks[-1]}.")
    ]
    for name in last:
        for attribute in ("out_features", "out_channels", "nf"):  # nf: GPT-2's Conv1D
            size = getattr(modules.get(_owner(name)), attribute, None)
            if isinstance(size, int):
                return size
    features = [getattr(modules[name], "in_features", None) for name in readouts]
    return next((n for n in features if isinstance(n, int)), None)
