"""The whole of a terminal: drawn over, read key by key, and given back as it was."""

import os
import re
import shutil
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio

from agentctl.terminal import Style, put, style_of

_KEY: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.)|\x1b|.", re.DOTALL)
_NAMES: Final = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "page up",
    "\x1b[6~": "page down", "\r": "enter", "\n": "enter", "\x7f": "erase", "\b": "erase",
    "\x1b": "escape", "\x04": "end",
}  # fmt: skip


class Screen:
    """Draws whole pictures; only lines that differ from the last one are written."""

    def __init__(self) -> None:
        self._drawn: list[str] = []
        self._size = (0, 0)

    @property
    def style(self) -> Style:
        """Return how to write to it, as wide as it is now."""
        return style_of(sys.stdout)

    @property
    def rows(self) -> int:
        """How many lines it has now."""
        return max(shutil.get_terminal_size((100, 24)).lines, 8)

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines from the top; each must fit."""
        size = tuple(shutil.get_terminal_size((100, 24)))
        shown = list(lines[: self.rows])
        before = self._drawn if size == self._size else []
        parts = [] if before else ["\x1b[2J"]
        for row in range(max(len(shown), len(before))):
            line = shown[row] if row < len(shown) else ""
            if row >= len(before) or before[row] != line:
                parts.append(f"\x1b[{row + 1};1H{line}\x1b[K")
        self._drawn, self._size = shown, (size[0], size[1])
        if parts:
            put(sys.stdout, "".join(parts))

    async def keys(self) -> AsyncIterator[str]:
        """Yield what is typed: a character, or a key's name."""
        descriptor = sys.stdin.fileno()
        while True:
            await anyio.wait_readable(descriptor)
            typed = os.read(descriptor, 1024)
            if not typed:
                return
            for match in _KEY.finditer(typed.decode(errors="replace")):
                yield _NAMES.get(match.group(), match.group())


@contextmanager
def full_screen() -> Iterator[Screen]:
    """Take the terminal while the scope lasts."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        # The other screen, so that what was there comes back; no cursor; no lines that wrap.
        put(sys.stdout, "\x1b[?1049h\x1b[?25l\x1b[?7l")
        yield Screen()
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        put(sys.stdout, "\x1b[?7h\x1b[?25h\x1b[?1049l")


async def on_resize(act: Callable[[], None]) -> None:
    """Act whenever the terminal's size has changed."""
    with anyio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            act()
