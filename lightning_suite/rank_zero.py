"""Lightning's messages of the first process, for code that needs nothing else of Lightning.

Importing Lightning takes seconds, which a command such as ``bank remove`` would spend for nothing:
here it is imported when there is something to say.
"""

from __future__ import annotations


def rank_zero_info(message: str) -> None:
    """Log ``message`` in the first process alone."""
    from lightning.pytorch.utilities import rank_zero_info as say  # noqa: PLC0415

    say(message)


def rank_zero_warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn in the first process alone."""
    from lightning.pytorch.utilities import rank_zero_warn as say  # noqa: PLC0415

    say(message, category=category, stacklevel=5)  # Lightning's own 4, and this function
