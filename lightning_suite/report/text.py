"""What names and texts of others look like on a page and in a figure.

A name may hold anything: control characters, halves of characters, marks that turn the direction
of the text around, ten thousand letters without a break.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import PurePath
from urllib.parse import quote

# Control characters, marks that reorder what stands around them, halves of characters, and what
# no character is. HTML and XML forbid most of them, files in UTF-8 the halves.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff"
    "\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""Write characters that have no shape, and those that reorder others, as their escapes.

    Tabs and ends of lines stay.

    >>> print(visible("a\x00b\u202ec"))
    a\x00b\u202ec
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape(text: str) -> str:
    """Escape a text for HTML, in element content as in quoted attributes; see `visible`."""
    return html.escape(visible(text))


def shortened(text: str, most: int) -> str:
    """Return a name as a figure can hold it: one line of at most ``most`` characters.

    What is left out is in the middle: like names often differ at their ends only. An empty name
    gets a dash and one with a leading underscore a space, for matplotlib's legends pass over both.

    >>> shortened("model.layers.0.mlp.up_proj", 15)
    'model.l…up_proj'
    """
    line = " ".join(visible(text).split()) or "—"
    line = f" {line}" if line.startswith("_") else line
    if len(line) <= most:
        return line
    head = most // 2
    return f"{line[:head].rstrip()}…{line[len(line) - (most - 1 - head) :].lstrip()}"


def relative_link(path: str | PurePath) -> str:
    """Return a relative path as a link; its bytes are those of the file's name."""
    text = path.as_posix() if isinstance(path, PurePath) else path
    return quote(os.fsencode(text))
