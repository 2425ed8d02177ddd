"""Which weights are watched, and how each kind of layer is a linear map of rows.

Every supported layer computes ``y_t = W x_t + b`` for many rows ``t``, so the gradient of one
sample is ``G = Σ_t g_t x_tᵀ`` over its rows, with ``g_t`` the gradient of ``y_t``. A
:class:`Target` knows how to read ``x`` and ``g`` of its layer in that form.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.module_names import clean_name
from lightning_suite.resofilter.layer_kinds import (
    Kind,
    has_own_forward,
    kind_of,
    never_called,
    sequence_first,
    stacked_matrices,
    unfold,
)

Layers = str | int | Sequence[int]
LAST_LAYERS = "last:3"  # those of ResoFilter's score; of a model with fewer, all

# Layers that hold two matrices in one: which half of the output rows is which.
_FUSED = {"gate_up_proj": ("gate", "up")}


@dataclass(frozen=True)
class Target:
    """One matrix (or bias, or part of a matrix) whose per-sample gradient is measured.

    Attributes:
        name: Dotted name, unique; the prefix of the table's columns.
        module: The layer that is called.
        kind: How the layer is a linear map.
        parameter: ``"weight"``, or ``"bias"``: then ``x`` is 1 for every row.
        part: Index and number of equal parts of the output rows; ``(0, 1)`` is all of them.
        sequence_first: Whether it is inside a Transformer layer of torch that was built with
            ``batch_first=False``, whose rows are [T, N].
    """

    name: str
    module: nn.Module
    kind: Kind = "linear"
    parameter: Literal["weight", "bias"] = "weight"
    part: tuple[int, int] = (0, 1)
    sequence_first: bool = False

    @property
    def layer(self) -> int | None:
        """Number of the layer: the first whole number in the name; None without one."""
        return layer_number(self.name)

    @property
    def weight(self) -> Tensor:
        """The watched values as a matrix [O, I]; a bias is [O, 1]."""
        values: Tensor = getattr(self.module, self.parameter)
        return self.as_matrix(values.detach())

    def as_matrix(self, values: Tensor) -> Tensor:
        """Return ``values``, shaped like the parameter, as the matrix [O, I] of this target."""
        if self.parameter == "bias":
            values = values[:, None]
        elif self.kind == "conv1d":
            values = values.mT
        else:
            values = values.flatten(1)
        return values[self._rows(values.shape[0])]

    def inputs(self, x: Tensor) -> Tensor:
        """Return the rows that the weight multiplies: [..., I]."""
        if self.kind == "conv2d":
            x = unfold(self.module, x)
        return x.new_ones(*x.shape[:-1], 1) if self.parameter == "bias" else x

    def output_gradients(self, g: Tensor) -> Tensor:
        """Return the gradient of the rows that the weight makes: [..., O]."""
        if self.kind == "conv2d":
            g = g.flatten(2).mT
        return g[..., self._rows(g.shape[-1])]

    def _rows(self, n: int) -> slice:
        index, parts = self.part
        return slice(index * n // parts, (index + 1) * n // parts)


@dataclass(frozen=True)
class Targets:
    """What is watched, and what was asked for and cannot be.

    Attributes:
        found: In the order of the model.
        skipped: Name of a module and why it is not watched.
        depth: Layers of the model that have such modules, counted from 0 to the highest number,
            whatever ``layers`` leaves of them; None where they have no numbers.
    """

    found: tuple[Target, ...]
    skipped: dict[str, str]
    depth: int | None = None


def find_targets(
    model: nn.Module,
    modules: str | Sequence[str] = "all",
    layers: Layers = "all",
    *,
    biases: bool = False,
    include_frozen: bool = False,
) -> Targets:
    """Find the layers to watch.

    Supported: ``nn.Linear`` (so also LoRA's A and B), Hugging Face's ``Conv1D``, ``nn.Conv2d``
    without groups, and subclasses of these that leave ``forward`` as it is. ``gate_up_proj`` is
    watched as two matrices, ``….gate`` and ``….up``. A subclass with its own ``forward`` may do
    anything with its weight, and one that is computed from other parameters (a parametrization,
    weight norm, pruning) has no gradient of its own: both are skipped.

    Args:
        model: Any module.
        modules: ``"all"``, or one or several patterns: a piece of the dotted name such as
            ``"up_proj"`` or ``"mlp.up_proj"``, or a glob over the whole name.
        layers: ``"all"``, ``"last:3"``, ``"first:2"``, a number, or a list of numbers; the
            number of a layer is the first whole number in its name.
        biases: Also watch the biases of these layers, as ``<name>.bias``.
        include_frozen: Also watch weights and biases that do not require a gradient. Without it
            each is judged by itself: of a layer with a frozen weight the bias can be watched.

    Raises:
        SuiteError: Nothing matches; the message lists what is there or why it was skipped.
    """
    patterns = [modules] if isinstance(modules, str) else list(modules)
    shared = _shared_parameters(model)
    functional, transposed = never_called(model), sequence_first(model)
    found: list[Target] = []
    skipped: dict[str, str] = {}
    rest: list[str] = []
    numbers: list[int] = []
    for raw_name, module in model.named_modules():
        name = clean_name(raw_name)
        if isinstance(module, nn.Embedding):
            if "all" in patterns:
                skipped[name] = "an embedding is a table, not a linear map"
            continue
        kind = kind_of(module)
        if kind is None:
            for parameter in stacked_matrices(module):
                stacked = f"{name}.{parameter}".lstrip(".")
                if any(_may_mean(stacked, p) for p in patterns):
                    skipped[stacked] = "it is several matrices in one tensor, as of experts"
            continue
        candidates = [
            replace(target, sequence_first=module in transposed)
            for target in _of_module(name, module, kind, biases)
        ]
        chosen = [t for t in candidates if any(matches(t.name, p) for p in patterns)]
        if not chosen:
            rest += [target.name for target in candidates]
            continue
        numbers += [t.layer for t in chosen if t.layer is not None]
        for target in chosen:
            reason = _reason_to_skip(target, shared, include_frozen)
            if module in functional:
                reason = "its parent uses the weight without calling the layer"
            if reason is None:
                found.append(target)
            else:
                skipped[name if target.parameter == "weight" else target.name] = reason
    wanted = _choose_layers(found, layers)
    if not wanted:
        raise SuiteError(_nothing_found(patterns, layers, found, skipped, rest))
    return Targets(tuple(wanted), skipped, max(numbers) + 1 if numbers else None)


def matches(name: str, pattern: str) -> bool:
    """Return whether a dotted name has ``pattern`` as whole pieces, or matches it as a glob."""
    return pattern == "all" or f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)


def layer_number(name: str) -> int | None:
    """Return the first whole number among the pieces of a dotted name."""
    return next((int(piece) for piece in name.split(".") if piece.isdecimal()), None)


def choose_layers(numbers: Iterable[int | None], layers: Layers) -> set[int | None]:
    """Return which layer numbers ``layers`` means.

    Args:
        numbers: The layers that exist; None stands for a module outside of any layer.
        layers: As in :func:`find_targets`.

    Raises:
        SuiteError: ``layers`` cannot be read, names a layer that is not there, or asks for more
            than there are. Only the default, :data:`LAST_LAYERS`, takes all where there are fewer.
    """
    there = set(numbers)
    ordered = sorted(n for n in there if n is not None)
    if layers == "all":
        return there
    if isinstance(layers, str):
        end = re.fullmatch(r"(first|last):(\d+)", layers)
        if end is not None and int(end[2]) > 0:
            count = int(end[2])
            if ordered and count > len(ordered) and layers != LAST_LAYERS:
                raise SuiteError(
                    f"layers: {layers} asks for {count} layers, and there are {len(ordered)} "
                    f"with watched modules: {', '.join(map(str, ordered))}. Write "
                    f"{end[1]}:{len(ordered)}, or all."
                )
            return set(ordered[:count] if end[1] == "first" else ordered[-count:])
        if not re.fullmatch(r"\d+(,\d+)*", layers):
            raise SuiteError(
                f"layers: {layers!r} cannot be read. Write all, last:3, first:2, 5, or 0,7,12."
            )
        layers = [int(number) for number in layers.split(",")]
    wanted = {layers} if isinstance(layers, int) else set(layers)
    if missing := wanted.difference(ordered):
        raise SuiteError(
            f"layers: there is no layer {', '.join(map(str, sorted(missing)))}; the watched "
            f"modules are in layers {', '.join(map(str, ordered)) or '(none)'}."
        )
    return set(wanted)


def _of_module(name: str, module: nn.Module, kind: Kind, biases: bool) -> Iterable[Target]:
    parts = _FUSED.get(name.rpartition(".")[2])
    if parts is None:
        yield Target(name, module, kind)
    else:
        for index, part in enumerate(parts):
            yield Target(f"{name}.{part}", module, kind, part=(index, len(parts)))
    if biases and module.bias is not None:
        yield Target(f"{name}.bias" if name else "bias", module, kind, "bias")


def _may_mean(stacked: str, pattern: str) -> bool:
    """Return whether a pattern means a tensor of several matrices, such as ``gate_up_proj``."""
    return matches(stacked, pattern) or stacked.endswith("_" + pattern.rpartition(".")[2])


def _reason_to_skip(target: Target, shared: set[int], include_frozen: bool) -> str | None:
    what, values = target.parameter, getattr(target.module, target.parameter)
    reason: str | None = None
    if what not in target.module._parameters:
        reason = f"its {what} is computed from other parameters (a parametrization or the like)"
    elif id(values) in shared:
        reason = f"its {what} is tied to another module's"
    elif not values.is_floating_point():
        reason = f"its {what} is quantised ({values.dtype})"
    elif has_own_forward(target.module, target.kind):
        reason = f"{type(target.module).__name__} has a forward of its own, maybe not W·x + b"
    elif what == "weight" and target.kind == "conv2d" and target.module.groups != 1:
        reason = "a convolution with groups is not one matrix"
    elif not (values.requires_grad or include_frozen):
        reason = f"its {what} is frozen"
    return reason


def _shared_parameters(model: nn.Module) -> set[int]:
    counts = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    return {key for key, count in counts.items() if count > 1}


def _choose_layers(found: list[Target], layers: Layers) -> list[Target]:
    if not found:
        return []
    chosen = choose_layers((target.layer for target in found), layers)
    return [target for target in found if target.layer in chosen]


def _nothing_found(
    patterns: Sequence[str],
    layers: Layers,
    found: Sequence[Target],
    skipped: dict[str, str],
    rest: Sequence[str],
) -> str:
    asked = ", ".join(map(repr, patterns))
    if found:
        return f"layers: {layers!r} leaves none of the {len(found)} modules that match {asked}."
    if skipped:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:4])
        return f"modules: all that match {asked} are skipped ({reasons})."
    kinds = sorted({re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in rest})
    hint = "".join(did_you_mean(p, {k.rpartition(".")[2] for k in kinds}) for p in patterns)
    return f"modules: nothing matches {asked}.{hint} There are: {', '.join(kinds) or 'none'}."
