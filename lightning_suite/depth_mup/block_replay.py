"""Run one residual block again on a few rows, with the weights of now and with earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_suite.depth_mup import dynamics
from lightning_suite.depth_mup.dynamics import BlockMeasurement
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import clean_name
from lightning_suite.seeding import draws_undone


@dataclass
class Block:
    """A residual block and its trainable hidden matrices, by their names inside the block."""

    name: str
    module: nn.Module
    first: tuple[str, ...]
    last: tuple[str, ...]

    def full(self, parameter: str) -> str:
        """Return the clean full name of a parameter of the block."""
        return clean_name(f"{self.name}.{parameter}")


@dataclass
class KeptRows:
    """What the hooks kept of one block in the armed forward: rows only."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Tensor
    output: Tensor | None = None
    gradient: Tensor | None = None


@dataclass
class _Evaluation:
    output: Tensor
    # name of the matrix inside the block -> its input
    inputs: dict[str, Tensor] = field(default_factory=dict)


def find_matrices(name: str, module: nn.Module, role_map: RoleMap) -> Block:
    """Return the block ``name`` with those of its matrices that are hidden and trained."""
    by_role: dict[str, list[str]] = {"hidden_first": [], "hidden_last": []}
    for inner, parameter in module.named_parameters():
        role = role_map.roles.get(clean_name(f"{name}.{inner}"), "")
        if parameter.requires_grad and parameter.ndim >= 2 and role in by_role:
            by_role[role].append(inner)
    return Block(name, module, tuple(by_role["hidden_first"]), tuple(by_role["hidden_last"]))


def owner_of(block: nn.Module, parameter: str) -> nn.Module:
    """Return the module that holds a parameter of a block, named as inside the block."""
    return block.get_submodule(parameter.rpartition(".")[0])


def first_tensor(tree: Any) -> Tensor | None:
    """Return the first floating-point tensor of two or more dimensions: the stream."""
    if isinstance(tree, Tensor):
        return tree if tree.is_floating_point() and tree.ndim >= 2 else None
    children = tree.values() if isinstance(tree, Mapping) else tree
    if isinstance(tree, (Mapping, tuple, list)):
        return next((t for child in children if (t := first_tensor(child)) is not None), None)
    return None


def cannot_run_alone(block: Block, error: Exception) -> SuiteError:
    """Return the error that says so, with its cause."""
    text = f"the block {block.name!r} cannot be run alone on some rows of its arguments: "
    failure = SuiteError(f"{text}{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def take_rows(tree: Any, rows: Tensor, stream: Tensor) -> Any:
    """Keep ``rows`` of every tensor with the batch dimension of ``stream``; drop key-value caches.

    A cache already holds this forward's keys; running the block again would append them.
    """
    if isinstance(tree, Tensor):
        return _rows_of(tree.detach(), rows, stream) if tree is not stream else tree.detach()[rows]
    if isinstance(tree, Mapping):
        return {
            key: False if key == "use_cache" else take_rows(value, rows, stream)
            for key, value in tree.items()
        }
    if isinstance(tree, (tuple, list)):
        return type(tree)(take_rows(value, rows, stream) for value in tree)
    return None if hasattr(tree, "get_seq_length") else tree


def _rows_of(tensor: Tensor, rows: Tensor, stream: Tensor) -> Tensor:
    """Take the rows of a block's further argument: a mask, positions, a condition.

    A vector is never indexed: positions of a sequence as long as the batch would be taken for
    rows. Nor is what is square in the sequence's length (a mask of all rows), for the same reason.
    Where samples and heads share the first dimension (``[B * heads, 1, T]``, Bloom's ALiBi), each
    kept row keeps all its heads.
    """
    batch, length = len(stream), stream.shape[1] if stream.ndim >= 3 else None
    if tensor.ndim < 2 or tensor.shape == (length, length):
        return tensor
    if len(tensor) == batch:
        return tensor[rows]
    if tensor.ndim >= 3 and len(tensor) % batch == 0 and len(tensor) != length:
        return tensor.reshape(batch, -1, *tensor.shape[1:])[rows].flatten(0, 1)
    return tensor


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_cast(value, dtype) for value in tree)
    return tree


def _evaluate(block: Block, seen: KeptRows, weights: Mapping[str, Tensor]) -> _Evaluation:
    """Run the block on the kept rows with ``weights``, in training mode and without a trace.

    Buffers are copies (batch statistics), and the random state is put back, so that all
    evaluations of a step share their dropout masks and training goes on as if none had run.
    """
    result = _Evaluation(torch.empty(0))
    device = seen.rows.device
    dtype = next(w.dtype for w in weights.values() if w.is_floating_point())

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            result.inputs.setdefault(name, args[0])

        return hook

    with ExitStack() as stack:
        for name in (*block.first, *block.last):
            owner = owner_of(block.module, name)
            if dynamics.is_linear_map(owner):
                handle = owner.register_forward_pre_hook(keep(name))
                stack.callback(handle.remove)
        stack.enter_context(draws_undone(device))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        output = functional_call(
            block.module, dict(weights), _cast(seen.args, dtype), _cast(seen.kwargs, dtype)
        )
    h = first_tensor(output)
    assert h is not None  # the training forward had one
    result.output = h
    return result


def _wide(tensor: Tensor) -> Tensor:
    """Return at least float32: differences of half-precision numbers are rounding noise."""
    tensor = tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def measure_block(
    block: Block, seen: KeptRows, reference: Mapping[str, Tensor]
) -> BlockMeasurement:
    """Run a block with its weights of now and with those of the reference, and compare.

    Args:
        block: The block.
        seen: What it was called with; its output is there.
        reference: W_0 by clean full name.
    """
    now = {name: _wide(p) for name, p in block.module.named_parameters()}
    old = {
        name: reference[block.full(name)].to(now[name].device, now[name].dtype)
        for name in (*block.first, *block.last)
    }
    old_first = {name: old[name] for name in block.first}
    old_last = {name: old[name] for name in block.last}

    def run(changed: Mapping[str, Tensor]) -> _Evaluation:
        buffers = {name: _wide(buffer).clone() for name, buffer in block.module.named_buffers()}
        return _evaluate(block, seen, {**buffers, **now, **changed})

    full = run({})
    without_last = run(old_last)
    without_both = run({**old_last, **old_first}) if block.first else None

    delta = {name: now[name] - old[name] for name in old}

    def updates(names: tuple[str, ...], inputs: Mapping[str, Tensor]) -> Tensor:
        return dynamics.mean_square(
            dynamics.apply_weight(owner_of(block.module, name), delta[name], inputs[name])
            for name in names
            if name in inputs
        )

    assert seen.output is not None
    h = _wide(seen.output)
    scalars = {
        "first_update": updates(block.first, full.inputs),
        "last_update": updates(block.last, full.inputs),
        "relative_change": _relative_change(delta, old),
    }
    if without_both is not None:
        changes = {
            name: full.inputs[name] - without_both.inputs[name]
            for name in block.last
            if name in full.inputs
        }
        scalars["product"] = updates(block.last, changes)
    if seen.gradient is not None:
        scalars["coupling"] = dynamics.row_cosines(h, seen.gradient)
    return BlockMeasurement(
        scalars,
        dynamics.gram(h),
        without_last.output - without_both.output if without_both is not None else None,
        full.output - without_last.output,
    )


def _relative_change(delta: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Tensor:
    if not old:
        return torch.tensor(math.nan)
    change = torch.stack([d.square().sum() for d in delta.values()]).sum()
    return (change / torch.stack([w.square().sum() for w in old.values()]).sum()).sqrt()
