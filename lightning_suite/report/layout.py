"""The frame of a report: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from lightning_suite.report.text import escape, shortened

_LINK = re.compile(r"https?://[^\s<>&\"']*[^\s<>&\"'.,;:)]")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = 160  # characters; no title that helps a reader is longer
_IN_BAR = 40
_PARAGRAPH = 5_000


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: Its heading, plain text.
        body: Its content, HTML.
    """

    title: str
    body: str


def render_page(title: str, header: str, sections: Sequence[Section]) -> str:
    """Return the HTML file.

    A content security policy forbids every request and every script but our own, so that a report
    can be opened safely even if the run folder came from someone else.

    Args:
        title: Title of the window, plain text.
        header: What stands above the sections, HTML.
        sections: The parts of the page, in order.
    """
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    anchors = _anchors(sections)
    links = "".join(
        f'<li><a href="#{anchor}">{escape(shortened(section.title, _IN_BAR))}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
        f'<h2 id="{anchor}-title">{heading(section.title)}</h2>\n{section.body}\n</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="lightning-suite">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
<script>{script}</script>
</head>
<body>
<a class="skip" href="#content">Skip to content</a>
<div class="bar"><nav aria-label="Sections"><ul>{links}</ul></nav>
<button type="button" id="theme" hidden>Theme</button></div>
<header class="top">
{header}
</header>
<main id="content">
{body}
</main>
</body>
</html>
"""


def heading(text: str) -> str:
    """Escape a title; the middle of one that is too long for a reader is left out."""
    return escape(shortened(text, _HEADING))


def prose(text: str) -> str:
    """Escape a caption; `` `code` `` becomes code and web addresses become links."""
    cut = text if len(text) <= _PARAGRAPH else f"{text[:_PARAGRAPH]} …"
    safe = _CODE.sub(r"<code>\1</code>", escape(cut))
    return _LINK.sub(lambda match: f'<a href="{match[0]}" rel="noreferrer">{match[0]}</a>', safe)


def notice(text: str) -> str:
    """Return a box for what could not be shown, and why."""
    return f'<p class="notice" role="note">{prose(text)}</p>'


def code_block(summary: str, text: str, *, open_: bool = False) -> str:
    """Return text in a folded block with a button that copies it."""
    return (
        f"<details class='card'{' open' if open_ else ''}><summary>{escape(summary)}</summary>"
        '<div class="copyable"><button type="button" class="copy" hidden>Copy</button>'
        f'<pre tabindex="0"><code>{escape(text)}</code></pre></div></details>'
    )


def _anchors(sections: Sequence[Section]) -> list[str]:
    anchors: list[str] = []
    for number, section in enumerate(sections, 1):
        words = re.sub(r"[^a-z0-9]+", "-", section.title[:_HEADING].lower()).strip("-")
        # "s-": no section title may take an id that the page itself uses
        anchor = f"s-{words or number}"
        anchors.append(anchor if anchor not in anchors else f"{anchor}-{number}")
    return anchors


def _resource(name: str) -> str:
    return resources.files("lightning_suite.report").joinpath(name).read_text(encoding="utf-8")
