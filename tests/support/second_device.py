"""A device that is not the CPU, for machines without one: strict as a GPU, with the CPU's numbers.

Its tensors hold a tensor of the CPU that no other code sees, and refuse what a GPU refuses: an
operation with a tensor of another device (but for scalars, and for indices), ``numpy()``. What
makes the host wait for a GPU is written down. So code that was only ever run on CPUs shows here
whether it keeps its tensors where they belong; of a GPU's kernels, types, streams and memory it
says nothing.

:func:`install` changes the process for good, so tests that need it run in one of their own:
``tests/integration/test_second_device.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

NAME = "second"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")

_waits: Counter[str] = Counter()
_libraries: list[torch.library.Library] = []  # what they register goes with them
# A GPU takes indices of the CPU, too.
_INDEXED = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
_WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
# Of these torch would make an empty tensor and have another operation give it a size.
_MAKERS = (
    *("arange", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint"),
    *("randn", "randperm", "range", "scalar_tensor", "tril_indices", "triu_indices", "zeros"),
)
_PLAIN = ("_copy_from", "_to_copy", "alias", "copy_", "detach", "lift", "lift_fresh")


class SecondTensor(torch.Tensor):
    """A tensor of the second device; ``raw`` is what it holds."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> SecondTensor:
        made: SecondTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"SecondTensor({self.raw!r})"

    def set_(self, source: SecondTensor) -> SecondTensor:  # type: ignore[override]
        """A wrapper's size is for good: another one of the same memory takes its place."""
        return SecondTensor(torch.empty(0, dtype=source.dtype).set_(source.raw))

    def tolist(self) -> Any:
        _waits["tolist"] += 1
        return self.raw.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")

    __array__ = numpy


class _Module:
    """What ``torch.second`` says of the device; random numbers are the CPU's."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """The CPU's generator has been seeded already."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class SecondAccelerator(CPUAccelerator):
    """Lightning's own for CPUs refuses any other device."""

    def setup_device(self, device: torch.device) -> None:
        pass


def install() -> None:
    """Register the device with torch, once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    rest, ops = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(_run, "PrivateUse1")
    for name in _PLAIN:
        ops.impl(name, partial(_run, getattr(torch.ops.aten, name).default), "PrivateUse1")
    for name in _MAKERS:
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            if any(a.name == "device" for a in op._schema.arguments) and "name" not in overload:
                ops.impl(op.name().removeprefix("aten::"), partial(_run, op), "PrivateUse1")
    _libraries.extend((rest, ops))
    # a parameter that moves stays the object that it is, and tied ones stay tied
    torch.__future__.set_swap_module_params_on_conversion(True)


def trainer_options(*, second: bool) -> dict[str, Any]:
    """Return options of a Trainer that trains on the second device, or as it would there."""
    # a wrapper cannot be made in inference mode
    options: dict[str, Any] = {"inference_mode": False}
    if not second:
        return {"accelerator": "cpu", **options}
    device = torch.device(NAME, 0)
    return {
        "accelerator": "auto",
        "strategy": SingleDeviceStrategy(device=device, accelerator=SecondAccelerator()),
        **options,
    }


@contextmanager
def waits_counted() -> Iterator[Counter[str]]:
    """Count what makes the host wait for the device, by the name of the operation."""
    _waits.clear()
    counted: Counter[str] = Counter()
    yield counted
    counted.update(_waits)


def on_cpu(value: Any) -> Tensor:
    """Return a tensor of the CPU, of whatever it was."""
    if isinstance(value, SecondTensor):
        value = value.raw
    return torch.as_tensor(value).detach()


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func._schema.name
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
    ours = [x for x in tensors if isinstance(x, SecondTensor)]
    _look(name, args, kwargs, tensors)
    if name == "aten::_fused_sdp_choice":
        return 0  # plain arithmetic: which fused kernel there is, is the device's affair
    there = bool(ours)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
    with torch.no_grad():
        out = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    same = {id(_raw(x)): x for x in tensors} if func._schema.is_mutable else {}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor) or id(x) in same:
            return same.get(id(x), x)
        return SecondTensor(x) if there else x

    return tree_map(wrapped, out)


def _look(name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Refuse what a GPU refuses, and note what makes the host wait."""
    ours = any(isinstance(x, SecondTensor) for x in tensors)
    if name == "aten::_to_copy":
        to = kwargs.get("device")
        if ours and to is not None and torch.device(to).type != NAME:
            _waits[name] += 1
    elif name == "aten::copy_":
        if ours and not isinstance(args[0], SecondTensor):
            _waits[name] += 1
    elif ours:
        if name in _WAITING:
            _waits[name] += 1
        others = [x for x in tensors if not isinstance(x, SecondTensor) and x.dim()]
        if name in _INDEXED and isinstance(args[0], SecondTensor):
            others = []
        if others:
            raise RuntimeError(
                f"{name}: expected all tensors on {NAME}:0, found one of shape "
                f"{tuple(others[0].shape)} on {others[0].device}"
            )


def _raw(x: Any) -> Any:
    if isinstance(x, SecondTensor):
        return x.raw
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x
