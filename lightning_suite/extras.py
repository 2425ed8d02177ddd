"""Import what belongs to an optional extra, or say which command installs it."""

from __future__ import annotations

import importlib
from types import ModuleType

from lightning_suite.errors import MissingExtraError


def import_extra(module: str, extra: str) -> ModuleType:
    """Import ``module``, which the extra ``extra`` of this package installs.

    Args:
        module: Dotted module name, for example ``"matplotlib.pyplot"``.
        extra: Name of the extra in ``pyproject.toml``.

    Raises:
        MissingExtraError: The package is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        top = module.partition(".")[0]
        if err.name is None or err.name.partition(".")[0] != top:
            raise  # the package is there and broken inside: its own message says more
        raise MissingExtraError(
            f"'{top}' is not installed. It belongs to the extra '{extra}': "
            f"pip install 'lightning-suite[{extra}]'"
        ) from err
