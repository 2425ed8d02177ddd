"""Measure :mod:`~lightning_suite.depth_mup.dynamics` in a model while it trains.

The probe keeps, from one training forward, a few rows of every block's input (and of the gradient
at its output). Everything else follows from running each block alone on these rows, with the
weights of now and with those of the reference: memory is bounded by ``rows``, and the training
forward itself is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_suite.depth_mup import dynamics
from lightning_suite.depth_mup.block_replay import (
    KeptRows,
    cannot_run_alone,
    find_matrices,
    first_tensor,
    measure_block,
    owner_of,
    take_rows,
)
from lightning_suite.depth_mup.dynamics import BlockMeasurement
from lightning_suite.depth_mup.roles import RoleMap
from lightning_suite.errors import SuiteError
from lightning_suite.module_names import modules_by_name


class StreamProbe:
    """Watches the residual blocks of one model.

    Args:
        model: Any module.
        role_map: What :func:`~lightning_suite.depth_mup.roles.assign_roles` found in it.
        rows: At most so many rows of a batch are kept; they are drawn by ``seed`` and the step.
        seed: Of the choice of rows. The global random state is never touched.

    Attributes:
        skipped: Hidden parameters that belong to no linear map known here (fused experts,
            ``nn.MultiheadAttention``): they count in the stream contributions and in
            ``relative_change``, and not in ``first_update``, ``last_update``, ``product``.

    Raises:
        SuiteError: No block has a trainable hidden matrix.

    Example:
        >>> from lightning_suite.depth_mup.models import ResidualMLP
        >>> from lightning_suite.depth_mup.roles import assign_roles
        >>> net = ResidualMLP(4, 2, width=8, depth=3, readout_init="normal")
        >>> probe = StreamProbe(net, assign_roles(net))
        >>> start = probe.snapshot()
        >>> with probe.attached():
        ...     probe.arm(step=0)
        ...     net(torch.randn(5, 4)).square().mean().backward()
        >>> dynamics.unpack(dynamics.pack(probe.measure(start))).depth
        3
    """

    def __init__(
        self, model: nn.Module, role_map: RoleMap, *, rows: int = 8, seed: int = 0
    ) -> None:
        if rows < 1:
            raise SuiteError(f"rows={rows}, and it must be at least 1.")
        self.rows = rows
        self.seed = seed
        # the innermost module where torch.compile has two of one clean name
        modules = modules_by_name(model)
        self._blocks = [find_matrices(name, modules[name], role_map) for name in role_map.blocks]
        if not any(block.first or block.last for block in self._blocks):
            raise SuiteError(
                f"none of the {len(self._blocks)} residual blocks has a trainable matrix: there "
                "is no learning to measure."
            )
        self.skipped = tuple(
            block.full(name)
            for block in self._blocks
            for name in (*block.first, *block.last)
            if not dynamics.is_linear_map(owner_of(block.module, name))
        )
        self._handles: list[RemovableHandle] = []
        self._armed = False
        self._step = 0
        self._seen: dict[int, KeptRows] = {}
        self._failure: SuiteError | None = None

    @property
    def armed(self) -> bool:
        """Whether the next forward is kept."""
        return self._armed

    @property
    def captured(self) -> bool:
        """Whether a forward was kept, or could not be, that is not measured yet."""
        return bool(self._seen) or self._failure is not None

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether these are still the blocks of ``model``: it may have been built anew since."""
        modules = modules_by_name(model)
        return all(modules.get(block.name) is block.module for block in self._blocks)

    def attach(self) -> None:
        """Put the hooks on the blocks, once; before the first call of a compiled model."""
        if self._handles:
            return
        for index, block in enumerate(self._blocks):
            before, after = self._hooks(index)
            self._handles.append(block.module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(block.module.register_forward_hook(after))

    def detach(self) -> None:
        """Remove the hooks and forget what they kept; may be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.disarm()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach inside the block."""
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def arm(self, step: int) -> None:
        """Keep the next forward: of every block its first call from now on.

        Args:
            step: Chooses the rows, together with the seed.
        """
        self.disarm()
        self._armed, self._step = True, step

    def disarm(self) -> None:
        """Keep nothing and forget what was kept."""
        self._armed = False
        self._seen.clear()
        self._failure = None

    def matrices(self) -> dict[str, nn.Parameter]:
        """Trainable hidden matrices of all blocks by clean full name."""
        return {
            block.full(name): block.module.get_parameter(name)
            for block in self._blocks
            for name in (*block.first, *block.last)
        }

    def snapshot(self, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Copy all hidden matrices: a reference for :meth:`measure`.

        Args:
            device: Where to; default: where they are. It takes as many bytes as they do.
        """
        return {
            name: matrix.detach().to(device or matrix.device, copy=True)
            for name, matrix in self.matrices().items()
        }

    def measure(self, reference: Mapping[str, Tensor]) -> list[BlockMeasurement | None]:
        """Measure every block on the rows that were kept, then forget them.

        Args:
            reference: W_0 by clean full name, from :meth:`snapshot`.

        Returns:
            One measurement a block, None for a block that did not run.

        Raises:
            SuiteError: A block cannot be run alone on some rows of its arguments.
        """
        out: list[BlockMeasurement | None] = []
        failure = self._failure
        for index, block in enumerate(self._blocks):
            seen = self._seen.get(index)
            if failure or seen is None or seen.output is None:
                out.append(None)
                continue
            try:
                out.append(measure_block(block, seen, reference))
            except Exception as err:
                failure = cannot_run_alone(block, err)
        self.disarm()
        if failure:
            raise failure
        return out

    def nothing(self) -> Tensor:
        """Return what :func:`~lightning_suite.depth_mup.dynamics.pack` makes of no measurement."""
        return dynamics.pack([None] * len(self._blocks))

    def _hooks(self, index: int) -> tuple[Callable[..., None], Callable[..., None]]:
        # Compiled models trace these tests and nothing more: what they guard runs eagerly, in
        # the few steps that are measured.
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._armed:
                self._guard(index, self._keep_input, args, kwargs)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if self._armed:
                self._guard(index, self._keep_output, output)

        return before, after

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _guard(self, index: int, keep: Callable[..., None], *values: Any) -> None:
        """Call ``keep``; its error waits for `measure`, for the model's forward is not to blame."""
        try:
            keep(index, *values)
        except Exception as err:
            self.disarm()
            self._failure = cannot_run_alone(self._blocks[index], err)

    def _keep_input(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if index in self._seen:
            return
        h = first_tensor((args, kwargs))
        if h is None:
            raise SuiteError("it was called without a tensor of two or more dimensions")
        rows = choose_rows(len(h), self.rows, self.seed, self._step).to(h.device)
        self._seen[index] = KeptRows(take_rows(args, rows, h), take_rows(kwargs, rows, h), rows)

    def _keep_output(self, index: int, output: Any) -> None:
        seen = self._seen.get(index)
        h = first_tensor(output)
        if seen is None or h is None or seen.output is not None:
            return
        seen.output = h.detach()[seen.rows]

        def keep_gradient(gradient: Tensor) -> None:
            seen.gradient = gradient.detach()[seen.rows]

        if h.requires_grad:
            h.register_hook(keep_gradient)


def fingerprint(matrices: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return a few entries of each matrix: equal for equal weights, on any device."""
    out = {}
    for name, matrix in matrices.items():
        flat = matrix.detach().flatten()
        out[name] = flat[:: max(1, flat.numel() // 8)][:8].double().tolist()
    return out


def choose_rows(batch: int, rows: int, seed: int, step: int) -> Tensor:
    """Return the sorted indices of at most ``rows`` out of ``batch`` rows.

    They depend on the arguments alone, and the global random state stays as it is.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randperm(batch, generator=generator)[:rows].sort().values
