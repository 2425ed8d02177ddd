"""The errors that a user is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

# Where inside an option: keys of mappings and numbers of list items, from the outside in.
Place = tuple[str | int, ...]


class SuiteError(ValueError):
    """Something in the user's input cannot be used as it is.

    The message names the file, row or key, what was expected, and what to do. The command line
    prints it without a traceback and exits with status 2.
    """


class MissingExtraError(SuiteError, ImportError):
    """A package of an optional extra is not installed."""


class PlacedError(SuiteError):
    """Parts of one option cannot be used, each at its own place.

    Attributes:
        places: Where in the option's value, and what is wrong there; the message says it all.

    Args:
        option: As the user writes it.
        places: See above.

    Example:
        >>> raise PlacedError("features", [((0,), "'grad_nrom' is unknown.")])
        Traceback (most recent call last):
        lightning_suite.errors.PlacedError: features: 'grad_nrom' is unknown.
    """

    def __init__(self, option: str, places: Sequence[tuple[Place, str]] = ()) -> None:
        texts = " ".join(text for _, text in places)
        super().__init__(f"{option}: {texts}" if places else option)  # alone: a copy's message
        self.places = tuple(places)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known word, or an empty string.

    Args:
        word: What the user wrote.
        known: All words that would have been right.
    """
    near = closest(word, known)
    return f" Did you mean {near!r}?" if near else ""


def closest(word: object, known: Iterable[str]) -> str:
    """Return the known word that is most like ``word``; an empty string if none is like it."""
    if not isinstance(word, str):  # YAML and JSON may say anything
        return ""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else ""


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a :class:`SuiteError` unless ``value`` is one of ``choices``.

    Args:
        name: The argument, as the user writes it.
        value: What the user wrote.
        choices: What would have been right.
    """
    if not isinstance(value, str) or value not in choices:
        raise SuiteError(
            f"{name}={value!r} is not known.{did_you_mean(value, choices)} "
            f"Choose one of: {', '.join(choices)}."
        )
