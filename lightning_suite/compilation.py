"""Whether a model was compiled, so that hooks which are set later are not seen."""

from __future__ import annotations

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Return whether a model or a part of it was compiled.

    A compiled copy that ``model`` knows nothing of, as in ``fast = torch.compile(model)``, is not
    found from here.
    """
    # Lightning unwraps a compiled module and keeps what it needs to wrap it again
    return getattr(model, "_compiler_ctx", None) is not None or any(
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")  # torch.compile(module.forward)
        for module in model.modules()
    )
