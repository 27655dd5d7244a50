"""A person at a terminal, with the agent's own program."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Final

import anyio
import attrs

_LEADER: Final = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

_LIMIT_S: Final = 120.0
"""Seconds for one thing to happen: less than a test may take."""

_RETYPE_S: Final = 10.0
"""Seconds after which a program that shows nothing of a text has lost it: it was not ready yet."""

_ANSWERS: Final = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?62;22c", b"\x1b[>0q": b""}
"""What a terminal is asked, and what it answers."""

_CONTROLS: Final = re.compile(
    rb"\x1b\[[0-9;?<>=]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()]."
)


@attrs.define
class Terminal:
    """A terminal with a program in it, which answers what programs ask of terminals."""

    process: subprocess.Popen[bytes]
    _leader: int
    _output: bytearray = attrs.field(factory=bytearray)
    _typed_at: float = -inf
    _is_cleared: bool = True

    @property
    def text(self) -> str:
        """All that was printed, without control sequences."""
        return _CONTROLS.sub(b"", bytes(self._output)).decode("utf-8", "replace")

    def write(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def read(self) -> None:
        """Read until the terminal is closed. For a thread."""
        while True:
            try:
                piece = os.read(self._leader, 65_536)
            except OSError:
                return
            self._output += piece
            for question, answer in _ANSWERS.items():
                with suppress(OSError):
                    os.write(self._leader, answer * piece.count(question))

    async def shows(self, text: str) -> None:
        await self.until(lambda: text in self.text, f"{text!r} on the terminal")

    async def say(self, text: str, taken: object) -> None:
        """Type a text and Enter, again as long as it was not taken: a program may not be ready yet."""
        await self.until(lambda: self._type(text, taken), f"{text!r} being taken", 1.0)

    def _type(self, text: str, taken: object) -> bool:
        if taken():  # type: ignore[operator]
            return True
        # Programs write blanks as moves of the cursor.
        if text.replace(" ", "") in self.text.replace(" ", ""):
            self.write("\r")
        elif time.monotonic() - self._typed_at <= _RETYPE_S:
            pass
        elif self._is_cleared:
            self._typed_at, self._is_cleared = time.monotonic(), False
            self.write(text)
        else:  # what was typed may be shown late; Ctrl-U is only a key if it comes alone
            self._is_cleared = True
            self.write("\x15")
        return False

    async def ends(self) -> int:
        await self.until(lambda: self.process.poll() is not None, "its end")
        return self.process.returncode

    async def until(self, condition: object, what: str, pause_s: float = 0.05) -> None:
        with anyio.move_on_after(_LIMIT_S):
            while not condition():  # type: ignore[operator]
                await anyio.sleep(pause_s)
            return
        raise AssertionError(f"waited in vain for {what}: {self.text[-2000:]}")


@contextmanager
def terminal(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Iterator[Terminal]:
    """Start a program in a terminal of 80 by 24. It gets a hang-up at the end."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", _LEADER, *command],
        stdin=follower, stdout=follower, stderr=follower,
        env={**env, "TERM": "xterm-256color"}, cwd=cwd,
    )  # fmt: skip
    os.close(follower)
    shown = Terminal(process, leader)
    reader = threading.Thread(target=shown.read, daemon=True)
    reader.start()
    try:
        yield shown
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(leader)
        reader.join(60)


def prepare_for_people(home: Path, workspace: Path) -> None:
    """Answer what the programs ask a person at their first start."""
    if (config := home / "config.toml").exists():
        notice = '\n[tui]\nscreen_reader_detection_done = true\n\n[notice.model_migrations]\n"gpt-5.5" = "gpt-6-sol"\n'
        trusted = f'\n[projects."{workspace}"]\ntrust_level = "trusted"\n'
        config.write_text(config.read_text() + notice + trusted)
    elif (directory := home / ".claude").parent.exists():
        directory.mkdir(exist_ok=True)
        known = {
            "hasCompletedOnboarding": True,
            "customApiKeyResponses": {"approved": ["fake-key-1234"], "rejected": []},
            "projects": {str(workspace): {"hasTrustDialogAccepted": True}},
        }
        (directory / ".claude.json").write_text(json.dumps(known))
