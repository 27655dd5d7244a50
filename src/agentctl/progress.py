"""A progress line on the terminal, shown after a second of waiting."""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from agentctl.output import Output
from agentctl.terminal import dim, put
from agentctl.times import elapsed

_EVERY_S: Final = 1.0
"""Seconds until the line is shown, and between updates."""


@contextmanager
def waiting(output: Output, text: str | Callable[[], str]) -> Iterator[None]:
    """Show a progress line while the body runs, if a person watches and nothing else is live.

    A thread draws it, because the body may block this thread.

    :param text: the line, or a function that returns it.
    """
    if not output.interactive or output.announcer is not None or os.environ.get("TERM") == "dumb":
        yield
        return
    done, drawing = threading.Event(), threading.Lock()
    drawn = False

    def wipe() -> None:
        nonlocal drawn
        with drawing:
            if drawn:
                put(sys.stderr, "\r\x1b[K")
            drawn = False

    def draw() -> None:
        nonlocal drawn
        started = time.monotonic()
        while not done.wait(_EVERY_S):
            shown = text if isinstance(text, str) else text()
            line = f"… {shown} ({elapsed(time.monotonic() - started)})"
            line = line[: shutil.get_terminal_size().columns - 1]
            with drawing:
                drawn = True
                try:
                    put(sys.stderr, f"\r{dim(line, sys.stderr)}\x1b[K")
                except BrokenPipeError:  # the caller will encounter it, too
                    return

    def announce(note: str) -> None:
        wipe()
        put(sys.stderr, note + "\n")

    output.announcer = announce
    thread = threading.Thread(target=draw, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        output.announcer = None
        done.set()
        thread.join()
        wipe()
