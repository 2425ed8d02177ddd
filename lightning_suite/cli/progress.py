"""One line about how far a command is: rewritten on a terminal, a new one now and then in a log."""

from __future__ import annotations

import math
import sys
import time

_WIDTH = 79


class ProgressLine:
    """A line on standard error that says how far a command is.

    Args:
        in_log: Seconds between two lines where standard error is no terminal; infinite says
            nothing there.
        on_terminal: Seconds between two states of the line on a terminal.
        shown: Whether this process says anything.
    """

    def __init__(
        self, in_log: float = math.inf, on_terminal: float = 0.0, *, shown: bool = True
    ) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = shown
        self._pause = on_terminal if self._terminal else in_log
        self._start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._start

    def is_due(self) -> bool:
        """Whether it is time to say something."""
        return self._shown and time.monotonic() - self._last >= self._pause

    def show(self, text: str) -> None:
        """Say it, where it is time to."""
        if not self.is_due():
            return
        self._last = time.monotonic()
        print(
            f"\r{text:<{_WIDTH}}" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self._shown and self._terminal:
            print(f"\r{'':{_WIDTH}}\r", end="", file=sys.stderr, flush=True)
