"""Names of modules and parameters, whatever compilation and sharding have wrapped around them."""

from __future__ import annotations

from torch import nn

# What torch.compile, FSDP and activation checkpointing insert.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def clean_name(name: str) -> str:
    """Return a dotted name without what compilation and wrapping put into it."""
    return ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)


def clean_module_name(name: str) -> str:
    """Return a module's name of ``named_modules`` without wrappers; theirs is that of the inner."""
    return clean_name(f"{name}.").rstrip(".")  # the dot: a wrapped module at the top has no name


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return clean name to module; the innermost of several that a wrapper gives the same name."""
    return {clean_module_name(name): module for name, module in model.named_modules()}
