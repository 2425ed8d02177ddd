"""Put SVG figures into an HTML page: safe, without clashes of ids, in the colours of the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lightning_suite.errors import SuiteError
from lightning_suite.report.style import GRID, INK, PAPER
from lightning_suite.report.text import visible

_TAGS = frozenset(
    {"svg", "g", "defs", "clipPath", "mask", "marker", "pattern", "symbol", "use", "image"}
    | {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"}
    | {"linearGradient", "radialGradient", "stop"}
)
_ELSEWHERE = re.compile(
    r"url\s*\((?!\s*['\"]?#)|(image(-set)?|src)\s*\(|javascript:|@import|\\", re.I
)
_HREF = re.compile(r"#|data:image/(png|jpeg);base64,")
_URL = re.compile(r"url\s*\(\s*(['\"]?)#")
_THEME = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--card)"}


def inline_svg(text: str, *, prefix: str, label: str) -> str:
    """Return an ``<svg>`` element that can stand inside an HTML page.

    Only drawing elements are kept; scripts, style sheets, event handlers and whatever would load
    something from elsewhere are dropped, for the file may come from someone else. Width and height
    are left to the page.

    Args:
        text: The SVG file.
        prefix: Put before every id, so that two figures cannot share one.
        label: What a screen reader says.

    Returns:
        The element. It has the class ``themed`` if it was drawn in the suite's style and follows
        the page's colours, else ``paper``: it then needs a white ground.

    Raises:
        SuiteError: The text is not an SVG file.
    """
    if "<!ENTITY" in text:
        raise SuiteError("the SVG file defines entities, which figures do not need")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as err:
        raise SuiteError(f"not a readable SVG file ({err})") from err
    if _local(root.tag) != "svg":
        raise SuiteError("not an SVG file")
    themed = PAPER in text
    view = root.get("viewBox")
    width, height = (
        (float(number) for number in view.split()[2:])
        if view and re.fullmatch(r"(-?\d+(\.\d*)?\s+){3}\d+(\.\d*)?", view)
        else (0.0, 0.0)
    )
    for name in ("width", "height", "version", "style", "class"):  # the place of it is the page's
        root.attrib.pop(name, None)
    try:
        _clean(root, prefix, themed)
        root.attrib |= {
            "role": "img",
            "aria-label": visible(label),
            "class": ("themed" if themed else "paper") + (" wide" if width > 400 else ""),
        }
        if width > 400:  # the page scrolls it before its letters get too small to read
            root.set("style", f"--drawn: {width:.0f}px; --high: {height:.0f}px")
        return ElementTree.tostring(root, encoding="unicode")
    except RecursionError:
        raise SuiteError("the SVG file is nested too deeply") from None


def _clean(element: ElementTree.Element, prefix: str, themed: bool) -> None:
    element.tag = _local(element.tag)
    element.tail = None if not (element.tail or "").strip() else element.tail
    element.attrib = {
        name: value
        for name, value in (
            (_local(name), _attribute(_local(name), value, prefix, themed))
            for name, value in element.attrib.items()
        )
        if value is not None
    }
    for child in list(element):
        if isinstance(child.tag, str) and _local(child.tag) in _TAGS:
            _clean(child, prefix, themed)
        else:
            element.remove(child)


def _attribute(name: str, value: str, prefix: str, themed: bool) -> str | None:
    if name.lower().startswith("on") or _ELSEWHERE.search(value):
        return None
    if name == "id":
        return prefix + value
    if name == "href":
        if not _HREF.match(value):
            return None
        return f"#{prefix}{value[1:]}" if value.startswith("#") else value
    value = _URL.sub(rf"url(\g<1>#{prefix}", value)
    if themed and name == "style":
        for color, replacement in _THEME.items():
            value = value.replace(color, replacement)
    return value


def _local(name: str) -> str:
    return name.rpartition("}")[2]
