"""A full-screen terminal display with key input."""

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

from agentctl.tables import Style, style_of
from agentctl.terminal import put

_KEY: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|O.)|\x1b|.", re.DOTALL)
_NAMES: Final = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "page up",
    "\x1b[6~": "page down", "\r": "enter", "\n": "enter", "\x7f": "erase", "\b": "erase",
    "\x1b": "escape", "\x04": "end",
}  # fmt: skip


class Screen:
    """Draws the whole screen. Only changed lines are written."""

    def __init__(self) -> None:
        self._drawn: list[str] = []
        self._size = (0, 0)

    @property
    def style(self) -> Style:
        """The output style, with the terminal's current width."""
        return style_of(sys.stdout)

    @property
    def rows(self) -> int:
        """The current number of lines."""
        return max(shutil.get_terminal_size((100, 24)).lines, 8)

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines from the top. Each must fit the width."""
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
        """Yield typed characters and names of keys."""
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
    """Use the whole terminal while the context is open."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        # Alternate screen, so that the old content comes back; hidden cursor; no line wrapping.
        put(sys.stdout, "\x1b[?1049h\x1b[?25l\x1b[?7l")
        yield Screen()
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        put(sys.stdout, "\x1b[?7h\x1b[?25h\x1b[?1049l")


async def on_resize(act: Callable[[], None]) -> None:
    """Call ``act`` whenever the terminal's size changes."""
    with anyio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            act()
