"""Options that are lists: separated by commas on the command line, a list in a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_suite.errors import SuiteError


def listed(value: str | float | Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """Return the items of an option; words are stripped, and empty ones left out.

    >>> listed("sp, nfd,"), listed(["sp", "nfd"]), listed(4)
    (['sp', 'nfd'], ['sp', 'nfd'], [4])
    """
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return list(value) if isinstance(value, Sequence) else [value]


def whole_numbers(name: str, value: str | int | Sequence[int]) -> tuple[int, ...]:
    """Return an option's numbers.

    Args:
        name: Of the option.
        value: As it was given.

    Raises:
        SuiteError: One of the items is no whole number.
    """
    try:
        return tuple(int(word) for word in listed(value))
    except ValueError:
        raise SuiteError(
            f"{name}: {value!r} is not a list of whole numbers. Write for example 2,8,32."
        ) from None
