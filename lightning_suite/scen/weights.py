"""Which weights does a model have, and are they still those of a moment ago?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Of each weight, as many numbers go into the hash: any training moves nearly all of them.
_HASHED = 4096
_STAMPED = 4  # and into the stamp, which is made for every question


def weights_hash(model: nn.Module) -> str:
    """Return a hash of names, shapes and types of all weights, and of a sample of each.

    Weights are parameters and buffers. Those buffers that a model makes itself and does not save,
    such as the frequencies of rotary embeddings, count with four digits, as the last ones depend
    on the machine, and without their names, which depend on the version of the library.
    """
    digest: Any = hashlib.sha256()
    saved = {name for name, _ in model.named_parameters()} | _saved_buffers(model)
    made = set()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // _HASHED)].cpu().contiguous()
        if name in saved:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(sample.view(torch.uint8).numpy())
        else:
            numbers = " ".join(f"{number:.4g}" for number in sample.tolist())
            made.add(f"{tuple(tensor.shape)} {numbers}\n")
    for line in sorted(made):
        digest.update(line.encode())
    return str(digest.hexdigest())


def weights_stamp(model: nn.Module) -> tuple[Any, ...]:
    """Return what differs from the stamp before if the model computes something else by now.

    Where each weight lies, its type, how often it was written to, a few of its numbers (for writes
    that are not counted), and which adapters act. It takes a millisecond or two.
    """
    weights = [*model.parameters(), *model.buffers()]
    places = tuple(
        (w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version) for w in weights
    )
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for weight in weights:
        flat = weight.detach().flatten()
        part = flat[:: max(1, len(flat) // _STAMPED)]
        samples.setdefault((weight.dtype, weight.device), []).append(part)
    numbers = tuple(
        bytes(torch.cat(parts).cpu().view(torch.uint8).numpy()) for parts in samples.values()
    )
    return places, numbers, tuple(_adapters(model))


def _saved_buffers(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }


def _adapters(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield what peft's layers say of which of their adapters act."""
    for module in model.modules():
        off = getattr(module, "_disable_adapters", None)
        if isinstance(off, bool):
            active = getattr(module, "active_adapters", ())
            yield off, tuple(active), tuple(getattr(module, "merged_adapters", ()))
