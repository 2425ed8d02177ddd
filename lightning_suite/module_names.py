"""Names of modules and parameters, whatever compilation and sharding have wrapped around them."""

from __future__ import annotations

# What torch.compile, FSDP and activation checkpointing insert.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def clean_name(name: str) -> str:
    """Return a dotted name without what compilation and wrapping put into it."""
    return ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)
