"""A progress line on the terminal, shown after a second of waiting."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentctl.output import Output
from agentctl.terminal import put, truncated
from agentctl.times import elapsed

_EVERY_S: Final = 1.0
"""Seconds until the line is shown, and between updates."""


@contextmanager
def waiting(output: Output, text: str) -> Iterator[None]:
    """Show a progress line while the body runs, if a person watches and no other line is active.

    A thread draws it, because the body may block this thread.
    """
    is_busy = output.before_note is not None or output.announcer is not None
    if not output.interactive or is_busy or os.environ.get("TERM") == "dumb":
        yield
        return
    line = _Line(output, text)
    output.before_note = line.wipe
    thread = threading.Thread(target=line.draw, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        output.before_note = None
        line.done.set()
        thread.join()
        line.wipe()


class _Line:
    def __init__(self, output: Output, text: str) -> None:
        self._style = output.error_style
        self._text = text
        self._drawn = False
        self._drawing = threading.Lock()
        self.done = threading.Event()

    def draw(self) -> None:
        started = time.monotonic()
        ellipsis = self._style.symbol("…", "...")
        while not self.done.wait(_EVERY_S):
            text = f"{ellipsis} {self._text} ({elapsed(time.monotonic() - started)})"
            text = truncated(text, (self._style.columns or 80) - 1, ellipsis=ellipsis)
            with self._drawing:
                self._drawn = True
                try:
                    put(sys.stderr, f"\r{self._style.paint(text, 'dim')}\x1b[K")
                except BrokenPipeError:  # the caller will encounter it, too
                    return

    def wipe(self) -> None:
        with self._drawing:
            if self._drawn:
                put(sys.stderr, "\r\x1b[K")
                self._drawn = False
