"""Read JSON that others wrote: what it says can be worked with, or it is refused."""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 100  # levels; ten times what any file of this package has
_LONE = re.compile("[\ud800-\udfff]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def load_json(content: str | bytes) -> Any:
    """Return what JSON says, where it says something that can be worked with.

    As ``json.loads``, but a byte order mark is no mistake, and what would break its users later is
    one: nesting beyond `DEEPEST` levels, on which recursive functions overflow the stack, and
    halves of characters (lone surrogates), which cannot be written to any file.

    Raises:
        ValueError: It is no JSON in UTF-8, or of that kind.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        text = text.removeprefix("\ufeff")
        value = json.loads(text)
        # The walk takes longer than the parser: only where there can be something to find.
        if text.count("[") + text.count("{") > DEEPEST or _SURROGATE.search(text):
            _check(value)
    except RecursionError as err:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from err
    return value


def _check(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += item
                inside += item.values()
            elif isinstance(item, list):
                inside += item
            elif isinstance(item, str) and _LONE.search(item):
                raise ValueError(f"{item[:40]!r} holds half a character (a surrogate)")
        if not inside:
            return
        level = inside
    raise RecursionError
