"""Damage to files, as hypothesis draws it, and what a reader may do with a damaged file.

``HYPOTHESIS_PROFILE=full`` draws many more examples (see docs/reliability.md).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from lightning_suite.errors import SuiteError

FULL = os.environ.get("HYPOTHESIS_PROFILE") == "full"
SECONDS, BYTES = 10.0, 2**29  # most that reading a file of some kilobytes may take
OUTSIDE = "outside-of-the-folder"  # where no name in a file may lead
counted = {"examples": 0, "refused": 0}


def fuzz(quick: int, full: int) -> settings:
    """Return settings with so many examples in the usual run, and in the full one."""
    return settings(
        max_examples=full if FULL else quick,
        deadline=None,
        derandomize=not FULL,  # the usual run tests the same today and tomorrow
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )


# --- what a reader may do -------------------------------------------------------------------------

_watch: dict[str, Any] = {"on": False, "seen": []}
_FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watch["on"]:
        return
    if event in _FORBIDDEN or (event == "open" and OUTSIDE in str(arguments[0])):
        _watch["seen"].append((event, str(arguments)[:200]))


sys.addaudithook(_audit)


@contextmanager
def read_or_refused(*names: str | Path) -> Iterator[None]:
    """Let a block read a file, or refuse it with a message that has one of ``names``.

    Any other exception, an opened file outside of the folder, an unpickled object, a started
    process, half a gigabyte or ten seconds fail the test.
    """
    counted["examples"] += 1
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    _watch.update(on=True, seen=[])
    try:
        yield
        refusal = None
    except SuiteError as err:
        counted["refused"] += 1
        refusal = str(err)
    finally:
        _watch["on"] = False
    named = refusal is None or any(Path(name).name in refusal for name in names)
    assert named, f"names no file: {refusal}"
    assert _watch["seen"] == []
    assert time.process_time() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < BYTES


def nothing_half_written(folder: Path) -> None:
    """Check that a writer left no temporary file."""
    assert [path for path in folder.rglob(".*") if path.name.endswith("-partial")] == []


# --- damage ---------------------------------------------------------------------------------------

_DEEP = "\x00deep\x00"
ODD: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", " ", "x", "0", "-1", "1e999", "nan", "\x00", "\n", "a,b"),
    *(f"../{OUTSIDE}", f"/{OUTSIDE}/x", f"..\\{OUTSIDE}", "~", ".", "..", "hub:a/b:c:d", "[[["),
    *("\ud800", "\u2028", "\ufeff", "é" * 50, "a" * 5000, "{prompt}", "{0.__class__}", "(a+)+$"),
    *([], [[]], [None], {}, {"": ""}, {"a": {"b": [1]}}, [1, "a", None], ["a", "a"], _DEEP),
)
odd = st.sampled_from(ODD)
_INSERTED = (
    b"\x00",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    *(b"%c" % c for c in b'",{]\\'),
)


@st.composite
def bytes_of(draw: st.DrawFn, content: bytes, most: int = 3) -> bytes:
    """Damage bytes: flipped, cut, doubled, inserted, other line ends, nothing at all."""
    value = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.integers(0, 8))
        if kind == 0:
            return draw(
                st.sampled_from([b"", b"\n", b"\x00", b"\xef\xbb\xbf", b"[]", b"{}", b"null"])
            )
        if kind == 1:
            value = bytearray(
                bytes(value).replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b""])))
            )
        if not value:
            continue
        at = draw(st.integers(0, len(value) - 1))
        to = min(len(value), at + draw(st.integers(1, 64)))
        if kind in (2, 3, 4):
            value[at] = draw(st.integers(0, 255))
        elif kind == 5:
            del value[at:to]
        elif kind == 6:
            del value[at:]
        elif kind == 7:
            value[at:at] = value[at:to]
        elif kind == 8:
            value[at:at] = draw(st.sampled_from(_INSERTED))
    return bytes(value)


@st.composite
def text_of(draw: st.DrawFn, text: str) -> bytes:
    """Damage text: cells and words become odd values, or as :func:`bytes_of`."""
    if draw(st.booleans()):
        return draw(bytes_of(text.encode()))
    words = text.replace("\n", " \n ").replace(",", " , ").split(" ")
    for _ in range(draw(st.integers(1, 2))):
        words[draw(st.integers(0, len(words) - 1))] = str(draw(odd))
    joined = " ".join(words).replace(" \n ", "\n").replace(" , ", ",")
    return joined.encode("utf-8", "surrogatepass")


@st.composite
def value_of(draw: st.DrawFn, value: Any) -> Any:
    """Damage a JSON value: fields exchanged, taken out, renamed, doubled."""
    copy = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(copy))
        if not places:
            return deepcopy(draw(odd))
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.integers(0, 5))
        if kind <= 2:
            holder[key] = deepcopy(draw(odd))
        elif kind == 3:
            del holder[key]
        elif isinstance(holder, dict):
            holder[str(draw(odd))] = holder[key] if kind == 4 else holder.pop(key)
        else:
            holder.append(holder[key])
    return copy


@st.composite
def json_of(draw: st.DrawFn, value: Any, *, lines: bool = False) -> bytes:
    """Damage JSON: its values as :func:`value_of`, or its text as :func:`bytes_of`.

    Args:
        value: What it says; for ``lines`` a list, one item a line.
    """
    values = value if lines else [value]
    if draw(st.integers(0, 3)):
        values = draw(value_of(values))
    texts = [written(one) for one in values] if isinstance(values, list) else [written(values)]
    content = "\n".join(texts).encode("utf-8", "surrogatepass")
    return draw(bytes_of(content)) if draw(st.integers(0, 2)) == 0 else content


def written(value: Any) -> str:
    """Write JSON of any value of `ODD`."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace(json.dumps(_DEEP), "[" * 100_000 + "]" * 100_000)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)
