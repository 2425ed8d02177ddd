"""Find the one residual network that is trained, among all that a module holds.

A module may hold a frozen copy of its network, a teacher or a discriminator: counting their blocks
as well would give a wrong depth. Blocks belong to one network if what stands before the preset's
pattern in their names is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_suite.depth_mup.presets import Preset
from lightning_suite.errors import SuiteError, did_you_mean


@dataclass(frozen=True)
class Network:
    """The residual blocks of one network.

    Attributes:
        preset: By whose names they were found; None for a list of modules.
        prefix: Name of the module that holds all of the blocks.
        blocks: Their names, in order.
        root: Name of the largest module around the blocks that holds no other network.
        others: Roots of the other networks, and blocks of this one that the user left out.
    """

    preset: Preset | None
    prefix: str
    blocks: tuple[str, ...]
    root: str = ""
    others: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether a module or parameter is none of another network's."""
        roots = [root for root in (self.root, *self.others) if _under(name, root)]
        return not roots or max(roots, key=len) == self.root

    @property
    def address(self) -> str:
        """What to say as ``blocks`` to mean this network."""
        lists = {block.rpartition(".")[0] for block in self.blocks}
        return lists.pop() if len(lists) == 1 else self.prefix


def _under(name: str, root: str) -> bool:
    return not root or name == root or name.startswith(f"{root}.")


def _root(prefix: str, others: Iterable[str]) -> str:
    others = list(others)
    parts = prefix.split(".") if prefix else []
    roots = [".".join(parts[:n]) for n in range(len(parts) + 1)]
    return next((r for r in roots if not any(_under(other, r) for other in others)), prefix)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _innermost(blocks: Iterable[str]) -> tuple[str, ...]:
    """Sort by number and keep only those that contain no other."""
    names = sorted(blocks, key=_natural)
    return tuple(name for name in names if not any(other.startswith(f"{name}.") for other in names))


def _named_networks(
    modules: Mapping[str, nn.Module], names: Iterable[str], presets: Iterable[Preset]
) -> list[Network]:
    """Return the networks whose names a preset knows; the first preset that fits counts."""
    found: dict[str, Network] = {}
    names = list(names)
    for preset in presets:
        pattern = re.compile(rf"(?:(?P<prefix>.*)\.)?(?:{preset.blocks})")
        marker = re.compile(preset.marker)
        groups: dict[str, list[str]] = {}
        for block in _innermost(name for name in modules if pattern.fullmatch(name)):
            match = pattern.fullmatch(block)
            groups.setdefault((match and match["prefix"]) or "", []).append(block)
        for prefix, blocks in groups.items():
            marked = any(
                marker.match(name[len(block) + 1 :])
                for block in blocks
                for name in names
                if name.startswith(f"{block}.")
            )
            if marked:
                found.setdefault(prefix, Network(preset, prefix, tuple(blocks)))
    return list(found.values())


def _lists(modules: Mapping[str, nn.Module]) -> list[Network]:
    """Return all lists of two or more modules of one type that have parameters and children."""
    found = []
    for name, module in modules.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        children = list(module.named_children())
        same = len({type(child) for _, child in children}) == 1
        deep = all(any(True for _ in child.children()) for _, child in children)
        weighty = all(any(True for _ in child.parameters()) for _, child in children)
        if same and deep and weighty:
            names = tuple(f"{name}.{child}".lstrip(".") for child, _ in children)
            found.append(Network(None, name, names))
    return found


def _list_at(name: str, modules: Mapping[str, nn.Module]) -> Network:
    """Return the children of the module that the user calls ``name``."""
    hits = [name] if name in modules else [n for n in modules if n.endswith(f".{name}")]
    if not hits:
        lists = [n for n, m in modules.items() if isinstance(m, (nn.ModuleList, nn.Sequential))]
        raise SuiteError(
            f"blocks={name!r}: the model has no such module."
            f"{did_you_mean(name, modules)} Lists of modules in it: {', '.join(lists) or 'none'}."
        )
    if len(hits) > 1:
        raise SuiteError(f"blocks={name!r} may be any of {', '.join(hits)}: say which in full.")
    blocks = tuple(
        f"{hits[0]}.{child}".lstrip(".") for child, _ in modules[hits[0]].named_children()
    )
    if not blocks:
        raise SuiteError(f"blocks={name!r}: the module {hits[0]!r} has no children.")
    return Network(None, hits[0], blocks)


def _apart(chosen: Network, networks: Iterable[Network]) -> Network:
    """Return ``chosen`` with its limits towards the other ``networks``."""
    others = [n.prefix for n in networks if n.prefix != chosen.prefix]
    roots = [_root(p, [chosen.prefix, *(o for o in others if o != p)]) for p in others]
    return Network(
        chosen.preset,
        chosen.prefix,
        chosen.blocks,
        _root(chosen.prefix, others),
        (*roots, *chosen.others),
    )


def _trainable(
    network: Network, networks: Iterable[Network], parameters: Mapping[str, nn.Parameter]
) -> bool:
    apart = _apart(network, networks)
    return any(
        p.requires_grad
        for name, p in parameters.items()
        if _under(name, apart.root) and apart.holds(name)
    )


def _overlap(one: Network, other: Network) -> bool:
    return any(_under(a, b) or _under(b, a) for a in one.blocks for b in other.blocks)


def find_network(
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
    presets: Iterable[Preset],
    blocks: str | None,
) -> Network | None:
    """Return the network that is trained.

    Args:
        modules: By name.
        parameters: By name, adapters under the name of what they adapt.
        presets: Those that may fit, the more special ones first.
        blocks: The user's choice: name of a list of blocks, or of what holds several such lists.

    Returns:
        The network, or None if there is no list of blocks at all.

    Raises:
        SuiteError: The user's choice does not exist, or several networks are trained.
    """
    networks = _named_networks(modules, parameters, presets)
    lists = _lists(modules)
    if blocks:
        for network in networks:
            if network.prefix and network.address == network.prefix == blocks:
                return _apart(network, networks)
        chosen = _list_at(blocks, modules)
        same = next((network for network in networks if _overlap(network, chosen)), None)
        if same:
            left_out = tuple(b for b in same.blocks if not any(_under(b, c) for c in chosen.blocks))
            known = Network(same.preset, same.prefix, chosen.blocks, others=left_out)
            return _apart(known, networks)
    elif networks:
        trained = [n for n in networks if _trainable(n, networks, parameters)]
        if len(networks) == 1 or len(trained) == 1:
            return _apart((trained or networks)[0], networks)
        listed = "".join(
            f"\n  blocks={n.address!r}: {len(n.blocks)} blocks, "
            f"{'trained' if n in trained else 'frozen'}"
            for n in networks
        )
        raise SuiteError(
            f"the model holds {len(networks)} networks with residual blocks, and {len(trained)} "
            f"of them are trained. Freeze copies and teachers with requires_grad_(False), or say "
            f"which one is meant:{listed}"
        )
    else:
        trained = [n for n in lists if _list_trained(n, parameters)] or lists
        if not trained:
            return None
        chosen = max(trained, key=lambda network: len(network.blocks))  # the outermost on a tie
    # A frozen list of the same blocks is a copy of the network, or a teacher.
    kind = type(modules[chosen.blocks[0]])
    copies = [
        n
        for n in lists
        if not _overlap(n, chosen)
        and type(modules[n.blocks[0]]) is kind
        and not _list_trained(n, parameters)
    ]
    return _apart(chosen, [*networks, *copies])


def _list_trained(network: Network, parameters: Mapping[str, nn.Parameter]) -> bool:
    return any(p.requires_grad for n, p in parameters.items() if _under(n, network.prefix))
